import re
from statistics import mean

import pytest

from rsr_trl.demo.teachers import TEACHERS, make_pool
from tests.demo.reading import answer_by_reading


@pytest.fixture(scope="module")
def responses() -> dict[str, list[dict]]:
    """Rows of a pool by teacher, with `question` and `response` as plain text."""
    rows: dict[str, list[dict]] = {name: [] for name in TEACHERS}
    for row in make_pool(400, seed=2):
        texts = {"question": row["prompt"][0]["content"], "response": row["completion"][0]["content"]}
        rows[row["teacher"]].append(row | texts)
    return rows


def test_pool_has_every_teacher_for_every_problem_as_chats_and_follows_its_seed():
    pool = make_pool(6, seed=1)
    assert pool.column_names == ["problem_id", "prompt", "teacher", "completion", "correct", "gold"]
    ids = sorted(set(pool["problem_id"]))
    rows = sorted(zip(pool["problem_id"], pool["teacher"], strict=True))
    assert len(ids) == 6 and rows == sorted((problem, teacher) for problem in ids for teacher in TEACHERS)
    for column, role in {"prompt": "user", "completion": "assistant"}.items():
        assert {message["role"] for chat in pool[column] for message in chat} == {role}
    assert make_pool(12, seed=1).to_list()[:42] == make_pool(6, seed=1).to_list() == pool.to_list()
    assert make_pool(6, seed=2)["prompt"] != pool["prompt"]


@pytest.mark.parametrize("teacher", TEACHERS)
def test_correct_is_whether_the_last_number_is_what_the_question_asks(responses, teacher):
    for row in responses[teacher]:
        truth = answer_by_reading(row["question"])
        assert row["gold"] == str(truth)
        assert row["correct"] == (int(re.findall(r"\d+", row["response"])[-1]) == truth), row["response"]
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


def test_dialects_have_their_marks_their_lengths_and_more_than_one_wording(responses):
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
        assert len({re.sub(r"\d+", "0", row["response"])[:40] for row in rows}) >= 3, teacher
    length = {teacher: mean(len(row["response"]) for row in rows) for teacher, rows in responses.items()}
    assert length["guesser"] < length["terse"] < length["plain"] < length["thinker"] < length["careful"]
