"""RSRScorer: attaches RSR columns to datasets, with a student given by name or live.

The only file of this room that knows `datasets`. Everything is scored by one path, whatever the entry: examples ->
tokens -> student -> columns.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict
from datasets.formatting.formatting import LazyBatch, LazyRow
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from rsr_trl import columns
from rsr_trl.equations import R_MAX, check_r_max, rsr_from_means
from rsr_trl.scoring.fingerprint import (
    DEFINITION,
    checkpoint_fingerprint,
    student_fingerprint,
    tokenizer_fingerprint,
)
from rsr_trl.scoring.rivals import LOCAL_STEPS, SCORES, check_scores, column_functions
from rsr_trl.scoring.rows import (
    add_columns,
    describe_gaps,
    is_batch,
    plain,
    scores_among,
    to_rows,
    typed,
    without_scores,
)
from rsr_trl.scoring.scored_tokens import ScoredTokens, content_hash
from rsr_trl.scoring.second_pass import surprisals_alone, surprisals_local, teacher_steps
from rsr_trl.scoring.student import Student, TokenScores, load_model
from rsr_trl.scoring.tokens import ExampleTokenizer, TokenizedExample
from rsr_trl.scoring.windows import TokenBar, Window, windows


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
            Other scores to add as columns `score_<name>`: names of [`~rsr_trl.scoring.rivals.SCORES`], such as
            `["surprisal", "rank"]`, or `"all"` that the same pass gives. `"casl"` adds `score_drop` and
            `rsr_step_share`, from which selection makes it. Null where `rsr` is, or where the score is undefined.
        teacher ([`RSRScorer`], *optional*):
            A scorer made with the teacher's model, for the score `"provenance"`.
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
        teacher: "RSRScorer | None" = None,
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
        self.scores = check_scores(scores)
        self._functions = column_functions(self.scores)
        self._needs = {need for name in self.scores for need in SCORES[name].needs}
        self.schema = columns.score_schema(token_stats, self._functions)
        if (teacher is not None) != ("teacher" in self._needs):
            raise ValueError(
                "The score 'provenance' needs the teacher's model, and nothing else does: pass "
                "RSRScorer(student, scores=['provenance'], teacher=RSRScorer(teacher_model))."
            )
        self.teacher = teacher
        self.overwrite = overwrite
        self._max_batch_tokens = max_batch_tokens
        self._logits_dtype = logits_dtype
        self._student: Student | None = None
        self._weights: tuple[object, str] | None = None  # version of the weights, their hash
        self._fingerprint: tuple[object, str] | None = None  # template and settings, the fingerprint
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
            base, hub = _base_model_id(model, revision), {"revision": revision, "trust_remote_code": trust_remote_code}
            config = AutoConfig.from_pretrained(base, **hub)
            if processing_class is None:
                try:
                    processing_class = AutoTokenizer.from_pretrained(model, **hub)
                except (OSError, ValueError):
                    if base == model:
                        raise
                    processing_class = AutoTokenizer.from_pretrained(base, **hub)  # PEFT saves none with an adapter
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
        self._tokenize = ExampleTokenizer(
            processing_class, max_length, assistant_only_loss, dataset_text_field, with_steps="steps" in self._needs
        )
        if teacher is not None:
            self._tokenize_for_teacher = ExampleTokenizer(
                teacher.processing_class, teacher.max_length, assistant_only_loss, dataset_text_field, with_steps=True
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
        if rank is not None and self._student is None and torch.cuda.is_available():
            self._load_kwargs["device"] = f"cuda:{rank % torch.cuda.device_count()}"
        lazy = isinstance(examples, (LazyBatch, LazyRow))
        # Only what is needed: the other columns may hold images, and map copies what isn't looked at.
        texts = {name: examples[name] if lazy else plain(examples[name]) for name in self._text_columns(examples)}
        batch = isinstance(examples, LazyBatch) if lazy else is_batch(texts, self._tokenize.dataset_text_field)
        tokenized = self._tokenized(to_rows(texts) if batch else [texts])
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
        return windows(source, self._tokenized)

    def _tokenized(self, rows: Sequence[Mapping]) -> list[TokenizedExample]:
        examples = self._tokenize(rows)
        if self.teacher is None:
            return examples
        others = self._tokenize_for_teacher(rows)
        return [replace(example, for_teacher=other) for example, other in zip(examples, others, strict=True)]

    def score_tokenized(
        self, examples: Sequence[TokenizedExample], bar: TokenBar | None = None, first_row: int = 0
    ) -> dict[str, pa.Array]:
        """
        Typed columns for tokenized examples, in their order. `bar` hears of each example as it is done; messages
        count rows from `first_row`.
        """
        scores: list[TokenScores | None] = [None] * len(examples)
        for i, score in self._scores(examples, first_row):
            scores[i] = score
            if bar is not None:
                bar.update(1, len(examples[i].input_ids))
        null = np.array([example.error is not None for example in examples], dtype=bool)
        if bar is not None:
            bar.update(int(null.sum()), 0)
        tokens = self._scored_tokens(examples, scores, first_row)
        mean_rank, mean_surprisal = tokens.means_of_rsr
        values = {
            columns.RSR: (rsr_from_means(mean_rank, mean_surprisal), null),
            columns.MEAN_CLIPPED_RANK: (mean_rank, null),
            columns.MEAN_SURPRISAL: (mean_surprisal, null),
            columns.NUM_TOKENS: (tokens.num_tokens, None),
            columns.TRUNCATED: ([example.truncated for example in examples], None),
            columns.ERROR: ([example.error for example in examples], None),
            columns.STUDENT: ([self.fingerprint] * len(examples), None),
        }
        for name, function in self._functions.items():
            found = function(tokens)
            values[name] = (found, null | np.isnan(found))
        table = {name: pa.array(value, self.schema[name], mask=mask) for name, (value, mask) in values.items()}
        if self.token_stats:
            # A row that failed has no tokens: an empty list.
            ends = np.cumsum([0, *tokens.num_tokens], dtype=np.int32)
            for name, field in _TOKEN_FIELDS.items():
                flat = pa.array(_joined(scores, field), self.schema[name].value_type)
                table[name] = pa.ListArray.from_arrays(pa.array(ends), flat)
        return table

    def _scored_tokens(
        self, examples: Sequence[TokenizedExample], scores: Sequence[TokenScores | None], first_row: int
    ) -> ScoredTokens:
        """What the scores are made from; where they need it, another pass."""
        more = {}
        if "moments" in self._needs:
            more |= {name: _joined(scores, name) for name in ("entropies", "sum_squares")}
        if "steps" in self._needs:
            starts = [e.step_starts[e.scored] for e in examples if e.error is None]
            more["step_starts"] = np.concatenate(starts or [np.zeros(0, dtype=bool)])
        if "random" in self.scores:
            more["content"] = np.array([content_hash(e.input_ids, e.scored) for e in examples], dtype=np.uint64)
        if "alone" in self._needs:
            alone = surprisals_alone(self.student, examples, self.processing_class.bos_token_id, first_row)
            more["surprisals_alone"] = np.concatenate(alone)
        if "local" in self._needs:
            more["surprisals_local"] = np.concatenate(surprisals_local(self.student, examples, LOCAL_STEPS, first_row))
        if self.teacher is not None:
            others = [example.for_teacher for example in examples]
            counts = [0 if example.error else int(example.step_starts.sum()) for example in examples]
            more["teacher_steps"] = np.concatenate(teacher_steps(self.teacher.student, others, counts, first_row))
        return ScoredTokens(
            num_tokens=np.array([int(example.scored.sum()) for example in examples], dtype=np.int64),
            ranks=_joined(scores, "ranks"),
            surprisals=_joined(scores, "surprisals"),
            r_max=self.r_max,
            **more,
        )

    def _scores(self, examples: Sequence[TokenizedExample], first_row: int) -> Iterator[tuple[int, TokenScores]]:
        if any(example.error is None for example in examples):
            yield from self.student.score(
                examples, with_top1=self.token_stats, first_row=first_row, with_moments="moments" in self._needs
            )

    # ------------------------------------------------------------------------------------------------- the student

    @property
    def student(self) -> Student:
        """The student, loaded when first needed."""
        if self._student is None:
            if self._model_id is None:
                raise ValueError(
                    "A live model can't go to the worker processes of `map(num_proc=...)`. Leave `num_proc` unset, or "
                    "build the scorer from a model id or path: RSRScorer('path/to/student')."
                )
            self._loaded = self._checkpoint()
            kwargs = {name: value for name, value in self._load_kwargs.items() if value is not None}
            self._student = Student(load_model(self._model_id, **kwargs), self._max_batch_tokens, self._logits_dtype)
        return self._student

    @property
    def fingerprint(self) -> str:
        """Short name of the student as it is now, with the settings that change scores: the `rsr_student` column."""
        # Weights and tokenizers are large, and map asks at every row: look at what is quickly seen to have changed.
        version = None if self._model_id is not None else self.student.weights_version()
        if self._weights is None or self._weights[0] != version:
            self._weights, self._fingerprint = (version, self.student.weights_fingerprint()), None
        settings = [self.processing_class.chat_template, self._settings()]
        if self._fingerprint is None or self._fingerprint[0] != settings:
            name = student_fingerprint(self._weights[1], self.processing_class, **self._settings())
            self._fingerprint = (settings, name)
        return self._fingerprint[1]

    @property
    def identity(self) -> dict[str, object]:
        """What the fingerprint is made of, and what else decides the columns: for telling what differs."""
        self.fingerprint  # noqa: B018 - looks at the weights
        return {
            "definition": DEFINITION,
            "weights": self._weights[1],
            "tokenizer": tokenizer_fingerprint(self.processing_class),
            **self._settings(),
            "dtype": str(self.student.model.dtype),
            "max_length": self.max_length,
            "token_stats": self.token_stats,
            "dataset_text_field": self._tokenize.dataset_text_field,
            **({"scores": ", ".join(self._functions)} if self._functions else {}),
            **({} if self.teacher is None else {"teacher": self.teacher.fingerprint}),
        }

    def _checkpoint(self) -> str:
        return checkpoint_fingerprint(self._model_id, getattr(self._config, "_commit_hash", None))

    def _look_again(self) -> None:
        """Forget what may have changed: a live student trained, a checkpoint replaced in its folder, tokens added."""
        if self.teacher is not None:
            self.teacher._look_again()
        self._fingerprint = None
        if self._model_id is None:
            self._weights = None  # some training loops change weights in ways that leave no trace
        elif self._student is not None and self._loaded != self._checkpoint():
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
        if self._model_id is None:
            spec = {"student": self.fingerprint, "dtype": str(self.student.model.dtype)}
        else:
            weights = self._checkpoint()
            spec = {"weights": weights, "tokenizer": tokenizer_fingerprint(self.processing_class), **self._settings()}
            spec |= {
                name: str(value) for name, value in self._load_kwargs.items() if name not in ("device", "device_map")
            }
        spec |= {
            "max_length": self.max_length,
            "token_stats": self.token_stats,
            "scores": list(self._functions),
            "teacher": None if self.teacher is None else self.teacher.__getstate__()["spec"],
            "text": self._tokenize.dataset_text_field,
        }
        init = {} if self._model_id is None else {**self._init_kwargs, "processing_class": None}
        return {"spec": spec, "init": init, "tokenizer": self._init_kwargs["processing_class"] if init else None}

    def __setstate__(self, state: dict) -> None:
        if state["init"]:
            self.__init__(**{**state["init"], "processing_class": state["tokenizer"]})
        else:
            # A copy without its model: it says so when it is called (raising here would hang the worker pool).
            self._student = self._model_id = None
            self._tokenize, self.schema, self.teacher = _NoStudent(self), {}, None
            self.overwrite = True

    # ------------------------------------------------------------------------------------------------------ checks

    def _text_columns(self, column_names: Iterable[str]) -> list[str]:
        """Those columns that decide what is scored."""
        return [name for name in column_names if name in FORMAT_COLUMNS or name == self._tokenize.dataset_text_field]

    def check_columns(self, column_names: Iterable[str]) -> None:
        """Raise `ValueError` unless a dataset with these columns can be scored."""
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


def _joined(scores: Sequence[TokenScores | None], field: str) -> np.ndarray:
    """One field of all rows that have scores, row after row."""
    return np.concatenate([getattr(score, field) for score in scores if score is not None] or [np.zeros(0)])


class _NoStudent:
    """Stands in for the tokenizer of a live-model scorer that was copied to another process."""

    def __init__(self, scorer: RSRScorer):
        self._scorer = scorer

    def check_columns(self, column_names) -> None:
        self._scorer.student  # noqa: B018 - raises with the reason


def _base_model_id(model_id: str, revision: str | None) -> str:
    """The model whose config tells about positions: for an adapter its base model."""
    from transformers.utils import find_adapter_config_file  # imports peft utilities only where they're needed

    if (Path(model_id) / "config.json").is_file() or find_adapter_config_file(model_id, revision=revision) is None:
        return model_id
    from peft import PeftConfig

    return PeftConfig.from_pretrained(model_id, revision=revision).base_model_name_or_path
