"""What becomes of rows that can't be scored, and of datasets and tokenizers of which no row can be."""

import re

import numpy as np
import pytest
from transformers import ByT5Tokenizer

from rsr_trl.scoring.tokens import ExampleTokenizer
from tests.scoring.conversations import MULTI, SINGLE, TEMPLATES, as_parts, assistant, scored_texts, system, user


CHAT = {"prompt": [user("q")], "completion": [assistant("a")]}
SURROGATE = "half of an emoji \ud83d"
UNKNOWN = "has the unknown role"
NO_CALLS = "messages[1] has tool_calls that are not a list of calls"
FROM_VALUE = "`conversations` must be a list of {from, value} messages"


def answered(answer: object) -> dict:
    return {"messages": [user("q"), answer]}


def chat_with(**template: object) -> dict:
    return {**CHAT, "chat_template_kwargs": template}


BAD = [
    ("prompt is null, expected a string or a list of messages", {"prompt": None, "completion": "a"}),
    ("completion is null, expected a string or a list of messages", {"prompt": "q", "completion": None}),
    ("prompt is int, expected a string or a list of messages", {"prompt": 3, "completion": "a"}),
    ("completion is float, expected a string or a list of messages", {"prompt": [user("q")], "completion": 0.5}),
    ("completion is empty", {"prompt": "q", "completion": ""}),
    ("prompt is empty", {"prompt": [], "completion": [assistant("a")]}),
    ("prompt and completion must both be strings or both be lists", {"prompt": [user("q")], "completion": "a"}),
    ("prompt and completion must both be strings or both", {"prompt": "q", "completion": [assistant("a")]}),
    ("completion[0] is not a message with a role", {"prompt": [user("q")], "completion": ["4"]}),
    ("no token to score", {"prompt": "q", "completion": "<|im_end|>"}),
    ("the tokenizer can't encode it", {"prompt": "q", "completion": SURROGATE}),
    ("text is null, expected a string", {"text": None}),
    ("text is int, expected a string", {"text": 7}),
    ("text is empty", {"text": ""}),
    ("no token to score", {"text": "4"}),
    ("the tokenizer can't encode it", {"text": SURROGATE}),
    ("messages is null, expected a list of messages", {"messages": None}),
    ("messages is str, expected a list of messages", {"messages": "hello"}),
    ("messages is empty", {"messages": []}),
    ("messages[0] is not a message with a role", {"messages": [None]}),
    ("messages[1] is not a message with a role", answered({"content": "a"})),
    ("messages[0] is not a message with a role", {"messages": [{"role": None, "content": "a"}]}),
    (f"messages[1] {UNKNOWN} 'gpt', expected one of system, deve", answered({"role": "gpt", "content": "a"})),
    (f"messages[0] {UNKNOWN} 'human'", {"conversations": [{"from": "human", "value": "q"}]}),
    (f"completion[0] {UNKNOWN} 'Assistant'", {**CHAT, "completion": [{"role": "Assistant", "content": "a"}]}),
    ("messages[1] has int as content, expected a string", answered(assistant(5))),
    ("messages[0] has dict as content, expected a string", {"messages": [user({"text": "q"}), assistant("a")]}),
    (NO_CALLS, answered(assistant("", tool_calls="add"))),
    (NO_CALLS, answered(assistant("", tool_calls=["add"]))),
    ("no assistant message to score", {"messages": [system("s"), user("q")]}),
    ("no assistant message to score", {"prompt": MULTI[:2], "completion": MULTI[2:3]}),
    ("the response is empty", answered(assistant(""))),
    ("the response is empty", answered(assistant(None))),
    ("the tokenizer can't encode it", answered(assistant(SURROGATE))),
    ("the tokenizer can't encode it", {"messages": [user(SURROGATE), assistant("a")]}),
    ("the tokenizer can't encode it", {"prompt": SURROGATE, "completion": "a"}),
    (f"{FROM_VALUE} (role/content go in `messages`)", {"conversations": SINGLE}),
    (FROM_VALUE, {"conversations": None}),
    (FROM_VALUE, {"conversations": []}),
    ("tools is not valid JSON: Expecting value", {"messages": SINGLE, "tools": "[add"}),
    ("tools is not valid JSON", {**CHAT, "tools": ""}),
    ("can't render it: Tools should either be a JSON schema", {"messages": SINGLE, "tools": '{"a": 1}'}),
    ("the chat template can't render it: 'int' object is not iterable", {"messages": SINGLE, "tools": 3}),
    ("chat_template_kwargs is null, expected a mapping (an empty one for", {**CHAT, "chat_template_kwargs": None}),
    ("chat_template_kwargs is str, expected a mapping", {**CHAT, "chat_template_kwargs": "enable_thinking"}),
    ("chat_template is int, expected a string", chat_with(chat_template=1)),
    ("the chat template can't render it:", chat_with(chat_template="{% if %}")),
    ("multiple values for keyword argument 'add_generation_prompt'", chat_with(add_generation_prompt=True)),
    ("multiple values for argument 'conversation'", chat_with(conversation=SINGLE)),
    (
        "the content of message 0 is a list of parts, which this chat template can't write: give a string",
        {"messages": as_parts(SINGLE), "chat_template_kwargs": {"chat_template": TEMPLATES["qwen3"]}},
    ),
]


@pytest.mark.parametrize(("message", "row"), BAD)
def test_bad_row_beside_good_ones(message, row, tiny_tokenizer, scorer):
    """The bad row says what is wrong with it and has no score; the rows around it are as without it."""
    columns = scorer({name: [value] for name, value in row.items()})
    assert message in columns["rsr_error"][0] and columns["rsr_num_tokens"] == [0]
    assert columns["rsr"] == columns["rsr_mean_surprisal"] == columns["rsr_mean_clipped_rank"] == [None]
    tokenize = ExampleTokenizer(tiny_tokenizer, max_length=100)
    good = [{"prompt": "1+1=", "completion": "2"}, {"messages": MULTI}, {"text": "hello \x00"}]
    alone = tokenize(good)
    assert [example.error for example in alone] == [None] * 3
    before, bad, *behind = tokenize([good[0], row, *good[1:]])
    for example, expected in zip([before, *behind], alone, strict=True):
        assert example.error is None
        np.testing.assert_array_equal(example.input_ids, expected.input_ids)
        np.testing.assert_array_equal(example.scored, expected.scored)
    assert len(bad.input_ids) == len(bad.scored) and not bad.scored.any() and message in bad.error


def test_rows_that_fail_to_encode_are_found_one_by_one(tiny_tokenizer):
    rows = [{"text": SURROGATE if i % 3 == 0 else f"row {i}"} for i in range(10)]
    examples = ExampleTokenizer(tiny_tokenizer)(rows)
    assert [example.error is not None for example in examples] == [i % 3 == 0 for i in range(10)]
    assert scored_texts(tiny_tokenizer, examples[7]) == ["ow 7"]


def test_no_rows(tiny_tokenizer):
    assert ExampleTokenizer(tiny_tokenizer)([]) == []


def test_no_end_of_sequence_token(tiny_tokenizer):
    tiny_tokenizer.eos_token = None
    tokenize = ExampleTokenizer(tiny_tokenizer)
    assert tokenize([{"messages": SINGLE}])[0].error is None
    for row in ({"text": "h"}, {"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "a", "text": "t"}):
        with pytest.raises(ValueError, match="no eos_token, which SFTTrainer appends to plain text. Set `tokenizer"):
            tokenize([row])


def test_slow_tokenizer():
    with pytest.raises(TypeError, match="ByT5Tokenizer is a slow tokenizer without character offsets. Load the fast"):
        ExampleTokenizer(ByT5Tokenizer())


def test_processor(tiny_tokenizer):
    class SomeProcessor:
        tokenizer = tiny_tokenizer

    with pytest.raises(TypeError, match=r"must be a tokenizer, got SomeProcessor. .* take `processor.tokenizer`"):
        ExampleTokenizer(SomeProcessor())


def test_assistant_only_loss_without_a_training_template(tiny_tokenizer):
    """As SFTTrainer says at its start; without that setting the spans are derived."""
    with pytest.raises(ValueError, match="The chat template is not training-compatible"):
        ExampleTokenizer(tiny_tokenizer, assistant_only_loss=True)([{"messages": SINGLE}])
    (example,) = ExampleTokenizer(tiny_tokenizer)([{"messages": SINGLE}])
    assert scored_texts(tiny_tokenizer, example) == ["answer1"]


def test_columns(tiny_tokenizer):
    """Those that no format has are tested with the scorer, where users meet them."""
    tokenize = ExampleTokenizer(tiny_tokenizer, dataset_text_field="story")
    for columns in ("prompt completion", "messages id", "conversations", "story", "messages input_ids"):
        tokenize.check_columns(columns.split())
    for columns in ([], ["text"]):
        with pytest.raises(ValueError, match=f"a text column named `story`.* {re.escape(str(columns))}"):
            tokenize.check_columns(columns)
