import json

import numpy as np
import pytest
from datasets import Dataset

from rsr_trl.cli.summary import figures
from rsr_trl.data import Columns
from rsr_trl.rsr import ERROR, MEAN_CLIPPED_RANK, MEAN_SURPRISAL, RSR, RSRError, dataset_rsr
from rsr_trl.selection.table import ScoredTable


def of(rows: list[dict] | Dataset) -> dict:
    dataset = rows if isinstance(rows, Dataset) else Dataset.from_list(rows)
    result = figures(ScoredTable.read(dataset, Columns(teacher="teacher")))
    json.dumps(result, allow_nan=False)
    return result


def test_figures_against_the_equation(scored_rows):
    result = of(scored_rows)
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
    assert of([*scored_rows, other])["not_scored"] == {"completion is empty": 2}


def test_nothing_scored_and_nothing_at_all(scored_rows):
    for rows in (scored_rows[-1:], Dataset.from_list(scored_rows).select([])):
        result = of(rows)
        assert result["scored"] == 0 and result["rsr"] is None and result["rsr_median"] is None
        assert result["trajectories"] == len(rows)


def test_infinite_ratio_is_null_in_json(scored_rows):
    result = of([{**scored_rows[0], RSR: float("inf"), MEAN_SURPRISAL: 0.0}])
    assert result["rsr"] is None and result["rsr_median"] is None


def test_rows_chosen_from_a_dataset_are_the_ones_summarised(scored_rows):
    table = ScoredTable.read(Dataset.from_list(scored_rows), Columns(teacher="teacher"))
    for result in (of(Dataset.from_list(scored_rows).select([3, 0])), figures(table.where(np.array([3, 0])))):
        assert (result["trajectories"], result["rsr"], len(result["teachers"])) == (2, 2.0, 2)


def test_missing_score_column_says_what_to_do_first():
    with pytest.raises(RSRError, match="rsr score"):
        of([{"teacher": "a"}])
