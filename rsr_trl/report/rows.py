"""What a row says: its prompt and its response, as plain text, whatever its format."""

import json
from collections.abc import Mapping


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
    if len(value) == 1 and isinstance(value[0].get("content"), str) and not value[0].get("tool_calls"):
        return value[0]["content"]
    return "\n\n".join(_turn(turn) for turn in value)


def _turn(turn: Mapping) -> str:
    """A turn with its role, and whatever else it has as JSON."""
    said = {name: part for name, part in turn.items() if part not in (None, [], "")}
    role = said.pop("role", None) or said.pop("from", "")
    parts = [f"[{role}]"]
    for name in ("content", "value"):
        if isinstance(said.get(name), str):
            parts.append(said.pop(name))
    return " ".join([*parts, *([_json(said)] if said else [])])


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
