"""Runs `rsr score` in processes of its own that can be killed: forked from one that has imported everything."""

import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.scoring.job_process_imports"])


def start(argv: Sequence[str], rank: int = 0, world: int = 1, log: Path | None = None):
    """Start `rsr score ARGV`; `process.exitcode` is its exit code, and `log` gets what it says."""
    process = CONTEXT.Process(target=_run, args=(list(argv), rank, world, log))
    process.start()
    return process


def _run(argv: list[str], rank: int, world: int, log: Path | None) -> None:
    from rsr_trl.cli.main import main

    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    with open(log or os.devnull, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = main(["score", *argv])
    # Of Linux: of this process alone, unlike the figure of `resource`, which begins with that of its parent.
    status = Path("/proc/self/status")
    if status.is_file():
        peak = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        print(f"\npeak {peak}", flush=True)  # KiB
    sys.exit(code)
