"""Runs that are killed, stopped, or run out of room, started again, give the undisturbed table; memory stays even."""

import json
import os
import random
import re
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from datasets import load_dataset

from tests.scoring import job_process


pytestmark = [pytest.mark.slow, pytest.mark.distributed]

NUM_ROWS, SHARD_ROWS, MOMENTS = 120, 8, 25


@pytest.fixture
def command(tmp_path, tiny_student_path):
    """`command(name)`: the words of `rsr score` into the folder of that name."""
    numbers = random.Random(0)
    rows = [{"id": i, "prompt": f"{i}: ", "completion": "so " * numbers.randint(0, 60)} for i in range(NUM_ROWS)]
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))

    def words(name: str, *more: str) -> list[str]:
        student = ["--model_name_or_path", tiny_student_path, "--shard_rows", str(SHARD_ROWS)]
        return ["--dataset_name", str(source), "--output_dir", str(tmp_path / name), *student, *more]

    return words


def run(argv, world: int = 1, logs=(None, None)) -> list[int]:
    processes = [job_process.start(argv, rank, world, logs[rank]) for rank in range(world)]
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def ended(process) -> int:
    process.join()
    return process.exitcode


def table(tmp_path, name: str) -> list[dict]:
    complete = json.loads((tmp_path / name / ".rsr" / "complete.json").read_text())
    assert complete == {"rows": NUM_ROWS, "shards": NUM_ROWS // SHARD_ROWS}
    assert not list((tmp_path / name).rglob("*.unfinished"))
    shards = [f"train-{i:06d}.parquet" for i in range(NUM_ROWS // SHARD_ROWS)]
    assert sorted(p.name for p in (tmp_path / name / "data").iterdir()) == shards
    files = str(tmp_path / name / "data" / "*.parquet")
    return load_dataset("parquet", data_files=files, split="train").to_list()


@pytest.fixture
def undisturbed(command, tmp_path):
    """The table of a run that nobody disturbs, and how long one takes, roughly: the machine may have other work."""
    assert run(command("first")) == [0]  # fills the caches
    start = time.monotonic()
    assert run(command("whole")) == [0]
    return table(tmp_path, "whole"), time.monotonic() - start


def wait_for_shards(folder, number: int) -> None:
    state = folder / ".rsr"
    while not (state / "complete.json").exists() and len(list(state.glob("shards/*.json"))) < number:
        time.sleep(0.001)


@pytest.mark.parametrize("world", [1, 2])
def test_killed_at_random_moments(command, undisturbed, tmp_path, world):
    expected, seconds = undisturbed
    assert [row["id"] for row in expected] == list(range(NUM_ROWS))
    moments = random.Random(world)
    unfinished = 0
    for i in range(MOMENTS):
        name = f"killed-{i}"
        processes = [job_process.start(command(name), rank, world) for rank in range(world)]
        # Some while they start, most after a number of shards: whatever else the machine does, in the middle.
        number = moments.randrange(-3, NUM_ROWS // SHARD_ROWS - 2)
        wait_for_shards(tmp_path / name, number)
        time.sleep(moments.uniform(0, 0.02 if number > 0 else seconds / 2))
        for process in processes:
            process.kill()
            process.join()
        unfinished += not (tmp_path / name / ".rsr" / "complete.json").exists()
        # Every third time with another number of processes.
        assert set(run(command(name), 3 - world if i % 3 == 0 else world)) == {0}
        assert table(tmp_path, name) == expected, f"killed at moment {i}"
    assert unfinished > MOMENTS // 2, "most were meant to be killed in the middle"


def test_one_of_two_is_killed_and_the_other_does_its_share(command, undisturbed, tmp_path):
    expected, _ = undisturbed
    log = tmp_path / "log"
    other = job_process.start(command("one"), 1, 2)
    wait_for_shards(tmp_path / "one", 1)
    other.kill()
    ended(other)
    assert ended(job_process.start(command("one"), 0, 2, log=log)) == 0 and "of 15 shards are done" in log.read_text()
    assert not (tmp_path / "one" / ".rsr" / "complete.json").exists()
    assert run(command("one"), 2) == [0, 0]
    assert table(tmp_path, "one") == expected


def test_a_second_run_is_kept_out_while_the_first_is_at_work(command, undisturbed, tmp_path):
    expected, _ = undisturbed
    first = job_process.start(command("both"))
    wait_for_shards(tmp_path / "both", 1)
    os.kill(first.pid, signal.SIGSTOP)  # at work, and in no hurry
    assert run(command("both"), logs=[tmp_path / "log"]) == [1]
    said = " ".join((tmp_path / "log").read_text().split())
    assert "Another run is writing to" in said and "(process 1-of-1)" in said
    os.kill(first.pid, signal.SIGCONT)
    assert ended(first) == 0
    assert table(tmp_path, "both") == expected


def test_launched_processes_say_the_end_once_and_are_even(command, undisturbed, tmp_path):
    expected, _ = undisturbed
    logs = [tmp_path / f"log-{rank}" for rank in range(2)]
    assert run(command("even", "--json"), 2, logs) == [0, 0]
    (result,) = [json.loads(line) for log in logs for line in log.read_text().splitlines() if line.startswith("{")]
    assert result["complete"] and result["trajectories"] == NUM_ROWS
    assert {name: one["rows"] for name, one in result["processes"].items()} == {"1-of-2": 64, "2-of-2": 56}
    assert table(tmp_path, "even") == expected


def test_sigterm_says_where_it_stopped(command, undisturbed, tmp_path):
    expected, _ = undisturbed
    for attempt in range(5):  # on a busy machine, all shards may be done before the first is noticed here
        name = f"stopped{attempt}"
        process = job_process.start(command(name), log=tmp_path / "log")
        wait_for_shards(tmp_path / name, 1)
        os.kill(process.pid, signal.SIGTERM)
        if code := ended(process):
            break
    assert code == 128 + signal.SIGTERM
    assert not list((tmp_path / name).rglob("*.unfinished"))
    said = " ".join((tmp_path / "log").read_text().split())
    assert "Stopped: " in said and "of 15 shards are done" in said and "Run the same command again to resume" in said
    assert run(command(name)) == [0]
    assert table(tmp_path, name) == expected


@contextmanager
def mounted(path: Path, options: str):
    """A small file system."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a file system")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def small_disk(tmp_path):
    with mounted(tmp_path / "disk", "size=400k") as path:
        yield path


def test_full_disk_is_said_and_what_was_done_stays(command, undisturbed, small_disk, tmp_path):
    expected, _ = undisturbed
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"0" * 260_000)
    argv = command("disk/out")
    assert run(argv, logs=[tmp_path / "log"]) == [1]
    said = (tmp_path / "log").read_text()
    assert "no room left in" in said and "run the same command again" in said
    records = (small_disk / "out" / ".rsr" / "shards").glob("*.json")  # a shard without its record isn't done
    names = [f"train-{record.stem}.parquet" for record in records]
    done = {name: (small_disk / "out" / "data" / name).stat().st_ino for name in names}
    assert done, "some shards were meant to fit"
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert run(argv) == [0]
    assert table(tmp_path, "disk/out") == expected
    assert {name: (small_disk / "out" / "data" / name).stat().st_ino for name in done} == done


def test_folder_without_the_right_to_write(command, tmp_path):
    with mounted(tmp_path / "locked", "ro"):
        assert run(command("locked/out"), logs=[tmp_path / "log"]) == [1]
    assert "can't write to the folder" in (tmp_path / "log").read_text()


def test_ten_times_the_rows_of_a_stream_take_the_same_memory(tmp_path, tiny_student, tiny_tokenizer):
    tiny_student(num_hidden_layers=1, hidden_size=16, intermediate_size=16).save_pretrained(tmp_path / "student")
    tiny_tokenizer.save_pretrained(tmp_path / "student")
    peaks, log, source = [], tmp_path / "log", tmp_path / "rows.jsonl"
    argv = ["--model_name_or_path", str(tmp_path / "student"), "--dataset_name", str(source), "--json"]
    for num_rows in (20_000, 200_000):  # the fewer rows fill the 10 MB that `datasets` reads at once, too
        rows = ({"prompt": f"{i % 10}?", "completion": "y", "note": f"{i:0600d}"} for i in range(num_rows))
        source.write_text("\n".join(map(json.dumps, rows)))
        more = ["--dataset_streaming", "--output_dir", str(tmp_path / f"out-{num_rows}"), "--shard_rows", "4000"]
        assert run(argv + more, logs=[log]) == [0], log.read_text()
        assert json.loads(re.search(r"^{.*}$", log.read_text(), re.MULTILINE)[0])["scored"] == num_rows
        peaks.append(int(re.search(r"^peak (\d+)$", log.read_text(), re.MULTILINE)[1]))
    assert peaks[1] < 1.2 * peaks[0], peaks
