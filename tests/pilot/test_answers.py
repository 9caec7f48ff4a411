import sys

import pytest

from rsr_trl.pilot.answers import load_checker


@pytest.mark.parametrize(
    ("checker", "response", "answer", "right"),
    [
        ("number", "6 * 7 = 42. The answer is 42.", "42", True),
        ("number", "The answer is **1,234.50**.", "1234.5", True),
        ("number", "#### -3", "reasoning 1 2\n#### -3", True),
        ("number", "10-4 = 6", "6", True),
        ("number", "it is 10-4", "4", True),  # a minus between two terms is no sign
        ("number", "$\\boxed{18}$", 18, True),
        ("number", "The answer is 42, or 43", "42", False),
        ("number", "No idea", "42", False),
        ("number", "", "0", False),
        ("line", "So:\n Paris \n\n", "Paris", True),
        ("line", "Paris.", "Paris", False),
        ("line", "Paris\nor Rome", "Paris", False),
        ("line", "", "x", False),
        ("math", r"Hence $\boxed{\frac{1}{2}}$.", "0.5", True),
        ("math", r"The result is $x^2 + 2x + 1$.", "$(x+1)^2$", True),
        ("math", r"Hence $\boxed{\frac{1}{3}}$.", r"\frac{1}{2}", False),
        ("math", "", "0.5", False),
    ],
)
def test_right_and_wrong_responses(checker, response, answer, right):
    if checker == "math":
        pytest.importorskip("math_verify")
    assert load_checker(checker)(response, answer) is right


@pytest.mark.parametrize(
    ("checker", "answer", "message"),
    [("number", "Paris", "no number in the answer 'Paris'"), ("line", " \n", "answer is empty")],
)
def test_answers_that_can_not_be_compared_are_errors(checker, answer, message):
    with pytest.raises(ValueError, match=message):
        load_checker(checker)("42", answer)


def test_math_needs_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ValueError, match=r"pip install 'rsr-trl\[pilot\]'"):
        load_checker("math")


def test_a_function_of_the_user(tmp_path, monkeypatch):
    (tmp_path / "my_checks.py").write_text("def longer(response, answer):\n    return len(response) > answer\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    check = load_checker("my_checks:longer")
    assert check("abc", 2) and not check("abc", 3)
    for name, message in (
        ("my_checks:shorter", "'my_checks' has no attribute 'shorter'"),
        ("nowhere:f", "No module named 'nowhere'"),
        ("exact", "must be number, line, math or module:function, got 'exact'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_checker(name)


def test_number_agrees_with_the_labels_of_gsm8k(gsm8k_rows):
    check = load_checker("number")
    pairs = [(check(row["completion"], row["gold"]), row["correct"]) for row in gsm8k_rows]
    # The labels also want the answer's own format, so a few that come to the right number are labelled wrong.
    assert (False, True) not in pairs
    assert pairs.count((True, False)) < 0.02 * len(pairs)


def test_math_agrees_with_the_labels_of_math500(math500_rows):
    pytest.importorskip("math_verify")
    check = load_checker("math")
    rows = [row for row in math500_rows[::10] if row["gold"]]
    assert sum(check(row["completion"], row["gold"]) == row["correct"] for row in rows) >= 0.95 * len(rows) > 50
