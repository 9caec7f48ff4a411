"""What the tests of the page share."""

import pytest

from tests.report.pages import Page, as_dataset, scored_rows


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
