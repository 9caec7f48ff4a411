import numpy as np
import pytest

from rsr_trl.data import Columns, dataset_card
from rsr_trl.report.sections.headline import best_teacher
from rsr_trl.selection.table import ScoredTable
from rsr_trl.selection.teachers import rank_table
from tests.report.pages import as_dataset, rsr_of, scored_rows


@pytest.fixture
def said(tiny_tokenizer):
    """`said(rows wanted)` -> the sentences about teachers, and the ranking's own verdict."""
    many = scored_rows(tiny_tokenizer, 40)

    def say(wanted, problem_column="problem_id"):
        dataset = as_dataset([row for row in many if wanted(row)])
        ranking = rank_table(ScoredTable.read(dataset, Columns(teacher="teacher", problem=problem_column), []))
        return best_teacher(ranking), ranking.verdict()

    return say


def test_the_verdict_comes_with_its_numbers(said):
    text, verdict = said(bool)
    assert text.startswith(f"{verdict} RSR of ann: ") and "lower = more suitable; 95% interval" in text
    assert "of bootstrap resamples." in text


def test_who_cant_be_judged_has_no_numbers(said):
    def first(row):
        return row["problem_id"] == "p0"

    assert said(first) == ("One problem can't tell teachers apart.",) * 2
    assert said(first, None) == ("No teacher can be judged: each has only one trajectory.",) * 2
    text, verdict = said(lambda row: first(row) or row["teacher"] == "ann", None)
    assert text.startswith(verdict) and "ann is the only teacher that can be judged." in verdict
    assert "RSR of ann: " in text and "resamples" not in text
    text, _ = said(lambda row: row["teacher"] == "ann")
    assert text.startswith("There is no other teacher to compare ann with. RSR of ann: ") and "resamples" not in text


def test_counts_and_the_choice(write, rows):
    text = write(rows).words("headline")
    assert "18 trajectories of 6 problems by 3 teachers" in text
    rsr = {name: rsr_of([row for row in rows if row["teacher"] == name]) for name in ("ann", "bob", "eve")}
    best = min(rsr, key=rsr.get)
    assert f"RSR of {best}: {rsr[best]:.3f}" in text
    chosen = [min((r for r in rows if r["problem_id"] == f"p{i}"), key=lambda r: r["rsr"]) for i in range(6)]
    right = [np.mean([row["correct"] for row in some]) for some in (chosen, rows)]
    assert f"Correct {right[0]:.0%} of the chosen, {right[1]:.0%} before. Chosen at random: {right[1]:.0%};" in text
    assert f"leaves 6 of 18. RSR goes from {rsr_of(rows):.2f} to {rsr_of(chosen):.2f}" in text


def test_a_selection_has_no_best_teacher_and_the_settings_of_its_scoring(write, rows, tmp_path):
    facts = {"command": "select", "scoring": {"r_max": 50}}
    (tmp_path / "README.md").write_text(dataset_card("Chosen.", facts=facts), encoding="utf-8")
    page = write(rows, source=str(tmp_path))
    words = page.words("headline")
    assert "RSR of ann" not in words and "they don't tell which teacher suits" in words
    assert "clipped at 50" in page.words("method")
