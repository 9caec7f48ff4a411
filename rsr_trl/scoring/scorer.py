"""RSRScorer: attaches RSR columns to datasets, with a student given by name or live.

The only file of this room that knows `datasets`. Everything is scored by one path, whatever the entry: examples ->
tokens -> student -> columns.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, concatenate_datasets
from datasets.formatting.formatting import LazyBatch, LazyRow
from datasets.utils import tqdm
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from rsr_trl import columns
from rsr_trl.equations import R_MAX, check_r_max, rsr_from_means, trajectory_means
from rsr_trl.scoring.student import (
    Student,
    TokenScores,
    checkpoint_fingerprint,
    load_model,
    student_fingerprint,
    tokenizer_fingerprint,
)
from rsr_trl.scoring.tokens import ExampleTokenizer, TokenizedExample


if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


logger = logging.getLogger(__name__)

MAX_LENGTH = 32_768  # the paper's
# Columns of the formats that SFTTrainer takes, besides the text column.
FORMAT_COLUMNS = ("prompt", "completion", "messages", "conversations", "tools", "chat_template_kwargs")
_TOKEN_FIELDS = {
    columns.TOKEN_IDS: "token_ids",
    columns.TOKEN_RANKS: "ranks",
    columns.TOKEN_SURPRISALS: "surprisals",
    columns.TOKEN_TOP1: "top1",
}
# Rows that are tokenized at once: long enough for parallel tokenization, short enough for a moving progress bar.
CHUNK = 512


class RSRScorer:
    """
    Scores trajectories with a student by their Rank-Surprisal Ratio (RSR, arXiv:2601.14249). **Lower suits the student
    better.**

    Use it as a function of `datasets.map` (row by row or `batched=True`: same numbers), or call [`~RSRScorer.score`],
    which sorts the whole dataset by length and is fastest. Columns added: `rsr`, `rsr_mean_clipped_rank`,
    `rsr_mean_surprisal` (nats), `rsr_num_tokens` (scored), `rsr_truncated`, `rsr_error` (null when fine) and
    `rsr_student` (a fingerprint). A row with nothing to score gets nulls and its reason in `rsr_error`.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Student: hub id or path (a PEFT adapter's too), loaded when first needed; or a live model, which is left as
            it is found (train mode, gradients, random state).
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The student's tokenizer. Required with a live model.
        revision (`str`, *optional*): Branch, tag or commit of the hub repository.
        quantization_config (*optional*): As `from_pretrained` takes it.
        device_map (`str` or `dict`, *optional*): Spread the student over devices.
        max_length (`int`, *optional*):
            Longer trajectories are cut at the end and flagged. Defaults to 32,768 (the paper's), capped by the
            student's positions.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`): `"auto"` takes the checkpoint's own.
        device (`str` or `torch.device`, *optional*): By default the GPU if there is one.
        attn_implementation (`str`, *optional*): As `from_pretrained` takes it.
        r_max (`float`, *optional*, defaults to `100`): Ranks above are clipped.
        token_stats (`bool`, *optional*, defaults to `False`):
            Also add `rsr_token_ids`, `rsr_token_ranks` (not clipped), `rsr_token_surprisals` and `rsr_token_top1`.
        max_batch_tokens (`int`, *optional*): Tokens that go through the student at once, padding included.
        assistant_only_loss (`bool`, *optional*, defaults to `False`):
            Render conversations as SFTTrainer does under this setting (some templates differ).
        dataset_text_field (`str`, *optional*, defaults to `"text"`): Column of plain-text datasets.
        logits_dtype (`str`, *optional*, defaults to `"float32"`):
            `"model"` rounds logits to the model's dtype, as the paper's code does.
        overwrite (`bool`, *optional*, defaults to `False`): Replace columns of an earlier scoring instead of raising.
        trust_remote_code (`bool`, *optional*, defaults to `False`): As `from_pretrained` takes it.

    Raises:
        ValueError: for contradictory or impossible settings, such as a `max_length` beyond the student's positions.

    Example:

    ```python
    >>> from rsr_trl import RSRScorer

    >>> add_rsr = RSRScorer("Qwen/Qwen3-0.6B")
    >>> dataset = dataset.map(add_rsr, batched=True)
    >>> dataset = add_rsr.score(dataset)  # faster, same numbers
    ```
    """

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        revision: str | None = None,
        quantization_config: object | None = None,
        device_map: str | dict | None = None,
        max_length: int | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        attn_implementation: str | None = None,
        r_max: float = R_MAX,
        token_stats: bool = False,
        max_batch_tokens: int | None = None,
        assistant_only_loss: bool = False,
        dataset_text_field: str = "text",
        logits_dtype: str = "float32",
        overwrite: bool = False,
        trust_remote_code: bool = False,
    ):
        self._init_kwargs = {name: value for name, value in locals().items() if name != "self"}
        self.r_max = check_r_max(r_max)
        self.token_stats = token_stats
        self.overwrite = overwrite
        self._max_batch_tokens = max_batch_tokens
        self._logits_dtype = logits_dtype
        self._student: Student | None = None
        self._fingerprint: tuple[object, str] | None = None  # weights version -> fingerprint
        self._warned = False
        if isinstance(model, str):
            self._load_kwargs = {
                "revision": revision,
                "quantization_config": quantization_config,
                "device_map": device_map,
                "dtype": dtype,
                "device": device,
                "attn_implementation": attn_implementation,
                "trust_remote_code": trust_remote_code,
            }
            self._model_id: str | None = model
            config = AutoConfig.from_pretrained(
                _base_model_id(model), revision=revision, trust_remote_code=trust_remote_code
            )
            if processing_class is None:
                processing_class = AutoTokenizer.from_pretrained(
                    model, revision=revision, trust_remote_code=trust_remote_code
                )
        else:
            given = {"revision": revision, "quantization_config": quantization_config, "device_map": device_map}
            given |= {
                "device": device,
                "attn_implementation": attn_implementation,
                "trust_remote_code": trust_remote_code,
            }
            given |= {"dtype": None if dtype == "auto" else dtype}
            for name, value in given.items():
                if value:
                    raise ValueError(f"{name}={value!r} is for loading a student by name, but a live model was given.")
            if processing_class is None:
                raise ValueError(
                    "Pass the student's tokenizer with a live model: RSRScorer(model, processing_class=tokenizer)."
                )
            self._model_id = None
            self._student = Student(model, max_batch_tokens, logits_dtype)
            config = model.config
        self._config = config
        self.processing_class = processing_class
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        if max_length is None:
            max_length = min(MAX_LENGTH, positions or MAX_LENGTH)
        elif positions is not None and max_length > positions:
            raise ValueError(f"max_length={max_length} is beyond the student's {positions} positions. Lower it.")
        self.max_length = max_length
        self._tokenize = ExampleTokenizer(processing_class, max_length, assistant_only_loss, dataset_text_field)

    # ------------------------------------------------------------------------------------------- as a map function

    def __call__(self, examples: Mapping, rank: int | None = None) -> dict:
        """
        Score one example or a batch of them: the function to pass to `datasets.map`.

        Args:
            examples (mapping): One row (column -> value), or a batch (column -> list of values).
            rank (`int`, *optional*): Worker number, as `map(..., with_rank=True)` passes it: picks the worker's GPU.

        Returns:
            `dict` of the columns added.
        """
        self._check_not_scored(examples.keys())
        self._tokenize.check_columns(examples.keys())
        if rank is not None and self._student is None and torch.cuda.is_available():
            self._load_kwargs["device"] = f"cuda:{rank % torch.cuda.device_count()}"
        if _is_batch(examples, self._tokenize.dataset_text_field):
            names = list(examples.keys())
            rows = [dict(zip(names, values, strict=True)) for values in zip(*examples.values(), strict=True)]
            table = self._score_rows(rows)
            self._warn_once(table)
            return _typed(table) if isinstance(examples, LazyBatch) else {n: c.to_pylist() for n, c in table.items()}
        table = self._score_rows([dict(examples)])
        self._warn_once(table)
        if isinstance(examples, LazyRow):
            return {name: values[0] for name, values in _typed(table).items()}
        return {name: column[0].as_py() for name, column in table.items()}

    # -------------------------------------------------------------------------------------------- a whole dataset

    def score(
        self, dataset: "Dataset | DatasetDict | IterableDataset | IterableDatasetDict"
    ) -> "Dataset | DatasetDict | IterableDataset | IterableDatasetDict":
        """
        Score a dataset as a whole: sorted by length, with a progress bar, and at the end a count of what couldn't be
        scored.

        Args:
            dataset ([`~datasets.Dataset`] or [`~datasets.DatasetDict`] or [`~datasets.IterableDataset`]):
                In any text format of SFTTrainer. An iterable dataset is scored as it is read, in batches of 512 rows.

        Returns:
            The dataset with the columns added, in the same order; nothing else changes.

        Raises:
            ValueError: if the columns aren't in a known format, or are scored already and `overwrite` isn't set.
            FloatingPointError: if the student gives NaN.
        """
        if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
            return type(dataset)({split: self.score(part) for split, part in dataset.items()})
        if isinstance(dataset, IterableDataset):
            return dataset.map(self, batched=True, batch_size=CHUNK)
        if not isinstance(dataset, Dataset):
            raise TypeError(f"Expected a datasets.Dataset or DatasetDict, got {type(dataset).__name__}.")
        self._check_not_scored(dataset.column_names)
        self._tokenize.check_columns(dataset.column_names)
        old = [name for name in columns.score_schema(token_stats=True) if name in dataset.column_names]
        plain = dataset.remove_columns(old).with_format(None)
        wanted = {*FORMAT_COLUMNS, self._tokenize.dataset_text_field}
        source = plain.select_columns([name for name in plain.column_names if name in wanted])
        with tqdm(total=len(source), desc="Tokenizing", unit=" trajectories", leave=False) as bar:
            tokenized = []
            for start in range(0, len(source), CHUNK):
                rows = source[start : start + CHUNK]
                names = list(rows)
                tokenized += self._tokenize(
                    [dict(zip(names, values, strict=True)) for values in zip(*rows.values(), strict=True)]
                )
                bar.update(len(tokenized) - start)
        total = sum(len(example.input_ids) for example in tokenized if not example.error)
        with tqdm(total=total, desc="Scoring", unit=" tokens", unit_scale=True) as bar:
            done = 0

            def progress(tokens: int) -> None:
                nonlocal done
                done += 1
                bar.set_postfix_str(f"{done:,} trajectories", refresh=False)
                bar.update(tokens)

            table = self._score_tokenized(tokenized, progress)
        added = Dataset(pa.table(table), fingerprint=None)
        result = concatenate_datasets([plain, added], axis=1).with_format(**_format_of(dataset, added.column_names))
        _report(table, logger.warning)
        return result

    # ------------------------------------------------------------------------------------------------ the one path

    def _score_rows(self, rows: Sequence[Mapping]) -> dict[str, pa.Array]:
        return self._score_tokenized(self._tokenize(rows))

    def _score_tokenized(
        self, examples: Sequence[TokenizedExample], progress: Callable[[int], None] = lambda tokens: None
    ) -> dict[str, pa.Array]:
        """
        Typed columns for tokenized examples, in their order. `progress` hears of each example's tokens as it is
        done.
        """
        scores: list[TokenScores | None] = [None] * len(examples)
        means = np.full((2, len(examples)), np.nan)
        for i, score in self._scores(examples):
            rank, surprisal = trajectory_means(score.ranks, score.surprisals, [len(score.ranks)], self.r_max)
            means[:, i] = rank[0], surprisal[0]
            scores[i] = score if self.token_stats else None
            progress(len(examples[i].input_ids))
        null = np.array([example.error is not None for example in examples], dtype=bool)
        values = {
            columns.RSR: (rsr_from_means(*means), null),
            columns.MEAN_CLIPPED_RANK: (means[0], null),
            columns.MEAN_SURPRISAL: (means[1], null),
            columns.NUM_TOKENS: ([int(example.scored.sum()) for example in examples], None),
            columns.TRUNCATED: ([example.truncated for example in examples], None),
            columns.ERROR: ([example.error for example in examples], None),
            columns.STUDENT: ([self.fingerprint] * len(examples), None),
        }
        schema = columns.score_schema(self.token_stats)
        table = {name: pa.array(value, schema[name], mask=mask) for name, (value, mask) in values.items()}
        if self.token_stats:
            # A row that failed has no tokens: an empty list.
            ends = np.cumsum([0, *(0 if score is None else len(score.ranks) for score in scores)], dtype=np.int32)
            for name, field in _TOKEN_FIELDS.items():
                parts = [getattr(score, field) for score in scores if score is not None]
                flat = pa.array(np.concatenate(parts) if parts else [], schema[name].value_type)
                table[name] = pa.ListArray.from_arrays(pa.array(ends), flat)
        return table

    def _scores(self, examples: Sequence[TokenizedExample]) -> Iterator[tuple[int, TokenScores]]:
        if any(example.error is None for example in examples):
            yield from self.student.score(examples, with_top1=self.token_stats)

    # ------------------------------------------------------------------------------------------------- the student

    @property
    def student(self) -> Student:
        """The student, loaded when first needed."""
        if self._student is None:
            if self._model_id is None:
                raise ValueError(
                    "A live model can't go to the worker processes of `map(num_proc=...)`. Leave `num_proc` unset, or "
                    "build "
                    "the scorer from a model id or path: RSRScorer('path/to/student')."
                )
            kwargs = {name: value for name, value in self._load_kwargs.items() if value is not None}
            self._student = Student(load_model(self._model_id, **kwargs), self._max_batch_tokens, self._logits_dtype)
        return self._student

    @property
    def fingerprint(self) -> str:
        """Short name of the student as it is now, with the settings that change scores: the `rsr_student` column."""
        version = None if self._model_id is not None else self.student.weights_version()
        if self._fingerprint is None or self._fingerprint[0] != version:
            weights = self.student.weights_fingerprint()
            self._fingerprint = (version, student_fingerprint(weights, self.processing_class, **self._settings()))
        return self._fingerprint[1]

    def _settings(self) -> dict:
        return {
            "r_max": self.r_max,
            "assistant_only_loss": self._tokenize.assistant_only_loss,
            "logits_dtype": self._logits_dtype,
        }

    def __getstate__(self) -> dict:
        # What `datasets` hashes to find cached results, in this and in other processes: everything that decides the
        # columns, and no weights.
        if self._model_id is None:
            self._fingerprint = None  # look at the weights anew: a training loop may have replaced them
            spec = {"student": self.fingerprint, "dtype": str(self.student.model.dtype)}
        else:
            weights = checkpoint_fingerprint(self._model_id, getattr(self._config, "_commit_hash", None))
            spec = {"weights": weights, "tokenizer": tokenizer_fingerprint(self.processing_class), **self._settings()}
            spec |= {
                name: str(value) for name, value in self._load_kwargs.items() if name not in ("device", "device_map")
            }
        spec |= {
            "max_length": self.max_length,
            "token_stats": self.token_stats,
            "text": self._tokenize.dataset_text_field,
        }
        init = {} if self._model_id is None else {**self._init_kwargs, "processing_class": None}
        return {"spec": spec, "init": init, "tokenizer": None if self._is_own_tokenizer() else self.processing_class}

    def __setstate__(self, state: dict) -> None:
        if state["init"]:
            self.__init__(**{**state["init"], "processing_class": state["tokenizer"]})
        else:
            # A copy without its model: it says so when it is called (raising here would hang the worker pool).
            self._student = self._model_id = None
            self._tokenize = _NoStudent(self)
            self.overwrite = True

    def _is_own_tokenizer(self) -> bool:
        return self._model_id is not None and self._init_kwargs["processing_class"] is None

    # ------------------------------------------------------------------------------------------------------ checks

    def _check_not_scored(self, column_names) -> None:
        present = [name for name in columns.score_schema(token_stats=True) if name in set(column_names)]
        if present and not self.overwrite:
            raise ValueError(
                f"The dataset already has the columns {present}. Pass overwrite=True to RSRScorer to replace them, or "
                f"remove "
                "them first."
            )

    def _warn_once(self, table: dict[str, pa.Array]) -> None:
        """`map` has no end at which to count, so the first row that can't be scored or was cut is told, once."""
        if not self._warned and (
            table[columns.ERROR].null_count < len(table[columns.ERROR]) or _any(table[columns.TRUNCATED])
        ):
            self._warned = True
            _report(table, lambda text: logger.warning("%s Told once; count the columns at the end of map.", text))


class _NoStudent:
    """Stands in for the tokenizer of a live-model scorer that was copied to another process."""

    def __init__(self, scorer: RSRScorer):
        self._scorer = scorer

    def check_columns(self, column_names) -> None:
        self._scorer.student  # noqa: B018 - raises with the reason


def _typed(table: dict[str, pa.Array]) -> dict[str, list]:
    """Columns as lists whose nulls keep their type: `map` takes a column's type from its first rows."""
    return {
        name: [v.values.to_numpy(zero_copy_only=False) for v in column]
        if pa.types.is_list(column.type)
        else list(column)
        for name, column in table.items()
    }


def _any(column: pa.Array) -> bool:
    return bool(column.true_count)


def _report(table: dict[str, pa.Array], tell: Callable[[str], None]) -> None:
    """Say how many rows are null or cut, with the reasons; nothing when there are none."""
    errors = table[columns.ERROR].drop_null().to_pylist()
    rows = len(table[columns.ERROR])
    if errors:
        first = next(i for i, error in enumerate(table[columns.ERROR].to_pylist()) if error)
        tell(
            f"{len(errors)} of {rows} rows couldn't be scored: their rsr is null, rsr_error says why (row {first}: "
            f"{errors[0]})."
        )
    if _any(table[columns.TRUNCATED]):
        count = table[columns.TRUNCATED].true_count
        tell(f"{count} of {rows} rows were cut at max_length (column rsr_truncated); what is left of them is scored.")


def _is_batch(examples: Mapping, text_field: str) -> bool:
    """Whether a mapping is a batch (column -> list of values) rather than one row."""
    if isinstance(examples, (LazyBatch, LazyRow)):
        return isinstance(examples, LazyBatch)
    if not all(isinstance(value, list) for value in examples.values()):
        return False
    # In one row of lists, chat columns hold messages; in a batch they hold lists of messages, strings or nulls.
    chats = [examples[name] for name in ("messages", "conversations", "prompt", "completion") if name in examples]
    return not any(chat and isinstance(chat[0], Mapping) for chat in chats)


def _format_of(dataset: Dataset, added: list[str]) -> dict:
    """Arguments of `with_format` that give the result the input's format, the new columns included."""
    given = dataset.format
    return {
        "type": given["type"],
        "columns": [*(name for name in given["columns"] if name not in added), *added],
        **given["format_kwargs"],
    }


def _base_model_id(model_id: str) -> str:
    """The model whose config tells about positions: for an adapter its base model."""
    from transformers.utils import find_adapter_config_file  # imports peft utilities only where they're needed

    if find_adapter_config_file(model_id) is None:
        return model_id
    from peft import PeftConfig

    return PeftConfig.from_pretrained(model_id).base_model_name_or_path
