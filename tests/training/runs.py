"""Small trainings that record what each step trained on, in this process or in several: what the trainer's tests
compare.

Run as a script, it is one process of a distributed training: `torchrun ... runs.py jobs.json`.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
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


def examples(n: int = 19, seed: int = 0) -> list[dict[str, Any]]:
    """`n` different prompts and completions of different lengths, in groups of about three, by three teachers."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghij 0123456789=+"))
    return [
        {
            "prompt": f"{i}: {''.join(rng.choice(letters, rng.integers(1, 8)))} =",
            "completion": " " + "".join(rng.choice(letters, rng.integers(2, 20))),
            "problem": f"p{i // 3}",
            "teacher": "ABC"[i % 3],
        }
        for i in range(n)
    ]


@dataclass
class Job:
    """One training. Paths are strings, so that a job travels as JSON."""

    student: str
    output_dir: str
    rows: list[dict[str, Any]]
    args: dict[str, Any]
    resume_from: str | None = None
    plain: bool = False  # SFTTrainer instead of RSRSFTTrainer


def recording(trainer_class: type) -> type:
    class Recording(trainer_class):
        """Notes of every micro-batch its step, its rows as texts of token ids, and its loss, exactly."""

        record: list[tuple[int, list[str], str]]

        def training_step(self, model, inputs, num_items_in_batch=None):
            if "attention_mask" in inputs:
                pairs = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
                rows = [" ".join(map(str, ids[mask.bool()].tolist())) for ids, mask in pairs]
            else:
                starts = inputs["cu_seq_lens_q"].tolist()
                ids = inputs["input_ids"][0].tolist()
                rows = [" ".join(map(str, ids[a:b])) for a, b in zip(starts, starts[1:], strict=False)]
            loss = super().training_step(model, inputs, num_items_in_batch)
            self.record.append((self.state.global_step, [row for row in rows if row != "0 0"], loss.item().hex()))
            return loss

    return Recording


def run(job: Job) -> dict[str, Any]:
    """
    Train and return what happened: `record` of the micro-batches of this process (step, rows, loss as hex), the final
    `table` and `steps_measured`, the `logs`, and the weights as one number.
    """
    set_seed(0)
    model = AutoModelForCausalLM.from_pretrained(job.student, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(job.student)
    config, trainer_class = (SFTConfig, SFTTrainer) if job.plain else (RSRSFTConfig, RSRSFTTrainer)
    trainer = recording(trainer_class)(
        model,
        args=config(job.output_dir, **DEFAULTS | job.args),
        train_dataset=Dataset.from_list(job.rows),
        processing_class=tokenizer,
    )
    trainer.record = []
    trainer.train(resume_from_checkpoint=job.resume_from)
    result = {
        "record": trainer.record,
        "logs": trainer.state.log_history,
        "weights": sum(p.double().abs().sum().item() for p in model.parameters()).hex(),
    }
    if not job.plain:
        result |= {"table": trainer.table.rsr.tolist(), "steps_measured": trainer.table.step.tolist()}
    return result


def run_on_processes(jobs: list[Job], processes: int, folder: Path) -> list[list[dict[str, Any]]]:
    """Run jobs one after another on several real processes. Returns for each job the result of each process."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps([vars(job) for job in jobs]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    path = os.pathsep.join([str(REPOSITORY), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(
        [*command, __file__, str(folder / "jobs.json")], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]
    return [list(of_job) for of_job in zip(*results, strict=True)]


def rows_of_steps(results: list[dict[str, Any]]) -> dict[int, list[str]]:
    """Step -> its examples, sorted, from the records of all processes."""
    steps: dict[int, list[str]] = {}
    for result in results:
        for step, rows, _ in result["record"]:
            steps.setdefault(step, []).extend(rows)
    return {step: sorted(rows) for step, rows in steps.items()}


def source_rows(trainer, epoch: int) -> list[list[int]]:
    """Source rows of each step of an epoch, from the token ids that a recording trainer noted."""
    number = {" ".join(map(str, ids)): i for i, ids in enumerate(trainer.train_dataset["input_ids"])}
    steps = rows_of_steps([{"record": trainer.record}])
    per_epoch = trainer.scores.steps_per_epoch
    return [[number[row] for row in steps.get(epoch * per_epoch + i, [])] for i in range(per_epoch)]


def history(trainer) -> pd.DataFrame:
    return pd.read_parquet(f"{trainer.args.output_dir}/rsr_history")


def losses_of_steps(results: list[dict[str, Any]]) -> dict[int, float]:
    """Step -> its loss: micro-batches add up, processes average, since each carries its share of the tokens."""
    steps: dict[int, float] = {}
    for result in results:
        for step, _, loss in result["record"]:
            steps[step] = steps.get(step, 0.0) + float.fromhex(loss) / len(results)
    return steps


def pairwise(factors: dict[str, list]) -> list[dict[str, Any]]:
    """A small set of combinations in which every pair of values of two factors occurs (greedy)."""
    names = list(factors)

    def pairs(case):
        return {(a, case[a], b, case[b]) for a, b in combinations(range(len(names)), 2)}

    cases = list(product(*(range(len(factors[name])) for name in names)))
    missing, chosen = set().union(*map(pairs, cases)), []
    while missing:
        chosen.append(max(cases, key=lambda case: len(pairs(case) & missing)))
        missing -= pairs(chosen[-1])
    return [{name: factors[name][i] for name, i in zip(names, case, strict=True)} for case in chosen]


if __name__ == "__main__":
    jobs_path = Path(sys.argv[1])
    found = [run(Job(**job)) for job in json.loads(jobs_path.read_text())]
    (jobs_path.parent / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found, default=float))
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads abort an ordinary exit now and then, after all is done
