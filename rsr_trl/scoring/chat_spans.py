"""Where a rendered conversation holds the assistant's own text, as character spans.

The assistant's own text is everything between an assistant header and its end-of-turn marker (the paper's rule): think
blocks, content and tool calls count; the header, the end-of-turn marker and the white space after it don't. This file works
on strings; it knows no token ids and no model.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template
from trl.chat_template_utils import get_training_chat_template, has_generation_markers


Message = Mapping[str, object]
Span = tuple[int, int]

# Private-use characters: no real text starts or ends with both, and no template treats them specially.
_SENTINELS = ("\ue123", "\ue456")
# Reasoning is the assistant's own text, whatever key it comes under.
_TEXT_KEYS = ("content", "reasoning_content", "reasoning", "thinking")
_CONTROL_TOKEN = re.compile(r"<\|[^<>\"]*>\s*$")
_RENDER_ERRORS = (TemplateError, TypeError, ValueError, KeyError, AttributeError)


class ChatTemplateError(ValueError):
    """A conversation that the chat template can't render, or in which the assistant's text can't be located."""


@dataclass(frozen=True)
class _Frame:
    """What a template writes around an assistant turn."""

    header: str  # shared by the generation prompt and every assistant turn; "" if the template has no such text
    trailers: tuple[str, ...] = field(default=())  # possible ends of a marked turn, longest first
    last_trailer: str = ""  # end of a conversation whose last message is a plain assistant turn


class ChatSpans:
    """
    Renders conversations as [`SFTTrainer`] does and locates the assistant's own text in them.

    The spans come from the template's `{% generation %}` markers; for templates without them from TRL's training twin where
    it renders the very same text; else from rendering prefixes and variants of the conversation.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer with a chat template.
        chat_template (`str`, *optional*): Template to use instead of the tokenizer's own.
    """

    def __init__(self, processing_class: PreTrainedTokenizerBase, chat_template: str | None = None):
        self.processing_class = processing_class
        template = chat_template or processing_class.chat_template
        if template is None:
            raise ValueError(
                "The tokenizer has no chat template, but the dataset is conversational. Set `tokenizer.chat_template` (for "
                "example with `trl.clone_chat_template`), or pass plain-text `prompt` and `completion` columns."
            )
        # Named variants (a dict) stay as they are: transformers picks between them by the presence of tools.
        self._template = chat_template
        default = template["default"] if isinstance(template, dict) else template
        self._marked: str | None = default if has_generation_markers(default) else None
        self._is_twin = False
        if self._marked is None and chat_template is None:
            try:
                self._marked = get_training_chat_template(processing_class)
            except (ValueError, TypeError, TemplateError):
                self._marked = None
            self._is_twin = self._marked is not None
        self._frame = self._probe_frame()

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False, **kwargs) -> str:
        """Render a conversation to text. `kwargs` are `tools` and the template's own keyword arguments."""
        try:
            return self.processing_class.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **{"chat_template": self._template, **kwargs},
            )
        except _RENDER_ERRORS as error:
            raise ChatTemplateError(f"the chat template can't render it: {error}") from error

    def __call__(self, messages: Sequence[Message], **kwargs) -> tuple[str, list[Span]]:
        """
        Render a conversation and locate the assistant's own text.

        Args:
            messages (list of messages): Conversation with at least one assistant turn.
            kwargs: `tools` and the template's own keyword arguments.

        Returns:
            The text that `apply_chat_template` gives, and the sorted, disjoint character spans `[start, end)` of the
            assistant's own text in it.

        Raises:
            ChatTemplateError: if the template refuses the conversation or a turn can't be located in it.
        """
        text = self.render(messages, **kwargs)
        if self._marked is not None and "chat_template" not in kwargs:
            marked_text, marked = self._render_marked(messages, **kwargs)
            if marked and marked_text == text:
                return text, self._trim(text, marked)
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        spans = [self._locate_turn(text, messages, i, **kwargs) for i in turns]
        for before, after in pairwise(spans):
            if before[1] > after[0]:
                raise self._cannot_locate(turns[spans.index(after)])
        return text, [span for span in spans if span[0] < span[1]]

    # ------------------------------------------------------------------------------------------ markers

    def _render_marked(self, messages: Sequence[Message], **kwargs) -> tuple[str | None, list[Span]]:
        """Text and raw `{% generation %}` spans by the marked template; `(None, [])` if it refuses the conversation."""
        tools = kwargs.pop("tools", None)
        # As `apply_chat_template` prepares them: special tokens as variables, no null keys.
        variables = {**self.processing_class.special_tokens_map, **kwargs}
        messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
        try:
            texts, spans = render_jinja_template(
                conversations=[messages],
                tools=tools,
                chat_template=self._marked,
                return_assistant_tokens_mask=True,
                **variables,
            )
        except _RENDER_ERRORS:
            return None, []
        return texts[0], [(start, end) for start, end in spans[0]]

    def _trim(self, text: str, marked: list[Span]) -> list[Span]:
        """Cut headers and end-of-turn markers off the spans that a template marks as generated."""
        header = self._frame.header
        turns: list[Span] = []
        for start, end in marked:
            # Some templates mark a turn piece by piece; a piece that begins with a header is a turn of its own.
            if turns and turns[-1][1] == start and not (header and text.startswith(header, start)):
                turns[-1] = (turns[-1][0], end)
            else:
                turns.append((start, end))
        trimmed = []
        for start, end in turns:
            # The header may lie in the marked span, before it, or (Qwen2.5's newline) across its start.
            found = text.rfind(header, max(0, start - len(header)), start + len(header)) if header else -1
            if found >= 0:
                start = max(start, found + len(header))
            trailer = next((t for t in self._frame.trailers if text.endswith(t, start, end)), "")
            if start < end - len(trailer):
                trimmed.append((start, end - len(trailer)))
        return trimmed

    # ------------------------------------------------------------------------------------- what surrounds a turn

    def _probe_frame(self) -> _Frame:
        """Render tiny conversations to learn the header and the end-of-turn markers of this template."""
        mark = _SENTINELS[0]
        user, answer = {"role": "user", "content": "U"}, {"role": "assistant", "content": mark}
        try:
            opening = self.render([user])
            prompt = self.render([user], add_generation_prompt=True)
            last, middle = self.render([user, answer]), self.render([user, answer, user])
        except ChatTemplateError:
            return _Frame(header="")
        header = ""
        if all(rendered.startswith(opening) for rendered in (prompt, last, middle)):
            turn = len(opening) + min(_shared_prefix(prompt[len(opening) :], r[len(opening) :]) for r in (last, middle))
            header = prompt[len(opening) : turn].split(mark)[0]
            # A generation prompt may open the think block for the student; the block is the assistant's text.
            header = header.split("<think>")[0]
        trailers = set()
        if self._marked is not None:
            call = {"type": "function", "function": {"name": "f", "arguments": {"x": mark}}}
            tool_turn = {"role": "assistant", "content": "", "tool_calls": [call]}
            for conversation in (
                [user, answer],
                [user, answer, user],
                [user, tool_turn, {"role": "tool", "name": "f", "content": "R"}, {"role": "assistant", "content": "A"}],
            ):
                text, spans = self._render_marked(conversation)
                if text is None or mark not in text:
                    continue
                after = text.index(mark) + 1
                tail_end = after
                for start, end in spans:  # pieces that follow one another without a gap belong to the turn
                    if start <= tail_end <= end:
                        tail_end = end
                trailer = text[after:tail_end]
                if conversation[1] is tool_turn:
                    # Behind a call stand its closing brackets, which are the assistant's, and an end-of-turn marker.
                    trailer = _end_of_turn(trailer, trailers)
                trailers.add(trailer)
        return _Frame(
            header=header,
            trailers=tuple(sorted(trailers - {""}, key=len, reverse=True)),
            last_trailer=last.split(mark)[-1] if mark in last else "",
        )

    # ------------------------------------------------------------------------------------- prefixes and variants

    def _locate_turn(self, text: str, messages: Sequence[Message], turn: int, **kwargs) -> Span:
        """Span of the assistant turn `messages[turn]` in `text`, by rendering other conversations and comparing."""
        header, trailer = self._frame.header, self._frame.last_trailer
        changed: Span | None = None

        # Where the conversation up to here renders to a prefix of the whole, the turn starts right behind it.
        before = self._try_render(messages[:turn], **kwargs)
        if before is not None and text.startswith(before + header):
            start = len(before) + len(header)
        else:
            # Else behind the last header before the first character that depends on this turn: whatever the template
            # writes in between (an empty think block) is the assistant's. Where no header stands behind the previous
            # message (Gemma 4 goes on in the same turn after a tool result), the turn starts at that character.
            changed = self._changed_region(text, messages, turn, **kwargs)
            behind = self._changed_region(text, messages, turn - 1, **kwargs)[1] if turn > 0 else 0
            found = text.rfind(header, behind, changed[0]) if header else -1
            start = changed[0] if found < 0 else found + len(header)

        upto = text if turn == len(messages) - 1 else self._try_render(messages[: turn + 1], **kwargs)
        if upto is not None and text.startswith(upto) and upto.endswith(trailer):
            return start, max(start, len(upto) - len(trailer))
        end = (changed or self._changed_region(text, messages, turn, **kwargs))[1]
        if messages[turn].get("tool_calls"):
            end += self._length_of_call_end(text, messages, turn, end, **kwargs)
        return start, max(start, end)

    def _changed_region(self, text: str, messages: Sequence[Message], turn: int, **kwargs) -> Span:
        """Smallest span of `text` outside of which nothing depends on what `messages[turn]` says (or calls with)."""
        with_calls = self._variants(messages, turn, drop_calls=False, **kwargs)
        without_calls = self._variants(messages, turn, drop_calls=True, **kwargs) if messages[turn].get("tool_calls") else []
        if not with_calls:
            raise self._cannot_locate(turn)
        # Without its call a turn starts differently, which shows where it starts; but tool results may vanish with it.
        start = min(_shared_prefix(text, variant) for variant in with_calls + without_calls)
        return start, max(start, len(text) - min(_shared_suffix(text, variant) for variant in with_calls))

    def _length_of_call_end(self, text: str, messages: Sequence[Message], turn: int, end: int, **kwargs) -> int:
        """How many characters at `text[end:]` close the tool call of `messages[turn]` (brackets and tags)."""
        mark = _SENTINELS[0]
        variant = {**messages[turn], "tool_calls": [_change_arguments(c, mark) for c in messages[turn]["tool_calls"]]}
        closing = self._try_render([*messages[:turn], variant], **kwargs)
        if closing is None or mark not in closing:
            raise self._cannot_locate(turn)
        closing = closing.split(mark)[-1]
        closing = closing.removesuffix(_end_of_turn(closing, {self._frame.last_trailer}))
        # The first brackets may differ (a number has no closing quote), so the longest end of them that stands there counts.
        return next(length for length in range(len(closing), -1, -1) if text.startswith(closing[len(closing) - length :], end))

    def _try_render(self, messages: Sequence[Message], **kwargs) -> str | None:
        try:
            return self.render(messages, **kwargs) if messages else None
        except ChatTemplateError:  # some templates refuse conversations that end early
            return None

    def _variants(self, messages: Sequence[Message], turn: int, drop_calls: bool, **kwargs) -> list[str]:
        """The whole conversation with one message's text and tool arguments replaced, in two ways that share neither end."""
        rendered = []
        for mark in _SENTINELS:
            message = dict(messages[turn])
            for key in _TEXT_KEYS:
                # Beside a call, empty content stays empty: Gemma 4 writes it behind the tool result.
                if isinstance(message.get(key), str) and (message[key] or drop_calls or not message.get("tool_calls")):
                    message[key] = mark
                elif isinstance(message.get(key), list):
                    message[key] = [{"type": "text", "text": mark}]
            if drop_calls:
                message = {"content": mark, **message, "tool_calls": None}
            elif message.get("tool_calls"):
                message["tool_calls"] = [_change_arguments(call, mark) for call in message["tool_calls"]]
            variant = self._try_render([*messages[:turn], message, *messages[turn + 1 :]], **kwargs)
            if variant is not None and mark in variant:
                rendered.append(variant)
        return rendered

    def _cannot_locate(self, turn: int) -> ChatTemplateError:
        return ChatTemplateError(
            f"can't tell which text of message {turn} the chat template takes from the assistant. Give the tokenizer a chat "
            "template with {% generation %} ... {% endgeneration %} around the assistant's text (see "
            "`trl.chat_template_utils.get_training_chat_template`)"
        )


def _end_of_turn(text: str, known: set[str]) -> str:
    """The end-of-turn marker that `text` ends in: a known one, else a control token such as `<|call|>`, else none."""
    match = _CONTROL_TOKEN.search(text)
    return next((t for t in sorted(known, key=len, reverse=True) if t and text.endswith(t)), match.group() if match else "")


def _shared_prefix(a: str, b: str) -> int:
    """Length of the common prefix, by bisection: comparing slices runs at memory speed."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def _shared_suffix(a: str, b: str) -> int:
    return _shared_prefix(a[::-1], b[::-1])


def _change_arguments(call: Mapping, mark: str) -> dict:
    """The same tool call with other arguments, in the shape (nested or flat, JSON text or mapping) that it came in."""
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _change_arguments(call["function"], mark)}
    return {**call, "arguments": f'"{mark}"' if isinstance(call.get("arguments"), str) else {mark: mark}}
