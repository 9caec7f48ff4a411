"""Runs a command in processes of its own that can be killed: forked from one that has imported everything."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.scoring.job_process_imports"])
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


def start(argv: Sequence[str], rank: int = 0, world: int = 1, log: Path | None = None, **how):
    """Start `rsr score ARGV`; `process.exitcode` is its exit code, and `log` gets what it says. `how`: of `_run`."""
    process = CONTEXT.Process(target=_run, args=(list(argv), rank, world, log), kwargs=how)
    process.start()
    return process


def _run(
    argv: list[str],
    rank: int,
    world: int,
    log: Path | None,
    command: str = "score",
    under: Path | None = None,
    kill_at: int | None = None,
) -> None:
    """With `under`, the file operations there are listed in the log, and the process dies before the `kill_at`-th."""
    from rsr_trl.cli.main import main

    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    with open(log or os.devnull, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if under is not None:
        _watch(str(under), kill_at)
    code = main([command, *argv])
    # Of Linux: of this process alone, unlike the figure of `resource`, which begins with that of its parent.
    status = Path("/proc/self/status")
    if status.is_file():
        peak = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        print(f"\npeak {peak}", flush=True)  # KiB
    sys.exit(code)


def _watch(under: str, kill_at: int | None) -> None:
    """Note every operation that changes something under a folder, before it happens."""
    seen = 0

    def note(event: str, args: tuple) -> None:
        nonlocal seen
        if event == "open":
            if not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event not in CHANGES:
            return
        if under not in str(args[0]):
            return
        seen += 1
        os.write(1, f"\noperation {seen}: {event} {args[0]}\n".encode())
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(note)
