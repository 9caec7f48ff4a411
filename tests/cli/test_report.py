import json

import pytest
from datasets import Dataset

from rsr_trl.cli.main import main


@pytest.fixture
def report(scored_path, tmp_path):
    """`report(*more)` runs `rsr report` and returns its exit code."""
    output = tmp_path / "report.html"

    def run(*more, dataset_name=scored_path):
        return main(["report", "--dataset_name", str(dataset_name), "--output", str(output), *more])

    run.output = output
    return run


# The teachers of the fixture on the problems that both solved, by hand (Eq. 9): short (2 + 75) / (1 + 5) = 12.83,
# long (5 + 2) / (4/3 + 1) = 3.
def test_writes_a_page_and_says_what_it_says(report, capsys):
    assert report() == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    text = " ".join(captured.err.split())
    assert "Wrote the report -> " in text and "report.html" in text
    assert "6 trajectories of 3 problems by 2 teachers" in text and "1 couldn't be scored" in text
    assert "RSR of long: 3.000 (lower = more suitable" in text
    assert "Not on the page: Reading trajectories." in text and "rsr score --token_stats" in text
    page = report.output.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "RSR of long: 3.000" in page


def test_json(report, capsys):
    assert report("--json") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    result = json.loads(captured.out)
    assert result["output"] == str(report.output) and result["bytes"] == report.output.stat().st_size
    assert result["direction"] == "lower = more suitable"
    assert "3 problems" in result["headline"]["Data"] and "not scored" in result["cautions"]
    assert set(result["missing"]) == {"Reading trajectories", "During training", "What a pilot found"}


def test_a_folder_of_rsr_score_tells_student_and_settings(report, tmp_path, tiny_student_path, scored_rows, capsys):
    raw = Dataset.from_list(
        [{name: row[name] for name in ("prompt", "completion", "teacher", "problem_id")} for row in scored_rows]
    )
    raw.to_parquet(tmp_path / "raw.parquet")
    folder = str(tmp_path / "scored")
    options = ["--model_name_or_path", tiny_student_path, "--dataset_name", str(tmp_path / "raw.parquet")]
    assert main(["score", *options, "--output_dir", folder, "--token_stats", "True", "--r_max", "50", "--json"]) == 0
    capsys.readouterr()
    assert report("--rows", "1", "4", "--json", dataset_name=folder) == 0
    assert set(json.loads(capsys.readouterr().out)["missing"]) == {"During training", "What a pilot found"}
    page = report.output.read_text(encoding="utf-8")
    assert f"<bdi>{tiny_student_path}</bdi>" in page and "clipped at 50" in page and "<bdi>float32</bdi>" in page
    assert "asked for" in page


@pytest.mark.parametrize(
    "options, message",
    [
        (["--teacher_column", "author"], "no column 'author'"),
        (["--rows", "6"], "no row 6"),
        (["--run", "nowhere"], "no score history in 'nowhere'"),
    ],
)
def test_errors_are_one_message_and_write_nothing(report, capsys, options, message):
    assert report(*options) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not report.output.exists()
