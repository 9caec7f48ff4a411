"""`evidence/gpu.py --toy` on the CPU: what its arms train on, going on after a stop, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


EVIDENCE = Path(__file__).parents[2] / "evidence"
OUTSIDE = {"Llama-3.1-8B-Instruct", "Qwen2-72B-Instruct"}


def run(*options, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, EVIDENCE / "gpu.py", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def options(shared, tmp_path_factory) -> list:
    folder = tmp_path_factory.mktemp("gpu")
    pool, student = shared / "data" / "gsm8k_12_teachers.jsonl", shared / "models" / "gsm8k_6m"
    return ["--pool", pool, "--gsm8k_6m", student, "--output_dir", folder / "out", "--results", folder / "results"]


@pytest.fixture(scope="module")
def finished(options) -> tuple[str, dict, dict]:
    """The lines of a run, its records by arm and seed, and the sum."""
    done = run("--toy", *options)
    assert done.returncode == 0, done.stderr
    text = (options[-1] / "gpu.jsonl").read_text()
    records = {(one["arm"], one["seed"]): one for one in map(json.loads, text.splitlines()[1:])}
    assert "Cost: 9 trainings in about" in done.stdout
    return text, records, json.loads((options[-1] / "gpu.json").read_text())


@pytest.mark.slow
def test_arms_train_on_what_they_say(finished):
    _, records, summary = finished
    teacher, many = "gemma-2-2b-it", "random with as many tokens"
    assert [*records] == [
        *[("before", 0), ("calibration", 0)],
        *[(arm, seed) for seed in (0, 1) for arm in ("random", teacher, "rsr", many)],
    ]
    for (arm, seed), record in records.items():
        assert len(record["losses"]) == 4 and record["loss"] == pytest.approx(np.mean(record["losses"]), rel=1e-4)
        assert (record["answers"] is not None) == (arm == "calibration")
        if arm == "before":
            continue
        assert not OUTSIDE & set(record["teachers"]) and sum(record["teachers"].values()) == record["rows"]
        assert record["steps"] == -(-record["rows"] // 2)  # one epoch of batches of 2
        if arm == many:  # nearer than half of a long response
            assert abs(record["tokens"] - records["rsr", seed]["tokens"]) < 300
        else:
            assert record["rows"] == (60 if arm == "calibration" else 6)
    assert records[teacher, 0]["teachers"] == {teacher: 6}
    assert records["rsr", 0]["as_rsr"] == 1 and records["rsr", 0]["tokens"] == records["rsr", 1]["tokens"]
    assert records["rsr", 0]["rsr"] < min(records[arm, 0]["rsr"] for arm in ("random", teacher, "calibration"))
    assert records["random", 0]["tokens"] != records["random", 1]["tokens"]
    for arm in (teacher, "rsr", many):
        found = summary["arms"][arm]["losses_minus_random"]
        mean = np.mean([records[arm, seed]["loss"] - records["random", seed]["loss"] for seed in (0, 1)])
        assert found["mean"] == pytest.approx(mean, abs=1e-4) and found["low"] < found["mean"] < found["high"]
        assert (found["seeds"], found["problems"], found["these_runs_only"]) == (2, 4, True)


@pytest.mark.slow
def test_it_goes_on_where_it_stopped(finished, options):
    text, records, summary = finished
    path = options[-1] / "gpu.jsonl"
    lines = text.splitlines(keepends=True)
    path.write_text("".join(lines[:-2]) + lines[-2][:100])  # two arms are missing, of one there is a part
    assert "No time is left" in run("--toy", *options, "--minutes", 0).stdout
    assert path.read_text() == "".join(lines[:-2])
    assert "8 arms are done, 2 are left" in run("--toy", *options).stdout
    again = {(one["arm"], one["seed"]): one for one in map(json.loads, path.read_text().splitlines()[1:])}
    assert [*again] == [*records]
    for key, record in records.items():  # the CPU gives the same bits
        assert again[key] | {"seconds": 0} == record | {"seconds": 0}
    before = {file.name: file.read_bytes() for file in options[-1].iterdir()}
    assert "10 arms are done, 0 are left" in run("--toy", *options).stdout
    assert {file.name: file.read_bytes() for file in options[-1].iterdir()} == before


@pytest.mark.slow
def test_what_it_refuses(finished, options, tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"gpu": {"learning_rate": 1e-3}}))
    for given, message in [
        ([*options], "There is no CUDA GPU here"),
        (["--toy", *options[:-2]], "--toy needs its own --results"),
        (["--toy", *options, "--plan", plan], "is of other settings"),
    ]:
        done = run(*given, CUDA_VISIBLE_DEVICES="")
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
