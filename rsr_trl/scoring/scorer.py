"""RSRScorer: attaches RSR columns to datasets, with a student given by name or live.

Everything is scored by one path, whatever the entry: examples -> tokens -> student -> columns.
"""

import copy
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import date
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING

import pyarrow as pa
import torch
from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict
from datasets.formatting.formatting import LazyBatch, LazyRow
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

from rsr_trl.formats import IMAGES
from rsr_trl.rsr import RSRError, score_schema
from rsr_trl.scoring import loading
from rsr_trl.scoring.architecture import num_positions
from rsr_trl.scoring.batches import BATCH_ROWS, ROWS_WITH_IMAGES
from rsr_trl.scoring.fingerprint import DEFINITION, checkpoint_fingerprint, student_fingerprint
from rsr_trl.scoring.passes import OtherScores
from rsr_trl.scoring.readers import FORMAT_COLUMNS, Readers
from rsr_trl.scoring.rows import (
    TokenBar,
    Window,
    add_columns,
    check_no_transform,
    check_none_stays,
    count_notes,
    describe_gaps,
    in_format_of,
    is_batch,
    plain,
    scores_among,
    stored,
    to_rows,
    to_table,
    typed,
    undecoded,
    windows,
    without_scores,
)
from rsr_trl.scoring.settings import LOADING, NEUTRAL, OF_THE_SCORE, READING, ScoringConfig
from rsr_trl.scoring.student import Student
from rsr_trl.scoring.tokens import TokenizedExample


if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


logger = logging.getLogger(__name__)


class RSRScorer:
    """
    Scores trajectories with a student by their Rank-Surprisal Ratio (RSR, arXiv:2601.14249). **Lower suits the student
    better.**

    Use it as a function of `datasets.map` (row by row or `batched=True`: the same numbers, but for rounding), or call
    [`~RSRScorer.score`], which sorts the whole dataset by length and is fastest. Columns added: `rsr`,
    `rsr_mean_clipped_rank`, `rsr_mean_surprisal` (nats), `rsr_num_tokens` (scored), `rsr_truncated`, `rsr_error` (null
    when fine), `rsr_student` (a fingerprint) and `rsr_content` (a hash of the tokens). A row with nothing to score
    gets nulls and its reason. On a dataset in numpy or torch format prefer `score`: `map` then leaves the columns'
    types to their first 1,000 rows.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Student: hub id or path (a PEFT adapter's or GGUF file's too), loaded when first needed; or a live model,
            which is left as it is (train mode, gradients, random state).
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`], *optional*):
            The student's tokenizer, or its processor for a dataset with images. Required with a live model.
        revision (`str`, *optional*): Branch, tag or commit of the hub repository.
        gguf_file (`str`, *optional*): The `.gguf` file there that holds student, tokenizer and chat template.
        quantization_config (*optional*): As `from_pretrained` takes it.
        device_map (`str` or `dict`, *optional*): Spread the student over devices.
        max_length (`int`, *optional*):
            Longer trajectories are cut at the end and flagged. Defaults to 32,768 (the paper's), capped by the
            student's positions.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
            `"auto"` takes the checkpoint's own. In bfloat16, rounding changes RSR by about 1%, and rows that share a
            batch change it too: `map` and `score` then differ as much.
        device (`str` or `torch.device`, *optional*): By default the GPU if there is one.
        attn_implementation (`str`, *optional*): As `from_pretrained` takes it.
        r_max (`float`, *optional*, defaults to `100`): Ranks above are clipped.
        token_stats (`bool`, *optional*, defaults to `False`):
            Also add `rsr_token_ids`, `rsr_token_ranks` (not clipped), `rsr_token_surprisals` and `rsr_token_top1`.
        scores (list of `str` or `str`, *optional*):
            Other scores to add as columns `score_<name>`: names of [`~rsr_trl.scoring.scores.SCORES`], such as
            `["surprisal", "rank"]`, or `"all"` that the same pass gives. `"casl"` adds `score_drop` and
            `rsr_step_share`, from which selection computes it. Null where `rsr` is, or where the score is undefined.
        max_batch_tokens (`int`, *optional*): Tokens that go through the student at once, padding included.
        share_prefixes (`bool`, *optional*, defaults to `True`): Read what several trajectories begin with once.
        max_prefix_tokens (`int`, *optional*): Longest prefix to share. By default its keys and values take at most
            half of the memory that reading takes anyway.
        assistant_only_loss (`bool`, *optional*, defaults to `False`):
            Render conversations as SFTTrainer does under this setting (some templates differ).
        chat_template_path (`str`, *optional*):
            Render conversations with the chat template of this `.jinja` file or tokenizer (hub id or folder), as
            SFTTrainer does under this setting, instead of the student's own. The tokenizer passed stays as it is.
        dataset_text_field (`str`, *optional*, defaults to `"text"`): Column of plain-text datasets.
        logits_dtype (`str`, *optional*, defaults to `"float32"`):
            `"model"` rounds logits to the model's dtype, as the paper's code does.
        overwrite (`bool`, *optional*, defaults to `False`): Replace columns of an earlier scoring instead of raising.
        trust_remote_code (`bool`, *optional*, defaults to `False`): As `from_pretrained` takes it.
        day (`str`, *optional*):
            What chat templates that write today's date get, such as `"2025-03-31"`; by default the day on which the
            scorer is made. Where a template writes it, it is part of `rsr_student`.
        engine ([`~rsr_trl.scoring.settings.Engine`], *optional*):
            Where the named student runs, if it isn't to be loaded here: a vLLM server or engine
            ([`rsr_trl.integrations.vllm`]).

    Raises:
        RSRError: for contradictory or impossible settings, such as a `max_length` beyond the student's positions.

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
        model: "str | os.PathLike | PreTrainedModel | PeftModel",
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        **settings,
    ):
        self.model_id = None
        if isinstance(model, (str, os.PathLike)):
            self.model_id = loading.student_name(os.fspath(model), settings.pop("gguf_file", None))
        self.config = ScoringConfig(**settings | {"day": settings.get("day") or str(date.today())})
        self.r_max, self.token_stats = self.config.r_max, self.config.token_stats
        self._others = OtherScores(self.config.scores)
        self.scores = self._others.names
        self.schema = score_schema(self.token_stats, self._others.functions)
        self._weights: tuple[object, str] | None = None  # their version and their hash
        self._fingerprint: tuple[object, str] | None = None  # the chat template and the fingerprint
        self._given_tokenizer, self._warned = processing_class, False
        if self.model_id is not None:
            self._open()
            return
        self.config.check_live()
        if processing_class is None:
            raise RSRError(
                "Pass the student's tokenizer with a live model: RSRScorer(model, processing_class=tokenizer)."
            )
        self._student = Student(model, **self.config.some(READING))
        self._prepare(model.config, processing_class)

    def _open(self) -> None:
        """Find the named student's config and tokenizer; its weights are loaded when first needed."""
        self._student = self._weights = self._fingerprint = None
        hub = self.config.some(("revision", "trust_remote_code"))
        self._prepare(*loading.find_config_and_tokenizer(self.model_id, self._given_tokenizer, **hub))

    def _prepare(self, config: PreTrainedConfig, processing_class: PreTrainedTokenizerBase | ProcessorMixin) -> None:
        if self.config.engine is not None:
            self._others.check_engine(self.config.engine)
        self.max_length = self.config.length_for(num_positions(config), self.model_id)
        self._commit_hash = getattr(config, "_commit_hash", None)
        is_own, parts = self._given_tokenizer is None, (config, self.model_id, processing_class)
        self._readers = Readers(self.config, *parts, is_own, self.max_length, self.scores)
        self.tokenize = self._readers.text

    @property
    def processing_class(self) -> PreTrainedTokenizerBase:
        """The student's tokenizer."""
        return self.tokenize.processing_class

    def tokenize_as(self, column_names: Iterable[str]) -> None:
        """Tokenize rows of a dataset with these columns: those with images by the student's processor."""
        self.tokenize = self._readers.of(column_names)

    # ------------------------------------------------------------------------------------------- as a map function

    def __call__(self, examples: Mapping, rank: int | None = None, features: Features | None = None) -> dict:
        """
        Score one example or a batch of them: the function to pass to `datasets.map`.

        Args:
            examples (mapping): One row (column -> value), or a batch (column -> list of values).
            rank (`int`, *optional*): Worker number, as `map(..., with_rank=True)` passes it: picks the worker's GPU.
            features (`Features`, *optional*): Types of the columns, where `examples` don't bring them.

        Returns:
            `dict` of the columns added.
        """
        if not isinstance(examples, Mapping):
            raise TypeError(
                f"map passed a {type(examples).__name__}, not columns: score a dataset in a table format with "
                "RSRScorer.score(dataset), which keeps the format, or take dataset.with_format(None)."
            )
        self.check_columns(examples.keys())
        check_none_stays(examples.keys(), self.schema)
        if rank is not None and self._student is None and torch.cuda.is_available():
            self.config = replace(self.config, device=f"cuda:{rank % torch.cuda.device_count()}")
        lazy = isinstance(examples, (LazyBatch, LazyRow))
        # Only what is needed: the other columns may hold images, and map copies what isn't looked at.
        texts = {n: stored(examples, n) if lazy else plain(examples[n]) for n in self.text_columns(examples)}
        batch = isinstance(examples, LazyBatch) if lazy else is_batch(texts, self.config.dataset_text_field)
        features = examples.formatter.features if lazy else features
        tokenized = self.tokenize(to_rows(texts) if batch else [texts], features)
        try:
            table = self.score_tokenized(tokenized)
        except (RSRError, FloatingPointError) as error:
            error.add_note(
                f"Rows are counted within the {len(tokenized)} that map passed; RSRScorer.score counts in the dataset."
            )
            raise
        self._warn_once(table, tokenized)
        # `datasets.map` takes a column's type from its first rows, which may all be null. Elsewhere, plain values.
        values = typed(table) if lazy else {name: column.to_pylist() for name, column in table.items()}
        return values if batch else {name: column[0] for name, column in values.items()}

    def _warn_once(self, table: dict[str, pa.Array], examples: Sequence[TokenizedExample]) -> None:
        """`map` has no end at which to count: the first rows with something to be said of give one warning."""
        if not self._warned and (gaps := describe_gaps(table, count_notes(examples))):
            self._warned = True
            logger.warning("So far, %s (Shown once; check rsr_error afterwards.)", " ".join(gaps))

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
            RSRError: if the columns aren't in a known format, or are scored already and `overwrite` isn't set; for a
                dataset with a transform (`with_transform`), as in SFTTrainer.
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
            size, given = BATCH_ROWS, {"features": dataset.features}
            return dataset.map(self, batched=True, batch_size=size, features=features, fn_kwargs=given)
        check_no_transform(dataset)
        self.student  # noqa: B018 - if it can't be loaded, that shows before the work, not after it
        with TokenBar(len(dataset)) as bar:
            table = self.score_rows(dataset, bar, notes=(notes := Counter()))
        for gap in describe_gaps(table, notes, name_row=True):
            logger.warning(gap)
        return in_format_of(dataset, add_columns(dataset.with_format(None), table), added=list(table))

    # ------------------------------------------------------------------------------------------------ the one path

    def score_rows(
        self, dataset: Dataset, bar: TokenBar, first_row: int = 0, notes: Counter | None = None
    ) -> dict[str, pa.ChunkedArray]:
        """
        The columns that scoring adds to these rows, in their order: window by window, sorted by length within each.
        `bar` counts the rows that are done, `notes` those with something to say of; messages count from `first_row`.
        """
        parts, notes = [], Counter() if notes is None else notes
        with closing(self.windows_of(dataset)) as windows:  # an error ends the tokenization ahead too
            for window in windows:
                bar.expect(len(window.examples), window.num_tokens)
                notes.update(count_notes(window.examples))
                parts.append(self.score_tokenized(window.examples, bar, first_row + window.first_row))
        return {name: pa.chunked_array([part[name] for part in parts], kind) for name, kind in self.schema.items()}

    def windows_of(self, dataset: Dataset) -> Iterator[Window]:
        """The rows, tokenized, in the windows in which they are scored."""
        check_no_transform(dataset)
        dataset = dataset.with_format(None).select_columns(self.text_columns(dataset.column_names))
        tokenize = partial(self.tokenize, features=dataset.features)
        if self.tokenize is self._readers.text:
            return windows(dataset, tokenize)
        return windows(undecoded(dataset), tokenize, rows_at_once=ROWS_WITH_IMAGES)

    def score_tokenized(
        self, examples: Sequence[TokenizedExample], bar: TokenBar | None = None, first_row: int = 0
    ) -> dict[str, pa.Array]:
        """
        Typed columns for tokenized examples, in their order. `bar` counts the examples that are done; messages count
        rows from `first_row`.
        """
        tokens = self.student.score(
            examples,
            with_top1=self.token_stats,
            with_moments="moments" in self._others.needs,
            first_row=first_row,
            progress=None if bar is None else bar.update,
        )
        if bar is not None:
            bar.update(sum(example.error is not None for example in examples), 0)
        others, bos = self._others, self.processing_class.bos_token_id
        tokens = others.scored_tokens(examples, tokens, self.r_max, self.student, bos, first_row=first_row)
        return to_table(examples, tokens, others.functions, self.schema, self.fingerprint)

    # ------------------------------------------------------------------------------------------------- the student

    @property
    def student(self) -> Student:
        """The student, loaded when first needed."""
        if self._student is None:
            self._loaded = self._checkpoint()
            if self.config.engine is not None:
                hub = self.config.some(("revision", "trust_remote_code", "dtype"))
                self._student = self.config.engine.open(self.model_id, self.processing_class, self._loaded, **hub)
                return self._student
            kwargs = {name: value for name, value in self.config.some(LOADING).items() if value is not None}
            model = loading.load_model(self.model_id, **kwargs)
            self._student = Student(model, **self.config.some(READING))
        return self._student

    @property
    def fingerprint(self) -> str:
        """Short name of the student as it is now, with the settings that change scores: the `rsr_student` column."""
        # map asks at every row and hashing takes long: only what is quickly seen to have changed is hashed again.
        version = self.student.weights_version() if self.model_id is None else None
        if self._weights is None or self._weights[0] != version:
            self._weights, self._fingerprint = (version, self.student.weights_fingerprint()), None
        version = (self.processing_class.chat_template, self.written_day, self.tokenize)
        if self._fingerprint is None or self._fingerprint[0] != version:
            settings = self.config.some(OF_THE_SCORE) | self._readers.fingerprint(self.tokenize)
            if self.written_day is not None:
                settings["day"] = self.written_day
            if self.config.engine is not None:
                settings["engine"] = str(self.config.engine)
            name = student_fingerprint(self._weights[1], self.student.dtype, self.processing_class, **settings)
            self._fingerprint = (version, name)
        return self._fingerprint[1]

    @property
    def written_day(self) -> str | None:
        """The day that the chat template writes into every conversation; `None` for most templates."""
        return self.tokenize.written_day

    def set_day(self, day: str) -> None:
        """Go on with the day of an earlier scoring."""
        self.config = replace(self.config, day=day)
        self._readers.set_day(day)
        self._fingerprint = None

    def identity(self) -> dict[str, str | int | float | bool | None]:
        """
        Everything that decides the columns: student, tokenizer with its template, and settings, as JSON holds them.
        The cache of `datasets.map`, worker processes and the manifest of a job compare it. A named student isn't
        loaded for it: its checkpoint counts.
        """
        settings = {name: value for name, value in vars(self.config).items() if name not in NEUTRAL}
        plain_types = (str, int, float, type(None))
        return {
            **{name: value if isinstance(value, plain_types) else str(value) for name, value in settings.items()},
            "definition": DEFINITION,
            "weights": self.fingerprint if self.model_id is None else self._checkpoint(),
            **self._readers.identity(),
            "max_length": self.max_length,
            "scores": ", ".join(self.scores),
            "day": self.written_day,
            **({} if self.config.engine is None else {"engine": str(self.config.engine)}),
        }

    def _checkpoint(self) -> str:
        return checkpoint_fingerprint(self.model_id, self._commit_hash)

    def _look_again(self) -> None:
        """Forget what may have changed: a live student trained, a checkpoint replaced in its folder, tokens added."""
        self._fingerprint = None
        if self.model_id is None:
            self._weights = None  # some training loops change weights in ways that leave no trace
        elif self._student is not None and self._loaded != self._checkpoint():
            self._open()

    def __reduce__(self) -> tuple:
        # What `datasets` hashes to find cached results, in this and in other processes, and what goes to workers: the
        # identity, and no weights.
        self._look_again()
        self.tokenize_as(())  # the same before the first rows with images and after them
        identity = json.dumps(self.identity())
        if self.model_id is None:
            return partial, (loading.refuse_live_model, identity)
        settings = vars(self.config) | {"day": self.written_day}
        return _rebuild, (identity, self.model_id, self._given_tokenizer, settings)

    def __repr__(self) -> str:
        bits = loading.weight_bits(self.model_id, self.config.revision)
        weights, student = "" if bits is None else f" ({bits}-bit weights)", self.model_id or type(self._student.model)
        return f"RSRScorer({student!r}{weights}, max_length={self.max_length}{self.config})"

    def __copy__(self) -> "RSRScorer":
        return RSRScorer(self.model_id or self._student.model, self._given_tokenizer, **vars(self.config))

    def __deepcopy__(self, memo: dict) -> "RSRScorer":
        parts = (self.model_id or self._student.model, self._given_tokenizer)
        return RSRScorer(*copy.deepcopy(parts, memo), **vars(self.config))

    # ------------------------------------------------------------------------------------------------------ checks

    def text_columns(self, column_names: Iterable[str]) -> list[str]:
        """Those columns that decide what is scored."""
        names = {*FORMAT_COLUMNS, *IMAGES, self.config.dataset_text_field}
        return [name for name in column_names if name in names]

    def check_columns(self, column_names: Iterable[str]) -> None:
        """Raise `RSRError` unless a dataset with these columns can be scored."""
        present = scores_among(column_names, self.schema)
        if present and not self.config.overwrite:
            raise RSRError(
                f"The dataset already has the columns {present}. Pass overwrite=True to replace them, or remove them."
            )
        self.tokenize_as(column_names)
        self.tokenize.check_columns(column_names)


# Editors and `help` show the settings by name.
_own = list(signature(RSRScorer).parameters.values())[:-1]
RSRScorer.__signature__ = signature(RSRScorer).replace(
    parameters=[*_own, *signature(ScoringConfig).parameters.values()]
)


def _rebuild(identity: str, model_id: str, processing_class: object | None, settings: dict) -> RSRScorer:
    """A named student's scorer in a worker process; `identity` is there to be hashed."""
    return RSRScorer(model_id, processing_class, **settings)
