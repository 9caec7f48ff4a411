"""Where a rendered conversation holds the assistant's own text, as character spans.

The assistant's own text is everything between an assistant header and its end-of-turn marker (the paper's rule): think
blocks, content and tool calls count; the header, the end-of-turn marker and the white space after it don't. A turn
whose text can't be told from the rest is an error, never a guess. This file works on strings; it knows no token ids
and no model.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date
from itertools import pairwise

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from rsr_trl.rsr import RSRError


Message = Mapping[str, object]
Span = tuple[int, int]

# Private-use characters: no real text starts or ends with both, and no template treats them specially.
SENTINELS = ("\ue123", "\ue456")
# Reasoning is the assistant's own text, whatever key it comes under.
_TEXT_KEYS = ("content", "reasoning_content", "reasoning", "thinking")
_CONTROL_TOKEN = re.compile(r"<\|[^<>\"]*>\s*$")

_NOW = re.compile(r"""strftime_now\(\s*("[^"]*"|'[^']*')\s*\)""")


class ChatTemplateError(ValueError):
    """A conversation that the chat template can't render, or in which the assistant's text can't be located."""


class ChatSpans:
    """
    Renders conversations as [`SFTTrainer`] does and locates the assistant's own text in them.

    The spans come from the template's `{% generation %}` markers; for templates without them from TRL's training twin
    where it renders the very same text; else from rendering variants of the conversation ([`DerivedSpans`]).
    `chat_template` replaces the tokenizer's own. `RSRError` if there is none. A template that writes today's date gets
    `day`, so that the same conversation has the same text tomorrow.
    """

    def __init__(
        self, processing_class: PreTrainedTokenizerBase, chat_template: str | None = None, day: date | None = None
    ):
        self.processing_class = processing_class
        template = chat_template or processing_class.chat_template
        if template is None:
            raise RSRError(
                "The tokenizer has no chat template, but the dataset is conversational. Set `tokenizer.chat_template` "
                "or give chat_template_path, or pass plain-text `prompt` and `completion` columns."
            )
        # Named variants (a dict) stay as they are: transformers picks between them by the presence of tools.
        self._template = chat_template
        default = template.get("default", "") if isinstance(template, dict) else template
        self._marked: str | None = default if has_generation_markers(default) else None
        if self._marked is None and chat_template is None:
            with suppress(Exception):  # TRL knows no twin, or the template breaks on TRL's own probes
                self._marked = get_training_chat_template(processing_class)
        if writes_day(template) and isinstance(template, str):
            self._template, self._marked = (text and with_day(text, day) for text in (template, self._marked))
        # Forms of content (`str`, `list`) that the template writes: some leave one of them out without a word.
        self._forms: list[type] = []
        self.header, self.last_trailer = self._probe_header()
        # What a marked turn may start with that isn't the assistant's own, and what it may end with, longest first.
        self._openers: list[str] = []
        self._trailers: list[str] = []
        if self._marked is not None and self._forms:
            self._probe_marked()

    def render(self, messages: Sequence[Message], kwargs: Mapping, add_generation_prompt: bool = False) -> str:
        """Render a conversation to text. `kwargs` are `tools` and the template's own keyword arguments."""
        try:
            return self.processing_class.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **{**kwargs, "chat_template": self._template},
            )
        except Exception as error:  # a template is foreign code: whatever it raises is about this conversation
            raise ChatTemplateError(f"the chat template can't render it: {error}") from error

    def __call__(self, messages: Sequence[Message], kwargs: Mapping, first: int = 0) -> tuple[str, list[Span]]:
        """
        Text of a conversation, as [`~ChatSpans.render`] gives it, and the sorted, disjoint spans `[start, end)` of the
        assistant's own text in it. Messages before `first` are context: their spans are left out. `ChatTemplateError`
        if the template refuses the conversation or a turn can't be located in it.
        """
        text = self.render(messages, kwargs)
        self._check_contents(messages, first)
        derived = DerivedSpans(self, text, messages, kwargs)
        marked_text, marked = self._render_marked(messages, kwargs)
        if not marked or marked_text != text:
            return text, derived.spans(first)
        spans = self._trim(text, marked)
        if any(message["role"] == "assistant" for message in messages[:first]):
            context = derived.end_of(first - 1)
            spans = [span for span in spans if span[0] >= context]
        return text, spans

    def without(
        self, silent: Sequence[int], text: str, spans: list[Span], messages: Sequence[Message], kwargs: Mapping
    ) -> list[Span]:
        """The `spans` of a conversation without those of the turns `silent`: all in them is the template's."""
        located = DerivedSpans(self, text, messages, kwargs).located(silent[0]) if silent else []
        theirs = [span for turn, span in located if turn in silent]
        return [(a, b) for a, b in spans if not any(a < end and start < b for start, end in theirs)]

    def _check_contents(self, messages: Sequence[Message], first: int) -> None:
        """Raise where the template leaves the assistant's content out: the turn would be scored without its words."""
        if not self._forms:
            raise ChatTemplateError(
                "the chat template refuses a plain conversation (user, assistant, user) or leaves its contents out, "
                "so what it writes around the assistant's text can't be learned"
            )
        for i, message in enumerate(messages):
            content = message.get("content")
            if i >= first and message["role"] == "assistant" and content and type(content) not in self._forms:
                given, taken = "a string", "a list of parts"
                if not isinstance(content, str):
                    given, taken = taken, given
                raise ChatTemplateError(
                    f"the chat template leaves out content that is {given} (message {i}): give {taken}"
                )

    def _render_marked(
        self, messages: Sequence[Message], kwargs: Mapping, add_generation_prompt: bool = False
    ) -> tuple[str, list[Span]]:
        """Text and raw `{% generation %}` spans by the marked template; nothing if there is none or it refuses."""
        if self._marked is None:
            return "", []
        # As `apply_chat_template` prepares them: special tokens as variables, no null keys.
        variables = {**self.processing_class.special_tokens_map, **kwargs, "chat_template": self._marked}
        messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
        try:
            texts, spans = render_jinja_template(
                conversations=[messages],
                return_assistant_tokens_mask=True,
                add_generation_prompt=add_generation_prompt,
                **variables,
            )
        except Exception:
            return "", []
        return texts[0], [(start, end) for start, end in spans[0]]

    def _trim(self, text: str, marked: list[Span]) -> list[Span]:
        """Cut headers and end-of-turn markers off the spans that a template marks as generated."""
        trimmed = []
        for start, end in self._join(text, marked):
            start += len(self._opener(text, start))
            end -= len(next((t for t in self._trailers if text.endswith(t, start, end)), ""))
            if start < end:
                trimmed.append((start, end))
        return trimmed

    def _join(self, text: str, marked: list[Span]) -> list[Span]:
        """Turns from the pieces in which some templates mark them; a piece with an opener is a turn of its own."""
        turns: list[Span] = []
        for start, end in marked:
            if turns and turns[-1][1] == start and not self._opener(text, start):
                start = turns.pop()[0]
            turns.append((start, end))
        return turns

    def _opener(self, text: str, start: int) -> str:
        """What stands at the start of a marked turn and isn't the assistant's own."""
        if "" in self._openers and self.header and text.endswith(self.header, 0, start):
            return ""  # the header stands before the marked turn: a second one is the assistant quoting it
        return next((opener for opener in self._openers if text.startswith(opener, start)), "")

    # -------------------------------------------------------------------------------------- what surrounds a turn

    def _probe_header(self) -> tuple[str, str]:
        """The header of assistant turns and the end of a conversation's last one, learned from tiny conversations."""
        header, last_trailer, mark = "", "", SENTINELS[0]
        for form in (list, str):
            user, answer = _message("user", "U", form), _message("assistant", mark, form)
            try:
                opening = self.render([user], {})
                prompt = self.render([user], {}, add_generation_prompt=True)
                last, middle = self.render([user, answer], {}), self.render([user, answer, user], {})
            except ChatTemplateError:
                continue
            if mark not in last or mark not in middle:
                continue
            self._forms.append(form)
            last_trailer = last.split(mark)[-1]
            if not all(rendered.startswith(opening) for rendered in (prompt, last, middle)):
                continue
            # Old templates know no generation prompt.
            rendered = [last, middle] if prompt == opening else [last, middle, prompt]
            # A generation prompt may open the think block for the student; the block is the assistant's text.
            before = [text[len(opening) :].split(mark)[0].split("<think>")[0] for text in rendered]
            header = os.path.commonprefix(before)
        return header if header.strip() else "", last_trailer

    def _probe_marked(self) -> None:
        """Learn what marked turns start and end with that isn't the assistant's own, from tiny conversations."""
        openers, trailers = set(), set()
        for conversation, turn, mark in _probes(self._forms[-1]):
            text, marked = self._render_marked(conversation, {})
            at = text.find(mark)
            around = next((span for span in self._join(text, marked) if span[0] <= at < span[1]), None)
            if around is None:
                continue
            start, end = around
            prompt, _ = self._render_marked(conversation[:turn], {}, add_generation_prompt=True)
            opening = prompt[start:].split("<think>")[0]
            own = start + len(opening) if text.startswith(opening, start) else start
            if self.header:
                own = max(own, text.rfind(self.header, 0, at) + len(self.header))
            openers.add(text[start:own])
            # After a call stand its closing brackets, which are the assistant's, and an end-of-turn marker.
            after = text[at + 1 : end]
            trailers.add(_end_of_turn(after, trailers) if conversation[turn].get("tool_calls") else after)
        self._openers = sorted(openers, key=len, reverse=True)
        self._trailers = sorted(trailers - {""}, key=len, reverse=True)


def writes_day(chat_template: str | dict | None) -> bool:
    """Whether a chat template asks for today's date."""
    return "strftime_now" in str(chat_template)


def with_day(chat_template: str, day: date | None) -> str:
    """The template with the day written into it, today by default."""
    day = day or date.today()
    return _NOW.sub(lambda call: repr(day.strftime(call[1][1:-1])), chat_template)


class DerivedSpans:
    """
    Locates the assistant's own text in `text`, one rendered conversation, by rendering variants of it. `chat` knows
    what the template writes before every turn (`header`, may be empty) and after a plain last one (`last_trailer`).
    """

    def __init__(self, chat: ChatSpans, text: str, messages: Sequence[Message], kwargs: Mapping):
        self._chat, self._kwargs = chat, kwargs
        self._text, self._messages = text, messages
        self._changed: dict[int, Span] = {}

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
            located = list(zip(turns, together, strict=True))
        else:
            located = [(turn, span) for turn in turns if turn >= first for span in self._locate_turn(turn)]
        for (_, before), (turn, after) in pairwise(located):
            if before[1] > after[0]:
                raise _cannot_locate(turn)
        return [(turn, span) for turn, span in located if turn >= first]

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
                variant.append(_message("assistant", mark, list if isinstance(content, list) else str))
            elif isinstance(content, str) and header.strip() not in content:
                half = len(content) // 2  # templates may look at its ends
                variant.append({**message, "content": content[:half] + other + content[half:]})
            else:
                return None
        return variant

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
            # Without its call a turn starts differently, which shows where it starts; but results may vanish with it.
            without = self._region(index, _say) if self._messages[index].get("tool_calls") else None
            self._changed[index] = (min(region[0], without[0]), region[1]) if without else region
        return self._changed[index]

    def _region(self, index: int, change: Callable[[Message, str], dict]) -> Span | None:
        """Smallest span that holds all that `change` makes different; `None` if its mark isn't rendered."""
        text, messages, variants = self._text, self._messages, []
        for mark in SENTINELS:  # two, which share neither end
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
        closing = closing.removesuffix(_end_of_turn(closing, {self._chat.last_trailer}))
        # The first brackets may differ (a number has no closing quote): their longest end that stands there counts.
        lengths = range(len(closing), -1, -1)
        return next(n for n in lengths if self._text.startswith(closing[len(closing) - n :], end))

    def _try_render(self, messages: Sequence[Message]) -> str | None:
        try:
            return self._chat.render(messages, self._kwargs) if messages else None
        except ChatTemplateError:  # some templates refuse conversations that end early
            return None


def _message(role: str, text: str, form: type) -> dict:
    return {"role": role, "content": text if form is str else [{"type": "text", "text": text}]}


def _probes(form: type) -> Iterator[tuple[list[dict], int, str]]:
    """Tiny conversations, an assistant turn of each, and the mark that stands alone in it."""
    mark, other = SENTINELS
    user, answer = _message("user", "U", form), _message("assistant", mark, form)
    yield [user, answer], 1, mark
    yield [user, answer, user], 1, mark
    for arguments in ({"x": mark}, f'{{"x": "{mark}"}}'):
        call = {"id": "call00001", "type": "function", "function": {"name": "f", "arguments": arguments}}
        calling = {"role": "assistant", "content": "", "tool_calls": [call]}
        result = {"role": "tool", "name": "f", "tool_call_id": "call00001", "content": "R"}
        conversation = [user, calling, result, _message("assistant", other, form)]
        yield conversation, 1, mark
        yield conversation, 3, other


def _say(message: Message, mark: str) -> dict:
    """The message with another text, and without tool calls."""
    said = {**message, "tool_calls": None}
    for key in _TEXT_KEYS:
        if message.get(key) or key == "content":
            said[key] = _message("", mark, list if isinstance(message.get(key), list) else str)["content"]
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


def _end_of_turn(text: str, plain: set[str]) -> str:
    """What ends the turn after the tool call at the end of `text`: as with plain turns, or one like `<|call|>`."""
    known = max((trailer for trailer in plain if text.endswith(trailer)), key=len, default="")
    # A template without markers after plain turns writes none after calls.
    control = _CONTROL_TOKEN.search(text) if any(plain) and not known else None
    return control.group() if control else known


def _shared_prefix(a: str, b: str) -> int:
    """Length of the common prefix, by bisection: comparing slices runs at memory speed."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low
