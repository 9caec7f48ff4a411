import pytest

from rsr_trl.report.pool import read_pool
from rsr_trl.report.sections.headline import best_teacher
from tests.report.pages import as_dataset, scored_rows


@pytest.fixture
def many(tiny_tokenizer):
    return scored_rows(tiny_tokenizer, 40)


def said(rows, problem_column=None):
    """The sentence about teachers; without the columns that name a problem where none is asked for."""
    hidden = [] if problem_column else ["problem_id", "prompt"]
    return best_teacher(read_pool(as_dataset(rows).remove_columns(hidden), "teacher", problem_column))


def test_the_best_of_many(many):
    text = said(many, "problem_id")
    assert text.startswith("ann suits best: RSR ") and "95% interval" in text and "of resamplings: " in text


def test_a_teacher_with_one_trajectory_isnt_called_best(many):
    text = said([row for row in many if row["teacher"] != "ann" or row["problem_id"] == "p0"])
    assert "ann suits best" not in text
    leads = text.startswith(
        "ann comes first, but has only one trajectory and can't be judged. Of the others, bob suits"
    )
    assert leads or text.startswith("bob suits best")


def test_the_only_one_that_can_be_judged(many):
    text = said([row for row in many if row["teacher"] == "ann" or row["problem_id"] == "p0"])
    assert "ann is the only teacher that can be judged: RSR " in text
    assert "suits best" not in text and "sure" not in text


def test_one_problem(many):
    text = said([row for row in many if row["problem_id"] == "p0"], "problem_id")
    assert text == "One problem can't tell teachers apart."


def test_one_trajectory_each(many):
    text = said([row for row in many if row["problem_id"] == "p0"])
    assert text == "No teacher can be judged: each has only one trajectory."


def test_a_single_teacher(many):
    text = said([row for row in many if row["teacher"] == "ann"], "problem_id")
    assert text.startswith("There is no other teacher to compare ann with: RSR ") and "sure" not in text


def test_a_selection_has_no_best_teacher(write, rows, tmp_path):
    words = write(rows, source=str(tmp_path)).text
    assert "suits best" in " ".join(words.values())
    (tmp_path / "README.md").write_text("2 of 3 trajectories, chosen by `rsr select` of rsr-trl.", encoding="utf-8")
    words = " ".join(write(rows, source=str(tmp_path)).text.values())
    assert "suits best" not in words and "they don't tell which teacher suits" in words
