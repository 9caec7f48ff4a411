import re
from statistics import mean

import pytest

from rsr_trl.demo.teachers import TEACHERS, make_pool
from tests.demo.reading import answer_by_reading


NUM_PROBLEMS = 400


@pytest.fixture(scope="module")
def responses() -> dict[str, list[dict]]:
    """Rows of a pool by teacher, with `question` and `response` as plain text."""
    rows: dict[str, list[dict]] = {name: [] for name in TEACHERS}
    for row in make_pool(NUM_PROBLEMS, seed=2):
        rows[row["teacher"]].append(
            row | {"question": row["prompt"][0]["content"], "response": row["completion"][0]["content"]}
        )
    return rows


def test_pool_has_every_teacher_for_every_problem_as_chats():
    pool = make_pool(6, seed=1)
    assert pool.column_names == ["problem_id", "prompt", "teacher", "completion", "correct", "gold"]
    assert sorted(zip(pool["problem_id"], pool["teacher"], strict=True)) == sorted(
        (problem, teacher) for problem in set(pool["problem_id"]) for teacher in TEACHERS
    )
    assert len(set(pool["problem_id"])) == 6
    assert {message["role"] for prompt in pool["prompt"] for message in prompt} == {"user"}
    assert {message["role"] for completion in pool["completion"] for message in completion} == {"assistant"}


def test_the_same_seed_gives_the_same_pool():
    assert make_pool(10, seed=7).to_list() == make_pool(10, seed=7).to_list()
    assert make_pool(10, seed=7).to_list() == make_pool(20, seed=7).to_list()[:70]
    assert make_pool(10, seed=7)["completion"] != make_pool(10, seed=8)["completion"]


@pytest.mark.parametrize("teacher", TEACHERS)
def test_correct_is_whether_the_last_number_is_what_the_question_asks(responses, teacher):
    for row in responses[teacher]:
        truth = answer_by_reading(row["question"])
        assert row["gold"] == str(truth)
        assert row["correct"] == (int(re.findall(r"\d+", row["response"])[-1]) == truth), row["response"]


@pytest.mark.parametrize("teacher", TEACHERS)
def test_error_rates_are_as_designed(responses, teacher):
    wrong = mean(not row["correct"] for row in responses[teacher])
    assert wrong == pytest.approx(TEACHERS[teacher].error_rate, abs=0.07)


@pytest.mark.parametrize("teacher", ["terse", "plain", "latex", "numbered"])
def test_a_correct_response_has_only_true_equations_and_a_wrong_one_a_false_one(responses, teacher):
    signs = {"x": "*", "×": "*", r"\times": "*", "÷": "/", r"\div": "/", "−": "-"}
    for row in responses[teacher]:
        equations = re.findall(r"(\d+) ?(\S+?) ?(\d+) ?= ?(\d+)", row["response"])
        assert len(equations) >= 2
        true = [eval(f"{left} {signs.get(sign, sign)} {right} == {result}") for left, sign, right, result in equations]
        assert all(true) == row["correct"], row["response"]


def test_every_dialect_has_its_marks(responses):
    marks = {
        "latex": r"\\boxed\{\d+\}",
        "thinker": r"(?s)^<think>.* should be \d+\..*</think>",
        "numbered": r"Step 1\b",
        "careful": r"go backwards|reversing it",
        "guesser": r"^\D*\d+\.?$",
    }
    for teacher, rows in responses.items():
        for mark_of, mark in marks.items():
            share = mean(bool(re.search(mark, row["response"])) for row in rows)
            assert share == (1 if mark_of == teacher else 0), (teacher, mark_of)


def test_lengths_differ_between_teachers_and_words_within_one(responses):
    length = {teacher: mean(len(row["response"]) for row in rows) for teacher, rows in responses.items()}
    assert length["guesser"] < length["terse"] < length["plain"] < length["thinker"] < length["careful"]
    for teacher, rows in responses.items():
        # Numbers and nouns apart, a teacher doesn't always use the same words.
        openings = {re.sub(r"\d+", "0", row["response"])[:40] for row in rows}
        assert len(openings) >= 3, teacher
