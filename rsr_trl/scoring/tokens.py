"""One dataset example -> the token ids that SFTTrainer trains on, and which of them are scored.

Ids are those of `SFTTrainer._prepare_dataset` (TRL 1.16) to the letter; scored are the response's own tokens: the
completion, every assistant turn of `messages`, or all of `text`, without headers, end-of-turn tokens and what comes
from others. This file knows no model.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template, has_generation_markers
from trl.data_utils import common_prefix_length, is_conversational_from_value, maybe_convert_to_chatml

from rsr_trl.scoring.chat_spans import ChatSpans
from rsr_trl.scoring.derived_spans import ChatTemplateError, Span
from rsr_trl.scoring.steps import split_steps
from rsr_trl.scoring.teacher_logprobs import read_generations, surprisals_of_steps


ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")


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
        for_teacher ([`TokenizedExample`], *optional*): The same example in a teacher's tokens.
        teacher_steps (float64 array of shape `(S,)`, *optional*): The teacher's surprisal of each step, in sum, from
            its own log-probabilities; `None` where there are none, or of another text.
        teacher_fault (`str`, *optional*): What is wrong with the teacher's log-probabilities.
    """

    input_ids: np.ndarray
    scored: np.ndarray
    truncated: bool = False
    error: str | None = None
    step_starts: np.ndarray | None = None
    for_teacher: "TokenizedExample | None" = None
    teacher_steps: np.ndarray | None = None
    teacher_fault: str | None = None

    @classmethod
    def failed(cls, error: str) -> "TokenizedExample":
        return cls(np.empty(0, np.int32), np.empty(0, bool), error=error)


@dataclass
class _Rendered:
    """Text of one example before tokenization."""

    text: str
    spans: list[Span]  # character spans of the text to score
    prompt: str | None  # prompt alone: tokens in its common prefix with the text aren't scored
    conversational: bool


class ExampleTokenizer:
    """
    Turns examples in any text format of [`~trl.SFTTrainer`] into token ids and scored positions.

    Formats, by their columns: `prompt` and `completion` (two strings, or two lists of messages), `messages`,
    `conversations` (`from`/`value`), or a text column; conversational ones with optional `tools` and
    `chat_template_kwargs`.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the student; a fast one, since scored positions come from character offsets.
        max_length (`int`, *optional*):
            Longer examples are cut at the end (`truncation_mode="keep_start"`) and flagged. `None` cuts nothing.
        assistant_only_loss (`bool`, *optional*, defaults to `False`):
            Render conversations as SFTTrainer does under this setting: it swaps in TRL's training template where the
            tokenizer's own has no `{% generation %}` markers. Which text is scored doesn't depend on it.
        dataset_text_field (`str`, *optional*, defaults to `"text"`):
            Column of the plain-text format.
        with_steps (`bool`, *optional*, defaults to `False`):
            Also find where reasoning steps begin.
        teacher_logprobs_column (`str`, *optional*):
            Column with the teacher's own log-probabilities, of which the sum over each step is taken.

    Raises:
        TypeError: if `processing_class` is a processor or a slow tokenizer.
    """

    def __init__(
        self,
        processing_class: PreTrainedTokenizerBase,
        max_length: int | None = None,
        assistant_only_loss: bool = False,
        dataset_text_field: str = "text",
        with_steps: bool = False,
        teacher_logprobs_column: str | None = None,
    ):
        if not isinstance(processing_class, PreTrainedTokenizerBase):
            raise TypeError(
                f"processing_class must be a tokenizer, got {type(processing_class).__name__}. For a vision-language "
                "student pass `processor.tokenizer`: only text is scored."
            )
        if not processing_class.is_fast:
            raise TypeError(
                f"{type(processing_class).__name__} is a slow tokenizer without character offsets. Load the fast one: "
                "`AutoTokenizer.from_pretrained(..., use_fast=True)`."
            )
        if max_length is not None and max_length < 2:
            raise ValueError(f"max_length must be at least 2 (a context and a token to score), got {max_length}.")
        self.processing_class = processing_class
        self.max_length = max_length
        self.assistant_only_loss = assistant_only_loss
        self.dataset_text_field = dataset_text_field
        self.with_steps = with_steps
        self.teacher_logprobs_column = teacher_logprobs_column
        self._chats: dict[str | None, ChatSpans] = {}  # by template: `chat_template_kwargs` may bring another one

    @cached_property  # TRL renders a few conversations to find it
    def chat_template(self) -> str | None:
        """Template that replaces the tokenizer's own, exactly when SFTTrainer would replace it."""
        template = self.processing_class.chat_template
        if self.assistant_only_loss and template is not None and not has_generation_markers(template):
            return get_training_chat_template(self.processing_class)
        return None

    def check_columns(self, column_names: Iterable[str]) -> None:
        """Raise `ValueError` unless a dataset with these columns is in a format that can be tokenized."""
        columns = list(column_names)
        if "input_ids" in columns and not {"prompt", "messages", "conversations", self.dataset_text_field} & set(
            columns
        ):
            raise ValueError(
                f"The dataset is already tokenized (columns {columns}): which tokens are the response can't be told "
                "from ids. Pass the dataset before tokenization."
            )
        if "prompt" in columns and "completion" not in columns:
            raise ValueError(
                f"The dataset has a `prompt` column but no `completion`. Its columns are {columns}. Rename the column "
                "with the response to `completion`, or remove `prompt` if the conversation is in `messages`."
            )
        if not {"prompt", "messages", "conversations", self.dataset_text_field} & set(columns):
            raise ValueError(
                "The dataset needs `prompt` and `completion`, `messages`, `conversations`, or a text column named "
                f"`{self.dataset_text_field}`. Its columns are {columns}. Rename them (`dataset.rename_column`), or "
                "use `--prompt_column` and `--completion_column` on the command line."
            )
        if self.teacher_logprobs_column is not None and self.teacher_logprobs_column not in columns:
            raise ValueError(
                f"The dataset has no column {self.teacher_logprobs_column!r} (teacher_logprobs_column). Its columns "
                f"are {columns}."
            )

    def __call__(self, examples: Sequence[Mapping]) -> list[TokenizedExample]:
        """
        Tokenize examples. An example that can't be tokenized is returned with its `error` and without tokens.

        Args:
            examples (sequence of mappings): Rows of a dataset, column name -> value.

        Returns:
            list of [`TokenizedExample`], one an example, in their order.
        """
        rendered: list[_Rendered | None] = []
        errors: dict[int, str] = {}
        for i, example in enumerate(examples):
            try:
                rendered.append(self._render(example))
            except (ExampleError, ChatTemplateError) as error:
                rendered.append(None)
                errors[i] = str(error)
        ready = [i for i, r in enumerate(rendered) if r is not None]
        encodings = self._encode_all({i: rendered[i].text for i in ready}, rendered, errors)
        prompts = self._encode_all({i: rendered[i].prompt for i in encodings if rendered[i].prompt}, rendered, errors)
        return [
            TokenizedExample.failed(errors[i])
            if i in errors
            else self._finish(rendered[i], encodings[i], prompts.get(i), example)
            for i, example in enumerate(examples)
        ]

    # ------------------------------------------------------------------------------------------ example -> text

    def _render(self, example: Mapping) -> _Rendered:
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
            prompt, completion = example["prompt"], example["completion"]
            if isinstance(prompt, str) and isinstance(completion, str):
                if not completion:
                    raise ExampleError("completion is empty")
                # SFTTrainer gives the end-of-sequence token to the text column where there is one without it.
                text = example.get(self.dataset_text_field)
                takes_eos = isinstance(text, str) and not text.endswith(self._eos_token)
                text = prompt + (completion if takes_eos else self._with_eos(completion))
                return _Rendered(text, [(0, self._end_without_eos(text))], prompt, conversational=False)
            if isinstance(prompt, list) and isinstance(completion, list):
                self._check_messages(prompt, "prompt")
                self._check_messages(completion, "completion")
                return self._render_chat([*prompt, *completion], example, num_prompt_messages=len(prompt))
            for name, value in (("prompt", prompt), ("completion", completion)):
                if not isinstance(value, (str, list)):
                    raise ExampleError(f"{name} is {_kind(value)}, expected a string or a list of messages")
            raise ExampleError("prompt and completion must both be strings or both be lists of messages")
        if "messages" in example:
            self._check_messages(example["messages"], "messages")
            return self._render_chat(example["messages"], example, num_prompt_messages=None)
        text = example[self.dataset_text_field]
        if not isinstance(text, str):
            raise ExampleError(f"{self.dataset_text_field} is {_kind(text)}, expected a string")
        if not text:
            raise ExampleError(f"{self.dataset_text_field} is empty")
        text = self._with_eos(text)
        return _Rendered(text, [(0, self._end_without_eos(text))], None, conversational=False)

    def _render_chat(self, messages: list[Mapping], example: Mapping, num_prompt_messages: int | None) -> _Rendered:
        if not any(message["role"] == "assistant" for message in messages[num_prompt_messages or 0 :]):
            raise ExampleError("no assistant message to score")
        tools = example.get("tools")
        if isinstance(tools, str):
            try:
                tools = json.loads(tools)
            except (ValueError, RecursionError) as error:
                raise ExampleError(f"tools is not valid JSON: {error}") from error
        kwargs = example.get("chat_template_kwargs", {})
        if not isinstance(kwargs, Mapping):  # SFTTrainer can't unpack them either
            raise ExampleError(f"chat_template_kwargs is {_kind(kwargs)}, expected a mapping (an empty one for none)")
        kwargs = {"chat_template": self.chat_template, "tools": tools, **kwargs}
        template = kwargs["chat_template"]
        if not isinstance(template, (str, type(None))):
            raise ExampleError(f"chat_template is {_kind(template)}, expected a string")
        if template not in self._chats:
            self._chats[template] = ChatSpans(self.processing_class, template)
        chat = self._chats[template]
        text, spans = chat(messages, kwargs, first=num_prompt_messages or 0)
        prompt = None
        if num_prompt_messages is not None:
            prompt = chat.render(messages[:num_prompt_messages], kwargs, add_generation_prompt=True)
        return _Rendered(text, spans, prompt, conversational=True)

    def _check_messages(self, messages: object, column: str) -> None:
        if not isinstance(messages, list):
            raise ExampleError(f"{column} is {_kind(messages)}, expected a list of messages")
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
                raise ExampleError(f"{column}[{i}] has {_kind(message['content'])} as content, expected a string")
            calls = message.get("tool_calls") or []
            if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
                raise ExampleError(f"{column}[{i}] has tool_calls that are not a list of calls")

    def _with_eos(self, text: str) -> str:
        return text if text.endswith(self._eos_token) else text + self._eos_token

    def _end_without_eos(self, text: str) -> int:
        return len(text.removesuffix(self._eos_token))

    @property
    def _eos_token(self) -> str:
        eos = self.processing_class.eos_token
        if eos is None:
            raise ValueError(
                "The tokenizer has no eos_token, which SFTTrainer appends to plain text. Set `tokenizer.eos_token`."
            )
        return eos

    # ------------------------------------------------------------------------------------------ text -> tokens

    def _encode_all(
        self, texts: dict[int, str], rendered: list[_Rendered | None], errors: dict[int, str]
    ) -> dict[int, Encoding]:
        """Encode texts by index, those that share settings in one call; what fails goes to `errors` instead."""
        encodings: dict[int, Encoding] = {}
        for conversational in (True, False):
            indices = [i for i in texts if rendered[i].conversational == conversational]
            try:
                encodings.update(zip(indices, self._encode([texts[i] for i in indices], conversational), strict=True))
            except (TypeError, ValueError, OverflowError):  # one bad text fails the whole call: find out which
                for i in indices:
                    try:
                        encodings[i] = self._encode([texts[i]], conversational)[0]
                    except (TypeError, ValueError, OverflowError) as error:
                        errors[i] = f"the tokenizer can't encode it: {error}"
        return encodings

    def _encode(self, texts: list[str], conversational: bool) -> list[Encoding]:
        if not texts:
            return []
        # `verbose=False`: no warning on texts beyond the tokenizer's own length limit, they are cut here.
        return self.processing_class(
            text=texts,
            add_special_tokens=not conversational,  # a chat template writes its own
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        ).encodings

    def _finish(
        self, rendered: _Rendered, encoding: Encoding, prompt: Encoding | None, example: Mapping
    ) -> TokenizedExample:
        ids = encoding.ids
        scored = np.zeros(len(ids), dtype=bool)
        for start, end in rendered.spans:
            first, last = _tokens_of(encoding, start, end, len(rendered.text))
            scored[first:last] = True
        if not rendered.conversational:  # beginning- and end-of-sequence tokens that the tokenizer itself adds
            scored &= ~np.asarray(encoding.special_tokens_mask, dtype=bool)
        num_prompt_tokens = 0
        if rendered.prompt is not None:
            num_prompt_tokens = 0 if prompt is None else common_prefix_length(prompt.ids, ids)
            scored[:num_prompt_tokens] = False
        scored[:1] = False
        nothing = not scored.any()
        truncated = self.max_length is not None and len(ids) > self.max_length
        input_ids, scored = np.asarray(ids, dtype=np.int32)[: self.max_length], scored[: self.max_length]
        error = None
        if nothing:
            error = "no token to score"
        elif not scored.any():
            error = (
                f"cut off: the text before the response alone fills max_length={self.max_length} (whole: {len(ids)} "
                "tokens)"
            )
        finished = TokenizedExample(input_ids, scored, truncated, error)
        return self._with_steps(finished, rendered, encoding, example) if self.with_steps else finished

    def _with_steps(
        self, finished: TokenizedExample, rendered: _Rendered, encoding: Encoding, example: Mapping
    ) -> TokenizedExample:
        """The example with its steps, and with the teacher's surprisal of each where a column tells it."""
        places = list(self._step_places(rendered, encoding))
        scored, steps = finished.scored, np.zeros(len(encoding.ids) + 1, dtype=bool)
        steps[[token for _, token in places]] = True
        before = np.zeros_like(scored)
        before[1:] = scored[:-1]
        finished = replace(finished, step_starts=scored & (steps[: len(scored)] | ~before))
        if self.teacher_logprobs_column is None or finished.error is not None:
            return finished
        # Characters at which the steps begin, as the student's tokens have them: a token is in one step only.
        at = {token: place for place, token in reversed(places)}
        starts = np.array([at.get(t, encoding.offsets[t][0]) for t in np.flatnonzero(finished.step_starts)])
        stop = encoding.offsets[np.flatnonzero(scored)[-1]][1]
        try:
            generations = read_generations(example[self.teacher_logprobs_column])
        except ValueError as error:
            return replace(finished, teacher_fault=str(error))
        sums = surprisals_of_steps(generations, rendered.text, self._responses(rendered), starts, stop)
        return replace(finished, teacher_steps=sums)

    def _responses(self, rendered: _Rendered) -> list[Span]:
        """Characters of each response."""
        if rendered.conversational or rendered.prompt is None:
            return rendered.spans
        # The span is the whole text: which tokens are the prompt's, ids tell.
        return [(len(rendered.prompt), end) for _, end in rendered.spans]

    def _step_places(self, rendered: _Rendered, encoding: Encoding) -> Iterator[tuple[int, int]]:
        """Characters and tokens at which the steps of the responses begin, whether they are scored or not."""
        for begin, end in self._responses(rendered):
            response = rendered.text[begin:end]
            for i, (start, stop) in enumerate(split_steps(response)):
                step = response[start:stop]
                if i > 0:  # indentation says nothing of what comes: the first token is that of the first word
                    start += len(step) - len(step.lstrip())
                yield begin + start, _token_at(encoding, begin + start, len(rendered.text))


def _tokens_of(encoding: Encoding, start: int, end: int, length: int) -> tuple[int, int]:
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


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
