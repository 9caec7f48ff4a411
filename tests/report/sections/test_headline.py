import pytest

from rsr_trl.data import Columns, dataset_card
from rsr_trl.report.sections.headline import best_teacher
from rsr_trl.selection.table import ScoredTable
from rsr_trl.selection.teachers import rank_table
from tests.report.pages import as_dataset, scored_rows


def said(rows, problem_column="problem_id"):
    """The sentences about teachers, and the ranking's own verdict."""
    ranking = rank_table(ScoredTable.read(as_dataset(rows), Columns(teacher="teacher", problem=problem_column), []))
    return best_teacher(ranking), ranking.verdict()


@pytest.fixture
def many(tiny_tokenizer):
    return scored_rows(tiny_tokenizer, 40)


def test_the_verdict_comes_with_its_numbers(many):
    text, verdict = said(many)
    assert text.startswith(f"{verdict} RSR of ann: ") and "lower = more suitable; 95% interval" in text
    assert "of bootstrap resamples." in text


def test_who_cant_be_judged_has_no_numbers(many):
    first = [row for row in many if row["problem_id"] == "p0"]
    assert said(first) == ("One problem can't tell teachers apart.",) * 2
    text, verdict = said(first, None)
    assert text == verdict == "No teacher can be judged: each has only one trajectory."
    text, verdict = said([*(row for row in many if row["teacher"] == "ann"), *first[1:]], None)
    assert text.startswith(verdict) and "ann is the only teacher that can be judged." in verdict
    assert "RSR of ann: " in text and "resamples" not in text


def test_a_single_teacher(many):
    text, _ = said([row for row in many if row["teacher"] == "ann"])
    assert text.startswith("There is no other teacher to compare ann with. RSR of ann: ") and "resamples" not in text


def test_a_selection_has_no_best_teacher(write, rows, tmp_path):
    words = write(rows, source=str(tmp_path)).words("headline")
    assert "RSR of ann" in words
    (tmp_path / "README.md").write_text(dataset_card("Chosen.", facts={"command": "select"}), encoding="utf-8")
    words = write(rows, source=str(tmp_path)).words("headline")
    assert "RSR of ann" not in words and "they don't tell which teacher suits" in words
