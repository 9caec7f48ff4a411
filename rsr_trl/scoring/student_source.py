"""Where a scorer's student comes from: found by name and loaded when first needed, or live.

It knows checkpoints, configs and tokenizers; neither examples nor scores.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from rsr_trl.scoring.fingerprint import checkpoint_fingerprint
from rsr_trl.scoring.student import Student, load_model


if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


MAX_LENGTH = 32_768  # the paper's


class StudentSource:
    """
    A student given by name or live, with its config and tokenizer.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): Name or path, or a live model.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*): Required with a live model.
        load_kwargs (`dict`): For [`load_model`]; with a live model none may be given.
        max_batch_tokens (`int`, *optional*): As [`Student`] takes it.
        logits_dtype (`str`): As [`Student`] takes it.

    Attributes:
        model_id (`str`, *optional*): `None` for a live model.
        config (`PretrainedConfig`): Of the model; for an adapter that of its base model.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]): The student's tokenizer.
        load_kwargs (`dict`): As given.

    Raises:
        ValueError: if `load_kwargs` are given with a live model, or no tokenizer is.
    """

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        processing_class: PreTrainedTokenizerBase | None,
        load_kwargs: dict[str, object],
        max_batch_tokens: int | None,
        logits_dtype: str,
    ):
        self.load_kwargs = load_kwargs
        self._max_batch_tokens = max_batch_tokens
        self._logits_dtype = logits_dtype
        self._student: Student | None = None
        self._weights: tuple[object, str] | None = None  # version of the weights, their hash
        if isinstance(model, str):
            self.model_id: str | None = model
            self.config, self.processing_class = _find(model, processing_class, load_kwargs)
        else:
            for name, value in load_kwargs.items():
                if value and (name, value) != ("dtype", "auto"):
                    raise ValueError(f"{name}={value!r} is for loading a student by name, but a live model was given.")
            if processing_class is None:
                raise ValueError(
                    "Pass the student's tokenizer with a live model: RSRScorer(model, processing_class=tokenizer)."
                )
            self.model_id = None
            self._student = Student(model, max_batch_tokens, logits_dtype)
            self.config, self.processing_class = model.config, processing_class

    @property
    def student(self) -> Student:
        """The student, loaded when first needed."""
        if self._student is None:
            self._loaded = self.checkpoint()
            kwargs = {name: value for name, value in self.load_kwargs.items() if value is not None}
            self._student = Student(load_model(self.model_id, **kwargs), self._max_batch_tokens, self._logits_dtype)
        return self._student

    def check_max_length(self, max_length: int | None) -> int:
        """The length limit, by default the paper's or the student's positions; `ValueError` if it is beyond those."""
        positions = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        if max_length is None:
            return min(MAX_LENGTH, positions or MAX_LENGTH)
        if positions is not None and max_length > positions:
            raise ValueError(f"max_length={max_length} is beyond the student's {positions} positions. Lower it.")
        return max_length

    @property
    def weights(self) -> str:
        """Hash of the weights as they are now."""
        # They are large, and map asks at every row: look at what is quickly seen to have changed.
        version = None if self.model_id is not None else self.student.weights_version()
        if self._weights is None or self._weights[0] != version:
            self._weights = (version, self.student.weights_fingerprint())
        return self._weights[1]

    def checkpoint(self) -> str:
        """Hash of the checkpoint that the name stands for now, without loading it."""
        return checkpoint_fingerprint(self.model_id, getattr(self.config, "_commit_hash", None))

    def is_replaced(self) -> bool:
        """Whether another checkpoint stands under the name than the one that was loaded."""
        return self.model_id is not None and self._student is not None and self._loaded != self.checkpoint()

    def look_again(self) -> None:
        """Forget the hash of a live student's weights: some training loops change them in ways that leave no trace."""
        if self.model_id is None:
            self._weights = None

    def take_gpu(self, rank: int) -> None:
        """Load onto the GPU of this worker of several, unless the student is loaded already."""
        if self._student is None and torch.cuda.is_available():
            self.load_kwargs["device"] = f"cuda:{rank % torch.cuda.device_count()}"


class LeftBehind:
    """Stands in for the source of a live student in a scorer that was copied to another process."""

    def __getattr__(self, name: str) -> object:
        # When it is asked, and not when it is unpickled: raising there would hang the worker pool.
        raise ValueError(
            "A live model can't go to the worker processes of `map(num_proc=...)`. Leave `num_proc` unset, or build "
            "the scorer from a model id or path: RSRScorer('path/to/student')."
        )


def _find(
    model_id: str, processing_class: PreTrainedTokenizerBase | None, load_kwargs: dict[str, object]
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Config and tokenizer of a named student. An adapter has the config of its base model."""
    hub = {name: load_kwargs[name] for name in ("revision", "trust_remote_code")}
    base = _base_model_id(model_id, load_kwargs["revision"])
    config = AutoConfig.from_pretrained(base, **hub)
    if processing_class is None:
        try:
            processing_class = AutoTokenizer.from_pretrained(model_id, **hub)
        except (OSError, ValueError):
            if base == model_id:
                raise
            processing_class = AutoTokenizer.from_pretrained(base, **hub)  # PEFT saves none with an adapter
    return config, processing_class


def _base_model_id(model_id: str, revision: str | None) -> str:
    """The model whose config tells about positions: for an adapter its base model."""
    from transformers.utils import find_adapter_config_file  # imports peft utilities only where they're needed

    if (Path(model_id) / "config.json").is_file() or find_adapter_config_file(model_id, revision=revision) is None:
        return model_id
    from peft import PeftConfig

    return PeftConfig.from_pretrained(model_id, revision=revision).base_model_name_or_path
