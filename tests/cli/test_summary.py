import json

import numpy as np
import pytest
from datasets import Dataset

from rsr_trl.cli.summary import figures
from rsr_trl.data import Columns
from rsr_trl.rsr import ERROR, MEAN_CLIPPED_RANK, MEAN_SURPRISAL, RSR, dataset_rsr
from rsr_trl.selection.table import ScoredTable


def of(rows: list[dict] | Dataset) -> dict:
    dataset = rows if isinstance(rows, Dataset) else Dataset.from_list(rows)
    result = figures(ScoredTable.read(dataset, Columns(teacher="teacher")))
    json.dumps(result, allow_nan=False)
    return result


def ratio_of(rows: list[dict]) -> float:
    return dataset_rsr(*([row[name] for row in rows] for name in (MEAN_CLIPPED_RANK, MEAN_SURPRISAL)))


def test_figures_against_the_equation(scored_rows):
    other = {**scored_rows[-1], ERROR: "completion is empty (whole: 99 tokens)"}
    result = of([*scored_rows, other])
    scored = [row for row in scored_rows if row["rsr"] is not None]
    assert result["rsr"] == pytest.approx(ratio_of(scored), rel=1e-12)
    assert result["rsr_median"] == np.median([row["rsr"] for row in scored])
    assert result["mean_tokens"] == np.mean([row["rsr_num_tokens"] for row in scored])
    assert (result["trajectories"], result["scored"], result["truncated"], result["short"]) == (7, 5, 2, 0)
    assert result["not_scored"] == {"completion is empty": 2}
    for one in result["teachers"]:
        own = [row for row in scored if row["teacher"] == one["teacher"]]
        assert one["rsr"] == pytest.approx(ratio_of(own), rel=1e-12) and one["scored"] == len(own)
    assert [one["teacher"] for one in result["teachers"]] == ["long", "short"]


def test_nothing_scored_nothing_at_all_and_an_infinite_ratio_are_null(scored_rows):
    infinite = [{**scored_rows[0], RSR: float("inf"), MEAN_SURPRISAL: 0.0}]
    for rows, scored in ((scored_rows[-1:], 0), (Dataset.from_list(scored_rows).select([]), 0), (infinite, 1)):
        result = of(rows)
        assert result["scored"] == scored and result["rsr"] is None and result["rsr_median"] is None
        assert result["trajectories"] == len(rows)


def test_rows_chosen_from_a_dataset_are_the_ones_summarised(scored_rows):
    table = ScoredTable.read(Dataset.from_list(scored_rows), Columns(teacher="teacher"))
    for result in (of(Dataset.from_list(scored_rows).select([3, 0])), figures(table.where(np.array([3, 0])))):
        assert (result["trajectories"], result["rsr"], len(result["teachers"])) == (2, 2.0, 2)
