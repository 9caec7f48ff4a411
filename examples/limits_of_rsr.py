"""A negative control: where RSR (lower = more suitable) doesn't predict what teaches, and why.

    python examples/limits_of_rsr.py              # resumes where it stopped
    python examples/limits_of_rsr.py --quick      # does it run? its figures mean nothing

The demo's student, pretrained from scratch on synthetic word problems, first reads chains of sums whose digits wrap at
ten. Twelve designed teachers solve other chains, the student scores what they wrote, and a fresh copy of it is
fine-tuned with TRL on each teacher, and on one trajectory of each problem chosen by RSR, by other scores and at
random: the same problems, as many steps. Then each copy solves held-out chains. Teachers and strategies are fixed in
`data/limits_of_rsr_teachers.json`.

It is a toy with designed teachers. It shows one way in which RSR fails, and says nothing against the paper's results.
"""

import argparse
import hashlib
import json
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from datasets import Dataset
from limits_of_rsr_report import plot, report
from limits_of_rsr_world import STYLES, Problem, make_problems
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, LlamaForCausalLM, PrinterCallback
from trl import SFTConfig, SFTTrainer

from rsr_trl import RSRScorer, select_trajectories
from rsr_trl.demo import STUDENT_PATH
from rsr_trl.rsr import NUM_TOKENS


BATCH_SIZE = 16
PLAN = Path(__file__).parent / "data" / "limits_of_rsr_teachers.json"


@dataclass(frozen=True)
class Size:
    """How much is done: `problems` are taught, `held_out` asked; `runs` is how often each fine-tuning is repeated."""

    pretrain_batches: int
    problems: int
    held_out: int
    epochs: int
    runs: int


FULL = Size(pretrain_batches=1000, problems=400, held_out=300, epochs=2, runs=2)
QUICK = Size(pretrain_batches=24, problems=24, held_out=20, epochs=1, runs=1)


def batches(tokenizer, chats: list[list[dict]], rng: random.Random) -> Iterator[dict[str, torch.Tensor]]:
    """Whole chats in batches of similar lengths, which need little padding, in an order that doesn't follow length."""
    rows = [torch.tensor(tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]) for chat in chats]
    for start in range(0, len(rows), 16 * BATCH_SIZE):
        drawn = sorted(rows[start : start + 16 * BATCH_SIZE], key=len)
        some = [drawn[i : i + BATCH_SIZE] for i in range(0, len(drawn), BATCH_SIZE)]
        rng.shuffle(some)
        for batch in some:
            ids = pad_sequence(batch, batch_first=True, padding_value=tokenizer.pad_token_id)  # (batch, sequence)
            mask = pad_sequence([torch.ones_like(row) for row in batch], batch_first=True)
            yield {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def pretrain(plan: dict, size: Size, folder: Path, seed: int) -> None:
    """Go on pretraining the demo's student on short chains, solved rightly, each read once, and save it."""
    rng = random.Random(seed)
    tokenizer = AutoTokenizer.from_pretrained(STUDENT_PATH)
    model = LlamaForCausalLM.from_pretrained(STUDENT_PATH, dtype=torch.float32)
    dialects, chats = plan["student"]["dialects"], []
    for problem in make_problems(BATCH_SIZE * size.pretrain_batches, plan["student"]["steps"], rng, distinct=False):
        response = STYLES[rng.choices(list(dialects), list(dialects.values()))[0]](problem.work(), rng)
        chats.append([{"role": "user", "content": problem.prompt}, {"role": "assistant", "content": response}])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.1)
    for step, batch in enumerate(batches(tokenizer, chats, rng)):
        cosine = 0.5 * (1 + math.cos(math.pi * step / size.pretrain_batches))
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 20) * (0.02 + 0.98 * cosine)
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    unfinished = folder.with_name(folder.name + ".unfinished")
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    os.replace(unfinished, folder)  # a run that is killed leaves no half a student behind


def make_pool(teachers: dict, problems: list[Problem], seed: int) -> Dataset:
    """Every teacher's trajectory of every problem."""
    rows = []
    for index, problem in enumerate(problems):
        for name, teacher in teachers.items():
            rng = random.Random(f"{seed}/{index}/{name}")
            steps = problem.work(teacher["slip_rate"], rng)
            rows.append(
                {
                    "problem_id": index,
                    "prompt": [{"role": "user", "content": problem.prompt}],
                    "teacher": name,
                    "completion": [{"role": "assistant", "content": STYLES[teacher["style"]](steps, rng)}],
                    "correct": steps[-1].result == problem.work()[-1].result,
                }
            )
    return Dataset.from_list(rows)


def choose(scored: Dataset, strategy: dict, seed: int) -> Dataset:
    """One trajectory of each problem."""
    score = strategy["score"]
    if score == "random":
        score = "drawn"
        scored = scored.add_column(score, np.random.default_rng(seed).random(len(scored)))
    if "min_tokens" in strategy:
        enough = np.flatnonzero(np.array(scored[NUM_TOKENS]) >= strategy["min_tokens"])
        scored = scored.select(enough)
    # Its strategies say themselves which answers are too short.
    return select_trajectories(scored, "problem_id", score=score, prefer=strategy["prefer"], min_tokens=0)


def fine_tune(student: Path, rows: Dataset, size: Size, seed: int, folder: Path) -> LlamaForCausalLM:
    """A fresh copy of the student, fine-tuned on the trajectories with TRL; the loss covers the responses."""
    args = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=size.epochs,
        per_device_train_batch_size=16,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=4,
        seed=seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=None,  # TRL's default for this deprecated option makes transformers warn
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(str(student), args=args, train_dataset=rows.select_columns(["prompt", "completion"]))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.end()
    return trainer.model


@torch.no_grad()
def right_answers(model: LlamaForCausalLM, student: Path, problems: list[Problem], max_new_tokens: int) -> str:
    """`"1"` for each problem whose greedy response ends in the right digit, else `"0"`."""
    tokenizer = AutoTokenizer.from_pretrained(student, padding_side="left")
    right = ""
    for start in range(0, len(problems), 100):
        part = problems[start : start + 100]
        inputs = tokenizer.apply_chat_template(
            [[{"role": "user", "content": problem.prompt}] for problem in part],
            add_generation_prompt=True,
            padding=True,
            return_dict=True,
            return_tensors="pt",
        )
        generated = model.eval().generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        for problem, ids in zip(part, generated[:, inputs["input_ids"].shape[1] :], strict=True):
            digits = [c for c in tokenizer.decode(ids, skip_special_tokens=True) if c.isdigit()]
            right += "1" if digits and digits[-1] == str(problem.work()[-1].result) else "0"
    return right


def measure(plan: dict, size: Size, folder: Path, seed: int) -> tuple[dict, Dataset]:
    """
    Run what isn't finished yet. Returns the results, as `results.json` has them: for each teacher and strategy the
    right answers of every run; and the scored pool.
    """
    settings = {"plan": hashlib.sha256(PLAN.read_bytes()).hexdigest(), "seed": seed, **asdict(size)}
    # Another student for other settings: what is left of an earlier run is never taken for this one's.
    student = folder / f"student-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]}"
    path = folder / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {"settings": settings, "runs": {}, "seconds": {}}
    if results["settings"] != settings:
        raise SystemExit(f"{path} is of other settings ({results['settings']}). Name another --output_dir.")

    def keep(name: str, seconds: float) -> None:
        results["seconds"][name] = round(results["seconds"].get(name, 0) + seconds, 1)
        path.with_suffix(".unfinished").write_text(json.dumps(results, indent=1))
        os.replace(path.with_suffix(".unfinished"), path)
        print(f"{name}: {seconds:.0f} s", flush=True)

    begin = time.monotonic()
    if not student.exists():
        pretrain(plan, size, student, seed)
        keep("pretraining", time.monotonic() - begin)
    problems = make_problems(size.problems + size.held_out, plan["taught"]["steps"], random.Random(f"taught/{seed}"))
    taught, held_out = problems[: size.problems], problems[size.problems :]
    begin = time.monotonic()
    scorer = RSRScorer(str(student), dtype="float32", device="cpu", token_stats=True)
    scored = scorer.score(make_pool(plan["teachers"], taught, seed))
    longest = max(scored[NUM_TOKENS]) + 10
    if "student before" not in results["runs"]:
        model = LlamaForCausalLM.from_pretrained(student, dtype=torch.float32)
        results["runs"]["student before"] = [right_answers(model, student, held_out, longest)]
        keep("student before", time.monotonic() - begin)
    teachers = np.array(scored["teacher"])
    for run in range(size.runs):
        for name in [*plan["teachers"], *plan["strategies"]]:
            done, begin = results["runs"].setdefault(name, []), time.monotonic()
            if len(done) > run:
                continue
            if name in plan["teachers"]:
                rows = scored.select(np.flatnonzero(teachers == name))
            else:
                rows = choose(scored, plan["strategies"][name], seed=run)
            model = fine_tune(student, rows, size, seed=run, folder=folder / "trainer")
            done.append(right_answers(model, student, held_out, longest))
            keep(name, time.monotonic() - begin)
    return results, scored


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, help="Default: out/limits_of_rsr, or -quick.")
    parser.add_argument("--quick", action="store_true", help="Whether it runs; the figures mean nothing.")
    parser.add_argument("--seed", type=int, default=0, help="Of the student, the problems and what teachers write.")
    parser.add_argument("--plot", help="Write a picture of the teachers there (needs matplotlib).")
    args = parser.parse_args()
    torch.set_num_threads(1)  # so small a student gains nothing from more
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    folder = args.output_dir or Path("out", "limits_of_rsr" + ("-quick" if args.quick else ""))
    folder.mkdir(parents=True, exist_ok=True)
    plan = json.loads(PLAN.read_text())
    results, scored = measure(plan, QUICK if args.quick else FULL, folder, args.seed)
    chosen = {name: choose(scored, strategy, seed=0) for name, strategy in plan["strategies"].items()}
    report(results, scored, chosen)
    if args.plot:
        plot(results, scored, args.plot)
    if args.quick:
        print("\n--quick: far too little to mean anything.")


if __name__ == "__main__":
    main()
