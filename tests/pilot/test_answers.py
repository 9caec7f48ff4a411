import sys

import pytest

from rsr_trl.pilot.answers import load_checker


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("6 * 7 = 42. The answer is 42.", "42", True),
        ("The answer is **1,234.50**.", "1234.5", True),
        ("#### -3", "reasoning 1 2\n#### -3", True),
        ("10-4 = 6", "6", True),
        ("it is 10-4", "4", True),  # a minus between two terms is no sign
        ("$\\boxed{18}$", 18, True),
        ("The answer is 42, or 43", "42", False),
        ("No idea", "42", False),
        ("", "0", False),
    ],
)
def test_number(response, answer, right):
    assert load_checker("number")(response, answer) is right


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("So:\n Paris \n\n", "Paris", True),
        ("Paris.", "Paris", False),
        ("Paris\nor Rome", "Paris", False),
        ("", "x", False),
    ],
)
def test_line(response, answer, right):
    assert load_checker("line")(response, answer) is right


def test_answers_that_can_not_be_compared_are_errors():
    with pytest.raises(ValueError, match="no number in the answer 'Paris'"):
        load_checker("number")("42", "Paris")
    with pytest.raises(ValueError, match="answer is empty"):
        load_checker("line")("42", " \n")


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        (r"Hence $\boxed{\frac{1}{2}}$.", "0.5", True),
        (r"The result is $x^2 + 2x + 1$.", "$(x+1)^2$", True),
        (r"Hence $\boxed{\frac{1}{3}}$.", r"\frac{1}{2}", False),
        ("", "0.5", False),
    ],
)
def test_math(response, answer, right):
    pytest.importorskip("math_verify")
    assert load_checker("math")(response, answer) is right


def test_math_needs_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ValueError, match=r"pip install 'rsr-trl\[pilot\]'"):
        load_checker("math")


def test_a_function_of_the_user(tmp_path, monkeypatch):
    (tmp_path / "my_checks.py").write_text("def longer(response, answer):\n    return len(response) > answer\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    check = load_checker("my_checks:longer")
    assert check("abc", 2) and not check("abc", 3)
    with pytest.raises(ValueError, match="has no function 'shorter'"):
        load_checker("my_checks:shorter")
    with pytest.raises(ValueError, match="No module named 'nowhere'"):
        load_checker("nowhere:f")
    with pytest.raises(ValueError, match="must be number, line, math or module:function, got 'exact'"):
        load_checker("exact")


def test_number_agrees_with_the_labels_of_gsm8k(gsm8k_rows):
    check = load_checker("number")
    found = [(check(row["completion"], row["gold"]), row["correct"]) for row in gsm8k_rows]
    # The labels also want the answer's own format, so a few that come to the right number are labelled wrong.
    assert (False, True) not in found
    assert found.count((True, False)) < 0.02 * len(found)


def test_math_agrees_with_the_labels_of_math500(math500_rows):
    pytest.importorskip("math_verify")
    check = load_checker("math")
    rows = [row for row in math500_rows[::10] if row["gold"]]
    assert sum(check(row["completion"], row["gold"]) == row["correct"] for row in rows) >= 0.95 * len(rows) > 50
