"""Small trainings that record what each step trained on, in this process or in several: what the trainer's tests
compare.

Run as a script, it is one process of a distributed training: `torchrun ... runs.py folder`.
"""

import json
import os
import subprocess
import sys
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

from rsr_trl.training.config import RSRSFTConfig
from rsr_trl.training.trainer import RSRSFTTrainer


REPOSITORY = Path(__file__).resolve().parents[2]
DEFAULTS = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,  # large: the order of scores changes from pass to pass
    "lr_scheduler_type": "constant",
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
    "report_to": "none",
    "logging_steps": 1,
    "save_strategy": "no",
    "disable_tqdm": True,
}
BY_SCORE = {"rsr_sampling": "weighted", "rsr_rescore_strategy": "epoch"}  # most tests are of what scores decide


def examples(n: int = 19, seed: int = 0) -> list[dict[str, Any]]:
    """`n` different prompts and completions of different lengths, in groups of about three, by three teachers."""
    rng = np.random.default_rng(seed)

    def text(shortest: int, end: int) -> str:
        return "".join(rng.choice(list("abcdefghij 0123456789=+"), rng.integers(shortest, end)))

    rows = ((f"{i}: {text(1, 8)} =", f" {text(2, 20)}", f"p{i // 3}", "ABC"[i % 3]) for i in range(n))
    return [dict(zip(("prompt", "completion", "problem", "teacher"), row, strict=True)) for row in rows]


class Recording:
    """Notes of every micro-batch its step, its rows as texts of token ids, and its loss, exactly."""

    record: list[tuple[int, list[str], str]]

    def training_step(self, model, inputs, num_items_in_batch=None):
        if "attention_mask" in inputs:
            rows = [ids[mask.bool()] for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
        else:
            rows = inputs["input_ids"][0].tensor_split(inputs["cu_seq_lens_q"][1:-1].tolist())
        rows = [" ".join(map(str, row.tolist())) for row in rows]
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.record.append((self.state.global_step, [row for row in rows if row != "0 0"], loss.item().hex()))
        return loss


class RecordingSFT(Recording, SFTTrainer):
    pass


class RecordingRSRSFT(Recording, RSRSFTTrainer):
    pass


def build(student: str, output_dir: str, rows, args, plain=False, model=None, tokenizer=None, config=None, **kwargs):
    """A recording trainer; `plain`: SFTTrainer instead of RSRSFTTrainer."""
    usual, trainer_class = (SFTConfig, RecordingSFT) if plain else (RSRSFTConfig, RecordingRSRSFT)
    usual = config or usual
    if issubclass(usual, RSRSFTConfig):
        args = {"rsr_min_tokens": 0} | args  # the examples are short
    trainer = trainer_class(
        model or AutoModelForCausalLM.from_pretrained(student, dtype="float32"),
        args=usual(output_dir, **DEFAULTS | ({} if plain or config else BY_SCORE) | args),
        train_dataset=rows if isinstance(rows, Dataset) else Dataset.from_list(rows),
        processing_class=tokenizer or AutoTokenizer.from_pretrained(student),
        **kwargs,
    )
    trainer.record = []
    return trainer


def run(student: str, output_dir: str, rows, args, resume_from: str | None = None, plain=False) -> dict[str, Any]:
    """
    Train and return what happened: `record` of the micro-batches of this process (step, rows, loss as hex), the final
    `table` and `steps_measured`, the `logs`, and the weights as one number.
    """
    set_seed(0)
    trainer = build(student, output_dir, rows, args, plain)
    model = trainer.model
    trainer.train(resume_from_checkpoint=resume_from)
    result = {
        "record": trainer.record,
        "logs": trainer.state.log_history,
        "weights": sum(p.double().abs().sum().item() for p in model.parameters()).hex(),
    }
    if not plain:
        result |= {"table": trainer.table.rsr.tolist(), "steps_measured": trainer.table.step.tolist()}
    return result


def launch(*command: str, processes: int = 1, cwd: Path | None = None) -> str:
    """Run a script in a process of its own, or under torchrun in several. Returns what it printed."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, *(torchrun if processes > 1 else []), *command]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, cwd=cwd)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def on_processes(script: str, folder: Path, *arguments: str, processes: int = 2) -> list[Any]:
    """Run a script that ends in `leave` on real processes. Returns what each of them left."""
    launch(script, str(folder), *arguments, processes=processes)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]


def run_on(processes: int, jobs: list[dict[str, Any]], folder: Path) -> list[list[dict[str, Any]]]:
    """`run(**job)` for one job after another on one process or several. Returns the results of each process by job."""
    if processes == 1:
        return [[run(**job)] for job in jobs]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    return [list(of_job) for of_job in zip(*on_processes(__file__, folder, processes=processes), strict=True)]


def rows_of_steps(results: list[dict[str, Any]], since: int = 0) -> dict[int, list[str]]:
    """Step -> its examples, sorted, from the records of all processes."""
    steps: dict[int, list[str]] = {}
    for step, rows, _ in (entry for result in results for entry in result["record"] if entry[0] >= since):
        steps[step] = sorted([*steps.get(step, []), *rows])
    return steps


def losses_of_steps(results: list[dict[str, Any]], since: int = 0) -> dict[int, float]:
    """Step -> its loss: micro-batches add up, processes average, since each carries its share of the tokens."""
    steps: dict[int, float] = {}
    for step, _, loss in (entry for result in results for entry in result["record"] if entry[0] >= since):
        steps[step] = steps.get(step, 0.0) + float.fromhex(loss) / len(results)
    return steps


def source_rows(trainer, epoch: int) -> list[list[int]]:
    """Source rows of each step of an epoch, from the token ids that a recording trainer noted."""
    number = {" ".join(map(str, ids)): i for i, ids in enumerate(trainer.train_dataset["input_ids"])}
    steps, per_epoch = rows_of_steps([vars(trainer)]), trainer.scores.steps_per_epoch
    return [[number[row] for row in steps.get(epoch * per_epoch + i, [])] for i in range(per_epoch)]


def history(trainer) -> pd.DataFrame:
    return pd.read_parquet(f"{trainer.args.output_dir}/rsr_history")


def scores_of_epoch(trainer, epoch: int) -> pd.Series:
    """The scores of a pass at the start of an epoch, by row."""
    found = history(trainer)
    return found[found["step"] == epoch * trainer.scores.steps_per_epoch].set_index("row")["rsr"]


def pairwise(factors: dict[str, list]) -> list[dict[str, Any]]:
    """A small set of combinations in which every pair of values of two factors occurs (greedy)."""
    cases = [dict(zip(factors, values, strict=True)) for values in product(*factors.values())]
    pairs = [set(combinations(case.items(), 2)) for case in cases]
    missing, chosen = set().union(*pairs), []
    while missing:
        best = max(range(len(cases)), key=lambda i: len(pairs[i] & missing))
        chosen.append(cases[best])
        missing -= pairs[best]
    return chosen


def leave(folder: Path, result: Any) -> None:
    """Write what a process found and end it."""
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(result, default=float))
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads abort an ordinary exit now and then, after all is done


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    leave(folder, [run(**job) for job in json.loads((folder / "jobs.json").read_text())])
