"""Commands killed before any one of their file operations and started again give the same files, and no more."""

import json
import re
from pathlib import Path

import pytest

from tests.scoring import job_process


pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def ended(*args, **how) -> int:
    process = job_process.start(*args, **how)
    process.join()
    return process.exitcode


def contents(folder: Path) -> dict[str, bytes]:
    """Files and folders by name. A launch has its own number, and clocks differ: both are left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name, data = str(path.relative_to(folder)), path.read_bytes() if path.is_file() else b""
        if path.suffix == ".json" and path.parent.name != "source":
            facts = json.loads(data)
            data = json.dumps({key: value for key, value in facts.items() if key not in TIMES}).encode()
        if path.name not in ("launch.json", "hashes.json"):
            found[name] = data
    return found


TIMES = {"seconds", "launch"}


@pytest.mark.parametrize("command", ["score", "select"])
def test_killed_before_each_file_operation(command, tmp_path, tiny_student_path):
    source = tmp_path / "source"
    source.mkdir()
    rows = [
        {"problem_id": f"p{i // 2}", "prompt": f"{i}: ", "completion": "so " * (i + 1), "rsr": float(i % 3)}
        for i in range(6)
    ]
    columns = ["problem_id", "prompt", "completion"] if command == "score" else list(rows[0])
    lines = [json.dumps({name: row[name] for name in columns}) for row in rows]
    (source / "rows.jsonl").write_text("\n".join(lines))
    options = {
        "score": ["--model_name_or_path", tiny_student_path, "--shard_rows", "2"],
        "select": ["--group_column", "problem_id", "--overwrite", "--min_tokens", "0"],
    }[command]

    def run(place: Path, **how) -> int:
        argv = ["--dataset_name", str(source / "rows.jsonl"), "--output_dir", str(place / "out"), *options]
        return ended(argv, command=command, log=tmp_path / "log", under=place, **how)

    def begin(name: str) -> Path:
        place = tmp_path / name
        place.mkdir()
        if command == "select":  # there is an earlier one to be replaced
            assert run(place) == 0, (tmp_path / "log").read_text()
        return place

    whole = begin("whole")
    assert run(whole) == 0, (tmp_path / "log").read_text()
    operations = [int(number) for number in re.findall(r"^operation (\d+):", (tmp_path / "log").read_text(), re.M)]
    expected = contents(whole)
    assert operations and "out/README.md" in expected
    for number in operations:
        place = begin(f"killed-{number}")
        killed = run(place, kill_at=number)
        what = (tmp_path / "log").read_text().strip().splitlines()[-1]
        assert killed == -9, what
        assert run(place) == 0, f"{what}\n{(tmp_path / 'log').read_text()}"
        assert contents(place) == expected, what
