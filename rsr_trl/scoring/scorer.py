"""RSRScorer: attaches RSR columns to datasets, with a student given by name or live.

The only file of this room that knows `datasets`. Everything is scored by one path, whatever the entry: examples ->
tokens -> student -> columns.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import pyarrow as pa
import torch
from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict
from datasets.formatting.formatting import LazyBatch, LazyRow
from transformers import PreTrainedTokenizerBase

from rsr_trl.rsr import R_MAX, check_r_max, score_schema
from rsr_trl.scoring.fingerprint import DEFINITION, student_fingerprint, tokenizer_fingerprint
from rsr_trl.scoring.passes import OtherScores
from rsr_trl.scoring.rows import (
    add_columns,
    describe_gaps,
    is_batch,
    plain,
    scores_among,
    to_rows,
    to_table,
    typed,
    without_scores,
)
from rsr_trl.scoring.student import Student, TokenScores
from rsr_trl.scoring.student_source import LeftBehind, StudentSource
from rsr_trl.scoring.tokens import ExampleTokenizer, TokenizedExample
from rsr_trl.scoring.windows import TokenBar, Window, windows


if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


logger = logging.getLogger(__name__)

# Columns of the formats that SFTTrainer takes, besides the text column.
FORMAT_COLUMNS = ("prompt", "completion", "messages", "conversations", "tools", "chat_template_kwargs")
BATCH_ROWS = 512  # rows of an iterable dataset that are scored together


class RSRScorer:
    """
    Scores trajectories with a student by their Rank-Surprisal Ratio (RSR, arXiv:2601.14249). **Lower suits the student
    better.**

    Use it as a function of `datasets.map` (row by row or `batched=True`: same numbers), or call [`~RSRScorer.score`],
    which sorts the whole dataset by length and is fastest. Columns added: `rsr`, `rsr_mean_clipped_rank`,
    `rsr_mean_surprisal` (nats), `rsr_num_tokens` (scored), `rsr_truncated`, `rsr_error` (null when fine) and
    `rsr_student` (a fingerprint). A row with nothing to score gets nulls and its reason in `rsr_error`. On a dataset
    in numpy or torch format prefer `score`: `map` then leaves the columns' types to their first 1,000 rows.

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
        scores (list of `str` or `str`, *optional*):
            Other scores to add as columns `score_<name>`: names of [`~rsr_trl.scoring.scores.SCORES`], such as
            `["surprisal", "rank"]`, or `"all"` that the same pass gives. `"casl"` adds `score_drop` and
            `rsr_step_share`, from which selection makes it. Null where `rsr` is, or where the score is undefined.
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
        scores: Sequence[str] | str | None = None,
        max_batch_tokens: int | None = None,
        assistant_only_loss: bool = False,
        dataset_text_field: str = "text",
        logits_dtype: str = "float32",
        overwrite: bool = False,
        trust_remote_code: bool = False,
    ):
        self._init_kwargs = {name: value for name, value in locals().items() if name != "self"}
        if isinstance(model, os.PathLike):
            model = os.fspath(model)
        self.r_max = check_r_max(r_max)
        self.token_stats = token_stats
        self._others = OtherScores(scores)
        self.scores = self._others.names
        self.schema = score_schema(token_stats, self._others.functions)
        self.overwrite = overwrite
        self._logits_dtype = logits_dtype
        self._fingerprint: tuple[list, str] | None = None  # what it is made from, the fingerprint
        self._warned = False
        load_kwargs = {
            "revision": revision,
            "quantization_config": quantization_config,
            "device_map": device_map,
            "dtype": dtype,
            "device": device,
            "attn_implementation": attn_implementation,
            "trust_remote_code": trust_remote_code,
        }
        self._source = StudentSource(model, processing_class, load_kwargs, max_batch_tokens, logits_dtype)
        self.processing_class = self._source.processing_class
        self.max_length = self._source.check_max_length(max_length)
        self._tokenize = ExampleTokenizer(
            self.processing_class,
            self.max_length,
            assistant_only_loss,
            dataset_text_field,
            with_steps="steps" in self._others.needs,
        )

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
        if not isinstance(examples, Mapping):
            raise TypeError(
                f"map passed a {type(examples).__name__}, not columns: score a dataset in a table format with "
                "RSRScorer.score(dataset), which keeps the format, or take dataset.with_format(None)."
            )
        self.check_columns(examples.keys())
        if stale := sorted(set(scores_among(examples.keys())) - set(self.schema)):
            raise ValueError(
                f"The dataset has {stale} of an earlier scoring, and map can't drop columns: ask for them again "
                "(token_stats=True, scores=[...]), remove them first, or use RSRScorer.score(dataset)."
            )
        if rank is not None:
            self._source.take_gpu(rank)
        lazy = isinstance(examples, (LazyBatch, LazyRow))
        # Only what is needed: the other columns may hold images, and map copies what isn't looked at.
        texts = {name: examples[name] if lazy else plain(examples[name]) for name in self._text_columns(examples)}
        batch = isinstance(examples, LazyBatch) if lazy else is_batch(texts, self._tokenize.dataset_text_field)
        tokenized = self._tokenize(to_rows(texts) if batch else [texts])
        try:
            table = self.score_tokenized(tokenized)
        except (ValueError, FloatingPointError) as error:
            error.add_note(
                f"Rows are counted within the {len(tokenized)} that map passed; RSRScorer.score counts in the dataset."
            )
            raise
        self._warn_once(table)
        # `datasets.map` takes a column's type from its first rows, which may all be null. Elsewhere, plain values.
        values = typed(table) if lazy else {name: column.to_pylist() for name, column in table.items()}
        return values if batch else {name: column[0] for name, column in values.items()}

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
        if not isinstance(dataset, (Dataset, IterableDataset)):
            raise TypeError(f"Expected a datasets.Dataset or DatasetDict, got {type(dataset).__name__}.")
        self._look_again()
        if dataset.column_names is not None:  # unknown for some iterable datasets until they are read
            self.check_columns(dataset.column_names)
            dataset = without_scores(dataset, self.schema)
        if isinstance(dataset, IterableDataset):
            added = Features.from_arrow_schema(pa.schema(self.schema))
            features = None if dataset.features is None else Features({**dataset.features, **added})
            return dataset.map(self, batched=True, batch_size=BATCH_ROWS, features=features)
        self.student  # noqa: B018 - if it can't be loaded, that shows before the work, not after it
        with TokenBar(len(dataset)) as bar:
            table = self.score_rows(dataset, bar)
        result = add_columns(dataset.with_format(None), table)
        given = dataset.format
        shown = {"columns": [*given["columns"], *table], "output_all_columns": given["output_all_columns"]}
        for finding in describe_gaps(table, name_row=True):
            logger.warning(finding)
        return result.with_format(given["type"], **shown, **given["format_kwargs"])

    # ------------------------------------------------------------------------------------------------ the one path

    def score_rows(self, dataset: Dataset, bar: TokenBar, first_row: int = 0) -> dict[str, pa.ChunkedArray]:
        """
        The columns that scoring adds to these rows, in their order: window by window, sorted by length within each.

        Args:
            dataset (`Dataset`): Rows to score.
            bar ([`TokenBar`]): Hears of every row.
            first_row (`int`, *optional*, defaults to `0`): What messages call the first of the rows.
        """
        parts = []
        with closing(self.windows_of(dataset)) as found:  # an error ends the tokenization ahead too
            for window in found:
                bar.expect(len(window.examples), window.num_tokens)
                parts.append(self.score_tokenized(window.examples, bar, first_row + window.first_row))
        return {name: pa.chunked_array([part[name] for part in parts], kind) for name, kind in self.schema.items()}

    def windows_of(self, dataset: Dataset) -> Iterator[Window]:
        """The rows, tokenized, in the windows in which they are scored."""
        source = dataset.with_format(None).select_columns(self._text_columns(dataset.column_names))
        return windows(source, self._tokenize)

    def score_tokenized(
        self, examples: Sequence[TokenizedExample], bar: TokenBar | None = None, first_row: int = 0
    ) -> dict[str, pa.Array]:
        """
        Typed columns for tokenized examples, in their order. `bar` hears of each example as it is done; messages
        count rows from `first_row`.
        """
        scores: list[TokenScores | None] = [None] * len(examples)
        if any(example.error is None for example in examples):
            moments = "moments" in self._others.needs
            for i, score in self.student.score(
                examples, with_top1=self.token_stats, first_row=first_row, with_moments=moments
            ):
                scores[i] = score
                if bar is not None:
                    bar.update(1, len(examples[i].input_ids))
        if bar is not None:
            bar.update(sum(example.error is not None for example in examples), 0)
        tokens = self._others.scored_tokens(
            examples,
            scores,
            self.r_max,
            self.student,
            self.processing_class.bos_token_id,
            first_row,
        )
        return to_table(examples, scores, tokens, self._others.functions, self.schema, self.fingerprint)

    # ------------------------------------------------------------------------------------------------- the student

    @property
    def student(self) -> Student:
        """The student, loaded when first needed."""
        return self._source.student

    @property
    def fingerprint(self) -> str:
        """Short name of the student as it is now, with the settings that change scores: the `rsr_student` column."""
        made_from = [self._source.weights, self.processing_class.chat_template, self._settings()]
        if self._fingerprint is None or self._fingerprint[0] != made_from:
            name = student_fingerprint(self._source.weights, self.processing_class, **self._settings())
            self._fingerprint = (made_from, name)  # hashing a tokenizer takes long, and map asks at every row
        return self._fingerprint[1]

    @property
    def identity(self) -> dict[str, object]:
        """What the fingerprint is made of, and what else decides the columns: for telling what differs."""
        return {
            "definition": DEFINITION,
            "weights": self._source.weights,
            "tokenizer": tokenizer_fingerprint(self.processing_class),
            **self._settings(),
            "dtype": str(self.student.model.dtype),
            "max_length": self.max_length,
            "token_stats": self.token_stats,
            "dataset_text_field": self._tokenize.dataset_text_field,
            **({"scores": ", ".join(self._others.functions)} if self._others.functions else {}),
        }

    def _look_again(self) -> None:
        """Forget what may have changed: a live student trained, a checkpoint replaced in its folder, tokens added."""
        self._fingerprint = None
        self._source.look_again()
        if self._source.is_replaced():
            self.__init__(**self._init_kwargs)

    def _settings(self) -> dict:
        return {
            "r_max": self.r_max,
            "assistant_only_loss": self._tokenize.assistant_only_loss,
            "logits_dtype": self._logits_dtype,
        }

    def __getstate__(self) -> dict:
        # What `datasets` hashes to find cached results, in this and in other processes: everything that decides the
        # columns, and no weights.
        self._look_again()
        named = self._source.model_id is not None
        if not named:
            spec = {"student": self.fingerprint, "dtype": str(self.student.model.dtype)}
        else:
            weights, kwargs = self._source.checkpoint(), self._source.load_kwargs
            spec = {"weights": weights, "tokenizer": tokenizer_fingerprint(self.processing_class), **self._settings()}
            spec |= {name: str(value) for name, value in kwargs.items() if name not in ("device", "device_map")}
        spec |= {
            "max_length": self.max_length,
            "token_stats": self.token_stats,
            "scores": list(self._others.functions),
            "text": self._tokenize.dataset_text_field,
        }
        init = {**self._init_kwargs, "processing_class": None} if named else {}
        return {"spec": spec, "init": init, "tokenizer": self._init_kwargs["processing_class"] if init else None}

    def __setstate__(self, state: dict) -> None:
        if state["init"]:
            self.__init__(**{**state["init"], "processing_class": state["tokenizer"]})
        else:
            self._source = LeftBehind()

    # ------------------------------------------------------------------------------------------------------ checks

    def _text_columns(self, column_names: Iterable[str]) -> list[str]:
        """Those columns that decide what is scored."""
        names = {*FORMAT_COLUMNS, self._tokenize.dataset_text_field}
        return [name for name in column_names if name in names]

    def check_columns(self, column_names: Iterable[str]) -> None:
        """Raise `ValueError` unless a dataset with these columns can be scored."""
        self._source.model_id  # noqa: B018 - raises in another process than that of the live model
        present = scores_among(column_names, self.schema)
        if present and not self.overwrite:
            raise ValueError(
                f"The dataset already has the columns {present}. Pass overwrite=True to RSRScorer to replace them, or "
                "remove them first."
            )
        self._tokenize.check_columns(column_names)

    def _warn_once(self, table: dict[str, pa.Array]) -> None:
        """`map` has no end at which to count, so the first row that can't be scored or was cut is told, once."""
        if not self._warned and (findings := describe_gaps(table)):
            self._warned = True
            logger.warning("So far, %s Told once; count the columns at the end of map.", " ".join(findings))
