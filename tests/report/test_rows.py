from itertools import pairwise

import numpy as np
import pytest

from rsr_trl.report.rows import TurnFinder, num_answers, prompt_of, response_of
from rsr_trl.rsr import TOKEN_IDS
from rsr_trl.scoring.tokens import ExampleTokenizer


USER, ANSWER = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
HUMAN, GPT = {"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}
SYSTEM = {"role": "system", "content": "Be brief."}
ASKED, SAID = "[user] 2+2?", "[assistant] 4\n\n"
ANSWERS = ("Let me look.", "It is 4 = 2 + 2!", "\n Bye.")
TURNS = [ANSWER | {"content": text} for text in ANSWERS]
MESSAGES = [SYSTEM, USER, TURNS[0], ANSWER | {"role": "tool"}, TURNS[1], USER | {"content": ANSWERS[0]}, TURNS[2]]
LENGTHS = [len(answer) for answer in ANSWERS]  # of the tiny tokenizer every byte is a token
STARTS = [0, LENGTHS[0], LENGTHS[0] + LENGTHS[1]]


@pytest.mark.parametrize(
    "row, prompt, response, answers",
    [
        ({"prompt": "2+2?", "completion": "4"}, "2+2?", "4", 0),
        ({"prompt": [USER], "completion": [ANSWER]}, "2+2?", "4", 1),
        ({"messages": [USER, ANSWER]}, "2+2?", "4", 1),
        ({"conversations": [HUMAN, GPT]}, "[human] 2+2?", "[gpt] 4", 1),
        ({"text": "2+2=4"}, "", "2+2=4", 0),
        ({"prompt": None, "completion": None, "messages": None}, "", "", 0),
        ({"messages": [SYSTEM, USER, ANSWER, USER]}, "[system] Be brief.\n\n" + ASKED, SAID + ASKED, 1),
        ({"prompt": [ANSWER], "completion": [ANSWER, USER, ANSWER]}, "4", SAID + ASKED + "\n\n" + SAID.strip(), 2),
    ],
)
def test_prompt_response_and_answers_of_each_format(row, prompt, response, answers):
    assert (prompt_of(row), response_of(row), num_answers(row)) == (prompt, response, answers)


def test_tool_calls_and_parts_are_shown_too():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]}
    row = {"messages": [{"role": "user", "content": [{"type": "text", "text": "häl"}]}, call]}
    assert '"name": "add"' in response_of(row) and "häl" in prompt_of(row)


@pytest.fixture
def ids(tiny_tokenizer) -> list[int]:
    """Of all that the assistant says."""
    return [i for answer in ANSWERS for i in tiny_tokenizer.encode(answer)]


def test_turns_begin_where_their_texts_do(tiny_tokenizer, ids):
    find = TurnFinder(tiny_tokenizer)
    assert find({"messages": MESSAGES, TOKEN_IDS: ids}) == STARTS
    assert find({"messages": MESSAGES, TOKEN_IDS: np.array(ids)}) == STARTS
    assert find({"prompt": MESSAGES[:2], "completion": MESSAGES[2:], TOKEN_IDS: ids}) == STARTS
    turns = [{"from": turn["role"], "value": turn["content"]} for turn in MESSAGES]
    assert find({"conversations": turns, TOKEN_IDS: ids}) == STARTS
    # Earlier turns of the prompt, and a turn of which nothing is scored, aren't there.
    rest = {"prompt": MESSAGES[:4], "completion": MESSAGES[4:], TOKEN_IDS: ids[LENGTHS[0] :]}
    assert find(rest) == [0, LENGTHS[1]]
    silent = [*MESSAGES[:2], {"role": "assistant", "content": ""}, *MESSAGES[1:]]
    assert find({"messages": silent, TOKEN_IDS: ids}) == STARTS
    # Of what was cut only the turns that are left.
    for kept, starts in ((len(ids) - 1, 3), (STARTS[2] + 1, 3), (STARTS[2], 2), (STARTS[1], 1), (3, 1)):
        assert find({"messages": MESSAGES, TOKEN_IDS: ids[:kept]}) == STARTS[:starts]


def test_nothing_is_guessed(tiny_tokenizer, gpt2_tokenizer, ids):
    row = {"messages": MESSAGES, TOKEN_IDS: ids}
    for other in (
        row | {"messages": [*MESSAGES[:-1], ANSWER | {"content": "Ciao."}]},
        row | {TOKEN_IDS: [*ids[:4], 0, *ids[5:]]},
        row | {TOKEN_IDS: [*ids, ids[0]]},
        row | {TOKEN_IDS: []},
        row | {TOKEN_IDS: None},
        row | {"prompt": "no format of the scorer"},
        {"prompt": "a", "completion": "b", TOKEN_IDS: tiny_tokenizer.encode("b")},
        {TOKEN_IDS: ids},
    ):
        assert TurnFinder(tiny_tokenizer)(other) == [0]
    assert TurnFinder(gpt2_tokenizer)(row) == [0]  # it has no chat template


def test_real_conversations(airline_rows, qwen3_tokenizer):
    find, tokenize = TurnFinder(qwen3_tokenizer), ExampleTokenizer(qwen3_tokenizer)
    for row in airline_rows[::25]:
        turns = row["messages"]
        assert turns[0]["content"][:50] in prompt_of(row) and turns[-1]["role"] in response_of(row)
        example = tokenize([row])[0]
        ids = example.input_ids[example.scored].tolist()
        starts = find(row | {TOKEN_IDS: ids})
        text = qwen3_tokenizer.apply_chat_template(turns, tokenize=False)
        own = [part.split("<|im_end|>")[0] for part in text.split("<|im_start|>assistant\n")[1:]]
        assert [qwen3_tokenizer.decode(ids[i:j]) for i, j in pairwise([*starts, len(ids)])] == own
