"""Where a rendered conversation holds the assistant's own text, as character spans.

The assistant's own text is everything between an assistant header and its end-of-turn marker (the paper's rule): think
blocks, content and tool calls count; the header, the end-of-turn marker and the white space after it don't. A turn
whose text can't be told from the rest is an error, never a guess. This file works on strings; it knows no token ids
and no model.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from rsr_trl.rsr import RSRError
from rsr_trl.scoring.derived_spans import (
    SENTINELS,
    ChatTemplateError,
    DerivedSpans,
    Message,
    Span,
    end_of_turn,
    message_of,
)


_NOW = re.compile(r"""strftime_now\(\s*("[^"]*"|'[^']*')\s*\)""")


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
            self._marked = training_twin(processing_class)
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

    @property
    def form(self) -> type:
        """A form of content that the template writes: a string, where it can."""
        return self._forms[-1]

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
        try:
            text = self.render(messages, kwargs)
        except ChatTemplateError:
            if self._forms:
                self._check_contents(messages, text="")
            raise
        if not self._forms:
            raise ChatTemplateError(
                "the chat template refuses a plain conversation (user, assistant, user) or leaves its contents out, "
                "so what it writes around the assistant's text can't be learned"
            )
        self._check_contents(messages, text)
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

    def _check_contents(self, messages: Sequence[Message], text: str) -> None:
        """Raise where the template can't write contents of this form: turns would lose their words or questions."""
        for i, message in enumerate(messages):
            content = message.get("content")
            if not content or type(content) in self._forms or message["role"] not in ("user", "assistant"):
                continue
            # Some take parts of users only.
            said = [str(part.get("text") or "").strip() for part in content if isinstance(part, Mapping)]
            if message["role"] == "assistant" or not said or any(_is_lost(part, text) for part in said):
                given, taken = ("a string", "a list of parts")[:: 1 if isinstance(content, str) else -1]
                raise ChatTemplateError(
                    f"the content of message {i} is {given}, which this chat template can't write: give {taken}"
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
            user, answer = message_of("user", "U", form), message_of("assistant", mark, form)
            try:
                opening = self.render([user], {})
                prompt = self.render([user], {}, add_generation_prompt=True)
                last, middle = self.render([user, answer], {}), self.render([user, answer, user], {})
            except ChatTemplateError:
                continue
            if _is_lost(mark, last) or _is_lost(mark, middle):
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
            trailers.add(end_of_turn(after, trailers) if conversation[turn].get("tool_calls") else after)
        self._openers = sorted(openers, key=len, reverse=True)
        self._trailers = sorted(trailers - {""}, key=len, reverse=True)


def marks_of_prompt(processing_class: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """
    What a prompt that the tokenizer's chat template has rendered holds and no plain one: the special tokens between
    the user's text and the response, or all that stands there where none does. Empty where that can't be learned.
    """
    added = {token.content for token in processing_class.added_tokens_decoder.values()}
    for form in (str, list):
        with suppress(Exception):  # a template is foreign code
            turn = [message_of("user", SENTINELS[0], form)]
            text = processing_class.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            between = text.partition(SENTINELS[0])[2].split("<think>")[0].strip()
            if between:
                return tuple(token for token in added if token in between) or (between,)
    return ()


def training_twin(processing_class: PreTrainedTokenizerBase) -> str | None:
    """TRL's training template for a tokenizer's own, which keeps earlier turns' reasoning; `None` without one."""
    with suppress(Exception):  # TRL knows none, or the template breaks on TRL's own probes
        return get_training_chat_template(processing_class)
    return None


def _is_lost(part: str, text: str) -> bool:
    """Whether a text isn't in another, or only as data: `[{'type': 'text', 'text': '...'}]`."""
    return not re.search(rf"(?<!text['\"]: ['\"]){re.escape(part)}", text)


def writes_day(chat_template: str | dict | None) -> bool:
    """Whether a chat template asks for today's date."""
    return "strftime_now" in str(chat_template)


def with_day(chat_template: str, day: date | None) -> str:
    """The template with the day written into it, today by default."""
    day = day or date.today()
    return _NOW.sub(lambda call: repr(day.strftime(call[1][1:-1])), chat_template)


def _probes(form: type) -> Iterator[tuple[list[dict], int, str]]:
    """Tiny conversations, an assistant turn of each, and the mark that stands alone in it."""
    mark, other = SENTINELS
    user, answer = message_of("user", "U", form), message_of("assistant", mark, form)
    yield [user, answer], 1, mark
    yield [user, answer, user], 1, mark
    for arguments in ({"x": mark}, f'{{"x": "{mark}"}}'):
        call = {"id": "call00001", "type": "function", "function": {"name": "f", "arguments": arguments}}
        calling = {"role": "assistant", "content": "", "tool_calls": [call]}
        result = {"role": "tool", "name": "f", "tool_call_id": "call00001", "content": "R"}
        conversation = [user, calling, result, message_of("assistant", other, form)]
        yield conversation, 1, mark
        yield conversation, 3, other
