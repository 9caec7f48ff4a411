"""Rows and columns on their way into a scorer and out of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice, product

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, IterableDataset

from rsr_trl.rsr import (
    ERROR,
    MEAN_CLIPPED_RANK,
    MEAN_SURPRISAL,
    NUM_TOKENS,
    RSR,
    SCORE_PREFIX,
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
from rsr_trl.scoring.other_scores import joined
from rsr_trl.scoring.scored_tokens import ScoredTokens
from rsr_trl.scoring.scores import ALL_COLUMNS
from rsr_trl.scoring.student import TokenScores
from rsr_trl.scoring.tokens import TokenizedExample


_PROVENANCE = SCORE_PREFIX + "provenance"
_TOKEN_FIELDS = {
    TOKEN_IDS: "token_ids",
    TOKEN_RANKS: "ranks",
    TOKEN_SURPRISALS: "surprisals",
    TOKEN_TOP1: "top1",
}


class SlimRows:
    """
    Rows of a dataset, as slices of it are, without `top_logprobs` in one column: nobody reads them, and as Python
    objects they take gigabytes.

    Args:
        dataset (`Dataset`): Without a format.
        column (`str`): The column with log-probabilities.
    """

    def __init__(self, dataset: Dataset, column: str):
        self._others, self._column = dataset.remove_columns(column), column
        self._said = dataset.select_columns(column).with_format("arrow")
        self._kind = _slim(dataset.data.schema.field(column).type)

    def __len__(self) -> int:
        return len(self._said)

    def __getitem__(self, rows: slice) -> dict[str, list]:
        return self._others[rows] | {self._column: self._said[rows][self._column].cast(self._kind).to_pylist()}


def _slim(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_slim(field.type)) for field in kind if field.name != "top_logprobs"])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        make = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return make(_slim(kind.value_type))
    return kind


def scores_among(column_names: Iterable[str], asked: Iterable[str] = ()) -> list[str]:
    """
    Columns of an earlier scoring, and those `asked` for now. Without a scoring, a column that is called as one of ours
    and isn't asked for is the user's own.
    """
    present = set(column_names)
    ours = score_schema(token_stats=True)
    others = ALL_COLUMNS if present & set(ours) else asked
    return [name for name in score_schema(True, others) if name in present]


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
    scores: Sequence[TokenScores | None],
    tokens: ScoredTokens,
    functions: Mapping[str, Callable[[ScoredTokens], np.ndarray]],
    schema: Mapping[str, pa.DataType],
    fingerprint: str,
) -> dict[str, pa.Array]:
    """
    The columns of a scoring pass, typed, in the order of the rows.

    Args:
        examples (sequence of [`TokenizedExample`]): All rows.
        scores (sequence of [`TokenScores`]): Of each row; `None` where it has an error.
        tokens ([`ScoredTokens`]): The same, as flat arrays.
        functions (`dict`): The columns of other scores, and what computes each; NaN becomes null.
        schema (`dict`): Types of all columns; without the `rsr_token_...` columns those are left out.
        fingerprint (`str`): The student's.
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
    }
    for name, function in functions.items():
        found = function(tokens)
        values[name] = (found, null | np.isnan(found))
    table = {name: pa.array(value, schema[name], mask=mask) for name, (value, mask) in values.items()}
    # A row that failed has no tokens: an empty list.
    ends = np.cumsum([0, *tokens.num_tokens], dtype=np.int32)
    for name, field in _TOKEN_FIELDS.items():
        if name in schema:
            flat = pa.array(joined(scores, field), schema[name].value_type)
            table[name] = pa.ListArray.from_arrays(pa.array(ends), flat)
    return table


def typed(table: dict[str, pa.Array]) -> dict[str, list]:
    """Columns as lists whose nulls keep their type: `map` takes a column's type from its first rows."""
    return {
        name: [v.values.to_numpy(zero_copy_only=False) for v in column]
        if pa.types.is_list(column.type)
        else list(column)
        for name, column in table.items()
    }


def describe_gaps(table: dict[str, pa.Array], name_row: bool = False) -> list[str]:
    """How many rows are null or cut, or null in a score only, and why; nothing when there are none."""
    errors, cut = table[ERROR].to_pylist(), sum(table[TRUNCATED].to_pylist())
    findings = []
    failed = [row for row, error in enumerate(errors) if error is not None]
    if failed:
        first = f"row {failed[0]}: {errors[failed[0]]}" if name_row else errors[failed[0]]
        findings.append(
            f"{len(failed)} of {len(errors)} rows couldn't be scored: their rsr is null, rsr_error says why ({first})."
        )
    if cut:
        findings.append(
            f"{cut} of {len(errors)} rows were cut at max_length (column rsr_truncated); what is left is scored."
        )
    if _PROVENANCE in table and (unknown := table[_PROVENANCE].null_count - len(failed)):
        findings.append(
            f"{unknown} of {len(errors)} rows have no {_PROVENANCE}: what the teacher says of them is missing, of "
            "another text or in other steps."
        )
    return findings


def to_rows(batch: Mapping[str, Sequence]) -> list[dict]:
    """Columns to rows."""
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def plain(value: object) -> object:
    """Python's own types instead of what the numpy and torch formats make of them."""
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


_BAD_TYPE = (ValueError, TypeError, OverflowError)


def with_features(dataset: IterableDataset, num_rows: int = 256) -> IterableDataset:
    """A stream that knows the types of its columns; where nobody says, its first rows decide."""
    if dataset.features is not None:
        return dataset
    first = list(islice(iter(dataset), num_rows))
    if not first:
        raise RSRError("The dataset is empty: it holds no row.")
    return dataset.cast(Dataset.from_list(first, on_mixed_types="use_json").features)


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
