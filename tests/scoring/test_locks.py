"""Locks between processes: one owner, and the dead don't hold anything."""

import json
import os
import subprocess
import sys
import time

import pytest

from rsr_trl.scoring import locks
from rsr_trl.scoring.locks import Lock


@pytest.fixture
def path(tmp_path):
    return tmp_path / "000003"


def test_one_owner_at_a_time(path):
    first, second = Lock(path), Lock(path)
    assert first.acquire() and not second.acquire()
    assert first.is_held() and first.owner()["pid"] == os.getpid()
    first.release()
    assert second.acquire()
    second.release()
    assert not path.exists() and not second.is_held()


def test_release_leaves_the_lock_of_another_owner(path):
    first, second = Lock(path), Lock(path)
    assert first.acquire()
    path.unlink()
    assert second.acquire()
    first.release()
    assert second.owner() is not None
    second.release()


def test_lock_of_a_killed_process_is_taken_over_at_once(path):
    code = "import sys, time; from pathlib import Path; from rsr_trl.scoring.locks import Lock\n"
    code += "assert Lock(Path(sys.argv[1])).acquire(); print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    lock = Lock(path)
    assert not lock.acquire() and lock.is_held()
    process.kill()
    deadline = time.monotonic() + 20
    while not lock.acquire():  # its parent hasn't asked for it: a zombie, and dead all the same
        assert time.monotonic() < deadline
    assert lock.owner()["pid"] == os.getpid()
    process.wait()
    process.stdout.close()
    lock.release()


def test_number_of_a_dead_process_that_another_has_got(path):
    lock = Lock(path)
    lock.acquire()
    owner = lock.owner()
    lock.release()
    path.write_text(json.dumps({**owner, "started": owner["started"] - 3600}))
    assert Lock(path).acquire()


@pytest.mark.parametrize("content", ['{"host": "elsewhere", "pid": 1, "started": 0, "token": "x"}', ""])
def test_owner_on_another_machine_or_unknown_lives_as_long_as_it_gives_signs(path, content):
    path.write_text(content)
    assert not Lock(path).acquire()
    long_ago = time.time() - locks.STALE - 1
    os.utime(path, (long_ago, long_ago))
    assert Lock(path).acquire()


def test_owner_gives_signs(path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT", 0.01)
    lock = Lock(path)
    lock.acquire()
    os.utime(path, (0, 0))
    deadline = time.monotonic() + 20
    while path.stat().st_mtime == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lock.release()


def test_of_two_that_take_over_at_once_one_gets_it(path, monkeypatch):
    path.write_text('{"host": "elsewhere", "pid": 1, "started": 0, "token": "x"}')
    os.utime(path, (0, 0))
    slow, fast = Lock(path), Lock(path)
    judge, is_first = slow._is_dead, [True]

    def judge_slowly(owner):
        dead = judge(owner)
        if is_first.pop():
            assert fast.acquire()
        return dead

    monkeypatch.setattr(slow, "_is_dead", judge_slowly)
    assert not slow.acquire()
    assert fast.owner()["token"] == fast._token
    fast.release()
