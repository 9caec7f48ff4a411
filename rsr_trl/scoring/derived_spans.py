"""The assistant's own text in a rendered conversation, located by rendering variants of the conversation.

For templates that don't mark it themselves. Works on strings; what renders is passed in (`ChatSpans`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise


Message = Mapping[str, object]
Span = tuple[int, int]

# Private-use characters: no real text starts or ends with both, and no template treats them specially.
SENTINELS = ("\ue123", "\ue456")
# Reasoning is the assistant's own text, whatever key it comes under.
_CONTROL_TOKEN = re.compile(r"<\|[^<>\"]*>\s*$")
_TEXT_KEYS = ("content", "reasoning_content", "reasoning", "thinking")


class ChatTemplateError(ValueError):
    """A conversation that the chat template can't render, or in which the assistant's text can't be located."""


class DerivedSpans:
    """
    Locates the assistant's own text in `text`, one rendered conversation, by rendering variants of it. `chat` knows
    what the template writes before every turn (`header`, may be empty) and after a plain last one (`last_trailer`).
    """

    def __init__(self, chat, text: str, messages: Sequence[Message], kwargs: Mapping, rendered: dict | None = None):
        self._chat, self._kwargs = chat, kwargs
        self._text, self._messages = text, messages
        self._changed: dict[int, Span] = {}
        self._rendered = {} if rendered is None else rendered  # by the ids of the messages, which it keeps alive

    def spans(self, first: int = 0) -> list[Span]:
        """Spans of the assistant's own text, sorted and disjoint, without those of messages before `first`."""
        return [(start, end) for _, (start, end) in self.located(first) if start < end]

    def located(self, first: int = 0) -> list[tuple[int, Span]]:
        """Which turn, from message `first` on, has which span; a span may be empty, and a turn have two."""
        turns = [i for i, message in enumerate(self._messages) if message["role"] == "assistant"]
        for turn in turns:
            if self._messages[turn].get("tool_responses"):  # Gemma's own way: a tool's words in an assistant message
                raise ChatTemplateError(
                    f"message {turn} holds tool_responses: give them as messages of the role 'tool'"
                )
        if together := self._between_anchors(turns):
            located = [(turn, span) for turn, span in zip(turns, together, strict=True) if turn >= first]
        else:
            located = self._block_by_block(turns, first)
            # Where templates look further, more slowly from variants of the whole conversation.
            rest = [turn for turn in turns if turn >= first and turn not in dict(located)]
            located = [(turn, span) for turn in rest for span in self._locate_turn(turn)] + located
        for (_, before), (turn, after) in pairwise(located):
            if before[1] > after[0]:
                raise _cannot_locate(turn)
        return located

    def end_of(self, index: int) -> int:
        """Where the messages up to `messages[index]`, an assistant's among them, end."""
        upto = self._try_render(self._messages[: index + 1])
        if upto is not None and self._text.startswith(upto):
            return len(upto)
        while self._messages[index]["role"] != "assistant" and self._region(index, _say) is None:
            index -= 1  # the template leaves this message out
        return self._changed_region(index)[1]

    def _between_anchors(self, turns: Sequence[int]) -> list[Span] | None:
        """
        Spans of all turns from one variant in which every assistant message says a mark only.

        What stands between the marks, up to the last header in it, is in the text too, in the same order; the
        assistant's own text lies in between. `None` unless it fits in one way only and the variant holds all other
        messages.
        """
        (mark, other), header, text = SENTINELS, self._chat.header, self._text
        rendered = self._try_render(self._marked_variant() or [])
        # Some templates drop tool results that answer no call: they would pass for the assistant's text.
        if not rendered or rendered.count(other) != len(self._messages) - len(turns):
            return None
        *between, tail = rendered.replace(other, "").split(mark)
        if len(between) != len(turns) or any(header not in piece for piece in between):
            return None
        anchors = [piece[: piece.rfind(header) + len(header)] for piece in between]
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

    def _marked_variant(self) -> list[Message] | None:
        """The conversation with a mark as every assistant message, and another within every other message."""
        (mark, other), header = SENTINELS, self._chat.header
        if not header:
            return None
        variant: list[Message] = []
        for message in self._messages:
            content = message.get("content")
            if message["role"] == "assistant":
                variant.append(message_of("assistant", mark, list if isinstance(content, list) else str))
            elif isinstance(content, str) and header.strip() not in content:
                half = len(content) // 2  # templates may look at its ends
                variant.append({**message, "content": content[:half] + other + content[half:]})
            else:
                return None
        return variant

    def _block_by_block(self, turns: Sequence[int], first: int) -> list[tuple[int, Span]]:
        """
        Which turn, from message `first` on, has which span, in time linear in the number of turns: each is located in
        a small conversation of its block (the messages from it up to the next turn) and of what templates look at
        around it. From the last one backwards, as far as the blocks, rendered so, make up the end of the text.
        """
        messages, chat, located, at = self._messages, self._chat, [], len(self._text)
        user, answer = (message_of(role, role, chat.form) for role in ("user", "assistant"))
        last_user = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=0)
        small = DerivedSpans(chat, "", (), {**self._kwargs, "tools": None})
        bare = {turn: _only_calls(messages[turn]) or answer for turn in turns}
        contexts = [[user]]  # of each turn; it may go on in the turn before, after a tool's result
        for turn, after in pairwise(turns):
            goes_on = messages[after - 1]["role"] != "user"
            contexts.append([user, bare[turn], *messages[turn + 1 : after]] if goes_on else [user])
        called = next((i for i, turn in enumerate(turns[:-1]) if messages[turn].get("tool_calls")), len(turns))
        for i in reversed(range(len(turns))):
            turn, after = turns[i], [*turns, len(messages)][i + 1]
            if turn < first:
                break
            # Thoughts may stay only where no user speaks behind them.
            behind = [bare[after], user] if after <= last_user else [bare[after]] if after < len(messages) else []
            # DeepSeek opens the calls of a conversation only once.
            earlier = [[*contexts[called + 1], answer]] if called < i else []
            try:
                for before in [[], *earlier]:
                    context = [*before, *contexts[i]]
                    conversation = [*context, *messages[turn:after], *behind]
                    part = small._render(conversation)
                    start, end = _shared_prefix(small._render(context), part), len(part)
                    if behind:
                        end -= len(small._written_for(behind, [*before, *contexts[i + 1]]))
                    if start < end and self._text.endswith(part[start:end], 0, at):
                        break
                else:
                    raise _cannot_locate(turn)
                alone = DerivedSpans(chat, part, conversation, small._kwargs, small._rendered)
                spans = alone._locate_turn(len(context))
                if not all(start <= low <= high <= end for low, high in spans):
                    raise _cannot_locate(turn)
            except ChatTemplateError:  # then the turn behind it isn't proven to begin where it was found
                return [(later, span) for later, span in located if later not in turns[: i + 2]]
            at -= end - start
            located = [*((turn, (low + at - start, high + at - start)) for low, high in spans), *located]
        return located

    def _written_for(self, behind: Sequence[Message], context: Sequence[Message]) -> str:
        """What the template writes for messages behind a context."""
        text = self._render([*context, *behind])
        return text[_shared_prefix(self._render(context), text) :]

    def _locate_turn(self, turn: int) -> list[Span]:
        """Spans of the assistant turn `messages[turn]`; two if its tool's result stands inside it."""
        text, messages, trailer = self._text, self._messages, self._chat.last_trailer
        start = self._start_of(turn)
        upto = text if turn == len(messages) - 1 else self._try_render(messages[: turn + 1])
        if upto is not None and text.startswith(upto) and upto.endswith(trailer):
            return [(start, max(start, len(upto) - len(trailer)))]
        end = self._changed_region(turn)[1]
        if not messages[turn].get("tool_calls"):
            return [(start, max(start, end))]
        if turn + 1 < len(messages) and messages[turn + 1]["role"] != "assistant":
            result = self._region(turn + 1, _say)
            if result is not None and start <= result[0] < end:  # Gemma 4: call, result, words
                call = self._region(turn, _call)
                words = self._region(
                    turn, lambda message, mark: {**message, "content": _say(message, mark)["content"]}
                )
                if call is None or words is None or not call[1] <= result[0] <= result[1] <= words[0]:
                    raise _cannot_locate(turn)
                return [(start, call[1] + self._length_of_call_end(turn, call[1])), words]
        return [(start, max(start, end + self._length_of_call_end(turn, end)))]

    def _start_of(self, turn: int) -> int:
        """Where the assistant's own text of a turn begins."""
        text, messages, header = self._text, self._messages, self._chat.header
        # Where the conversation up to here renders to a prefix of the whole, the turn starts right after it.
        before = self._try_render(messages[:turn])
        quotes_header = bool(header) and header.strip() in str(messages[turn].get("content"))
        if before is not None and text.startswith(before + header) and not quotes_header:
            return len(before) + len(header)
        # Else after the last header before the first character that depends on this turn: whatever the template
        # writes in between (an empty think block) is the assistant's. Where no header stands after the previous
        # message (Gemma 4 goes on in the same turn after a tool result), the turn starts at that character.
        changed = self._changed_region(turn)[0]
        if messages[turn].get("tool_calls"):  # without its call a turn starts differently; but results may vanish
            changed = min(changed, (self._region(turn, _say) or (changed,))[0])
        earlier = self._changed_region(turn - 1)[1] if turn > 0 else 0
        if changed < earlier:  # written twice, or out of order
            raise _cannot_locate(turn)
        found = text.rfind(header, earlier, changed) if header else -1
        return changed if found < 0 else found + len(header)

    def _changed_region(self, index: int) -> Span:
        """Smallest span outside of which nothing depends on what `messages[index]` says (or calls with)."""
        if index not in self._changed:
            region = self._region(index, _say_and_call)
            if region is None:
                raise _cannot_locate(index)
            self._changed[index] = region
        return self._changed[index]

    def _region(self, index: int, change: Callable[[Message, str], dict]) -> Span | None:
        """Smallest span that holds all that `change` makes different; `None` if its mark isn't rendered."""
        text, messages, variants = self._text, self._messages, []
        for mark in [mark for mark in SENTINELS if mark not in text][:1] or SENTINELS:  # two share neither end
            variant = self._try_render([*messages[:index], change(messages[index], mark), *messages[index + 1 :]])
            if variant is None or mark not in variant:
                return None
            variants.append(variant)
        start = min(_shared_prefix(text, variant) for variant in variants)
        return start, max(start, len(text) - min(_shared_prefix(text[::-1], variant[::-1]) for variant in variants))

    def _length_of_call_end(self, turn: int, end: int) -> int:
        """How many characters at `text[end:]` close the tool call of `messages[turn]` (brackets and tags)."""
        mark = SENTINELS[0]
        calling = {**_call(self._messages[turn], mark), "content": ""}  # Gemma 4 writes content after the call
        closing = self._try_render([*self._messages[:turn], calling])
        if closing is None or mark not in closing:
            raise _cannot_locate(turn)
        closing = closing.split(mark)[-1]
        closing = closing.removesuffix(end_of_turn(closing, {self._chat.last_trailer}))
        # The first brackets may differ (a number has no closing quote): their longest end that stands there counts.
        lengths = range(len(closing), -1, -1)
        return next(n for n in lengths if self._text.startswith(closing[len(closing) - n :], end))

    def _render(self, messages: Sequence[Message]) -> str:
        key = tuple(map(id, messages))
        if key not in self._rendered:
            self._rendered[key] = self._chat.render(messages, self._kwargs), messages
        return self._rendered[key][0]

    def _try_render(self, messages: Sequence[Message]) -> str | None:
        try:
            return self._render(messages) if messages else None
        except ChatTemplateError:  # some templates refuse conversations that end early
            return None


def message_of(role: str, text: str, form: type) -> dict:
    return {"role": role, "content": text if form is str else [{"type": "text", "text": text}]}


def _only_calls(message: Message) -> dict | None:
    """Of an assistant's message its calls alone; `None` if it has none."""
    calls = message.get("tool_calls")
    return {"role": "assistant", "content": "", "tool_calls": calls} if calls else None


def _say(message: Message, mark: str) -> dict:
    """The message with another text, and without tool calls."""
    said = {**message, "tool_calls": None}
    for key in _TEXT_KEYS:
        if message.get(key) or key == "content":
            said[key] = message_of("", mark, list if isinstance(message.get(key), list) else str)["content"]
    return said


def _call(message: Message, mark: str) -> dict:
    """The message with other arguments of its tool calls."""
    return {**message, "tool_calls": [_change_arguments(call, mark) for call in message["tool_calls"]]}


def _say_and_call(message: Message, mark: str) -> dict:
    """The message with another text and other arguments of its tool calls."""
    if not message.get("tool_calls"):
        return _say(message, mark)
    said = {**_say(message, mark), "tool_calls": _call(message, mark)["tool_calls"]}
    # Beside a call, empty content stays empty: Gemma 4 writes it after the tool result.
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


def _shared_prefix(a: str, b: str) -> int:
    """Length of the common prefix, by bisection: comparing slices runs at memory speed."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def end_of_turn(text: str, plain: set[str]) -> str:
    """What ends the turn after the tool call at the end of `text`: as with plain turns, or one like `<|call|>`."""
    known = max((trailer for trailer in plain if text.endswith(trailer)), key=len, default="")
    # A template without markers after plain turns writes none after calls.
    control = _CONTROL_TOKEN.search(text) if any(plain) and not known else None
    return control.group() if control else known
