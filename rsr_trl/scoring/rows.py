"""Rows and columns on their way into a scorer and out of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, IterableDataset

from rsr_trl.rsr import (
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
    rsr_from_means,
    score_schema,
)
from rsr_trl.scoring.passes import joined
from rsr_trl.scoring.scores import ALL_COLUMNS, ScoredTokens
from rsr_trl.scoring.student import TokenScores
from rsr_trl.scoring.tokens import TokenizedExample


_TOKEN_FIELDS = {
    TOKEN_IDS: "token_ids",
    TOKEN_RANKS: "ranks",
    TOKEN_SURPRISALS: "surprisals",
    TOKEN_TOP1: "top1",
}


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
    """How many rows are null or cut, and why; nothing when there are none."""
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
