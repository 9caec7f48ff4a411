"""What a row of a dataset says: its prompt and response as plain text, and where the assistant's turns begin."""

import json
from collections.abc import Mapping

import numpy as np
from transformers import PreTrainedTokenizerBase

from rsr_trl.rsr import TOKEN_IDS
from rsr_trl.scoring.tokens import ExampleTokenizer


ASSISTANT = ("assistant", "gpt")  # the role's names


def prompt_of(row: Mapping) -> str:
    """The prompt, or all turns before the first of the assistant; empty where the row has neither."""
    if row.get("prompt") is not None:
        return _text(row["prompt"])
    turns = _turns(row)
    return _text(turns[: _first_answer(turns)])


def response_of(row: Mapping) -> str:
    """The completion, or all turns from the first of the assistant on, or the text."""
    if row.get("completion") is not None:
        return _text(row["completion"])
    if turns := _turns(row):
        return _text(turns[_first_answer(turns) :])
    return row.get("text") or ""


def num_answers(row: Mapping) -> int:
    """Turns of the assistant in the response, if it is one or more messages; 0 if it is plain text."""
    response = row.get("completion")
    turns = _turns(row) if response is None else response if isinstance(response, list) else []
    return sum(role in ASSISTANT for role in _roles(turns))


class TurnFinder:
    """
    Finds where the assistant's turns begin among the scored tokens of a row: `TurnFinder(tokenizer)(row)`.

    A scored dataset doesn't store it. So the row is tokenized again with the student's tokenizer and chat template,
    and the result counts only if it gives the very ids that are stored.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenize = ExampleTokenizer(tokenizer) if tokenizer.is_fast else None

    def __call__(self, row: Mapping) -> list[int]:
        """
        First token of each turn among the scored ones. A turn of which nothing is scored, such as a tool call that
        the template leaves out, isn't there. `[0]` for a single turn, and where turns can't be found: the row no
        longer is what was scored, or was scored with another chat template.
        """
        stored = [] if row[TOKEN_IDS] is None else list(row[TOKEN_IDS])
        if self._tokenize is None or not stored or num_answers(row) < 2:
            return [0]
        try:
            example = self._tokenize([row])[0]
        except ValueError:  # no chat template, or columns that the scorer wouldn't take
            return [0]
        own = np.flatnonzero(example.scored)[: len(stored)]  # what is stored may have been cut
        if example.input_ids[own].tolist() != stored:
            return [0]
        return np.flatnonzero(np.diff(own, prepend=-2) > 1).tolist()  # other tokens stand before each turn


def _turns(row: Mapping) -> list[Mapping]:
    return row.get("messages") or row.get("conversations") or []


def _first_answer(turns: list[Mapping]) -> int:
    return next((i for i, role in enumerate(_roles(turns)) if role in ASSISTANT), len(turns))


def _roles(turns: list[Mapping]) -> list[str | None]:
    return [turn.get("role") or turn.get("from") for turn in turns]


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return _json(value)
    value = [{**turn, "content": _joined(turn["content"])} if "content" in turn else turn for turn in value]
    if len(value) == 1 and isinstance(value[0].get("content"), str) and not value[0].get("tool_calls"):
        return value[0]["content"]
    return "\n\n".join(_turn(turn) for turn in value)


def _joined(content: object) -> object:
    """Parts of text and images as one text; any other content as it is."""
    kinds = {part.get("type") for part in content} if isinstance(content, list) else set()
    if not kinds or not kinds <= {"text", "image"}:
        return content
    return " ".join("[image]" if part["type"] == "image" else part.get("text") or "" for part in content)


def _turn(turn: Mapping) -> str:
    """A turn with its role, and whatever else it has as JSON."""
    fields = {name: part for name, part in turn.items() if part not in (None, [], "")}
    role = fields.pop("role", None) or fields.pop("from", "")
    parts = [f"[{role}]"]
    for name in ("content", "value"):
        if isinstance(fields.get(name), str):
            parts.append(fields.pop(name))
    return " ".join([*parts, *([_json(fields)] if fields else [])])


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
