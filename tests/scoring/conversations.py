"""Conversations, the chat templates that TRL ships, and what SFTTrainer itself makes of a dataset."""

import random
import warnings
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

PARAMETERS = {"a": {"type": "integer", "description": "one"}, "b": {"type": "string", "description": "two"}}
PARAMETERS = {"type": "object", "properties": PARAMETERS, "required": ["a"]}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": PARAMETERS}}]


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


BITS = ["<|im_end|>", "<|im_end|>\n", "<|im_start|>assistant\n", "<|im_start|>user\n", "<|eot_id|>", "<|end|>\n"]
BITS += ["<|start_header_id|>assistant<|end_header_id|>\n\n", "<|assistant|>\n", "<end_of_turn>\n"]
BITS += ["<start_of_turn>model\n", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "[INST] ", " [/INST]", "<|endoftext|>"]
BITS += ["<think>", "</think>", "<think>\n", "\n</think>\n\n", "<tool_call>\n", "\n</tool_call>", '"}}']
BITS += ["<tool_response>", "</tool_response>", "\n", "\n\n", " ", "  ", "\t", "a", "Hello", "42", "the same"]
BITS += [
    "😀",
    "👩‍👩‍👧",
    "漢字",
    "שלום",
    "مرحبا",
    "é",
    "e\u0301",
    "\u200b",
    "\x00",
    "\ue123",
    "\ue456",
    "{{ x }}",
    "{% if %}",
]


class Author:
    """Writes random conversations of awkward content."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def content(self) -> str:
        return "".join(self.random.choices(BITS, k=self.random.choice((0, 1, 1, 2, 3, 4, 5))))

    def conversation(self, alternating: bool, with_calls: bool) -> list[dict]:
        repeated = self.content()
        say = lambda: repeated if self.random.random() < 0.2 else self.content()  # noqa: E731
        if alternating:
            return [make(say()) for _ in range(self.random.randint(1, 3)) for make in (user, assistant)]
        messages = [user(say())]
        for _ in range(self.random.randint(1, 6)):
            thought = {"reasoning_content": say()} if with_calls and self.random.random() < 0.3 else {}
            kind = self.random.choice(["user", "answer", "answer", *(["call", "tool"] if with_calls else [])])
            if kind == "call":
                arguments = {"x": say()} if self.random.random() < 0.7 else {"n": self.random.randint(0, 99)}
                calls = [call(arguments)] * self.random.randint(1, 2)
                messages.append(assistant(self.random.choice(["", say()]), tool_calls=calls, **thought))
            else:
                messages.append(
                    assistant(say(), **thought) if kind == "answer" else {"user": user, "tool": tool}[kind](say())
                )
        return [*messages, assistant(say())]


def prepared_by_trl(
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    max_length: int | None = None,
    assistant_only_loss: bool = False,
    streamed: bool = False,
) -> dict[int, tuple[list[int], list[int]]]:
    """
    `input_ids` and `labels` of each row by SFTTrainer's own preparation; rows that it drops are absent. `streamed`
    prepares an `IterableDataset`, which writes no files: the same ids, sooner.
    """
    template = None
    if assistant_only_loss and not has_generation_markers(tokenizer.chat_template):
        template = get_training_chat_template(tokenizer)
    only = "prompt" in dataset.column_names
    trainer = SimpleNamespace(completion_only_loss=only, _tokenizer=tokenizer, chat_template=template)
    args = {"dataset_num_proc": None, "dataset_text_field": "text", "truncation_mode": "keep_start", "seed": 0}
    args |= {"assistant_only_loss": assistant_only_loss, "max_length": max_length, "shuffle_dataset": False}
    dataset = dataset.add_column("row", list(range(len(dataset))))
    if streamed:
        dataset = dataset.to_iterable_dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = SFTTrainer._prepare_dataset(
            trainer, dataset, tokenizer, SimpleNamespace(**args), False, None, "train"
        )
        return {row["row"]: (list(row["input_ids"]), list(row["labels"])) for row in prepared}


def scored_texts(tokenizer: PreTrainedTokenizerBase, example: TokenizedExample) -> list[str]:
    """Text of each unbroken run of scored tokens."""
    edges = np.flatnonzero(np.diff(np.r_[False, example.scored, False])).reshape(-1, 2)
    return [tokenizer.decode(example.input_ids[start:end]) for start, end in edges]
