"""A pipeline of an engine as a process of its own."""

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path


def run(folder: Path, *command) -> tuple[int, str]:
    """Exit code and output. Into a file and in a session of its own: what a killed process leaves behind goes too."""
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(timeout=240)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return code, (folder / "output.txt").read_text()
