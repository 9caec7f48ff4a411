"""How far RSR is from its definition in float64, by the student's dtype and by what shares a batch.

    python -m benchmarks.precision path/to/student trajectories.jsonl

The rows need one of SFTTrainer's formats. The truth has float64 layers (and RSR's own float32 head) and
the weights as each dtype rounds them: what is shown is the error of computing, not that of another student.
"""

import argparse
import time

import numpy as np
import torch

from rsr_trl import data
from rsr_trl.rsr import trajectory_rsr
from rsr_trl.scoring.loading import find_config_and_tokenizer, load_model
from rsr_trl.scoring.student import Student
from rsr_trl.scoring.tokens import ExampleTokenizer


def rsr_of(tokens) -> np.ndarray:
    """RSR of each row, from the flat arrays that a student returns."""
    ends = np.cumsum(tokens.num_tokens)[:-1]
    rows = zip(np.split(tokens.ranks, ends), np.split(tokens.surprisals, ends), strict=True)
    return np.array([trajectory_rsr(ranks, surprisals) for ranks, surprisals in rows])


def compare(name: str, values: np.ndarray, others: np.ndarray) -> None:
    error = np.abs(values / others - 1)
    print(f"{name:32} median {np.median(error):.1e}  90% {np.quantile(error, 0.9):.1e}  largest {error.max():.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student")
    parser.add_argument("dataset")
    parser.add_argument("--num_rows", type=int, default=24)
    args = parser.parse_args()
    rows = data.load(args.dataset)
    rows = rows.select(range(0, len(rows), max(1, len(rows) // args.num_rows))).select(range(args.num_rows))
    examples = ExampleTokenizer(find_config_and_tokenizer(args.student)[1])(rows.to_list())
    for dtype in ("float32", "bfloat16"):
        scored = {}
        for name, budget, layout in (("alone", 1, "equal"), ("padded batches", 4096, "padded")):
            student = Student(load_model(args.student, dtype=dtype), budget)
            student.layout, begin = layout, time.process_time()
            scored[name] = rsr_of(student.score(examples))
            print(f"{dtype}, {name}: {time.process_time() - begin:.0f} CPU seconds")
        exact = Student(student.model.to(torch.float64), 1)
        truth = rsr_of(exact.score(examples))
        for name, values in scored.items():
            compare(f"{dtype}, {name} / float64", values, truth)
        compare(f"{dtype}, in batches / alone", scored["padded batches"], scored["alone"])


if __name__ == "__main__":
    main()
