"""Question 3: does the order of trajectories change while the student learns, and does it pay to score again?

    python evidence/order.py --students smollm2 --parts order        # 45 minutes on 2 cores; goes on where it stopped
    python evidence/order.py --students gsm8k_6m --parts pilot       # 20 minutes
    python evidence/order.py                                         # all four, about 3 hours

`order`: the student is fine-tuned on the pool with SFTTrainer, and all rows are scored again after each epoch.
`pilot`: `rsr pilot` compares choices that are renewed in each epoch with those made once. Needs `choices.py`'s scores.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from common import (
    PLAN,
    choice,
    interval,
    mean_of,
    parser,
    read_args,
    score,
    scored_by,
    spearman_rows,
    student_path,
    table,
    taken,
    write_json,
)
from datasets import Dataset
from scipy.stats import spearmanr
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from rsr_trl.pilot.differences import difference
from rsr_trl.scoring.loading import for_trainer
from rsr_trl.selection.choose import long_enough
from rsr_trl.selection.table import place_in_run


EPOCHS = 3


def rows_of(args, student: str, first: int, count: int) -> Dataset:
    """Scored rows of `count` problems of the pool from the `first` one on, without the bare answers."""
    scored = scored_by(args, student)
    names = set(list(dict.fromkeys(scored["problem_id"]))[first : first + count])
    return scored.filter(lambda row: row["problem_id"] in names)


def train(args, student: str, plan: dict, rows: Dataset, seed: int, folder: Path) -> None:
    """Fine-tune with TRL, keeping the student after each epoch."""
    path, is_large = student_path(args, student), student == "smollm2"
    config = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        learning_rate=plan["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        max_length=1024,
        seed=seed,
        bf16=is_large,
        use_cpu=True,
        gradient_checkpointing=None,  # TRL's default for this deprecated option makes transformers warn
        model_init_kwargs=None if path.endswith(".gguf") else {"dtype": "float32"},
        report_to="none",
        save_strategy="epoch",
        logging_steps=5,
        disable_tqdm=True,
    )
    own = for_trainer(path, None) or {"model": path}
    trainer = SFTTrainer(args=config, train_dataset=rows.select_columns(["prompt", "completion"]), **own)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    write_json(folder / "trained.json", {"steps": trainer.state.global_step, "log": trainer.state.log_history})


def order(args, student: str, plan: dict) -> dict:
    """Train and score again; what changed, by epoch."""
    count, unseen = plan["trained_problems"], plan["unseen_problems"]
    before, found = rows_of(args, student, 0, count + unseen), {}
    pool = args.output_dir / f"order-{student}.parquet"
    if not pool.exists():
        before.select_columns(["problem_id", "teacher", "prompt", "completion", "correct"]).to_parquet(pool)
    for seed in plan["seeds"]:
        folder = args.output_dir / f"order-{student}-{seed}"
        if not (folder / "trained.json").exists():
            train(args, student, plan, rows_of(args, student, 0, count), seed, folder)
        tables = {0: table(before)}
        checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        for epoch, checkpoint in enumerate(checkpoints, 1):
            tables[epoch] = table(score(str(checkpoint), pool, folder / f"scored-{epoch}"))
        log = json.loads((folder / "trained.json").read_text())["log"]
        found[str(seed)] = {
            "train_loss": [{"step": row["step"], "loss": row["loss"]} for row in log if "loss" in row],
            "trained": changes(tables, slice(0, count)),
            "unseen": changes(tables, slice(count, None)),
        }
    return found


def changes(tables: dict, part: slice) -> dict:
    """Every epoch beside the student before training, over these problems."""
    first = {name: values if name in ("teachers", "problems") else values[part] for name, values in tables[0].items()}
    allowed, teachers = long_enough(first["tokens"], PLAN["choices"]["min_tokens"]), first["teachers"]
    found = {"problems": len(first["rsr"]), "rows": first["rsr"].size, "epochs": {}}
    was = choice(first["rsr"], allowed)
    for epoch, values in tables.items():
        now = {name: values[name][part] for name in ("rsr", "surprisal", "rank")}
        best = choice(now["rsr"], allowed)
        right = np.where(first["correct"] > 0, now["surprisal"], np.nan)
        found["epochs"][str(epoch)] = {
            "mean": {name: float(of.mean()) for name, of in now.items()},
            "loss_of_right_rows": interval(np.nanmean(right[(first["correct"] > 0).any(1)], axis=1)),
            "spearman_overall": {name: float(spearmanr(now[name].ravel(), first[name].ravel())[0]) for name in now},
            "spearman_within": {name: interval(spearman_rows(now[name], first[name], allowed)) for name in now},
            "best_changed": interval(best != was),
            # What the first choice costs by the new scores: 0 the new best, 1 as good as a random row.
            "regret": regret(now["rsr"], was, allowed),
            "chosen": {teachers[i]: int(n) for i, n in enumerate(np.bincount(best, minlength=len(teachers)))},
            "correct": interval(taken(first["correct"], best)),
            "mean_by_teacher": dict(zip(teachers, now["rsr"].mean(0).tolist(), strict=True)),
        }
    return found


def regret(cost: np.ndarray, places: np.ndarray, allowed: np.ndarray) -> float:
    """How far the rows at `places` are from the best, as a share of the way from the best to the mean."""
    best = np.where(allowed, cost, np.inf).min(1)
    return float((taken(cost, places) - best).sum() / (mean_of(cost, allowed) - best).sum())


def pilot(args, student: str) -> dict:
    """`rsr pilot`, and re-scored against scored once."""
    plan = PLAN["pilot"]
    trained, unseen = plan["problems"][student]
    folder = args.output_dir / f"pilot-{student}"
    pool, held_out = (args.output_dir / f"pilot-{student}-{name}.parquet" for name in ("pool", "held_out"))
    if not held_out.exists():
        rows_of(args, student, 0, trained).to_parquet(pool)
        rows = rows_of(args, student, trained, unseen).filter(lambda row: row["correct"])
        kept = np.flatnonzero(place_in_run(np.array(rows["problem_id"])) < plan["references"])
        rows.select(kept).select_columns(["problem_id", "prompt", "completion"]).to_parquet(held_out)
    command = ["pilot", "--model_name_or_path", student_path(args, student), "--dataset_name", str(pool)]
    command += ["--eval_dataset_name", str(held_out), "--output_dir", str(folder), "--use_cpu", "true"]
    command += ["--strategies", *plan["strategies"][student], "--num_seeds", str(plan["seeds"])]
    command += ["--num_examples", str(plan["num_examples"][student]), "--num_train_epochs", str(EPOCHS)]
    command += ["--learning_rate", str(PLAN["order"]["students"][student]["learning_rate"])]
    command += ["--lr_scheduler_type", "cosine", "--warmup_steps", "0.05", "--max_length", "1024"]
    command += ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2"]
    command += ["--bf16", str(student == "smollm2").lower(), "--dtype", "float32"]
    subprocess.run([sys.executable, "-m", "rsr_trl", *command], check=True)
    result = json.loads((folder / "pilot.json").read_text())
    arms = {}
    for path in (folder / "arms").glob("*-seed*.json"):
        arm = json.loads(path.read_text())
        arms.setdefault(arm["strategy"], {})[arm["seed"]] = arm
    by_seed = {name: [of[seed] for seed in sorted(of)] for name, of in arms.items()}
    values = {name: np.array([[one["loss"] for one in arm["problems"]] for arm in of]) for name, of in by_seed.items()}
    pairs = {"rsr_rescored - rsr": ("rsr_rescored", "rsr"), "random_renewed - random": ("random_renewed", "random")}
    return {
        "before": result["arms"][0]["loss"],
        "loss": {name: of.mean(axis=1).tolist() for name, of in values.items()},
        "tokens": {name: [arm["tokens"] for arm in of] for name, of in by_seed.items()},
        "table": result["table"],
        "verdict": result["verdict"],
        "notes": result["notes"],
        "pairs": {name: difference(values[one], values[two]) for name, (one, two) in pairs.items()},
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--students", nargs="+", default=["smollm2", "gsm8k_6m"], choices=["smollm2", "gsm8k_6m"])
    options.add_argument("--parts", nargs="+", default=["order", "pilot"], choices=["order", "pilot"])
    args = read_args(options)
    print("Cost on 2 cores, in minutes: SmolLM2 order 45, pilot 80; small student order 20, pilot 20.", flush=True)
    torch.manual_seed(0)
    for student in args.students:
        for part in args.parts:
            plan = PLAN["order"]["students"][student]
            found = order(args, student, plan) if part == "order" else pilot(args, student)
            write_json(args.results / f"{part}-{student}.json", found)
            print(f"Wrote {args.results / f'{part}-{student}.json'}", flush=True)


if __name__ == "__main__":
    main()
