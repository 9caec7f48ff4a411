"""`input_ids` are those that SFTTrainer trains on: against its own preparation, and against a whole SFTTrainer."""

import json

import pytest
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from rsr_trl.scoring.nulls import as_json
from rsr_trl.scoring.tokens import ExampleTokenizer
from tests.scoring import conversations as talk
from tests.scoring.conversations import (
    MULTI,
    REASONING,
    SINGLE,
    SYSTEM,
    TEMPLATES,
    THINK,
    TOOLS,
    prepared_by_trl,
    with_tools,
)


CALLS_JSON = with_tools(json.dumps({"a": 1, "b": "two"}))
PROMPT, COMPLETION = SINGLE[:1], SINGLE[1:]
FORMATS = {
    "prompt_completion": [
        {"prompt": "1+1=", "completion": "2"},
        {"prompt": "", "completion": "hello"},
        {"prompt": "ends in a space ", "completion": " starts with one"},
        {"prompt": "x", "completion": "an end already<|im_end|>"},
        {"prompt": "é漢😀", "completion": "\n\n😀漢é\n"},
    ],
    "prompt_completion_beside_text": [{"prompt": "a", "completion": b, "text": "c"} for b in ("b", "b<|im_end|>")],
    "prompt_completion_chat": [
        {"prompt": PROMPT, "completion": COMPLETION},
        {"prompt": [talk.system("be kind"), *MULTI[:3]], "completion": MULTI[3:]},
        {"prompt": THINK[:3], "completion": THINK[3:]},
        {"prompt": THINK[:1], "completion": THINK[1:]},  # several messages in the completion
    ],
    "prompt_completion_tools": [
        {"prompt": CALLS_JSON[:end], "completion": CALLS_JSON[end:], "tools": TOOLS} for end in (1, 3, -1)
    ],
    "messages": [{"messages": messages} for messages in (SINGLE, MULTI, THINK, REASONING, SYSTEM)],
    "messages_tools": [{"messages": with_tools(), "tools": TOOLS}, {"messages": SINGLE, "tools": None}],
    "messages_tools_json": [{"messages": CALLS_JSON, "tools": json.dumps(TOOLS)}],
    "messages_ending_elsewhere": [{"messages": MULTI[:3]}, {"messages": with_tools()[:3]}],
    "messages_same_role_twice": [{"messages": [*map(talk.user, "ab"), *map(talk.assistant, "cdc")]}],
    "conversations": [
        {"conversations": [{"from": message["role"], "value": message["content"]} for message in messages]}
        for messages in (SINGLE, MULTI, SYSTEM)
    ],
    "text": [{"text": "hello there"}, {"text": "an end already<|im_end|>"}, {"text": "é漢😀\n"}],
    "chat_template_kwargs": [
        {"messages": MULTI, "chat_template_kwargs": {"enable_thinking": thinking}} for thinking in (False, True)
    ],
    "chat_template_kwargs_prompt": [
        {"prompt": PROMPT, "completion": COMPLETION, "chat_template_kwargs": {"enable_thinking": False}}
    ],
    "chat_template_of_a_row": [
        {"messages": MULTI, "chat_template_kwargs": {"chat_template": text}} for text in (TEMPLATES["qwen2_5"], None)
    ],
}
# What SFTTrainer takes with assistant_only_loss: conversations, whose template has {% generation %} or a twin with it.
WITHOUT_MARKS = ("prompt_completion", "prompt_completion_beside_text", "text", "chat_template_of_a_row")
SETTINGS = [(name, only) for name in FORMATS for only in (False, True) if not (only and name in WITHOUT_MARKS)]


def assert_as_trl(tokenize, dataset, streamed=True):
    """Every row of `dataset` is tokenized as TRL does, and rows without a scored token are those that TRL drops."""
    only = tokenize.assistant_only_loss
    plain = as_json(dataset)  # without the nulls that Arrow adds, as RSRSFTTrainer gives it to SFTTrainer
    expected = prepared_by_trl(tokenize.processing_class, plain, tokenize.max_length, only, streamed=streamed)
    examples = tokenize(list(dataset), dataset.features)
    assert len(examples) == len(dataset)
    for row, example in enumerate(examples):
        if row not in expected:
            assert example.truncated and not example.scored.any()
            continue
        input_ids, labels = expected[row]
        assert example.input_ids.tolist() == input_ids
        assert example.input_ids.dtype == "int32" and len(example.scored) == len(input_ids)
        if "prompt" in dataset.column_names:
            assert all(labels[i] != -100 for i in example.scored.nonzero()[0])


@pytest.mark.parametrize(("name", "assistant_only_loss"), SETTINGS)
def test_format(name, assistant_only_loss, qwen3):
    streamed = name not in ("messages_tools", "prompt_completion")  # these two by way of files
    tokenize = ExampleTokenizer(qwen3, assistant_only_loss=assistant_only_loss)
    assert_as_trl(tokenize, Dataset.from_list(FORMATS[name]), streamed)


@pytest.mark.parametrize("max_length", [2, 9, 14, 15, 30])
@pytest.mark.parametrize("name", ["prompt_completion", "prompt_completion_chat", "messages", "text"])
def test_truncation(name, max_length, qwen3):
    """Cut where SFTTrainer cuts; where nothing of the completion is left, SFTTrainer drops the row."""
    assert_as_trl(ExampleTokenizer(qwen3, max_length=max_length), Dataset.from_list(FORMATS[name]))


def test_labels_of_assistant_only_loss_hold_all_scored_tokens(qwen3):
    dataset = Dataset.from_list([{"messages": m, "tools": TOOLS} for m in (MULTI, THINK, REASONING, with_tools())])
    expected = prepared_by_trl(qwen3, dataset, assistant_only_loss=True)
    for row, example in enumerate(ExampleTokenizer(qwen3, assistant_only_loss=True)(list(dataset))):
        labelled = [label != -100 for label in expected[row][1]]
        # TRL trains on the end-of-turn marker and the newline behind it too: two more tokens a turn.
        turns = sum(message["role"] == "assistant" for message in dataset[row]["messages"])
        assert all(labelled[i] for i in example.scored.nonzero()[0])
        assert sum(labelled) - example.scored.sum() == 2 * turns


@pytest.mark.parametrize("fixture", ["gpt2_tokenizer", "mistral_tokenizer"])
@pytest.mark.parametrize("name", ["prompt_completion", "text"])
def test_tokenizers_without_chat_template(name, fixture, request):
    """Mistral's tokenizer writes a beginning-of-sequence token before plain text, GPT-2's writes none."""
    tokenizer = request.getfixturevalue(fixture)
    eos = tokenizer.eos_token
    rows = [{key: value.replace("<|im_end|>", eos) for key, value in row.items()} for row in FORMATS[name]]
    assert_as_trl(ExampleTokenizer(tokenizer), Dataset.from_list(rows))


# Under assistant_only_loss the twins replace them, and those stand in the list themselves.
MATRIX = [(name, False) for name in TEMPLATES]
MATRIX += [pytest.param(name, True, marks=pytest.mark.slow) for name in TEMPLATES if not name.endswith("_training")]


@pytest.mark.parametrize(("name", "assistant_only_loss"), MATRIX)
def test_every_template_of_trl(name, assistant_only_loss, qwen3):
    """The ids are TRL's under every template that TRL ships; what a template refuses is an error here too."""
    qwen3.chat_template, qwen3.bos_token = TEMPLATES[name], "<|endoftext|>"
    tokenize = ExampleTokenizer(qwen3, assistant_only_loss=assistant_only_loss)
    if assistant_only_loss and name.startswith(("gemma4", "llama3_1", "llama3_2")):
        with pytest.raises(ValueError, match="not training-compatible"):  # as SFTTrainer itself says at its start
            tokenize([{"messages": SINGLE}])
        return
    conversations = [SINGLE, MULTI, THINK, SYSTEM]
    if name.split("_")[0] in ("idefics3", "llava", "smolvlm"):  # they lose content that is a string
        sets = [[talk.as_parts(messages) for messages in conversations]]
    else:
        sets = [[*conversations, REASONING, with_tools()], [CALLS_JSON]]  # apart: a dataset's rows share their types
    rows = [[{"messages": m, "tools": TOOLS} for m in messages] for messages in sets]
    rows += [[{"prompt": m[:-1], "completion": m[-1:], "tools": TOOLS} for m in messages] for messages in sets]
    num_accepted = 0
    for dataset in map(Dataset.from_list, rows):
        examples = tokenize(list(dataset))
        refused = [row for row, example in enumerate(examples) if example.error]
        for row in refused:
            assert "the chat template can't render it" in examples[row].error
            with pytest.raises(Exception):  # noqa: B017 - whatever the template raises
                prepared_by_trl(qwen3, dataset.select([row]), None, assistant_only_loss, streamed=True)
        accepted = dataset.select([row for row in range(len(dataset)) if row not in refused])
        if len(accepted):
            assert_as_trl(tokenize, accepted)
        num_accepted += len(accepted)
    assert num_accepted >= 2 * len(conversations) - 2  # some know no system role


REAL = ["text", "prompt_completion", "prompt_completion_chat", "messages_tools", "conversations"]
REAL = [(name, False) for name in REAL] + [("prompt_completion_chat", True), ("messages_tools", True)]


@pytest.mark.parametrize(("name", "assistant_only_loss"), REAL)
@pytest.mark.filterwarnings("ignore")
def test_real_trainer(name, assistant_only_loss, tmp_path, tiny_student, qwen3):
    rows = [{**row, "row": i} for i, row in enumerate(FORMATS[name])]
    args = {"output_dir": str(tmp_path), "max_length": 24, "assistant_only_loss": assistant_only_loss}
    args = SFTConfig(**args, use_cpu=True, bf16=False, report_to="none")
    model = tiny_student(vocab_size=len(qwen3), hidden_size=8, num_attention_heads=1, num_key_value_heads=1)
    trainer = SFTTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=qwen3)
    examples = ExampleTokenizer(qwen3, max_length=24, assistant_only_loss=assistant_only_loss)(rows)
    assert len(trainer.train_dataset) > 0
    for row in trainer.train_dataset:
        assert examples[row["row"]].input_ids.tolist() == row["input_ids"]
    kept = {row["row"] for row in trainer.train_dataset}
    assert all(example.truncated and example.error for i, example in enumerate(examples) if i not in kept)


def test_null_keys_of_a_dataset(qwen3):
    """A dataset fills the keys that other rows have with nulls, in messages, calls and their arguments."""
    conversations = [with_tools({"a": 1}), with_tools({"b": "two"})]
    conversations += [REASONING, [*SINGLE, talk.tool("result"), *SINGLE]]
    dataset = Dataset.from_list([{"messages": messages, "tools": TOOLS} for messages in conversations])
    assert dataset[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"a": 1, "b": None}
    assert dataset[2]["messages"][1]["tool_calls"] is None
    assert_as_trl(ExampleTokenizer(qwen3), dataset, streamed=False)
    assert not any(example.error for example in ExampleTokenizer(qwen3)(list(dataset)))
