"""One row with images -> the token ids and tensors that SFTTrainer trains on, and which tokens are scored.

Ids and tensors are those of TRL's `DataCollatorForVisionLanguageModeling` (1.16), which tokenizes such rows. Its rules
aren't those of rows of text: prompt and completion are tokenized apart, and no end-of-sequence token is added. Scored
is the same: the response's own tokens; the tokens of an image never are. This file knows no model, and is imported
for datasets with images alone.
"""

import copy
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from datasets import Image
from PIL import UnidentifiedImageError
from PIL.Image import Image as Opened
from tokenizers import Encoding
from transformers import BatchFeature, ProcessorMixin
from transformers.image_utils import load_image
from trl.data_utils import apply_chat_template, is_conversational, prepare_multimodal_messages
from xxhash import xxh3_64_hexdigest

from rsr_trl.formats import IMAGES
from rsr_trl.rsr import RSRError
from rsr_trl.scoring.derived_spans import ChatTemplateError, Span
from rsr_trl.scoring.nulls import without_nulls
from rsr_trl.scoring.pictures import Pictures, digest_of
from rsr_trl.scoring.tokens import (
    NO_TEMPLATE,
    ExampleError,
    ExampleTokenizer,
    Rendered,
    TokenizedExample,
    check_messages,
    kind_of,
    scored_tokens,
    step_starts,
    tokens_of,
)


KINDS = ("token_type_ids", "mm_token_type_ids")  # of each token, as TRL's collator knows them
REMEMBERED = 4  # images: rows of one problem follow each other


class SeeingTokenizer(ExampleTokenizer):
    """
    Turns rows with an `image` or `images` column into token ids, tensors and scored positions.

    Args:
        processor ([`~transformers.ProcessorMixin`]): The student's.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer, with the chat template to render
            conversations with.
        kwargs: As [`ExampleTokenizer`] takes them. A row of more than `max_length` tokens isn't cut, but has an
            `error`: an image can't be cut.
    """

    def __init__(self, processor: ProcessorMixin, processing_class, *args, **kwargs):
        super().__init__(processing_class, *args, **kwargs)
        self.processor = copy.copy(processor)
        self.processor.tokenizer, self.processor.chat_template = processing_class, processing_class.chat_template
        self.processor.image_processor = _Remembering(processor.image_processor)
        self._tensors: dict[int, dict[str, torch.Tensor]] = {}  # of the last images, by digest

    def __getstate__(self) -> dict:
        processor = copy.copy(self.processor)
        processor.image_processor = processor.image_processor.inner
        return {**super().__getstate__(), "processor": processor, "_tensors": {}}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self.processor.image_processor = _Remembering(self.processor.image_processor)

    def check_columns(self, column_names: Iterable[str]) -> None:
        columns = set(column_names)
        if len(columns & set(IMAGES)) > 1:
            raise RSRError(
                "The dataset has both columns `image` and `images`, of which SFTTrainer reads one. Remove one."
            )
        if extra := sorted(columns & {"tools", "chat_template_kwargs"}):
            raise RSRError(
                f"The dataset has images and the column {extra[0]!r}, which SFTTrainer doesn't read then. Remove the "
                "one or the other."
            )
        formats = ("messages" in columns) + ("prompt" in columns and "completion" in columns)
        if formats != 1:
            raise RSRError(
                "For a dataset with images, SFTTrainer needs either `messages`, or `prompt` and `completion`. Its "
                f"columns are {sorted(columns)}."
            )
        if self.assistant_only_loss and "messages" not in columns:
            raise RSRError("assistant_only_loss is for `messages` where there are images, as in SFTTrainer.")

    def __call__(self, examples: Sequence[Mapping], features: Mapping | None = None) -> list[TokenizedExample]:
        """
        Rows of a dataset, each column name -> value, in their order; images as `{"bytes", "path"}`, opened, or as the
        path or URL of a file. One that can't be tokenized or whose image can't be read has an `error`.
        """
        return [self._tokenized(example, features) for example in examples]

    def _tokenized(self, example: Mapping, features: Mapping | None) -> TokenizedExample:
        self.check_columns(example)
        try:
            images = _opened(example, features)
            example = without_nulls({k: v for k, v in example.items() if k not in IMAGES}, features)
            from_row = self._from_messages if "messages" in example else self._from_prompt
            tokenized = from_row(example, images)
            tokenized.scored[:1] = False
            if not tokenized.scored.any():
                raise ExampleError("no token to score")
            if self.max_length is not None and (length := len(tokenized.input_ids)) > self.max_length:
                raise ExampleError(
                    f"with its images it is longer than max_length={self.max_length} and can't be cut (whole: "
                    f"{length} tokens)"
                )
        except (ExampleError, ChatTemplateError) as error:
            return TokenizedExample.failed(str(error))
        return tokenized

    # ------------------------------------------------------------------------------------------- as TRL's collator

    def _from_messages(self, example: Mapping, images: list) -> TokenizedExample:
        messages = _with_images(example["messages"], "messages", images)
        rendered = self._render_chat(messages, {}, num_prompt_messages=None)
        seen = self._seen(rendered.text, images)
        rendered = replace(rendered, text=seen.text, spans=[seen.moved(span) for span in rendered.spans])
        scored = scored_tokens(rendered, seen.encoding) & ~seen.of_images
        return self._finished(rendered, seen.encoding, scored, 0, seen)

    def _from_prompt(self, example: Mapping, images: list) -> TokenizedExample:
        prompt, completion = example["prompt"], example["completion"]
        if not is_conversational({"prompt": prompt, "completion": completion}):
            for name, value in (("prompt", prompt), ("completion", completion)):
                if not isinstance(value, str):
                    raise ExampleError(f"{name} is {kind_of(value)}, expected a string or a list of messages")
            end = len(completion.removesuffix(self.processing_class.eos_token or ""))
            rendered = Rendered(completion, [(0, end)], None, conversational=False)
        else:
            messages = _with_images(prompt, "prompt", images), _with_images(completion, "completion", [])
            rendered = self._render_chat([*messages[0], *messages[1]], {}, num_prompt_messages=len(prompt))
            with _as_reason("the chat template can't render it"):
                texts = apply_chat_template(dict(zip(("prompt", "completion"), messages, strict=True)), self.processor)
            prompt, completion = texts["prompt"], texts["completion"]
            if prompt + completion != rendered.text:
                raise ExampleError("the chat template renders prompt and completion differently than together")
            spans = [(max(0, start - len(prompt)), end - len(prompt)) for start, end in rendered.spans]
            rendered = replace(rendered, text=completion, spans=[span for span in spans if span[0] < span[1]])
        if not completion:
            raise ExampleError("completion is empty")
        before, after = self._seen(prompt, images), self._seen(completion, [])
        plain = Rendered("", [], prompt, rendered.conversational)
        notes = (*rendered.lost, *[NO_TEMPLATE] * self._lacks_template(plain))
        scored = scored_tokens(rendered, after.encoding)
        tokenized = self._finished(rendered, after.encoding, scored, len(before.ids), before)
        return replace(tokenized, input_ids=np.concatenate([before.ids, after.ids]), notes=notes)

    def _finished(
        self, rendered: Rendered, encoding: Encoding, scored: np.ndarray, skipped: int, seen: "_Seen"
    ) -> TokenizedExample:
        """An example of `skipped` tokens and those of an encoding."""
        nothing = np.zeros(skipped, dtype=bool)
        steps = np.concatenate([nothing, step_starts(rendered, encoding, scored)]) if self.with_steps else None
        pictures, length = seen.pictures, skipped + len(scored)
        if pictures is not None:
            kinds = {name: np.pad(of, (0, length - len(of))) for name, of in pictures.token_kinds.items()}
            pictures = replace(pictures, token_kinds=kinds)
        return TokenizedExample(
            seen.ids, np.concatenate([nothing, scored]), step_starts=steps, notes=rendered.lost, pictures=pictures
        )

    def _seen(self, text: str, images: list) -> "_Seen":
        """A rendered text as the processor tokenizes it with its images."""
        given = {"text": [text], "add_special_tokens": False, "return_tensors": "pt"}
        with _as_reason("the student's processor can't take it"):
            outputs = self.processor(
                **given, **({"images": [images], "return_text_replacement_offsets": True} if images else {})
            )
        moves = (outputs.pop("text_replacement_offsets", None) or [[]])[0]
        for move in reversed(moves):
            text = text[: move["span"][0]] + move["replacement"] + text[move["span"][1] :]
        ids = outputs.pop("input_ids")[0].numpy().astype(np.int32)
        errors: dict[int, str] = {}
        encoding = self._encode({0: text}, True, errors).get(0)
        if errors:
            raise ExampleError(errors[0])
        if len(moves) != len(images) or encoding is None or encoding.ids != ids.tolist():
            raise RSRError(
                f"{type(self.processor).__name__} doesn't say where it writes images into a text, so which tokens are "
                "the response can't be told. This student's images aren't supported."
            )
        of_images = np.zeros(len(ids), dtype=bool)
        for move in moves:
            first, last = tokens_of(encoding, *move["new_span"], len(text))
            of_images[first:last] = True
        return _Seen(text, ids, encoding, moves, of_images, self._pictures_of(outputs, of_images) if images else None)

    def _pictures_of(self, outputs: BatchFeature, of_images: np.ndarray) -> Pictures:
        outputs.pop("attention_mask", None)
        kinds = {name: outputs.pop(name)[0].numpy() for name in KINDS if name in outputs}
        if others := [name for name, value in outputs.items() if not torch.is_tensor(value)]:
            raise RSRError(
                f"{type(self.processor).__name__} gives the model {others[0]!r}, which isn't one tensor. Images "
                "aren't supported for this student."
            )
        digest = digest_of(outputs)
        tensors = self._tensors.setdefault(digest, dict(outputs))  # rows of one problem hold the same ones
        while len(self._tensors) > REMEMBERED:
            del self._tensors[next(iter(self._tensors))]
        return Pictures(tensors, kinds, int(np.flatnonzero(of_images)[-1]) + 1, digest)


@dataclass(frozen=True)
class _Seen:
    """A text as the processor writes images into it, its `T` tokens, and what it makes of the images."""

    text: str
    ids: np.ndarray  # (T,)
    encoding: Encoding
    moves: list[dict]  # `span` of an image's place in the text before, `new_span` of what stands there
    of_images: np.ndarray  # bool (T,)
    pictures: Pictures | None

    def moved(self, span: Span) -> Span:
        """Where a span of the text before lies now."""
        ends = [move["span"][1] for move in self.moves]
        gained = [0, *(move["new_span"][1] - move["span"][1] for move in self.moves)]
        start, end = (place + gained[bisect_right(ends, place)] for place in span)
        return start, end


class _Remembering:
    """An image processor that knows its last results: the rows of a problem show the same images."""

    def __init__(self, inner):
        self.inner, self._results = inner, {}

    def __getattr__(self, name: str):
        return getattr(self.inner, name)

    def __call__(self, images, **kwargs) -> BatchFeature:
        key = repr([_digests(images), sorted(kwargs.items(), key=str)])
        if key not in self._results:
            while len(self._results) >= REMEMBERED:
                del self._results[next(iter(self._results))]
            self._results[key] = self.inner(images, **kwargs)
        return BatchFeature(dict(self._results[key]))  # processors take entries out of it


def _digests(images) -> list:
    if isinstance(images, Opened):
        return [images.mode, images.size, xxh3_64_hexdigest(images.tobytes()), images.info.get("transparency")]
    return [_digests(image) for image in images]


# ------------------------------------------------------------------------------------------------------------- rows


@contextmanager
def _as_reason(what: str):
    """What a processor or template, which is foreign code, raises for a row is that row's reason."""
    try:
        yield
    except RSRError:
        raise
    except Exception as error:
        raise ExampleError(f"{what}: {error}") from error


def _opened(example: Mapping, features: Mapping | None) -> list[Opened]:
    """The images of a row, as `datasets` decodes them."""
    column = next(name for name in IMAGES if name in example)
    values = [example[column]] if column == "image" else example[column]
    if not isinstance(values, list):
        raise ExampleError(f"{column} is {kind_of(values)}, expected a list of images (an empty one for none)")
    feature = (features or {}).get(column)
    kind = feature if column == "image" else getattr(feature, "feature", None)
    mode, images = getattr(kind, "mode", None), []
    for number, value in enumerate(values, start=1):
        which = "the image" if len(values) == 1 else f"image {number} of {len(values)}"
        if value is None:
            raise ExampleError(f"{which} is missing (null)")
        with _as_reason(f"{which} can't be read"):
            images.append(_open(value, mode))
    return images


def _open(value: object, mode: str | None) -> Opened:
    try:
        if isinstance(value, str):
            value = load_image(value)
        elif isinstance(value, Mapping):
            value = Image(mode=mode).decode_example({"bytes": None, "path": None, **value})
        if not isinstance(value, Opened):
            raise ValueError(f"expected an image, got {type(value).__name__}")
        value.load()
        return value
    except UnidentifiedImageError:  # it says nothing but an address in memory
        raise ValueError("it isn't in a format that Pillow knows") from None


def _with_images(messages: object, column: str, images: list) -> list[dict]:
    """The messages with every content a list of parts, as TRL's collator gives them to the template."""
    check_messages(messages, column)
    for i, message in enumerate(messages):
        for part in message["content"] if isinstance(message.get("content"), list) else ():
            if not isinstance(part, Mapping) or part.get("type") not in ("text", "image"):
                kind = part.get("type") if isinstance(part, Mapping) else kind_of(part)
                raise ExampleError(f"{column}[{i}] has a part of type {kind!r}; text and image can be scored")
            if part["type"] == "image" and (own := sorted(part.keys() & {"image", "url", "path", "base64"})):
                raise ExampleError(
                    f"{column}[{i}] has an image part with its own {own[0]!r}: put images into the column `images`"
                )
    try:
        prepared = prepare_multimodal_messages(messages, images=images)
    except ValueError as error:
        differ = "there are more or fewer images than places for them in the messages"
        what = differ if "placeholders" in str(error) else "SFTTrainer can't prepare it"
        raise ExampleError(f"{what} ({error})") from error
    # The template only has to see that there is an image.
    return [
        {**m, "content": [{k: v for k, v in p.items() if k != "image"} for p in m["content"]]}
        if m.get("content")
        else m
        for m in prepared
    ]
