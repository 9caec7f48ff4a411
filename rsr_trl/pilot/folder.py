"""A pilot's folder: whose it is, and which of its arms are done.

An arm's file is written whole when the arm is done, so a pilot that was killed goes on with the next arm.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xxhash import xxh3_128

from rsr_trl.scoring.locks import Lock
from rsr_trl.scoring.manifest import differences
from rsr_trl.scoring.shards import write_json


SETTINGS, RESULT, ARMS, LOCK = "settings.json", "pilot.json", "arms", ".lock"
SCORED = "scored"  # the pool with its scores, where it came without


class PilotFolder:
    """
    The folder that a pilot writes to.

    Args:
        path (`Path`): Absent, empty, or of the same pilot.
        settings (`dict`): Everything that decides what an arm gives, apart from its strategy and seed: these may be
            added to later.

    Raises:
        ValueError: if the folder belongs to a pilot with other settings (the message says what differs), or holds
            something else.
    """

    def __init__(self, path: Path, settings: dict):
        self.path, self.arms = path, path / ARMS
        self.settings = json.loads(json.dumps(settings))
        self.run = xxh3_128(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]

    def open(self) -> None:
        """Check whose the folder is and write it down. On one process only."""
        check_folder(self.path)
        check_identity(self.path, self.settings)
        self.arms.mkdir(parents=True, exist_ok=True)
        write_json(self.path / SETTINGS, self.settings)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Keeps a second pilot out of the folder while this one works."""
        lock = Lock(self.path / LOCK)
        if not lock.acquire():
            raise ValueError(f"Another pilot is at work in {str(self.path)!r}: wait for it, or choose another folder.")
        try:
            yield
        finally:
            lock.release()

    def record(self, file_name: str) -> dict | None:
        """What an arm gave; `None` if it isn't done."""
        found = _read(self.arms / f"{file_name}.json")
        return found if found is not None and found.get("run") == self.run else None

    def write(self, file_name: str, record: dict) -> None:
        """Write down what an arm gave."""
        write_json(self.arms / f"{file_name}.json", {"run": self.run, **record})

    def write_result(self, result: dict) -> None:
        write_json(self.path / RESULT, result)


def check_folder(path: Path) -> None:
    """Raise `ValueError` unless `path` is absent, empty or a pilot's: before the work, not after it."""
    if path.is_file():
        raise ValueError(f"{str(path)!r} is a file; output_dir must be a folder.")
    names = {file.name for file in path.iterdir()} if path.is_dir() else set()
    if foreign := sorted(names - {SETTINGS, RESULT, ARMS, LOCK, SCORED}):
        raise ValueError(f"{str(path)!r} holds other things than a pilot (first: {foreign[0]}): choose another.")


def check_identity(path: Path, settings: dict) -> None:
    """Raise `ValueError` if a pilot in `path` had other `settings`; those that aren't named here aren't looked at."""
    known, settings = _read(path / SETTINGS), json.loads(json.dumps(settings))
    if known is not None and (others := differences({name: known.get(name) for name in settings}, settings)):
        raise ValueError(
            f"{str(path)!r} holds a pilot with other settings. What differs: {'; '.join(others)}. Give the same "
            "options as before to go on, or choose another output_dir."
        )


def _read(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return None  # damaged: it is done again
