"""The settings of a scorer, and which of them decide what. Knows no student and no dataset."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import date

import torch

from rsr_trl.rsr import R_MAX, RSRError, check_r_max


# Kinds of settings.
LOADING = ("revision", "quantization_config", "device_map", "dtype", "device", "attn_implementation")
LOADING += ("trust_remote_code", "gguf_file")  # all of these go to `load_model`
OF_THE_SCORE = ("r_max", "assistant_only_loss", "logits_dtype")  # change scores by more than rounding
# Decide no column, change it by rounding only, or show in the tokenizer or the weights.
NEUTRAL = ("device", "device_map", "max_batch_tokens", "share_prefixes", "max_prefix_tokens", "overwrite", "day")
NEUTRAL += ("chat_template_path", "gguf_file")
# How the student reads.
READING = ("max_batch_tokens", "logits_dtype", "share_prefixes", "max_prefix_tokens")


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

    def __post_init__(self):
        check_r_max(self.r_max)
        try:
            date.fromisoformat(self.day or "2025-03-31")
        except ValueError as error:
            raise RSRError(f"day must be a date such as 2025-03-31, got {self.day!r}.") from error

    def __str__(self) -> str:
        """What isn't at its default, as arguments."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("day", "max_length")}
        return "".join(f", {name}={value!r}" for name, value in changed.items() if value != getattr(type(self), name))

    def some(self, names: Iterable[str]) -> dict[str, object]:
        return {name: getattr(self, name) for name in names}
