"""What RSR's failure modes say of real pools and of guesses: false alarms and power, figure by figure.

    python -m benchmarks.failure_modes path/to/SmolLM2-135M-Instruct ../shared/data --cache /tmp/failure_modes

The real pools are GSM8K, MATH-500 and airline trajectories; a pool with a teacher that writes its final answer alone;
and guesses: lists of random digits and numbers, random sums, sentences with random answers, the demo's guesser, and
gold answers alone. Scored ones are cached as Parquet files.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets

from rsr_trl import RSRScorer
from rsr_trl.data import Columns
from rsr_trl.demo.teachers import make_pool
from rsr_trl.report.format import correct_text
from rsr_trl.rsr import NOISY_BELOW
from rsr_trl.selection.choose import Criteria, choose, correctness
from rsr_trl.selection.compare import Comparison, compare_scores
from rsr_trl.selection.failure_modes import GUESSED
from rsr_trl.selection.table import ScoredTable


TEACHERS = ("DeepSeek-V2.5-0908", "Llama-3.1-8B-Instruct", "Qwen2-72B-Instruct", "gemma-2-9b-it")
BARE = "gemma-2-9b-it"  # writes its answer alone in the pool with a bare teacher
SENTENCES = ("The answer is {}.", "It could be {}.", "So we get {}.", "I think it is {}.", "The result is {}.")
COLUMNS = {"teacher_column": "teacher", "problem_column": "problem_id", "correctness_column": "correct"}


def chat(row: dict, completion: str, teacher: str | None = None, correct: bool | None = None) -> dict:
    return {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": completion}],
        "problem_id": row["problem_id"],
        "teacher": teacher or row["teacher"],
        "correct": bool(row["correct"] if correct is None else correct),
    }


def real_pools(folder: Path, num_problems: int) -> Iterator[tuple[str, list[dict], int]]:
    """Name, rows and `max_length` of each."""

    def some(name: str, count: int, teachers: tuple = ()) -> list[dict]:
        rows = [json.loads(line) for line in (folder / name).open(encoding="utf-8")]
        problems = sorted({row["problem_id"] for row in rows})
        kept = set(random.Random(0).sample(problems, count))
        return [row for row in rows if row["problem_id"] in kept and row["teacher"] in (teachers or {row["teacher"]})]

    gsm8k = some("gsm8k_12_teachers.jsonl", num_problems, TEACHERS)
    yield "GSM8K", [chat(row, row["completion"]) for row in gsm8k], 1024
    bare = [chat(row, row["pred"] or "0") for row in gsm8k if row["teacher"] == BARE]
    yield "bare answers", bare, 1024
    math = some("math500_5_teachers.jsonl", num_problems // 4)
    yield "MATH-500", [chat(row, row["completion"]) for row in math], 1024
    airline = some("airline_tools_5_agents.jsonl", max(2, num_problems // 15))
    names = ("messages", "problem_id", "teacher", "correct")
    yield "airline", [{name: row[name] for name in names} for row in airline], 3072


def guesses(folder: Path, count: int) -> Iterator[tuple[str, list[dict]]]:
    """Answers to GSM8K's problems that are drawn at random, or say nothing but the answer."""
    rows = {}
    for line in (folder / "gsm8k_12_teachers.jsonl").open(encoding="utf-8"):
        row = json.loads(line)
        rows[row["problem_id"]] = row
    problems, rng = [rows[name] for name in sorted(rows)[:count]], random.Random(1)

    def number() -> str:
        return str(rng.randint(2, 999))

    write = {
        "random digits": lambda row: " ".join(str(rng.randrange(10)) for _ in range(40)),
        "random numbers": lambda row: ", ".join(number() for _ in range(20)),
        "random sums": lambda row: "\n".join(
            f"{number()} {rng.choice('+-*/')} {number()} = {number()}" for _ in range(6)
        ),
        "random answers": lambda row: " ".join(rng.choice(SENTENCES).format(number()) for _ in range(9)),
        "gold answers alone": lambda row: row["gold"],
    }
    for name, answer in write.items():
        yield name, [chat(row, answer(row), name, correct=name.startswith("gold")) for row in problems]
    demo = [row for row in make_pool(count, 0).to_list() if row["teacher"] == "guesser"]
    yield (
        "the demo's guesser",
        [{key: row[key] for key in ("prompt", "completion", *COLUMNS.values())} for row in demo],
    )


def show(name: str, scored: Dataset, comparison: Comparison) -> None:
    """Every figure that has a threshold in `selection/failure_modes.py`."""
    table = ScoredTable.read(scored, Columns("teacher", "problem_id", "correct"))
    rsr, guess = comparison.scores[0], table.guess_share
    quantiles = "/".join(f"{x:.3f}" for x in np.nanquantile(guess, [0.05, 0.5, 0.95, 1]))
    print(f"\n{name}: {len(scored)} trajectories, median RSR {np.nanmedian(table.values['rsr']):.2f}")
    print(f"  guess share, 5%/50%/95%/largest {quantiles}; over {GUESSED}: {(guess > GUESSED).mean():.1%}")
    print(
        f"  under {NOISY_BELOW} tokens {(table.tokens < NOISY_BELOW).mean():.0%}, cut {table.truncated.mean():.0%}, ",
        end="",
    )
    print(f"mean rank {np.nanmedian(table.rank):.1f} (largest {np.nanmax(table.rank):.0f}), ", end="")
    print(
        f"most chosen teacher {rsr['chosen_top_teacher_share']:.0%}, length R2 {rsr['length_r2'] or 0:.2f}, ", end=""
    )
    print(f"correct first {rsr['correct_first'] or np.nan:.2f}")
    others = ", ".join(f"{one['name']} {one['overlap']:.0%}" for one in comparison.scores[1:])
    print(f"  same choice: {others} (by chance {comparison.chance_overlap:.0%})")
    print(f"  found: {', '.join(finding.name for finding in comparison.findings) or 'nothing'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student")
    parser.add_argument("data", type=Path)
    parser.add_argument("--num_problems", type=int, default=30)
    parser.add_argument("--num_guesses", type=int, default=20)
    parser.add_argument("--cache", type=Path, default=Path("failure_modes"))
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)

    def score(name: str, rows: list[dict], max_length: int) -> Dataset:
        path = args.cache / f"{''.join(filter(str.isalnum, name))}-{len(rows)}.parquet"
        if not path.exists():
            dataset = Dataset.from_list(rows, on_mixed_types="use_json")
            scorer = RSRScorer(args.student, dtype="float32", max_length=max_length, scores=["guess_share"])
            scorer.score(dataset).remove_columns(["messages"] * ("messages" in rows[0])).to_parquet(path)
        return Dataset.from_parquet(str(path))

    pools = {name: score(name, *more) for name, *more in real_pools(args.data, args.num_problems)}
    reasoning = pools["GSM8K"].filter(lambda teacher: teacher != BARE, input_columns="teacher")
    pools["GSM8K, one teacher bare"] = concatenate_datasets([reasoning, pools.pop("bare answers")])
    for name, scored in pools.items():
        show(name, scored, compare_scores(scored, **COLUMNS))
        table = ScoredTable.read(scored, Columns("teacher", "problem_id", "correct"))
        for by in (Criteria("problem_id"), Criteria("problem_id", min_tokens=0)):
            chosen = choose(table, by).rows
            facts = correctness(table, by, chosen)
            print(f"  min_tokens {by.min_tokens}: {(table.tokens[chosen] < NOISY_BELOW).mean():.0%} short; ", end="")
            print(f"correct: {correct_text(facts)}")
    for name, rows in guesses(args.data, args.num_guesses):
        scored = score(name, rows, 1024)
        share, short = (np.array(scored[column][:]) for column in ("score_guess_share", "rsr_num_tokens"))
        print(
            f"\n{name}: {len(share)}; median RSR {np.median(scored['rsr'][:]):.2f}, guess share {np.median(share):.2f}"
        )
        print(
            f"  found by guess share {(share > GUESSED).mean():.0%}, as short {(short < NOISY_BELOW).mean():.0%}, ",
            end="",
        )
        print(f"by either {((share > GUESSED) | (short < NOISY_BELOW)).mean():.0%}")


if __name__ == "__main__":
    main()
