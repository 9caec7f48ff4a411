import io
import json

import numpy as np
import pytest
from datasets import Dataset
from rich.console import Console

from rsr_trl.cli.options import DatasetArguments, StudentArguments
from rsr_trl.cli.summary import beside, figures, given, print_next, share, teacher_column_of
from rsr_trl.rsr import ERROR, MEAN_CLIPPED_RANK, MEAN_SURPRISAL, RSR, dataset_rsr


def test_figures_against_the_equation(scored_rows):
    result = figures(Dataset.from_list(scored_rows), "teacher")
    scored = [row for row in scored_rows if row["rsr"] is not None]
    means = [[row[name] for row in scored] for name in (MEAN_CLIPPED_RANK, MEAN_SURPRISAL)]
    assert result["rsr"] == pytest.approx(dataset_rsr(*means), rel=1e-12)
    assert result["rsr_median"] == np.median([row["rsr"] for row in scored])
    assert result["mean_tokens"] == np.mean([row["rsr_num_tokens"] for row in scored])
    assert (result["trajectories"], result["scored"], result["truncated"], result["short"]) == (6, 5, 2, 4)
    for one in result["teachers"]:
        own = [row for row in scored if row["teacher"] == one["teacher"]]
        means = [[row[name] for row in own] for name in (MEAN_CLIPPED_RANK, MEAN_SURPRISAL)]
        assert one["rsr"] == pytest.approx(dataset_rsr(*means), rel=1e-12)
        assert one["scored"] == len(own)
    assert [one["teacher"] for one in result["teachers"]] == ["long", "short"]


def test_reasons_are_counted_without_what_is_of_one_row(scored_rows):
    other = {**scored_rows[-1], ERROR: "completion is empty (whole: 99 tokens)"}
    assert figures(Dataset.from_list([*scored_rows, other]))["not_scored"] == {"completion is empty": 2}


def test_nothing_scored_and_nothing_at_all(scored_rows):
    for dataset in (Dataset.from_list(scored_rows[-1:]), Dataset.from_list(scored_rows).select([])):
        result = figures(dataset, "teacher")
        assert result["scored"] == 0 and result["rsr"] is None and result["rsr_median"] is None
        assert result["trajectories"] == len(dataset)
        json.dumps(result, allow_nan=False)


def test_infinite_ratio_is_null_in_json(scored_rows):
    certain = {**scored_rows[0], RSR: float("inf"), MEAN_SURPRISAL: 0.0}
    result = figures(Dataset.from_list([certain]))
    assert result["rsr"] is None and result["rsr_median"] is None
    json.dumps(result, allow_nan=False)


def test_rows_chosen_from_a_dataset_are_the_ones_summarised(scored_rows):
    result = figures(Dataset.from_list(scored_rows).select([3, 0]))
    assert (result["trajectories"], result["rsr"]) == (2, 2.0)


def test_missing_score_column_says_what_to_do_first():
    with pytest.raises(ValueError, match="rsr score"):
        figures(Dataset.from_dict({"prompt": ["a"]}))


def test_teacher_column(scored_rows):
    dataset = Dataset.from_list(scored_rows)
    assert teacher_column_of(dataset, None) == "teacher"
    assert teacher_column_of(dataset, "problem_id") == "problem_id"
    assert teacher_column_of(dataset.remove_columns("teacher"), None) is None
    with pytest.raises(ValueError, match="'author'.*problem_id"):
        teacher_column_of(dataset, "author")


@pytest.mark.parametrize("part, whole, text", [(0, 10, "0 (0%)"), (1, 2400, "1 (<1%)"), (1200, 2400, "1,200 (50%)")])
def test_share(part, whole, text):
    assert share(part, whole) == text


def test_given_options_are_those_that_differ_from_their_defaults():
    assert given(DatasetArguments("a b.jsonl")) == ["--dataset_name", "a b.jsonl"]
    arguments = StudentArguments("m", token_stats=True, r_max=50, dtype="auto", max_length=None)
    assert given(arguments) == ["--model_name_or_path", "m", "--r_max", "50", "--token_stats"]


def test_folders_proposed_beside_a_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "v1.0").mkdir()
    (tmp_path / "pool" / "a.jsonl").touch()
    assert beside("pool/a.jsonl", "scored") == "pool/a-scored"
    assert beside("pool/", "scored") == "pool-scored"
    assert beside("pool/v1.0", "scored") == "pool/v1.0-scored"
    assert beside(f"{tmp_path}/pool", "scored") == f"{tmp_path}/pool-scored"
    assert beside("me/on-the-hub", "scored") == "on-the-hub-scored"


def test_next_command_is_one_line_that_a_shell_reads():
    out = Console(file=io.StringIO(), width=40)
    print_next(out, "rsr", "select", "--dataset_name", "my data[1]", "--output_dir", "x" * 40)
    assert out.file.getvalue() == f"Next: rsr select --dataset_name 'my data[1]' --output_dir {'x' * 40}\n"
