"""One dataset example -> the token ids that SFTTrainer trains on, and which of them are scored.

Ids are those of `SFTTrainer._prepare_dataset` (TRL 1.16) to the letter. Scored are the response's own tokens: the
completion, every assistant turn of `messages`, or all of `text`, without headers, end-of-turn tokens and what others
say. This file knows no model.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template, has_generation_markers
from trl.data_utils import common_prefix_length, is_conversational_from_value, maybe_convert_to_chatml

from rsr_trl.rsr import RSRError
from rsr_trl.scoring.chat_spans import ChatSpans, marks_of_prompt, writes_day
from rsr_trl.scoring.derived_spans import ChatTemplateError, Span
from rsr_trl.scoring.nulls import without_nulls
from rsr_trl.scoring.own_text import OwnText, is_blank
from rsr_trl.scoring.pictures import Pictures
from rsr_trl.scoring.steps import split_steps


ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
SECOND_BOS = "second beginning of sequence"  # what was rendered before begins with one, and the tokenizer adds its own
NO_TEMPLATE = "no chat template"  # the student has one, and a plain prompt holds nothing that it writes


class ExampleError(ValueError):
    """One example that can't be scored; the message is what its `rsr_error` column says."""


@dataclass(frozen=True)
class TokenizedExample:
    """
    Token ids of one example and which of them are scored.

    Args:
        input_ids (int32 array of shape `(T,)`): As SFTTrainer trains on them, cut at `max_length`.
        scored (bool array of shape `(T,)`): Whether the token at this position is scored, given everything before it.
            The first position never is: nothing comes before it.
        truncated (`bool`): Whether tokens were cut off.
        error (`str`, *optional*): Why nothing is scored. `None` exactly when some position is.
        step_starts (bool array of shape `(T,)`, *optional*): Which scored tokens begin a reasoning step
            ([`split_steps`] of each response); every run of scored tokens begins with one.
        notes (`tuple` of `str`): What the chat template leaves out of the response (of [`~rsr_trl.scoring.own_text`]'s
            `LOST`), `SECOND_BOS` and `NO_TEMPLATE`.
    """

    input_ids: np.ndarray
    scored: np.ndarray
    truncated: bool = False
    error: str | None = None
    step_starts: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    pictures: Pictures | None = None

    @classmethod
    def failed(cls, error: str) -> "TokenizedExample":
        return cls(np.empty(0, np.int32), np.empty(0, bool), error=error)

    @property
    def runs(self) -> np.ndarray:
        """First position of each unbroken run of scored tokens, and the one after its last: ints `(runs, 2)`."""
        return np.flatnonzero(np.diff(self.scored, prepend=False, append=False)).reshape(-1, 2)


@dataclass
class Rendered:
    """The text of one example, and where in it is what is scored."""

    text: str
    spans: list[Span]  # character spans of the text to score
    prompt: str | None  # prompt alone: tokens in its common prefix with the text aren't scored
    conversational: bool
    lost: tuple[str, ...] = ()

    @property
    def responses(self) -> list[Span]:
        """Characters of each response. Plain text has one span, all of it: ids say which tokens are the prompt's."""
        return self.spans if self.conversational else [(len(self.prompt or ""), end) for _, end in self.spans]


class ExampleTokenizer:
    """
    Turns examples in any text format of [`~trl.SFTTrainer`] into token ids and scored positions.

    Formats, by their columns: `prompt` and `completion` (two strings, or two lists of messages), `messages`,
    `conversations` (`from`/`value`), or a text column; conversational ones with optional `tools` and
    `chat_template_kwargs`.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer of the student; a fast one (else
            `TypeError`), since scored positions come from character offsets.
        max_length (`int`, *optional*): Longer examples are cut at the end (`truncation_mode="keep_start"`).
        assistant_only_loss (`bool`, *optional*, defaults to `False`): Render conversations as SFTTrainer does under
            this setting: it swaps in TRL's training template where the tokenizer's own has no `{% generation %}`
            markers. Which text is scored doesn't depend on it.
        dataset_text_field (`str`, *optional*, defaults to `"text"`): Column of the plain-text format.
        with_steps (`bool`, *optional*, defaults to `False`): Also find where reasoning steps begin.
        day (`str`, *optional*): What chat templates that write today's date get, such as `"2025-03-31"`; by default
            the day on which it first renders.
    """

    def __init__(
        self,
        processing_class: PreTrainedTokenizerBase,
        max_length: int | None = None,
        assistant_only_loss: bool = False,
        dataset_text_field: str = "text",
        with_steps: bool = False,
        day: str | None = None,
    ):
        if not isinstance(processing_class, PreTrainedTokenizerBase):
            raise TypeError(
                f"processing_class must be a tokenizer, got {type(processing_class).__name__}. Of a vision-language "
                "student's processor, take `processor.tokenizer`."
            )
        if not processing_class.is_fast:
            raise TypeError(
                f"{type(processing_class).__name__} is a slow tokenizer without character offsets. Load the fast one: "
                "`AutoTokenizer.from_pretrained(..., use_fast=True)`."
            )
        if max_length is not None and max_length < 2:
            raise RSRError(f"max_length must be at least 2 (a context and a token to score), got {max_length}.")
        self.processing_class = processing_class
        self.max_length = max_length
        self.assistant_only_loss = assistant_only_loss
        self.dataset_text_field = dataset_text_field
        self.with_steps = with_steps
        self.day = day
        # By template: `chat_template_kwargs` may bring another one, and the user may set another on the tokenizer.
        self._chats: dict[tuple, ChatSpans] = {}
        self._replacements: dict[str, str | None] = {}
        self._marks: dict[str, tuple[str, ...]] = {}

    def __getstate__(self) -> dict:
        # `datasets` names its cache by the pickle: what was learnt from rows before isn't part of what decides.
        return {**vars(self), "_chats": {}, "_replacements": {}, "_marks": {}}

    @property
    def chat_template(self) -> str | None:
        """Template that replaces the tokenizer's own, exactly when SFTTrainer would replace it."""
        template = self.processing_class.chat_template
        if not self.assistant_only_loss or template is None or has_generation_markers(template):
            return None
        if template not in self._replacements:  # TRL renders a few conversations to find it
            self._replacements[template] = get_training_chat_template(self.processing_class)
        return self._replacements[template]

    @property
    def written_day(self) -> str | None:
        """
        The day that the chat template, or one that a row brought so far, writes into conversations; `None` for most.
        """
        templates = [self.processing_class.chat_template, *(template for template, *_ in list(self._chats))]
        return (self.day or str(date.today())) if any(map(writes_day, templates)) else None

    def check_columns(self, column_names: Iterable[str]) -> None:
        """Raise `RSRError` unless a dataset with these columns is in a format that can be tokenized."""
        columns = list(column_names)
        in_a_format = {"prompt", "messages", "conversations", self.dataset_text_field} & set(columns)
        if "input_ids" in columns and not in_a_format:
            raise RSRError(
                f"The dataset is already tokenized (columns {columns}): which tokens are the response can't be told "
                "from ids. Pass the dataset before tokenization."
            )
        if "prompt" in columns and "completion" not in columns:
            raise RSRError(
                f"The dataset has a `prompt` column but no `completion`. Its columns are {columns}. Rename the column "
                "with the response to `completion`, or remove `prompt` if the conversation is in `messages`."
            )
        if not in_a_format:
            raise RSRError(
                "The dataset needs `prompt` and `completion`, `messages`, `conversations`, or a text column named "
                f"`{self.dataset_text_field}`. Its columns are {columns}. Rename them (`dataset.rename_column`), or "
                "use `--prompt_column` and `--completion_column` on the command line."
            )

    def __call__(self, examples: Sequence[Mapping], features: Mapping | None = None) -> list[TokenizedExample]:
        """
        Tokenize rows of a dataset, each column name -> value, in their order. An example that can't be tokenized is
        returned with its `error` and without tokens. `features`, the columns' types, tell nulls that Arrow added
        inside messages from a user's own.
        """
        rendered: dict[int, Rendered] = {}
        errors: dict[int, str] = {}
        for i, example in enumerate(examples):
            try:
                rendered[i] = self._render(without_nulls(example, features))
            except (ExampleError, ChatTemplateError) as error:
                errors[i] = str(error)
        texts, prompts = {}, {}
        for conversational in (True, False):  # each in one call of the tokenizer
            same = {i: r for i, r in rendered.items() if r.conversational == conversational}
            texts |= self._encode({i: r.text for i, r in same.items()}, conversational, errors)
            prompts |= self._encode({i: r.prompt for i, r in same.items() if r.prompt}, conversational, errors)
        return [
            TokenizedExample.failed(errors[i]) if i in errors else self._finish(rendered[i], texts[i], prompts.get(i))
            for i in range(len(examples))
        ]

    # ------------------------------------------------------------------------------------------ example -> text

    def _render(self, example: Mapping) -> Rendered:
        """Text of one example as SFTTrainer would tokenize it, with the spans to score."""
        self.check_columns(example)
        if is_conversational_from_value({"conversations": example.get("conversations") or None}):
            messages = [dict(m) if isinstance(m, Mapping) else m for m in example["conversations"]]
            example = maybe_convert_to_chatml({**example, "conversations": messages})
        elif "conversations" in example and not {"prompt", "messages", self.dataset_text_field} & set(example):
            raise ExampleError(
                "`conversations` must be a list of {from, value} messages (role/content go in `messages`)"
            )
        if "prompt" in example:
            return self._render_completion(example)
        if "messages" in example:
            check_messages(example["messages"], "messages")
            return self._render_chat(example["messages"], example, num_prompt_messages=None)
        text = example[self.dataset_text_field]
        if not isinstance(text, str):
            raise ExampleError(f"{self.dataset_text_field} is {kind_of(text)}, expected a string")
        if not text:
            raise ExampleError(f"{self.dataset_text_field} is empty")
        return self._render_plain(self._with_eos(text), None)

    def _render_completion(self, example: Mapping) -> Rendered:
        prompt, completion = example["prompt"], example["completion"]
        for name, value in (("prompt", prompt), ("completion", completion)):
            if not isinstance(value, (str, list)):
                raise ExampleError(f"{name} is {kind_of(value)}, expected a string or a list of messages")
        if isinstance(prompt, list) and isinstance(completion, list):
            check_messages(prompt, "prompt")
            check_messages(completion, "completion")
            return self._render_chat([*prompt, *completion], example, num_prompt_messages=len(prompt))
        if isinstance(prompt, list) or isinstance(completion, list):
            raise ExampleError("prompt and completion must both be strings or both be lists of messages")
        if not completion:
            raise ExampleError("completion is empty")
        # SFTTrainer gives the end-of-sequence token to the text column where there is one without it.
        text = example.get(self.dataset_text_field)
        takes_eos = isinstance(text, str) and not text.endswith(self._eos_token)
        return self._render_plain(prompt + (completion if takes_eos else self._with_eos(completion)), prompt)

    def _render_plain(self, text: str, prompt: str | None) -> Rendered:
        return Rendered(text, [(0, len(text.removesuffix(self._eos_token)))], prompt, conversational=False)

    def _with_eos(self, text: str) -> str:
        return text if text.endswith(self._eos_token) else text + self._eos_token

    def _render_chat(self, messages: list[Mapping], example: Mapping, num_prompt_messages: int | None) -> Rendered:
        first = num_prompt_messages or 0
        if not any(message["role"] == "assistant" for message in messages[first:]):
            raise ExampleError("no assistant message to score")
        tools = example.get("tools")
        if isinstance(tools, str):
            try:
                tools = json.loads(tools)
            except (ValueError, RecursionError) as error:
                raise ExampleError(f"tools is not valid JSON: {error}") from error
        kwargs = example.get("chat_template_kwargs", {})
        if not isinstance(kwargs, Mapping):  # SFTTrainer can't unpack them either
            raise ExampleError(
                f"chat_template_kwargs is {kind_of(kwargs)}, expected a mapping (an empty one for none)"
            )
        kwargs = {"chat_template": self.chat_template, "tools": tools, **kwargs}
        template = kwargs["chat_template"]
        if not isinstance(template, (str, type(None))):
            raise ExampleError(f"chat_template is {kind_of(template)}, expected a string")
        own = self.processing_class
        in_force = (template, str(own.chat_template), str(own.special_tokens_map), self.day)
        if in_force not in self._chats:
            day = None if self.day is None else date.fromisoformat(self.day)
            self._chats[in_force] = ChatSpans(self.processing_class, template, day)
        chat = self._chats[in_force]
        text, spans = chat(messages, kwargs, first)
        spans = [(start, end) for start, end in spans if not is_blank(text[start:end])]
        lost, silent = OwnText([text[start:end] for start, end in spans]).missing(messages[first:])
        turns = sum(message["role"] == "assistant" for message in messages[first:])
        if len(spans) > turns - len(silent):  # what the template itself writes there says nothing of the teacher
            spans = chat.without([first + turn for turn in silent], text, spans, messages, kwargs)
        if not spans:
            left_out = f"the chat template leaves out all of it: {', '.join(sorted(lost))}"
            raise ExampleError(left_out if lost else "the response is empty")
        prompt = None
        if num_prompt_messages is not None:
            prompt = chat.render(messages[:first], kwargs, add_generation_prompt=True)
        return Rendered(text, spans, prompt, conversational=True, lost=tuple(sorted(lost)))

    @property
    def _eos_token(self) -> str:
        eos = self.processing_class.eos_token
        if eos is None:
            raise RSRError(
                "The tokenizer has no eos_token, which SFTTrainer appends to plain text. Set `tokenizer.eos_token`."
            )
        return eos

    # ------------------------------------------------------------------------------------------ text -> tokens

    def _encode(self, texts: dict[int, str], conversational: bool, errors: dict[int, str]) -> dict[int, Encoding]:
        """Encode texts by index in one call; what fails goes to `errors` instead."""
        if not texts:
            return {}
        try:
            # `verbose=False`: no warning on texts beyond the tokenizer's own length limit, they are cut here.
            encoded = self.processing_class(
                text=list(texts.values()),
                add_special_tokens=not conversational,  # a chat template writes its own
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
        except (TypeError, ValueError, OverflowError) as error:
            if len(texts) > 1:  # one bad text fails the whole call: find out which
                return {k: v for i in texts for k, v in self._encode({i: texts[i]}, conversational, errors).items()}
            errors.update(dict.fromkeys(texts, f"the tokenizer can't encode it: {error}"))
            return {}
        return dict(zip(texts, encoded.encodings, strict=True))

    def _finish(self, rendered: Rendered, encoding: Encoding, prompt: Encoding | None) -> TokenizedExample:
        ids, scored = encoding.ids, scored_tokens(rendered, encoding)
        if prompt is not None:
            scored[: common_prefix_length(prompt.ids, ids)] = False
        scored[:1] = False
        cut = scored[: self.max_length]
        error = None
        if not scored.any():
            error = "no token to score"
        elif not cut.any():
            error = (
                f"cut off: the text before the response alone fills max_length={self.max_length} (whole: {len(ids)} "
                "tokens)"
            )
        steps = step_starts(rendered, encoding, scored)[: self.max_length] if self.with_steps else None
        ids = np.array(ids, np.int32)
        notes = list(rendered.lost) + [SECOND_BOS] * self._has_second_bos(rendered, ids)
        notes = () if error else (*notes, *[NO_TEMPLATE] * self._lacks_template(rendered))
        return TokenizedExample(ids[: self.max_length], cut, len(cut) < len(ids), error, steps, notes)

    def _lacks_template(self, rendered: Rendered) -> bool:
        """Whether a plain prompt goes to a student with a chat template without having been rendered by it before."""
        if rendered.conversational or not rendered.prompt or not self.processing_class.chat_template:
            return False
        if (template := str(self.processing_class.chat_template)) not in self._marks:
            self._marks[template] = marks_of_prompt(self.processing_class)
        marks = self._marks[template]
        return bool(marks) and not any(mark in rendered.prompt for mark in marks)

    def _has_second_bos(self, rendered: Rendered, ids: np.ndarray) -> bool:
        """Whether the tokenizer has put a beginning-of-sequence token before the one that plain text begins with."""
        bos, id_of_bos = self.processing_class.bos_token, self.processing_class.bos_token_id
        begins = not rendered.conversational and bool(bos) and rendered.text.lstrip().startswith(bos)
        return begins and ids[:2].tolist() == [id_of_bos] * 2


def check_messages(messages: object, column: str) -> None:
    if not isinstance(messages, list):
        raise ExampleError(f"{column} is {kind_of(messages)}, expected a list of messages")
    if not messages:
        raise ExampleError(f"{column} is empty")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ExampleError(f"{column}[{i}] is not a message with a role")
        if message["role"] not in ROLES:
            raise ExampleError(
                f"{column}[{i}] has the unknown role {message['role']!r}, expected one of {', '.join(ROLES)}"
            )
        if not isinstance(message.get("content"), (str, list, type(None))):
            raise ExampleError(f"{column}[{i}] has {kind_of(message['content'])} as content, expected a string")
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
            raise ExampleError(f"{column}[{i}] has tool_calls that are not a list of calls")


def scored_tokens(rendered: Rendered, encoding: Encoding) -> np.ndarray:
    """Which tokens of a text lie in its spans: bool of shape `(T,)`."""
    scored = np.zeros(len(encoding.ids), dtype=bool)
    for start, end in rendered.spans:
        first, last = tokens_of(encoding, start, end, len(rendered.text))
        scored[first:last] = True
    if not rendered.conversational:  # beginning- and end-of-sequence tokens that the tokenizer itself adds
        scored &= ~np.asarray(encoding.special_tokens_mask, dtype=bool)
    return scored


def step_starts(rendered: Rendered, encoding: Encoding, scored: np.ndarray) -> np.ndarray:
    """Which scored tokens begin a step: bool of shape `(T,)`. The first of a run always does."""
    starts = np.zeros(len(scored) + 1, dtype=bool)
    for begin, end in rendered.responses:
        response = rendered.text[begin:end]
        for i, (start, stop) in enumerate(split_steps(response)):
            step = response[start:stop]
            if i > 0:  # indentation says nothing of what comes: the first token is that of the first word
                start += len(step) - len(step.lstrip())
            starts[_token_at(encoding, begin + start, len(rendered.text))] = True
    return scored & (starts[:-1] | np.diff(scored, prepend=False))


def tokens_of(encoding: Encoding, start: int, end: int, length: int) -> tuple[int, int]:
    """Range of tokens that hold any character of `[start, end)`; tokens across an edge are in."""
    if start >= end:
        return 0, 0
    first = _token_at(encoding, start, length)
    last = _token_at(encoding, end, length)
    if last < len(encoding) and encoding.token_to_chars(last)[0] < end:
        # It holds characters on both sides of the end; a character of several tokens has all of them on its own side.
        last += 1
    return first, last


def _token_at(encoding: Encoding, position: int, length: int) -> int:
    """First token at or behind a character position (some tokenizers leave white space uncovered)."""
    while position < length:
        token = encoding.char_to_token(position)
        if token is not None:
            return token
        position += 1
    return len(encoding)


def kind_of(value: object) -> str:
    return "null" if value is None else type(value).__name__
