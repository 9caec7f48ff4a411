"""One owner at a time for a piece of work, among processes that share a folder and nothing else.

A lock is a file that only one process can create. Its owner touches it while it works, so that the lock of an owner
that was killed, or whose machine is gone, can be taken over. Locks save work; results don't depend on them, because
what is written under a lock is written whole, and the same by everybody.
"""

import json
import os
import socket
import threading
import uuid
from pathlib import Path

import psutil


HEARTBEAT = 5.0  # seconds between two signs of life
# Seconds without one after which an owner on another machine counts as dead: more than network file systems may take
# to show it.
STALE = 180.0


class Lock:
    """
    A lock on a piece of work.

    Args:
        path (`Path`): File to create; its folder must exist.
    """

    def __init__(self, path: Path):
        self.path = path
        self._token = uuid.uuid4().hex
        self._released = threading.Event()

    def acquire(self) -> bool:
        """Take the lock, from a dead owner too. `False` if a living one has it."""
        if not self._create() and not (self._take_from_dead() and self._create()):
            return False
        self._released.clear()
        threading.Thread(target=self._beat, name="rsr-heartbeat", daemon=True).start()
        return True

    def release(self) -> None:
        self._released.set()
        owner = self.owner()
        if owner is not None and owner["token"] == self._token:
            self.path.unlink(missing_ok=True)

    def owner(self, path: Path | None = None) -> dict | None:
        """Who has it: `host`, `pid`, `started` and `token`; `None` if nobody, or if it can't be read."""
        try:
            return json.loads((path or self.path).read_text())
        except (OSError, ValueError):
            return None

    def is_held(self) -> bool:
        """Whether a living process has it."""
        return self.path.exists() and not self._is_dead(self.owner())

    def _create(self) -> bool:
        started = psutil.Process().create_time()
        me = {"host": socket.gethostname(), "pid": os.getpid(), "started": started, "token": self._token}
        try:
            file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        try:
            os.write(file, json.dumps(me).encode())
        except BaseException:  # a full disk, a stop: an empty lock would hold the others up
            self.path.unlink(missing_ok=True)
            raise
        finally:
            os.close(file)
        return True

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT):
            try:
                os.utime(self.path)
            except OSError:  # taken over, or the folder is away for a while
                pass

    def _is_dead(self, owner: dict | None) -> bool:
        if owner is not None and owner["host"] == socket.gethostname():
            try:
                process = psutil.Process(owner["pid"])
                # Another process may have got the number of a dead one.
                return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - owner["started"]) > 2
            except psutil.NoSuchProcess:
                return True
        try:
            return self._now() - self.path.stat().st_mtime > STALE
        except FileNotFoundError:
            return False

    def _now(self) -> float:
        """The time of the file system that has the lock: clocks of machines differ."""
        probe = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}")
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink()

    def _take_from_dead(self) -> bool:
        """Remove the lock of a dead owner. `False` if its owner lives, or somebody else was faster."""
        owner = self.owner()
        if not self._is_dead(owner):
            return False
        aside = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return False
        found = self.owner(aside)
        mistaken = found is not None and (owner is None or found["token"] != owner["token"])
        if mistaken:  # somebody took it over between the two looks: give it back
            try:
                os.link(aside, self.path)
            except OSError:
                pass
        aside.unlink(missing_ok=True)
        return not mistaken
