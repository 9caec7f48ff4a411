"""What assistant messages say by themselves, and which of it a rendered conversation leaves out.

Chat templates drop parts without a word: reasoning under a key that they don't know, think blocks, tool calls. This
file works on strings; it knows no template, no tokens and no model.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property


REASONING, EARLIER, CONTENT, CALLS = "reasoning", "reasoning of earlier turns", "content", "tool calls"
LOST = (REASONING, EARLIER, CONTENT, CALLS)
NAME = "name of a tool call"
_THINK = re.compile(r"(</?think>)")
_FORMATTING = re.compile(r"[\s\\\"']+")


def own_parts(message: Mapping) -> Iterator[tuple[str, str]]:
    """Kind and text of what an assistant message says: its reasoning, content and tool calls, without empty parts."""
    reasoning = {text for key in ("reasoning_content", "reasoning", "thinking") for text in _strings(message.get(key))}
    parts = [(REASONING, text) for text in sorted(reasoning)]
    content = message.get("content")
    for part in [content] if isinstance(content, str) else content or []:
        if isinstance(part, Mapping) and part.get("type") in ("thinking", "reasoning"):
            parts += [(REASONING, text) for text in _strings(part)]
        else:
            parts += [split for text in _strings(part) for split in _without_tags(text)]
    for call in [*(message.get("tool_calls") or []), message.get("function_call")]:
        if isinstance(call, Mapping):
            function = call["function"] if isinstance(call.get("function"), Mapping) else call
            parts += [(NAME, str(function.get("name")))]
            parts += [(CALLS, text) for text in _arguments(function.get("arguments"))]
    return ((kind, text.strip()) for kind, text in parts if text.strip())


def _without_tags(content: str) -> Iterator[tuple[str, str]]:
    """Content in pieces without its `<think>` tags: templates move them, or write others."""
    pieces = _THINK.split(content)
    for before, text, after in zip(["", *pieces[1::2]], pieces[::2], [*pieces[1::2], ""], strict=True):
        yield (REASONING if "<think>" in before or "</think>" in after else CONTENT), text


def _arguments(arguments: object) -> Iterator[str]:
    """The strings among a call's arguments: how numbers are written is the template's affair."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            pass
    return _strings(arguments, every_key=True)


def _strings(value: object, every_key: bool = False) -> Iterator[str]:
    """The strings in messages' parts: under the keys that hold text, or under `every_key`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if every_key or key in ("text", "thinking", "reasoning", "content"):
                yield from _strings(part, every_key)
    elif isinstance(value, Sequence):
        for part in value:
            yield from _strings(part, every_key)


def is_blank(text: str) -> bool:
    """Whether there is nothing but white space and `<think>` tags."""
    return not _THINK.sub("", text).strip()


class OwnText:
    """The assistant's own text in a rendered conversation, as its spans give it, and what it leaves out."""

    def __init__(self, turns: Sequence[str]):
        self._text = "\n".join(turns)

    @cached_property
    def _bare(self) -> str:
        return _FORMATTING.sub("", self._text)

    def missing(self, messages: Sequence[Mapping]) -> tuple[set[str], list[int]]:
        """
        Which kinds of parts of the assistant's `messages` aren't in the text, and which of these messages have nothing
        in it, because they say nothing or because all of it is left out.
        """
        kinds, silent, names = set(), [], Counter()
        last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=0)
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            parts = list(own_parts(message))
            names.update(text for kind, text in parts if kind == NAME)  # called again, it has to stand there again
            lost = [CALLS if kind == NAME else kind for kind, text in parts if not self._has(text, names[text] or 1)]
            kinds |= {EARLIER if kind == REASONING and i < last else kind for kind in lost}
            if len(lost) == len(parts):
                silent.append(i)
        return kinds, silent

    def _has(self, text: str, times: int) -> bool:
        """Whether a text stands there so often, as it is or in the formatting of JSON."""
        if self._text.count(text) >= times:
            return True
        forms = {_FORMATTING.sub("", form) for form in (text, json.dumps(text, ensure_ascii=False), json.dumps(text))}
        return any(self._bare.count(form) >= times for form in forms)
