"""Scoring as a step of a datatrove pipeline: on one machine, a Slurm cluster, Ray or HF Jobs, as its executor says.

Knows datatrove's documents and the scorer, and leaves tasks, files and resume to datatrove.
"""

from collections.abc import Callable, Mapping
from datetime import date
from itertools import islice

import pyarrow as pa
import torch
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from rsr_trl.formats import with_known_roles
from rsr_trl.rsr import ERROR, NUM_TOKENS, RSRError, score_schema
from rsr_trl.scoring.rows import scores_among
from rsr_trl.scoring.scorer import RSRScorer
from rsr_trl.scoring.scores import check_scores, column_functions
from rsr_trl.scoring.settings import ScoringConfig


def as_example(document: Document) -> dict:
    """
    A document as a row in a format of SFTTrainer: `messages` or `conversations` of its metadata; or `prompt` of its
    metadata with `completion`, which is the document's text where the metadata has none; or its text alone.
    """
    given = {name: value for name, value in document.metadata.items() if value is not None}
    kind = next((name for name in ("messages", "conversations", "prompt") if name in given), None)
    if kind is None:
        return {"text": document.text}
    row = {name: given[name] for name in (kind, "tools", "chat_template_kwargs") if name in given}
    if kind == "conversations":
        row[kind] = with_known_roles(row[kind])
    return {**row, "completion": given.get("completion", document.text)} if kind == "prompt" else row


class ScoreRSR(PipelineStep):
    """
    Adds the columns of [`RSRScorer`] to the metadata of documents. A lower RSR suits the student better.

    Each task loads the student once and scores documents in windows, in their order. Documents that can't be scored
    get nulls and their reason in `rsr_error`; the step's stats count `scored`, `unscored` and `scored_tokens`.

    Args:
        student (`str`): Hub id or path.
        adapter (`Callable`, *optional*):
            Makes a row (`dict`) in a format of SFTTrainer of a [`~datatrove.data.Document`]. Defaults to
            [`as_example`].
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*): The student's tokenizer.
        window (`int`, *optional*, defaults to `512`): Documents that are sorted by length and scored together.
        settings: Those of [`RSRScorer`]. `day` defaults to the day on which the step is made, for all of its tasks.

    Raises:
        RSRError: for settings that are wrong whatever the documents are; and from a task, for documents that have
            scores already (`overwrite=True` replaces them) or have no known format.

    Example:

    ```python
    >>> from datatrove.executor import LocalPipelineExecutor
    >>> from datatrove.pipeline.readers import JsonlReader
    >>> from datatrove.pipeline.writers import JsonlWriter
    >>> from rsr_trl.integrations.datatrove import ScoreRSR

    >>> steps = [JsonlReader("pool", text_key="completion"), ScoreRSR("Qwen/Qwen3-0.6B"), JsonlWriter("scored")]
    >>> LocalPipelineExecutor(steps, tasks=8, workers=2, logging_dir="logs").run()
    ```
    """

    name = "📐 Rank-Surprisal Ratio"
    type = "📊 - SCORER"

    def __init__(
        self,
        student: str,
        adapter: Callable[[Document], Mapping] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        window: int = 512,
        **settings,
    ):
        super().__init__()
        if not isinstance(student, str):
            raise RSRError(f"student must be a hub id or a path, which each task loads, got {type(student).__name__}.")
        if window < 1:
            raise RSRError(f"window must be at least 1 document, got {window}.")
        # Wrong settings show here, before tasks are queued.
        config = ScoringConfig(**settings)
        self.columns = score_schema(config.token_stats, column_functions(check_scores(config.scores)))
        self.student, self.processing_class, self.window = student, processing_class, window
        self.adapter = as_example if adapter is None else adapter
        self.settings = {"day": str(date.today()), **settings}

    def schema(self, **columns: pa.DataType) -> pa.Schema:
        """
        Types of the output for `ParquetWriter(schema=..., expand_metadata=True)`, which else takes them from its first
        document, where `rsr_error` is null: `text`, `id`, the metadata that you name with their types, and RSR's.
        """
        return pa.schema({"text": pa.string(), "id": pa.string(), **columns, **self.columns})

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Score the documents of one task and yield them in their order."""
        scorer, documents = self._scorer(rank), iter(data)
        while window := list(islice(documents, self.window)):
            with self.track_time("window"):
                self._score(scorer, window)
            yield from window

    def _scorer(self, rank: int) -> RSRScorer:
        settings = dict(self.settings)
        if not {"device", "device_map"} & set(settings) and torch.cuda.device_count() > 1:
            settings["device"] = f"cuda:{rank % torch.cuda.device_count()}"  # workers of one machine share its GPUs
        scorer = RSRScorer(self.student, self.processing_class, **settings)
        shown = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()  # it would go into the logs of each task
        try:
            scorer.student  # noqa: B018 - loaded
        finally:
            if shown:
                transformers_logging.enable_progress_bar()
        return scorer

    def _score(self, scorer: RSRScorer, window: list[Document]) -> None:
        """Add the columns to these documents' metadata."""
        rows = [dict(self.adapter(document)) for document in window]
        for document, row in zip(window, rows, strict=True):
            stale = scores_among(document.metadata, self.columns)
            try:
                scorer.check_columns([*row, *stale])
            except RSRError as error:
                raise RSRError(f"Document {document.id!r}: {error}") from error
            for name in stale:
                del document.metadata[name]
        table = scorer.score_tokenized(scorer.tokenize(rows))
        columns = {name: column.to_pylist() for name, column in table.items()}
        for i, document in enumerate(window):
            document.metadata |= {name: values[i] for name, values in columns.items()}
        unscored = sum(error is not None for error in columns[ERROR])
        for label, value in (("scored", len(window) - unscored), ("unscored", unscored)):
            if value:
                self.stat_update(label, value=value)
        self.stat_update("scored_tokens", value=sum(columns[NUM_TOKENS]), unit="window")
