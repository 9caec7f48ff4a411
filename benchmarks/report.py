"""Time, memory and size of the page of a large scored dataset, from the command's point of view: read, made, written.

    python benchmarks/report.py [--rows 100000] [--num_teachers 11] [--tokens 200]

The rows have token statistics of a small vocabulary. Peak memory is that of the process, data included.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rsr_trl.cli.main import main as rsr
from rsr_trl.demo import STUDENT_PATH
from rsr_trl.rsr import (
    ERROR,
    MEAN_CLIPPED_RANK,
    MEAN_SURPRISAL,
    NUM_TOKENS,
    RSR,
    STUDENT,
    TOKEN_IDS,
    TOKEN_RANKS,
    TOKEN_SURPRISALS,
    TOKEN_TOP1,
    TRUNCATED,
    rsr_from_means,
    trajectory_means,
)


def write_scored(path: Path, rows: int, num_teachers: int, tokens: int, seed: int = 0) -> None:
    """A scored dataset with token statistics as a parquet file; later teachers suit less."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(tokens // 2, tokens * 3 // 2, rows)
    teacher = np.arange(rows) % num_teachers
    surprisals = rng.gamma(0.6, 1.2, lengths.sum()).astype(np.float32)
    ranks = np.maximum(1, surprisals * rng.gamma(2.0, 2.0, lengths.sum())).astype(np.int32)
    ranks = np.maximum(1, ranks * np.repeat(1 + teacher / 20, lengths)).astype(np.int32)
    ids = rng.integers(300, 1000, lengths.sum()).astype(np.int32)
    rank, surprisal = trajectory_means(ranks, surprisals, lengths)
    ends = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    problem = np.arange(rows) // num_teachers
    table = {
        "problem_id": [f"problem-{i}" for i in problem],
        "prompt": [f"What is {i} + {i}?" for i in problem],
        "completion": [f"It is {2 * i}. " * 40 for i in problem],
        "teacher": [f"teacher {i}" for i in teacher],
        "correct": rng.random(rows) < 0.7,
        RSR: rsr_from_means(rank, surprisal),
        MEAN_CLIPPED_RANK: rank,
        MEAN_SURPRISAL: surprisal,
        NUM_TOKENS: lengths,
        TRUNCATED: rng.random(rows) < 0.05,
        ERROR: pa.nulls(rows, pa.string()),
        STUDENT: ["benchmark"] * rows,
        TOKEN_IDS: pa.ListArray.from_arrays(ends, ids),
        TOKEN_RANKS: pa.ListArray.from_arrays(ends, ranks),
        TOKEN_SURPRISALS: pa.ListArray.from_arrays(ends, surprisals),
        TOKEN_TOP1: pa.ListArray.from_arrays(ends, ids),
    }
    pq.write_table(pa.table(table), path, row_group_size=1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--num_teachers", type=int, default=11)
    parser.add_argument("--tokens", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data, page = Path(folder, "scored.parquet"), Path(folder, "report.html")
        write_scored(data, args.rows, args.num_teachers, args.tokens)
        print(f"{args.rows:,} rows of about {args.tokens} tokens, {data.stat().st_size / 1e6:.0f} MB", flush=True)
        started, cpu = time.perf_counter(), time.process_time()
        code = rsr(
            ["report", "--dataset_name", str(data), "--output", str(page), "--tokenizer", str(STUDENT_PATH), "--json"]
        )
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
        if code:
            sys.exit(code)
        print(f"{seconds:.1f} s, {cpu:.1f} CPU-s, page {page.stat().st_size / 1e6:.2f} MB, peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
