"""Nulls that Arrow adds inside messages and tools are nothing that a chat template may see."""

import pytest
from datasets import Dataset, Features, Json, List, Value
from trl.trainer.utils import remove_none_values

from rsr_trl.scoring.nulls import as_json, without_nulls
from rsr_trl.scoring.tokens import ExampleTokenizer
from tests.scoring.conversations import TEMPLATES, TOOLS, assistant, call, prepared_by_trl, scored_texts, user


VISION = ("qwen2_5_vl", "qwen3_vl", "qwen3_5_think", "gemma3", "gemma4", "llama3_2_vision", "glm_4v")


def text(content: str) -> dict:
    return {"type": "text", "text": content}


def with_image(answer: str) -> dict:
    """A row whose parts share a struct with an image's, so that Arrow gives the text's an `image_url` too."""
    image = {"type": "image_url", "image_url": {"url": "a.png"}, "text": None}
    shown = {"messages": [{"role": "user", "content": [image]}, {"role": "assistant", "content": [text("a")]}]}
    said = {"messages": [{"role": "user", "content": [text("q")]}, {"role": "assistant", "content": [text(answer)]}]}
    return Dataset.from_list([shown, said])


@pytest.mark.parametrize("name", [name for name in VISION if name in TEMPLATES])
def test_text_beside_null_images_is_scored(name, qwen3):
    qwen3.chat_template, qwen3.bos_token = TEMPLATES[name], "<|endoftext|>"
    dataset = with_image("the answer")
    assert dataset[1]["messages"][1]["content"][0]["image_url"] is None
    plain = {"messages": [user([text("q")]), assistant([text("the answer")])]}
    tokenize = ExampleTokenizer(qwen3)
    (expected,), (typed,), (untyped,) = (
        tokenize([plain]),
        tokenize([dataset[1]], dataset.features),
        tokenize([dataset[1]]),
    )
    assert expected.input_ids.tolist() == typed.input_ids.tolist() == untyped.input_ids.tolist()
    assert "the answer" in scored_texts(qwen3, typed)[0]


CALLS = [
    {"messages": [user("q"), assistant("", tool_calls=[call({"a": 1})])], "tools": TOOLS},
    {"messages": [user("q"), assistant("", tool_calls=[call({"b": "two"})])], "tools": TOOLS},
]


def test_arguments_that_arrow_fills(qwen3):
    dataset = Dataset.from_list(CALLS)
    assert dataset[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"a": 1, "b": None}
    first, second = ExampleTokenizer(qwen3)(list(dataset), dataset.features)
    assert '"arguments": {"a": 1}}' in scored_texts(qwen3, first)[0]
    assert '"arguments": {"b": "two"}}' in scored_texts(qwen3, second)[0]


def test_nulls_in_json_are_the_users_own(qwen3):
    """As SFTTrainer renders them."""
    rows = [{"messages": [user("q"), assistant("", tool_calls=[call({"a": None})])]}]
    dataset = Dataset.from_list(rows, features=Features({"messages": List(Json())}))
    (example,) = ExampleTokenizer(qwen3)(list(dataset), dataset.features)
    assert '{"a": null}' in scored_texts(qwen3, example)[0]
    assert example.input_ids.tolist() == prepared_by_trl(qwen3, dataset)[0][0]


def test_as_trl_removes_them(qwen3):
    """Without types all nulls go, as TRL's own function does it; and SFTTrainer reads the same from JSON columns."""
    for row in [*Dataset.from_list(CALLS), *with_image("a")]:
        assert without_nulls(row) == remove_none_values(row)
    calls = Dataset.from_list(CALLS)
    examples = ExampleTokenizer(qwen3)(list(calls), calls.features)
    prepared = prepared_by_trl(qwen3, as_json(calls))
    assert [example.input_ids.tolist() for example in examples] == [prepared[row][0] for row in (0, 1)]


def test_columns_without_nested_structs_stay():
    features = Features(
        {"messages": List({"role": Value("string"), "content": Value("string")}), "id": Value("int64")}
    )
    dataset = Dataset.from_list([{"messages": [user("q"), assistant("a")], "id": 1}], features=features)
    assert as_json(dataset) is dataset


def test_template_arguments_that_arrow_fills(qwen3):
    rows = [
        {"messages": [user("q"), assistant("a")], "chat_template_kwargs": kwargs} for kwargs in ({"x": 1}, {"y": 1})
    ]
    assert as_json(Dataset.from_list(rows))[0]["chat_template_kwargs"] == {"x": 1}


def test_nulls_in_messages_written_by_hand_stay(qwen3):
    """Without types, different keys show that no Arrow has been here."""
    row = {"messages": [user("q"), assistant("", tool_calls=[call({"a": None})])]}
    assert '{"a": null}' in scored_texts(qwen3, ExampleTokenizer(qwen3)([row])[0])[0]
