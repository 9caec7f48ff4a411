import pytest
from datasets import Dataset

from rsr_trl import write_report


@pytest.fixture
def report(rsr, scored_path, tmp_path):
    """`report(*more)` runs `rsr report`."""
    output = tmp_path / "report.html"

    def run(*more, dataset_name=scored_path):
        return rsr("report", "--dataset_name", dataset_name, "--output", output, *more)

    run.output = output
    return run


# The teachers of the fixture on the problems that both solved, by hand (Eq. 9): short (2 + 75) / (1 + 5) = 12.83,
# long (5 + 2) / (4/3 + 1) = 3.
def test_writes_a_page_and_says_what_it_says(report):
    text = report().text
    assert "Wrote the report -> " in text and "report.html" in text
    assert "6 trajectories of 3 problems by 2 teachers" in text and "1 couldn't be scored" in text
    assert "RSR of long: 3.000 (lower = more suitable" in text
    assert "Not in the report: Reading trajectories." in text and "rsr score --token_stats" in text
    page = report.output.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "RSR of long: 3.000" in page


def test_a_folder_gets_the_page_and_the_command_says_what_it_does(rsr, tmp_path, scored_path):
    text = rsr("report", "--dataset_name", scored_path, "--output_dir", tmp_path / "page").text
    assert "Writing a report on 6 trajectories ..." in text and (tmp_path / "page" / "report.html").is_file()


def test_in_a_notebook(scored_path, tmp_path):
    written = write_report(scored_path, tmp_path / "a <b>.html")
    assert len(repr(written)) < 150
    html = written._repr_html_()
    assert "a &lt;b&gt;.html" in html and "3 problems" in html and "a%20%3Cb%3E.html" in html


def test_json(report):
    done = report("--json")
    result = done.json
    assert done.err == "" and result["direction"] == "lower = more suitable"
    assert result["output"] == str(report.output) and result["bytes"] == report.output.stat().st_size
    assert "3 problems" in result["headline"]["Data"] and "not scored" in result["cautions"]
    assert set(result["missing"]) == {"Reading trajectories", "During training", "Pilot results"}


def test_a_folder_of_rsr_score_tells_student_and_settings(rsr, report, tmp_path, tiny_student_path, scored_rows):
    names = ["prompt", "completion", "teacher", "problem_id"]
    Dataset.from_list(scored_rows).select_columns(names).to_parquet(tmp_path / "raw.parquet")
    options = ["--model_name_or_path", tiny_student_path, "--dataset_name", tmp_path / "raw.parquet"]
    options += ["--output_dir", tmp_path / "scored", "--token_stats", "True", "--r_max", "50", "--json"]
    assert rsr("score", *options).code == 0
    result = report("--rows", "1", "4", "--json", dataset_name=tmp_path / "scored").json
    assert set(result["missing"]) == {"During training", "Pilot results"}
    page = report.output.read_text(encoding="utf-8")
    assert f"<bdi>{tiny_student_path}</bdi>" in page and "clipped at 50" in page and "<bdi>float32</bdi>" in page
    assert "first requested row" in page


@pytest.mark.parametrize(
    "options, message",
    [
        (["--teacher_column", "author"], "no column 'author'"),
        (["--rows", "6"], "no row 6"),
        (["--run", "nowhere"], "no score history in 'nowhere'"),
    ],
)
def test_errors_are_one_message_and_write_nothing(report, options, message):
    done = report(*options)
    assert done.code == 1 and message in done.err and "Traceback" not in done.err
    assert not report.output.exists()
