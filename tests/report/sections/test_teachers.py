import numpy as np

from rsr_trl.report.sections.teachers import REACH, span
from tests.report.pages import scored_rows


def test_an_interval_that_is_missing_is_a_dash(write, rows):
    few = [row for row in rows if row["teacher"] != "eve" or row["problem_id"] == "p0"]
    words = write([{name: row[name] for name in row if name not in ("problem_id", "prompt")} for row in few])
    words = words.words("teachers")
    assert "1 teacher with a single trajectory can't be judged: 'eve'" in words
    line = words.split("eve")[-2] + words.split("eve")[-1]
    assert " – – " in words and "–––" not in line


def test_the_chart_isnt_squeezed_by_wide_intervals(write, tiny_tokenizer):
    page = write(scored_rows(tiny_tokenizer, 2))  # two problems: t with one degree of freedom
    assert "An arrow: the interval reaches further." in page.words("teachers")
    assert "An arrow" not in write(scored_rows(tiny_tokenizer, 60)).words("teachers")
    table = [{"rsr": value} for value in (2.0, 5.0)]
    assert np.allclose(span(table), (2 / REACH, 5 * REACH))
