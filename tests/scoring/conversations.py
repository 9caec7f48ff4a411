"""Conversations, the chat templates that TRL ships, and what SFTTrainer itself makes of a dataset."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import trl
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import SFTTrainer
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from rsr_trl.scoring.tokens import TokenizedExample


TEMPLATES = {
    path.stem: path.read_text(encoding="utf-8")
    for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds.",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer", "description": "one"},
                    "b": {"type": "string", "description": "two"},
                },
                "required": ["a"],
            },
        },
    }
]


def system(content: str) -> dict:
    return {"role": "system", "content": content}


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def assistant(content: str | None, **keys) -> dict:
    return {"role": "assistant", "content": content, **keys}


def tool(content: str) -> dict:
    return {"role": "tool", "name": "add", "tool_call_id": "call00001", "content": content}


def call(arguments: object) -> dict:
    return {"id": "call00001", "type": "function", "function": {"name": "add", "arguments": arguments}}


def as_parts(messages: list[dict]) -> list[dict]:
    """The conversation with every content a list of parts, as templates of vision-language models want it."""
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


THOUGHT = "<think>\nthought{n}\n</think>\n\nanswer{n}"
SINGLE = [user("question1"), assistant("answer1")]
MULTI = [user("question1"), assistant("answer1"), user("question2"), assistant("answer2")]
THINK = [user("question1"), assistant(THOUGHT.format(n=1)), user("question2"), assistant(THOUGHT.format(n=2))]
REASONING = [
    user("question1"),
    assistant("answer1", reasoning_content="thought1"),
    user("question2"),
    assistant("answer2", reasoning_content="thought2"),
]
SYSTEM = [system("be kind"), *SINGLE]


def with_tools(arguments: object = None) -> list[dict]:
    """A user's question, a bare call, its result, an answer; then a call beside words and thought."""
    arguments = {"a": 1, "b": "two"} if arguments is None else arguments
    return [
        user("question1"),
        assistant("", tool_calls=[call(arguments)]),
        tool("result1"),
        assistant("answer1"),
        user("question2"),
        assistant("words", reasoning_content="thought2", tool_calls=[call(arguments)]),
        tool("result2"),
        assistant("answer2"),
    ]


def prepared_by_trl(
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    max_length: int | None = None,
    assistant_only_loss: bool = False,
    streamed: bool = False,
) -> dict[int, tuple[list[int], list[int]]]:
    """
    `input_ids` and `labels` of each row by SFTTrainer's own preparation; rows that it drops are absent.

    Args:
        streamed (`bool`): Prepare the rows as an `IterableDataset`, which writes no files: the same ids, sooner.
    """
    template = None
    if assistant_only_loss and not has_generation_markers(tokenizer.chat_template):
        template = get_training_chat_template(tokenizer)
    trainer = SimpleNamespace(
        completion_only_loss="prompt" in dataset.column_names, _tokenizer=tokenizer, chat_template=template
    )
    args = SimpleNamespace(
        dataset_num_proc=None,
        dataset_text_field="text",
        assistant_only_loss=assistant_only_loss,
        max_length=max_length,
        truncation_mode="keep_start",
        shuffle_dataset=False,
        seed=0,
    )
    dataset = dataset.add_column("row", list(range(len(dataset))))
    if streamed:
        dataset = dataset.to_iterable_dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = SFTTrainer._prepare_dataset(trainer, dataset, tokenizer, args, False, None, "train")
        return {row["row"]: (list(row["input_ids"]), list(row["labels"])) for row in prepared}


def runs(example: TokenizedExample) -> Iterator[np.ndarray]:
    """Token ids of each unbroken run of scored tokens."""
    edges = np.flatnonzero(np.diff(np.r_[False, example.scored, False]))
    for start, end in edges.reshape(-1, 2):
        yield example.input_ids[start:end]


def scored_texts(tokenizer: PreTrainedTokenizerBase, example: TokenizedExample) -> list[str]:
    return [tokenizer.decode(ids) for ids in runs(example)]
