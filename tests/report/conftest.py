"""What the tests of the page share."""

import numpy as np
import pytest

from rsr_trl.rsr import NUM_TOKENS
from tests.report.pages import MEASURED, Page, as_dataset, scored_rows


@pytest.fixture
def rows(tiny_tokenizer) -> list[dict]:
    """Six problems x three teachers, with token statistics."""
    return scored_rows(tiny_tokenizer)


@pytest.fixture
def write(tmp_path, tiny_tokenizer):
    """`write(rows, without=columns, **options)` makes a page and returns it taken apart, with its `report`."""
    from rsr_trl.report.page import write_report

    def make(rows, /, name: str = "report.html", without: tuple = (), **options) -> Page:
        dataset = as_dataset(rows, without) if isinstance(rows, list) else rows
        report = write_report(dataset, tmp_path / name, **{"tokenizer": tiny_tokenizer} | options)
        page = Page(report.path.read_text(encoding="utf-8"))
        page.report = report
        return page

    return make


@pytest.fixture
def run(tmp_path):
    """`run(rows, *factors)` writes the history of a run that scores once for each, with the ranks so much higher."""
    from rsr_trl.training.live_table import ScoreHistory, ScoreTable

    def make(rows: list[dict], *factors, source=None):
        every = np.arange(len(rows))
        table = ScoreTable([row[NUM_TOKENS] for row in rows])
        log = ScoreHistory(str(tmp_path / "out"), every if source is None else source)
        rank, surprisal = (np.array([row[name] for row in rows]) for name in MEASURED[1:])
        for place, factor in enumerate(factors):
            table.update(every, rank * factor, surprisal, step=10 * place)
            log.write(table, every, 10 * place, "pass")
        return tmp_path / "out"

    return make
