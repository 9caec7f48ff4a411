"""Time and memory of ranking teachers and of choosing trajectories, on a million scored rows.

    python benchmarks/selection.py [--rows 1000000] [--num_teachers 11] [--each 3]

Rows are shuffled, so that nothing profits from their order. Peak memory is that of the process, data included.
"""

import argparse
import resource
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from datasets import Dataset

from rsr_trl.selection.choose import select_trajectories
from rsr_trl.selection.teachers import rank_teachers


def scored_rows(rows: int, num_teachers: int, each: int, seed: int = 0) -> Dataset:
    """A scored dataset: `each` trajectories of every teacher for every problem, teachers 3% apart in RSR."""
    rng = np.random.default_rng(seed)
    index = rng.permutation(rows)
    teacher, problem = index // each % num_teachers, index // (each * num_teachers)
    hard = rng.normal(0, 0.15, problem.max() + 1)[problem]
    surprisal = 0.6 * np.exp(hard + rng.normal(0, 0.1, rows))
    rank = 1.8 * 1.03**teacher * np.exp(2 * hard + rng.normal(0, 0.2, rows))
    return Dataset(
        pa.table(
            {
                "problem_id": pa.array([f"problem-{i}" for i in range(problem.max() + 1)]).take(pa.array(problem)),
                "teacher": pa.array([f"teacher {i}" for i in range(num_teachers)]).take(pa.array(teacher)),
                "correct": rng.random(rows) < 0.7,
                "rsr": rank / surprisal,
                "rsr_mean_clipped_rank": rank,
                "rsr_mean_surprisal": surprisal,
                "rsr_num_tokens": rng.integers(100, 10_000, rows),
                "rsr_truncated": rng.random(rows) < 0.05,
            }
        )
    )


def measure(what: str, work: Callable[[], object]) -> None:
    started, cpu = time.perf_counter(), time.process_time()
    work()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    print(f"{what:<62} {seconds:6.1f} s  {cpu:6.1f} CPU-s  peak so far {peak:4.2f} GiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--num_teachers", type=int, default=11)
    parser.add_argument("--each", type=int, default=3)
    args = parser.parse_args()
    dataset = scored_rows(args.rows, args.num_teachers, args.each)
    shuffled = dataset.shuffle(seed=1)
    warnings.simplefilter("ignore")  # ranking without problems says what is wrong with it
    cap = dict(max_share_per_teacher=0.2, teacher_column="teacher")
    print(f"{args.rows:,} rows, {args.num_teachers} teachers, {args.each} trajectories each")
    measure("rank_teachers by problem, 1,000 draws", lambda: rank_teachers(dataset, "teacher", "problem_id"))
    measure("... of a shuffled dataset", lambda: rank_teachers(shuffled, "teacher", "problem_id"))
    measure("... without problems", lambda: rank_teachers(dataset, "teacher"))
    measure("select_trajectories by problem", lambda: select_trajectories(dataset, "problem_id"))
    measure("... of a shuffled dataset", lambda: select_trajectories(shuffled, "problem_id"))
    measure("... correct ones only", lambda: select_trajectories(dataset, "problem_id", require="correct"))
    measure("... the best tenth of all", lambda: select_trajectories(dataset, keep_fraction=0.1))
    measure("... by problem, at most 20% of one teacher", lambda: select_trajectories(dataset, "problem_id", **cap))


if __name__ == "__main__":
    main()
