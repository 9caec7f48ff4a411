"""Where the assistant's own text stands in a rendered conversation, told by rendering variants of that conversation.

For templates that don't mark it. A turn whose text can't be told apart from the rest is an error, never a guess. This
file works on strings; it knows no tokenizer.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise


Message = Mapping[str, object]
Span = tuple[int, int]

# Private-use characters: no real text starts or ends with both, and no template treats them specially.
SENTINELS = ("\ue123", "\ue456")
# Reasoning is the assistant's own text, whatever key it comes under.
_TEXT_KEYS = ("content", "reasoning_content", "reasoning", "thinking")
_CONTROL_TOKEN = re.compile(r"<\|[^<>\"]*>\s*$")


class ChatTemplateError(ValueError):
    """A conversation that the chat template can't render, or in which the assistant's text can't be located."""


class DerivedSpans:
    """
    Locates the assistant's own text in rendered conversations.

    Args:
        render (`Callable`): `render(messages, template_kwargs)` gives the text of a conversation or raises
            [`ChatTemplateError`].
        header (`str`): What the template writes before every assistant turn; `""` if there is no such text.
        last_trailer (`str`): What it writes behind a plain assistant turn at the end of a conversation.
    """

    def __init__(self, render: Callable[[Sequence[Message], Mapping], str], header: str, last_trailer: str):
        self._render = render
        self._header = header
        self._last_trailer = last_trailer

    def __call__(self, text: str, messages: Sequence[Message], kwargs: Mapping, first: int = 0) -> list[Span]:
        """
        Spans of the assistant's own text in `text`, sorted and disjoint.

        Args:
            text (`str`): The rendered conversation.
            messages (sequence of messages): The conversation.
            kwargs (mapping): The template's own keyword arguments, with `tools`.
            first (`int`): Earlier messages are context: their spans are left out.
        """
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        for turn in turns:
            if messages[turn].get("tool_responses"):  # Gemma's own way: a tool's words inside an assistant message
                raise ChatTemplateError(
                    f"message {turn} holds tool_responses: give them as messages of the role 'tool'"
                )
        together = self._between_anchors(text, messages, turns, kwargs)
        if together is not None:
            located = list(zip(turns, together, strict=True))
        else:
            wanted = [turn for turn in turns if turn >= first]
            located = [(turn, span) for turn in wanted for span in self._locate_turn(text, messages, turn, kwargs)]
        for (_, before), (turn, after) in pairwise(located):
            if before[1] > after[0]:
                raise _cannot_locate(turn)
        return [(start, end) for turn, (start, end) in located if turn >= first and start < end]

    def end_of(self, text: str, messages: Sequence[Message], index: int, kwargs: Mapping) -> int:
        """Where in `text` the messages up to `messages[index]`, an assistant's among them, end."""
        upto = self._try_render(messages[: index + 1], kwargs)
        if upto is not None and text.startswith(upto):
            return len(upto)
        while messages[index]["role"] != "assistant" and self._region(text, messages, index, _say, kwargs) is None:
            index -= 1  # the template leaves this message out
        return self._changed_region(text, messages, index, kwargs)[1]

    # ------------------------------------------------------------------------------------- all turns in one rendering

    def _between_anchors(
        self, text: str, messages: Sequence[Message], turns: Sequence[int], kwargs: Mapping
    ) -> list[Span] | None:
        """
        Spans of all turns from one variant in which every assistant message says a mark only.

        What stands between the marks, up to the last header in it, is in `text` too, in the same order; the
        assistant's own text lies in between. `None` unless it fits in one way only and the variant holds all other
        messages.
        """
        mark, other = SENTINELS
        if not self._header:
            return None
        variant: list[Message] = []
        for message in messages:
            content = message.get("content")
            if message["role"] == "assistant":
                said = [{"type": "text", "text": mark}] if isinstance(content, list) else mark
                variant.append({"role": "assistant", "content": said})
            elif isinstance(content, str) and self._header.strip() not in content:
                half = len(content) // 2  # templates may look at its ends
                variant.append({**message, "content": content[:half] + other + content[half:]})
            else:
                return None
        rendered = self._try_render(variant, kwargs)
        # Some templates drop tool results that answer no call: they would pass for the assistant's text.
        if rendered is None or rendered.count(other) != len(messages) - len(turns):
            return None
        *between, tail = rendered.replace(other, "").split(mark)
        anchors = [piece[: piece.rfind(self._header) + len(self._header)] for piece in between]
        if len(anchors) != len(turns) or any(self._header not in piece for piece in between):
            return None
        if mark in text or other in text or not text.startswith(anchors[0]) or not text.endswith(tail):
            return None
        limit = len(text) - len(tail)
        starts, ends = [len(anchors[0])], []
        for anchor in anchors[1:]:  # each at its first possible place
            ends.append(text.find(anchor, starts[-1], limit))
            if ends[-1] < 0:
                return None
            starts.append(ends[-1] + len(anchor))
        ends.append(limit)
        for anchor, end in zip(anchors[:0:-1], ends[-2::-1], strict=True):  # and at its last
            limit = text.rfind(anchor, 0, limit)
            if limit != end:
                return None
        return list(zip(starts, ends, strict=True)) if starts[-1] <= ends[-1] else None

    # ------------------------------------------------------------------------------------------ turn by turn

    def _locate_turn(self, text: str, messages: Sequence[Message], turn: int, kwargs: Mapping) -> list[Span]:
        """Spans of the assistant turn `messages[turn]` in `text`; two if its tool's result stands inside it."""
        header, trailer = self._header, self._last_trailer
        changed: Span | None = None

        # Where the conversation up to here renders to a prefix of the whole, the turn starts right behind it.
        before = self._try_render(messages[:turn], kwargs)
        quotes_header = bool(header) and header.strip() in str(messages[turn].get("content"))
        if before is not None and text.startswith(before + header) and not quotes_header:
            start = len(before) + len(header)
        else:
            # Else behind the last header before the first character that depends on this turn: whatever the template
            # writes in between (an empty think block) is the assistant's. Where no header stands behind the previous
            # message (Gemma 4 goes on in the same turn after a tool result), the turn starts at that character.
            changed = self._changed_region(text, messages, turn, kwargs)
            behind = self._changed_region(text, messages, turn - 1, kwargs)[1] if turn > 0 else 0
            if changed[0] < behind:  # written twice, or out of order
                raise _cannot_locate(turn)
            found = text.rfind(header, behind, changed[0]) if header else -1
            start = changed[0] if found < 0 else found + len(header)

        upto = text if turn == len(messages) - 1 else self._try_render(messages[: turn + 1], kwargs)
        if upto is not None and text.startswith(upto) and upto.endswith(trailer):
            return [(start, max(start, len(upto) - len(trailer)))]
        end = (changed or self._changed_region(text, messages, turn, kwargs))[1]
        if not messages[turn].get("tool_calls"):
            return [(start, max(start, end))]
        if turn + 1 < len(messages) and messages[turn + 1]["role"] != "assistant":
            result = self._region(text, messages, turn + 1, _say, kwargs)
            if result is not None and start <= result[0] < end:  # Gemma 4: call, result, words
                call = self._region(text, messages, turn, _call, kwargs)
                words = self._region(text, messages, turn, _say_beside_call, kwargs)
                if call is None or words is None or not call[1] <= result[0] <= result[1] <= words[0]:
                    raise _cannot_locate(turn)
                return [(start, call[1] + self._length_of_call_end(text, messages, turn, call[1], kwargs)), words]
        return [(start, max(start, end + self._length_of_call_end(text, messages, turn, end, kwargs)))]

    def _changed_region(self, text: str, messages: Sequence[Message], index: int, kwargs: Mapping) -> Span:
        """Smallest span of `text` outside of which nothing depends on what `messages[index]` says (or calls with)."""
        region = self._region(text, messages, index, _say_and_call, kwargs)
        if region is None:
            raise _cannot_locate(index)
        if messages[index].get("tool_calls"):
            # Without its call a turn starts differently, which shows where it starts; but results may vanish with it.
            without = self._region(text, messages, index, _say, kwargs)
            region = (min(region[0], without[0]), region[1]) if without else region
        return region

    def _region(
        self, text: str, messages: Sequence[Message], index: int, change: Callable, kwargs: Mapping
    ) -> Span | None:
        """Smallest span of `text` that holds all that `change` makes different; `None` if its mark isn't rendered."""
        variants = []
        for mark in SENTINELS:  # two, which share neither end
            changed = [*messages[:index], change(messages[index], mark), *messages[index + 1 :]]
            variant = self._try_render(changed, kwargs)
            if variant is None or mark not in variant:
                return None
            variants.append(variant)
        start = min(_shared_prefix(text, variant) for variant in variants)
        return start, max(start, len(text) - min(_shared_prefix(text[::-1], variant[::-1]) for variant in variants))

    def _length_of_call_end(self, text: str, messages: Sequence[Message], turn: int, end: int, kwargs: Mapping) -> int:
        """How many characters at `text[end:]` close the tool call of `messages[turn]` (brackets and tags)."""
        mark = SENTINELS[0]
        calling = {**_call(messages[turn], mark), "content": ""}  # Gemma 4 writes content behind the call
        closing = self._try_render([*messages[:turn], calling], kwargs)
        if closing is None or mark not in closing:
            raise _cannot_locate(turn)
        closing = closing.split(mark)[-1]
        closing = closing.removesuffix(end_of_turn(closing, {self._last_trailer}))
        # The first brackets may differ (a number has no closing quote): their longest end that stands there counts.
        return next(
            length for length in range(len(closing), -1, -1) if text.startswith(closing[len(closing) - length :], end)
        )

    def _try_render(self, messages: Sequence[Message], kwargs: Mapping) -> str | None:
        try:
            return self._render(messages, kwargs) if messages else None
        except ChatTemplateError:  # some templates refuse conversations that end early
            return None


def _say(message: Message, mark: str) -> dict:
    """The message with another text, and without tool calls."""
    said = {**message, "tool_calls": None}
    for key in _TEXT_KEYS:
        if message.get(key) or key == "content":
            said[key] = [{"type": "text", "text": mark}] if isinstance(message.get(key), list) else mark
    return said


def _say_beside_call(message: Message, mark: str) -> dict:
    """The message with another content, and with its tool calls."""
    return {**message, "content": _say(message, mark)["content"]}


def _call(message: Message, mark: str) -> dict:
    """The message with other arguments of its tool calls."""
    return {**message, "tool_calls": [_change_arguments(call, mark) for call in message["tool_calls"]]}


def _say_and_call(message: Message, mark: str) -> dict:
    """The message with another text and other arguments of its tool calls."""
    if not message.get("tool_calls"):
        return _say(message, mark)
    said = {**_say(message, mark), "tool_calls": _call(message, mark)["tool_calls"]}
    # Beside a call, empty content stays empty: Gemma 4 writes it behind the tool result.
    return {key: said[key] if value else value for key, value in message.items()}


def _change_arguments(call: Mapping, mark: str) -> dict:
    """The same tool call with other arguments, in the shape (nested or flat, JSON text or mapping) that it came in."""
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _change_arguments(call["function"], mark)}
    return {**call, "arguments": f'"{mark}"' if isinstance(call.get("arguments"), str) else {mark: mark}}


def _cannot_locate(index: int) -> ChatTemplateError:
    return ChatTemplateError(
        f"can't tell where the chat template writes message {index}. Give the tokenizer a chat template with "
        "{% generation %} ... {% endgeneration %} around the assistant's text (see "
        "`trl.chat_template_utils.get_training_chat_template`)"
    )


def end_of_turn(text: str, plain: set[str]) -> str:
    """What ends the turn behind the tool call at the end of `text`: as with plain turns, or one like `<|call|>`."""
    known = next(
        (trailer for trailer in sorted(plain, key=len, reverse=True) if trailer and text.endswith(trailer)), ""
    )
    if known or not any(plain):  # a template without markers behind plain turns writes none behind calls
        return known
    match = _CONTROL_TOKEN.search(text)
    return match.group() if match else ""


def _shared_prefix(a: str, b: str) -> int:
    """Length of the common prefix, by bisection: comparing slices runs at memory speed."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low
