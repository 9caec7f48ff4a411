import json

import pytest
from datasets import Dataset, load_dataset

from rsr_trl.cli.main import main
from rsr_trl.data import card_facts, scoring_settings, write_scored


@pytest.fixture
def select(scored_path, tmp_path):
    """`select(*more)` runs `rsr select` and returns its exit code."""
    output_dir = str(tmp_path / "chosen")

    def run(*more, dataset_name=scored_path):
        return main(["select", "--dataset_name", dataset_name, "--output_dir", output_dir, *more])

    run.output_dir = output_dir
    return run


def _chosen(select) -> list[tuple[str, str]]:
    rows = load_dataset(select.output_dir, split="train")
    return list(zip(rows["problem_id"][:], rows["teacher"][:], strict=True))


# The ratios of the fixture: a: short 2.0, long 3.75; b: short 15.0, long 2.0; c: short 3.5, long null.
@pytest.mark.parametrize(
    "options, expected",
    [
        (["--group_column", "problem_id"], [("a", "short"), ("b", "long"), ("c", "short")]),
        (["--group_column", "problem_id", "--prefer", "high"], [("a", "long"), ("b", "short"), ("c", "short")]),
        (["--keep_fraction", "0.4"], [("a", "short"), ("b", "long")]),
        (["--score_threshold", "3.6"], [("a", "short"), ("b", "long"), ("c", "short")]),
        (["--group_column", "problem_id", "--max_tokens", "2"], [("a", "short"), ("b", "short")]),
        (["--group_column", "problem_id", "--min_tokens", "3"], [("a", "long"), ("b", "long"), ("c", "short")]),
        (["--group_column", "problem_id", "--score", "length"], [("a", "long"), ("b", "long"), ("c", "short")]),
        (["--group_column", "problem_id", "--score", "rank"], [("a", "short"), ("b", "long"), ("c", "short")]),
    ],
)
def test_chooses_as_asked(select, options, expected):
    assert select(*options) == 0
    assert _chosen(select) == expected


def test_summary_shows_before_and_after(select, capsys):
    assert select("--group_column", "problem_id") == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    text = " ".join(captured.err.split())
    assert "Chose 3 of 6 trajectories" in text and "3 groups in 'problem_id'" in text
    # Eq. 9 by hand: before (2 + 5 + 75 + 2 + 7) / (1 + 4/3 + 5 + 1 + 2), chosen (2 + 2 + 7) / (1 + 1 + 2).
    assert "RSR (lower = more suitable) 8.806 2.750" in text
    assert "short 10.500 3 (60%) 2 (67%)" in text  # (2 + 75 + 7) / (1 + 5 + 2)
    assert "1 (17%) trajectories (no finite score)" in text
    assert f"Next: rsr sft --model_name_or_path STUDENT --dataset_name {select.output_dir} --output_dir" in text


def test_the_student_that_scored_is_passed_on(select, scored_rows, tmp_path, capsys):
    facts = {"command": "score", "student": "me/student", "settings": {"r_max": 50}}
    write_scored(Dataset.from_list(scored_rows), tmp_path / "scored", "", facts=facts)
    assert select("--group_column", "problem_id", dataset_name=str(tmp_path / "scored")) == 0
    assert "Next: rsr sft --model_name_or_path me/student " in capsys.readouterr().err
    assert card_facts(select.output_dir)["student"] == "me/student"
    assert scoring_settings(select.output_dir) == {"r_max": 50}


def test_another_score_is_shown_before_and_after(select, capsys):
    assert select("--group_column", "problem_id", "--score", "length") == 0
    text = " ".join(capsys.readouterr().err.split())
    assert "mean length (higher first) 10.000 15.333" in text  # (2 + 3 + 2 + 3 + 40) / 5, (3 + 3 + 40) / 3


def test_what_is_read_is_never_overwritten(select, scored_rows, tmp_path, capsys):
    source = tmp_path / "scored"
    write_scored(Dataset.from_list(scored_rows), source, "Made by `rsr score`.")
    for name in (source, source / "data"):
        options = ["--group_column", "problem_id", "--overwrite", "--output_dir", str(source)]
        assert select(*options, dataset_name=str(name)) == 1
        assert "is read and lies in output_dir" in capsys.readouterr().err
    assert len(load_dataset(str(source), split="train")) == len(scored_rows)


def test_json(select, capsys):
    assert select("--group_column", "problem_id", "--json") == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert captured.err == ""
    assert (result["chosen"], result["groups"], result["empty_groups"]) == (3, 3, {})
    assert (result["score"], result["prefer"]) == ("rsr", "low")
    assert result["after"]["rsr"] == pytest.approx(2.75)


def test_groups_that_give_nothing_are_counted(select, capsys):
    assert select("--group_column", "problem_id", "--max_tokens", "3") == 0
    assert "1 of 3 groups have no scored trajectory" in " ".join(capsys.readouterr().err.split())


def test_one_teacher_for_most_is_pointed_out(select, capsys, scored_rows, tmp_path):
    rows = [{**row, "teacher": f"{row['teacher']}-{row['problem_id']}"} for row in scored_rows]
    rows += [{**scored_rows[0], "problem_id": f"more {i}", "teacher": "short-a"} for i in range(5)]
    Dataset.from_list(rows).to_parquet(tmp_path / "one.parquet")
    assert select("--group_column", "problem_id", dataset_name=str(tmp_path / "one.parquet")) == 0
    assert "--max_share_per_teacher" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "exactly one of group_column"),
        (["--keep_fraction", "1.5"], "keep_fraction"),
        (["--group_column", "problem"], "'problem'"),
        (["--keep_fraction", "0.5", "--score", "entropy"], "rsr score --scores entropy"),
        (["--keep_fraction", "0.5", "--score", "rsr_truncated"], "Which end of the column 'rsr_truncated'"),
        (["--score_threshold", "0.1"], "Nothing was chosen of 6"),
    ],
)
def test_wrong_options_are_one_message_and_write_nothing(select, capsys, tmp_path, options, message):
    assert select(*options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "chosen").exists()


def test_a_dataset_without_scores_is_chosen_from_by_a_column_of_its_own(select, capsys, tmp_path):
    Dataset.from_dict({"prompt": ["a", "b"], "quality": [1.0, 2.0]}).to_parquet(tmp_path / "raw.parquet")
    options = ["--keep_fraction", "0.5", "--score", "quality", "--prefer", "high"]
    assert select(*options, dataset_name=str(tmp_path / "raw.parquet")) == 0
    assert load_dataset(select.output_dir, split="train")["prompt"][:] == ["b"]
    text = " ".join(capsys.readouterr().err.split())
    assert "RSR (lower = more suitable) – –" in text and "mean quality (higher first) 1.500 2.000" in text


def test_unscored_dataset_says_what_to_do_first(select, capsys, tmp_path):
    Dataset.from_list([{"prompt": "2+2=", "completion": "4"}]).to_parquet(tmp_path / "raw.parquet")
    assert select("--keep_fraction", "0.5", dataset_name=str(tmp_path / "raw.parquet")) == 1
    assert "rsr score" in capsys.readouterr().err
