"""Rows of a dataset on their way into a scorer, and columns on their way out.

In: rows become tokens window by window; one is scored while the next is tokenized in the background. Sorting by length
happens within a window, so memory depends on the window and not on the dataset. Where windows end depends on rows and
tokens alone. Out: flat arrays become typed columns. This file knows no student.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice, product
from threading import Event

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, Image, IterableDataset, LargeList, List
from datasets.formatting.formatting import LazyBatch, LazyRow
from datasets.utils import tqdm

from rsr_trl.formats import IMAGES
from rsr_trl.rsr import (
    CONTENT,
    ERROR,
    MEAN_CLIPPED_RANK,
    MEAN_SURPRISAL,
    NUM_TOKENS,
    RSR,
    STUDENT,
    TOKEN_IDS,
    TOKEN_RANKS,
    TOKEN_SURPRISALS,
    TOKEN_TOP1,
    TRUNCATED,
    RSRError,
    rsr_from_means,
    score_schema,
)
from rsr_trl.scoring.batches import TOKENIZED_ROWS, WINDOW_TOKENS
from rsr_trl.scoring.own_text import LOST
from rsr_trl.scoring.pictures import tokens_of_images
from rsr_trl.scoring.scores import ALL_COLUMNS, ScoredTokens, content_name, content_of
from rsr_trl.scoring.tokens import NO_TEMPLATE, SECOND_BOS, TokenizedExample


_BAD_TYPE = (ValueError, TypeError, OverflowError)


# ---------------------------------------------------------------------------------------------------------- rows in


def with_features(dataset: IterableDataset, num_rows: int = 256) -> IterableDataset:
    """A stream that knows the types of its columns; where nobody says, its first rows decide."""
    if dataset.features is not None:
        return dataset
    first = next_rows(iter(dataset), num_rows)
    if not first:
        raise RSRError("The dataset is empty: it holds no row.")
    return dataset.cast(Dataset.from_list(first, on_mixed_types="use_json").features)


def next_rows(stream: Iterator[dict], count: int, first_row: int = 0) -> list[dict]:
    """The next rows of a stream; raises `RSRError` where the types of a file change."""
    try:
        return list(islice(stream, count))
    except RSRError:
        raise
    except _BAD_TYPE as error:  # of `datasets`, which takes the types of the first 10 MB for those of all
        raise RSRError(
            f"Row {first_row} or a later one doesn't have the types of the first rows: {error}. Fix it, or read the "
            "dataset without --dataset_streaming."
        ) from error


def typed_rows(rows: list[dict], features: Features, first_row: int) -> Dataset:
    """Rows of a stream as a dataset; raises `RSRError` with the first that hasn't the types of `features`."""
    try:
        return Dataset.from_list(rows, features=features)
    except _BAD_TYPE as error:
        for (row, values), (name, kind) in product(enumerate(rows, first_row), features.items()):
            try:
                Dataset.from_list([{name: values[name]}], features=Features({name: kind}))
            except _BAD_TYPE as reason:
                raise RSRError(
                    f"Row {row}, column {name!r}, doesn't have the type of the first rows, {kind}: {reason}. Fix the "
                    "row, or read the dataset without --dataset_streaming."
                ) from error
        raise


@dataclass(frozen=True)
class Window:
    """Consecutive rows that are sorted and scored together: the position of the first, and all in source order."""

    first_row: int
    examples: list[TokenizedExample]

    @property
    def num_tokens(self) -> int:
        return sum(len(example.input_ids) for example in self.examples if not example.error)


def windows(
    dataset: Dataset,
    tokenize: Callable[[Sequence[dict]], list[TokenizedExample]],
    window_tokens: int = WINDOW_TOKENS,
    *,
    rows_at_once: int = TOKENIZED_ROWS,
) -> Iterator[Window]:
    """
    Tokenize a dataset that has no columns but those that `tokenize` reads, window by window, in source order. While
    one window is looked at, the next is tokenized in a background thread. The call of `tokenize`, with `rows_at_once`,
    that reaches `window_tokens` ends a window.
    """
    stopped = Event()
    tokenized = _tokenized(dataset, tokenize, window_tokens, rows_at_once, stopped)
    with ThreadPoolExecutor(1, "rsr-tokenize") as background:
        try:
            ahead = background.submit(next, tokenized, None)
            while (window := ahead.result()) is not None:
                ahead = background.submit(next, tokenized, None)
                yield window
        finally:
            stopped.set()


def _tokenized(
    dataset: Dataset, tokenize: Callable, window_tokens: int, rows_at_once: int, stopped: Event
) -> Iterator[Window]:
    first, examples, tokens, pictures = 0, [], 0, []
    for start in range(0, len(dataset), rows_at_once):
        if stopped.is_set():  # nobody waits for the rest
            return
        more = tokenize(to_rows(dataset[start : start + rows_at_once]))
        examples += more
        tokens += sum(len(example.input_ids) for example in more)
        pictures += [example.pictures for example in more if example.pictures is not None]
        if tokens + tokens_of_images(pictures) >= window_tokens:
            yield Window(first, examples)
            first, examples, tokens, pictures = first + len(examples), [], 0, []
    if examples:
        yield Window(first, examples)


def check_no_transform(dataset: Dataset) -> None:
    """Raise `RSRError` for a dataset whose rows are computed when they are read: its columns aren't what it shows."""
    if dataset.format["type"] == "custom":
        raise RSRError(
            "The dataset has a transform (Dataset.with_transform), and scoring reads the columns below it: other text "
            "than the rows show. Apply it first with dataset.map(transform, batched=True), or take it off with "
            "dataset.with_format(None)."
        )


def undecoded(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """
    The dataset with its images as they are stored: opened one by one, a broken one fails alone; and what was opened
    would be written in another quality.
    """
    features = Features({name: _undecoded(kind) for name, kind in dataset.features.items()})
    if features == dataset.features:
        return dataset
    return of_types(dataset, features) if isinstance(dataset, Dataset) else dataset.cast(features)


def _undecoded(kind):
    if isinstance(kind, Image):
        return replace(kind, decode=False)
    return replace(kind, feature=_undecoded(kind.feature)) if isinstance(kind, (List, LargeList)) else kind


def of_types(dataset: Dataset, features: Features) -> Dataset:
    """The dataset with types that are stored alike: what [`Dataset.cast`] does, without reading every row."""
    if features == dataset.features:
        return dataset
    info = dataset.info.copy()
    info.features = features
    table = dataset.data.cast(features.arrow_schema)
    return Dataset(table, info=info, split=dataset.split, indices_table=dataset._indices)


def to_rows(batch: Mapping[str, Sequence]) -> list[dict]:
    """Columns to rows."""
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def stored(row_or_batch: LazyRow | LazyBatch, name: str) -> object:
    """A column of what `map` passes; images as they are stored: one that can't be opened would break them all."""
    if name not in IMAGES or name not in row_or_batch.keys_to_format:
        return row_or_batch[name]
    values = row_or_batch.pa_table[name].to_pylist()
    return values if isinstance(row_or_batch, LazyBatch) else values[0]


def plain(value: object) -> object:
    """Python's own types instead of those of the numpy and torch formats."""
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list) else value


def is_batch(texts: Mapping, text_field: str) -> bool:
    """Whether columns hold a batch (lists of values) rather than one row."""
    names = [name for name in ("messages", "conversations", "prompt", "completion", text_field) if name in texts]
    # In one row a list holds messages; in a batch it holds lists of messages, strings or nulls, and is never empty.
    return all(isinstance(texts[n], list) and texts[n] and not isinstance(texts[n][0], Mapping) for n in names)


class TokenBar:
    """
    A progress bar in tokens, with tokens/s and the time left. How many tokens there are in all is estimated from the
    rows seen so far and `num_rows` in all; without it no time left is shown. `disable` shows nothing, but counts.
    """

    def __init__(self, num_rows: int | None, disable: bool = False):
        self.num_rows = num_rows
        self._bar = tqdm(desc="Scoring", unit=" tokens", unit_scale=True, smoothing=0, disable=disable)
        self._seen_rows = self._seen_tokens = 0
        self.rows = self.tokens = self.tokens_read = 0

    def expect(self, rows: int, tokens: int) -> None:
        """These rows are known to have these tokens; they are still to be scored."""
        self._seen_rows += rows
        self._seen_tokens += tokens
        if self.num_rows is not None and not self._bar.disable:
            self._bar.total = round(self._seen_tokens * self.num_rows / self._seen_rows)
            self._bar.refresh()

    def update(self, rows: int, tokens: int, tokens_read: int = 0) -> None:
        """These have been scored; the student has read so many tokens for it."""
        self.rows += rows
        self.tokens += tokens
        self.tokens_read += tokens_read
        self._bar.set_postfix_str(f"{self.rows:,} trajectories", refresh=False)
        self._bar.update(tokens)

    def found_done(self, rows: int, tokens: int) -> None:
        """An earlier run has scored these: they count, but not for the speed."""
        self.expect(rows, tokens)
        self.rows += rows
        self.tokens += tokens
        if not self._bar.disable:
            self._bar.n += tokens
            self._bar.initial += tokens
            self._bar.refresh()

    def __enter__(self) -> "TokenBar":
        return self

    def __exit__(self, *error) -> None:
        self._bar.close()


# ------------------------------------------------------------------------------------------------------ columns out


def scores_among(column_names: Iterable[str], asked: Iterable[str] = ()) -> list[str]:
    """
    Columns of an earlier scoring, and those `asked` for now. Without a scoring, a column that is called as one of ours
    and isn't asked for is the user's own.
    """
    present = set(column_names)
    ours = score_schema(token_stats=True)
    others = ALL_COLUMNS if present & set(ours) else asked
    return [name for name in score_schema(True, others) if name in present]


def check_none_stays(column_names: Iterable[str], schema: Mapping) -> None:
    """Raise `RSRError` where `map` would leave columns of an earlier scoring beside those of this one."""
    if stale := sorted(set(scores_among(column_names)) - set(schema)):
        raise RSRError(
            f"The dataset has {stale} of an earlier scoring, and map can't drop columns: ask for them again "
            "(token_stats=True, scores=[...]), remove them first, or use RSRScorer.score(dataset)."
        )


def in_format_of(dataset: Dataset, result: Dataset, added: list[str]) -> Dataset:
    """The result in the dataset's format (numpy, torch, ...), with the columns that were added shown too."""
    given = dataset.format
    shown = {"columns": [*given["columns"], *added], "output_all_columns": given["output_all_columns"]}
    return result.with_format(given["type"], **shown, **given["format_kwargs"])


def without_scores(dataset: Dataset | IterableDataset, asked: Iterable[str] = ()) -> Dataset | IterableDataset:
    """The dataset without the columns of an earlier scoring, and without those `asked` for."""
    stale = scores_among(dataset.column_names, asked)
    return dataset.remove_columns(stale) if stale else dataset


def add_columns(dataset: Dataset, table: Mapping[str, pa.Array | pa.ChunkedArray]) -> Dataset:
    """The dataset with typed columns added at the end."""
    for name, column in table.items():
        dataset = dataset.add_column(name, column)
    return dataset


def to_table(
    examples: Sequence[TokenizedExample],
    tokens: ScoredTokens,
    functions: Mapping[str, Callable[[ScoredTokens], np.ndarray]],
    schema: Mapping[str, pa.DataType],
    fingerprint: str,
) -> dict[str, pa.Array]:
    """
    The columns of a scoring pass, typed as `schema` says, in the order of the rows. `functions` compute the columns of
    other scores, where NaN becomes null.
    """
    null = np.array([example.error is not None for example in examples], dtype=bool)
    mean_rank, mean_surprisal = tokens.means_of_rsr
    values = {
        RSR: (rsr_from_means(mean_rank, mean_surprisal), null),
        MEAN_CLIPPED_RANK: (mean_rank, null),
        MEAN_SURPRISAL: (mean_surprisal, null),
        NUM_TOKENS: (tokens.num_tokens, None),
        TRUNCATED: ([example.truncated for example in examples], None),
        ERROR: ([example.error for example in examples], None),
        STUDENT: ([fingerprint] * len(examples), None),
        CONTENT: ([_content(example) for example in examples], None),
    }
    for name, function in functions.items():
        score = function(tokens)
        values[name] = (score, null | np.isnan(score))
    table = {name: pa.array(value, schema[name], mask=mask) for name, (value, mask) in values.items()}
    ends = pa.array(np.cumsum([0, *tokens.num_tokens], dtype=np.int32))
    flat = {
        TOKEN_IDS: tokens.token_ids,
        TOKEN_RANKS: tokens.ranks,
        TOKEN_SURPRISALS: tokens.surprisals,
        TOKEN_TOP1: tokens.top1,
    }
    for name in flat.keys() & schema.keys():
        table[name] = pa.ListArray.from_arrays(ends, pa.array(flat[name], schema[name].value_type))
    return {name: table[name] for name in schema}


def _content(example: TokenizedExample) -> str | None:
    return None if example.error is not None else content_name(content_of(example))


def typed(table: dict[str, pa.Array]) -> dict[str, list]:
    """Columns as lists whose nulls keep their type: `map` takes a column's type from its first rows."""
    return {
        name: [v.values.to_numpy(zero_copy_only=False) for v in column]
        if pa.types.is_list(column.type)
        else list(column)
        for name, column in table.items()
    }


def count_notes(examples: Iterable[TokenizedExample]) -> Counter[str]:
    """How many trajectories have which of the notes of [`TokenizedExample`]."""
    return Counter(note for example in examples for note in example.notes)


def describe_notes(notes: Mapping[str, int], num_rows: int, what: str = "trajectories") -> list[str]:
    """What a user has to know of trajectories that have a score; nothing where there is nothing."""
    lines, lost = [], [kind for kind in LOST if notes.get(kind)]
    if lost:
        others = "".join(f", {notes[kind]:,} their {kind}" for kind in lost[1:])
        lines.append(
            f"{notes[lost[0]]:,} of {num_rows:,} trajectories lose their {lost[0]}{others} in the student's chat "
            "template. The scores are of what it leaves, which is what SFTTrainer trains on."
        )
    if twice := notes.get(SECOND_BOS):
        lines.append(
            f"{twice:,} of {num_rows:,} trajectories begin with two beginning-of-sequence tokens, as in SFTTrainer: "
            "the text has one and the tokenizer adds its own. Remove it from the text."
        )
    if plain := notes.get(NO_TEMPLATE):
        lines.append(
            f"{plain:,} of {num_rows:,} {what} are plain text: the student's chat template isn't applied. For an "
            "instruct student, turn them into chats with --as_chat (in Python: "
            "rsr_trl.data.as_trl_format(dataset, as_chat=True))."
        )
    return lines


def describe_gaps(table: dict[str, pa.Array], notes: Mapping[str, int], name_row: bool = False) -> list[str]:
    """How many rows are null or cut, and why, and the `notes`; nothing when there are none."""
    errors, cut = table[ERROR].to_pylist(), sum(table[TRUNCATED].to_pylist())
    gaps = []
    failed = [row for row, error in enumerate(errors) if error is not None]
    if failed:
        first = f"row {failed[0]}: {errors[failed[0]]}" if name_row else errors[failed[0]]
        gaps.append(
            f"{len(failed)} of {len(errors)} rows couldn't be scored: their rsr is null, rsr_error says why ({first})."
        )
    if cut:
        gaps.append(
            f"{cut} of {len(errors)} rows were cut at max_length (column rsr_truncated); what is left is scored."
        )
    return gaps + describe_notes(notes, len(errors))
