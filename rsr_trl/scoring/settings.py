"""The settings of a scorer, and which of them decide what. Knows no student and no dataset."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import date
from typing import TYPE_CHECKING, Protocol

import torch

from rsr_trl.rsr import R_MAX, RSRError, check_r_max


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rsr_trl.scoring.student import Student


MAX_LENGTH = 32_768  # the paper's
# Kinds of settings.
LOADING = ("revision", "quantization_config", "device_map", "dtype", "device", "attn_implementation")
LOADING += ("trust_remote_code", "gguf_file")  # all of these go to `load_model`
OF_THE_SCORE = ("r_max", "assistant_only_loss", "logits_dtype")  # change scores by more than rounding
# Decide no column, change it by rounding only, or show in the tokenizer or the weights.
NEUTRAL = ("device", "device_map", "max_batch_tokens", "share_prefixes", "max_prefix_tokens", "overwrite", "day")
NEUTRAL += ("chat_template_path", "gguf_file", "engine")  # `RSRScorer.identity` names an engine
# How the student reads.
READING = ("max_batch_tokens", "logits_dtype", "share_prefixes", "max_prefix_tokens")
# What an engine does in its own way.
NOT_OF_AN_ENGINE = ("quantization_config", "device_map", "device", "attn_implementation", *READING)


class Engine(Protocol):
    """
    Where a named student runs that isn't loaded here, as those of [`rsr_trl.integrations.vllm`]. `str` of it says in
    what its numbers differ by definition; it is part of `rsr_student`.
    """

    def max_length(self, model_id: str) -> int:
        """Tokens of the longest example that it takes."""

    def open(self, model_id: str, tokenizer: "PreTrainedTokenizerBase", checkpoint: str, **hub) -> "Student":
        """
        What scores in place of a [`Student`], after a check that it is this one. `checkpoint` names its weights; `hub`
        is the `revision`, `trust_remote_code` and `dtype` of the settings.
        """


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """The settings of an [`RSRScorer`], which documents them."""

    revision: str | None = None
    gguf_file: str | None = None
    quantization_config: object | None = None
    device_map: str | dict | None = None
    max_length: int | None = None
    dtype: str | torch.dtype = "auto"
    device: str | torch.device | None = None
    attn_implementation: str | None = None
    r_max: float = R_MAX
    token_stats: bool = False
    scores: Sequence[str] | str | None = None
    max_batch_tokens: int | None = None
    share_prefixes: bool = True
    max_prefix_tokens: int | None = None
    assistant_only_loss: bool = False
    chat_template_path: str | None = None
    dataset_text_field: str = "text"
    logits_dtype: str = "float32"
    overwrite: bool = False
    trust_remote_code: bool = False
    day: str | None = None
    engine: Engine | None = None

    def __post_init__(self):
        check_r_max(self.r_max)
        if self.engine is not None:
            for name, value in self.some(NOT_OF_AN_ENGINE).items():
                if value != getattr(type(self), name):
                    raise RSRError(f"{name}={value!r} is for a student that is loaded here, not for {self.engine!r}.")
        try:
            date.fromisoformat(self.day or "2025-03-31")
        except ValueError as error:
            raise RSRError(f"day must be a date such as 2025-03-31, got {self.day!r}.") from error

    def check_live(self) -> None:
        """Raise `RSRError` for settings that a live student leaves nothing to do for."""
        if self.engine is not None:
            raise RSRError(f"{self.engine!r} needs the student's name, but a live model was given.")
        for name, value in self.some(LOADING).items():
            if value and (name, value) != ("dtype", "auto"):
                raise RSRError(f"{name}={value!r} is for loading a student by name, but a live model was given.")

    def length_for(self, positions: int | float, model_id: str | None) -> int:
        """Tokens of the longest example, for a student of so many positions."""
        if self.max_length is not None and self.max_length > positions:
            raise RSRError(f"max_length={self.max_length} is beyond the student's {positions} positions. Lower it.")
        most = positions if self.engine is None else min(positions, self.engine.max_length(model_id))
        if self.max_length is not None and self.max_length > most:
            raise RSRError(f"max_length={self.max_length} is beyond the {most} tokens that {self.engine!r} takes.")
        return min(MAX_LENGTH, most) if self.max_length is None else self.max_length

    def __str__(self) -> str:
        """What isn't at its default, as arguments."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("day", "max_length")}
        return "".join(f", {name}={value!r}" for name, value in changed.items() if value != getattr(type(self), name))

    def some(self, names: Iterable[str]) -> dict[str, object]:
        return {name: getattr(self, name) for name in names}
