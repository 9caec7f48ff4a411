"""A turn in which the assistant says nothing isn't scored on what the chat template itself writes there."""

import pytest

from rsr_trl.scoring.tokens import ExampleTokenizer
from tests.scoring.conversations import TEMPLATES, assistant, call, scored_texts, tool, user


NOTHING = ["", None, " \n", "<think>\n\n</think>\n\n", []]


@pytest.mark.parametrize("name", [name for name in TEMPLATES if not name.endswith("_training")])
@pytest.mark.parametrize("content", NOTHING[:2])
def test_empty_response_has_no_score(name, content, qwen3):
    qwen3.chat_template, qwen3.bos_token = TEMPLATES[name], "<|endoftext|>"
    rows = [
        {"messages": [user("2+3?"), assistant(content)]},
        {"prompt": [user("2+3?")], "completion": [assistant("")]},
    ]
    for example in ExampleTokenizer(qwen3)(rows):
        assert example.error is not None and not example.scored.any()


@pytest.mark.parametrize("content", NOTHING)
def test_reason_of_an_empty_response(content, qwen3):
    (example,) = ExampleTokenizer(qwen3)([{"prompt": [user("2+3?")], "completion": [assistant(content)]}])
    assert example.error == "the response is empty" if isinstance(content, str | None) else example.error


@pytest.mark.parametrize("name", ["qwen3", "qwen3_training", "qwen2_5", "deepseek_r1_distill", "llama3"])
def test_empty_turns_beside_others(name, qwen3):
    qwen3.chat_template, qwen3.bos_token = TEMPLATES[name], "<|endoftext|>"
    messages = [user("q"), assistant(""), user("q"), assistant("answer"), user("q"), assistant("")]
    (example,) = ExampleTokenizer(qwen3)([{"messages": messages}])
    empty = "<think>\n\n</think>\n\n" if name == "qwen3_training" else ""
    assert scored_texts(qwen3, example) == [empty + "answer"] and example.notes == ()


def test_turns_that_say_something_without_content(qwen3):
    """A call, or reasoning alone, is the assistant's own."""
    calling = [
        user("q"),
        assistant(None, tool_calls=[call({"a": 1})]),
        tool("r"),
        assistant("", reasoning_content="so"),
    ]
    (example,) = ExampleTokenizer(qwen3)([{"messages": calling}])
    hermes = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    assert scored_texts(qwen3, example) == [hermes, "<think>\nso\n</think>\n\n"]


def test_response_that_the_template_leaves_out(qwen3):
    qwen3.chat_template = TEMPLATES["deepseek_r1_distill"]
    qwen3.bos_token = "<|endoftext|>"
    row = {"messages": [user("q"), assistant("<think>\nwhy\n</think>")]}
    assert ExampleTokenizer(qwen3)([row])[0].error == "the chat template leaves out all of it: reasoning"
