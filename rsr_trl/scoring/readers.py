"""What tokenizes the rows of a dataset: the student's tokenizer, or for a dataset with images its processor.

This file knows names of columns, and neither rows nor the model.
"""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

from rsr_trl.formats import IMAGES
from rsr_trl.rsr import RSRError
from rsr_trl.scoring import loading
from rsr_trl.scoring.architecture import sees
from rsr_trl.scoring.fingerprint import processor_fingerprint, tokenizer_fingerprint
from rsr_trl.scoring.scores import SCORES
from rsr_trl.scoring.settings import ScoringConfig
from rsr_trl.scoring.tokens import ExampleTokenizer


# Columns of the formats that SFTTrainer takes, besides the text column.
FORMAT_COLUMNS = ("prompt", "completion", "messages", "conversations", "tools", "chat_template_kwargs")


class Readers:
    """
    The tokenizers of one student.

    Args:
        config ([`ScoringConfig`]): The scorer's settings.
        student ([`~transformers.PreTrainedConfig`]): The student's config.
        model_id (`str`, *optional*): Its name, where it has one: what the processor is loaded by when first needed.
        given (`PreTrainedTokenizerBase` or `ProcessorMixin`): Its tokenizer or processor.
        is_own (`bool`): Whether `given` was found by the name.
        max_length (`int`): Tokens of the longest example.
        scores (sequence of `str`): Names of the scores beside RSR.

    Attributes:
        text ([`ExampleTokenizer`]): For datasets without images.
        images ([`~rsr_trl.scoring.images.SeeingTokenizer`], *optional*): For others, once there was one.
    """

    def __init__(
        self,
        config: ScoringConfig,
        student: PreTrainedConfig,
        model_id: str | None,
        given: PreTrainedTokenizerBase | ProcessorMixin,
        is_own: bool,
        max_length: int,
        scores: Sequence[str],
    ):
        self._config, self._model_id, self._scores = config, model_id, scores
        self._sees, self._is_own, self._processor = sees(student), is_own, None
        if isinstance(given, ProcessorMixin):
            self._processor, given = given, loading.tokenizer_of(given)
        self._settings = config.some(("assistant_only_loss", "dataset_text_field", "day")) | {"max_length": max_length}
        self._settings["with_steps"] = any("steps" in SCORES[name].needs for name in scores)
        tokenizer = loading.with_chat_template(given, config.chat_template_path)
        self.text, self.images = ExampleTokenizer(tokenizer, **self._settings), None

    def of(self, column_names: Iterable[str]) -> ExampleTokenizer:
        """What tokenizes a dataset with these columns. `RSRError` for images that can't be scored."""
        images = [name for name in column_names if name in IMAGES]
        if images and self.images is None:
            self.images = self._for_images(f"The dataset has images (column {images[0]!r}), ", images[0])
        return self.images if images else self.text

    def set_day(self, day: str) -> None:
        """What templates that write today's date get."""
        self._settings["day"] = day
        for tokenizer in filter(None, (self.text, self.images)):
            tokenizer.day = day

    def fingerprint(self, tokenizer: ExampleTokenizer) -> dict[str, str]:
        """What decides scores beside token ids, where `tokenizer` reads the rows."""
        return {"processor": processor_fingerprint(self._processor)} if tokenizer is self.images else {}

    def identity(self) -> dict[str, str]:
        """What decides ids and tensors of any dataset; a processor that isn't given lies beside the weights."""
        given = (
            {} if self._is_own or self._processor is None else {"processor": processor_fingerprint(self._processor)}
        )
        return {"tokenizer": tokenizer_fingerprint(self.text.processing_class), **given}

    def _for_images(self, what: str, column: str) -> ExampleTokenizer:
        if not self._sees:
            raise RSRError(
                f"{what}which this student can't see. Remove the column, as SFTTrainer asks too: "
                f"dataset.remove_columns({column!r})."
            )
        if self._config.engine is not None:
            raise RSRError(f"{what}and {self._config.engine!r} scores text alone. Load the student here.")
        if blind := [name for name in self._scores if {"alone", "local"} & set(SCORES[name].needs)]:
            raise RSRError(f"{what}and the scores {blind} read parts of a trajectory, without them. Leave them out.")
        tokenizer = self.text.processing_class
        if self._processor is None:
            if self._model_id is None:
                raise RSRError(f"{what}so pass the student's processor: RSRScorer(model, processing_class=processor).")
            hub = self._config.some(("revision", "trust_remote_code"))
            self._processor = loading.find_processor(self._model_id, **hub)
            if self._is_own:  # else the tokenizer that was given, with its template
                tokenizer = loading.tokenizer_of(self._processor)
                tokenizer = loading.with_chat_template(tokenizer, self._config.chat_template_path)
        from rsr_trl.scoring.images import SeeingTokenizer  # with libraries that text doesn't need

        return SeeingTokenizer(self._processor, tokenizer, **self._settings)
