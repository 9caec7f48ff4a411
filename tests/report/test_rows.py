import pytest

from rsr_trl.report.rows import num_answers, prompt_of, response_of


USER, ANSWER = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}


@pytest.mark.parametrize(
    "row, prompt, response",
    [
        ({"prompt": "2+2?", "completion": "4"}, "2+2?", "4"),
        ({"prompt": [USER], "completion": [ANSWER]}, "2+2?", "4"),
        ({"messages": [USER, ANSWER]}, "2+2?", "4"),
        (
            {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
            "[human] 2+2?",
            "[gpt] 4",
        ),
        ({"text": "2+2=4"}, "", "2+2=4"),
        ({"prompt": None, "completion": None}, "", ""),
        (
            {"messages": [{"role": "system", "content": "Be brief."}, USER, ANSWER, USER]},
            "[system] Be brief.\n\n[user] 2+2?",
            "[assistant] 4\n\n[user] 2+2?",
        ),
    ],
)
def test_prompt_and_response_of_each_format(row, prompt, response):
    assert (prompt_of(row), response_of(row)) == (prompt, response)


@pytest.mark.parametrize(
    "row, number",
    [
        ({"prompt": "2+2?", "completion": "4"}, 0),
        ({"prompt": [USER, ANSWER, USER], "completion": [ANSWER, USER, ANSWER]}, 2),
        ({"messages": [USER, ANSWER, USER, ANSWER]}, 2),
        ({"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}, 1),
        ({"text": "2+2=4"}, 0),
        ({"messages": None}, 0),
    ],
)
def test_turns_of_the_response(row, number):
    assert num_answers(row) == number


def test_tool_calls_and_parts_are_shown_too():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]}
    parts = {"role": "user", "content": [{"type": "text", "text": "häl"}]}
    row = {"messages": [parts, call]}
    assert '"name": "add"' in response_of(row) and "häl" in prompt_of(row)


def test_real_conversations(airline_rows):
    for row in airline_rows[:20]:
        turns = row["messages"]
        assert turns[0]["content"][:50] in prompt_of(row)
        assert turns[-1]["role"] in response_of(row)
