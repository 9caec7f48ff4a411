"""Columns of a dataset as NumPy arrays, checked: what every choice here starts from.

It knows names and types of columns, and nothing of what is chosen with them. No row is ever touched in Python.
"""

from collections.abc import Iterable
from difflib import get_close_matches

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from rsr_trl import columns


def read_table(dataset: Dataset, names: Iterable[str | None]) -> pa.Table:
    """
    Read the named columns of `dataset` at once, in the dataset's own order.

    Args:
        dataset (`Dataset`): Any format set on it is ignored.
        names (iterable of `str` or `None`): Columns to read; `None` entries are skipped.

    Raises:
        `TypeError` for anything but a [`~datasets.Dataset`]; `ValueError` for a column that isn't there.
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"Comparing trajectories needs all of them at once: pass a datasets.Dataset, not {type(dataset).__name__}."
        )
    wanted = list(dict.fromkeys(name for name in names if name is not None))
    for name in wanted:
        if name not in dataset.column_names:
            close = get_close_matches(name, dataset.column_names, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            if name in columns.SCORE_COLUMNS:
                hint = " Score it first with RSRScorer(student).score(dataset) or `rsr score`."
            raise ValueError(f"The dataset has no column {name!r}; its columns are {dataset.column_names}.{hint}")
    table = dataset.data.table.select(wanted)
    # A shuffled or filtered dataset is an index over its table. Reading through it gathers row by row, and leaves one
    # chunk a row: one take of the few columns wanted is more than ten times faster.
    return table if dataset._indices is None else table.take(dataset._indices.column(0))


def check_one_student(dataset: Dataset) -> None:
    """Raise `ValueError` where rows were scored by different students: their scores can't be compared."""
    if columns.STUDENT not in dataset.column_names:
        return
    students = pc.unique(read_table(dataset, [columns.STUDENT])[columns.STUDENT]).drop_null().to_pylist()
    if len(students) > 1:
        raise ValueError(
            f"The rows were scored by {len(students)} different students or settings ({columns.STUDENT}: "
            f"{', '.join(map(repr, students[:3]))}{', ...' if len(students) > 3 else ''}), and such scores can't be "
            "compared. Score all rows with one student, or filter the dataset to one."
        )


def numbers(table: pa.Table, name: str) -> np.ndarray:
    """The column as float64 of shape `(n,)`, null as NaN. `ValueError` unless it holds numbers."""
    column = table[name]
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan)
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise ValueError(f"Column {name!r} must hold numbers, but it is {column.type}.")
    return column.cast(pa.float64(), safe=False).to_numpy()


def flags(table: pa.Table, name: str) -> np.ndarray:
    """The column as booleans of shape `(n,)`, null as False. `ValueError` unless it holds booleans, or 0 and 1."""
    column = table[name]
    if pa.types.is_integer(column.type) and set(pc.unique(column).to_pylist()) <= {0, 1, None}:
        column = column.cast(pa.bool_())  # as files without a type for booleans have them
    if not (pa.types.is_boolean(column.type) or pa.types.is_null(column.type)):
        raise ValueError(f"Column {name!r} must hold true or false, but it is {column.type}.")
    return pc.fill_null(column.cast(pa.bool_()), False).to_numpy()


def labels(table: pa.Table, name: str) -> tuple[np.ndarray, list]:
    """
    The column as group numbers.

    Returns:
        int64 array of shape `(n,)`, and the distinct labels that the numbers index, in ascending order.

    Raises:
        `ValueError` for nulls, and for values that can't name a group (lists, structs).
    """
    column = table[name]
    if pa.types.is_nested(column.type):
        raise ValueError(f"Column {name!r} must hold strings or whole numbers to group by, but it is {column.type}.")
    if column.null_count:
        first = pc.index(column.is_null(), True).as_py()
        raise ValueError(
            f"Column {name!r} is null in {column.null_count} of {len(column)} rows (the first is row {first}): every "
            "trajectory needs its group. Fill it in or filter those rows out."
        )
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    encoded = column.dictionary_encode().combine_chunks()
    # Ascending labels make every result independent of the order of the rows.
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank[encoded.indices.to_numpy(zero_copy_only=False)], encoded.dictionary.take(pa.array(order)).to_pylist()


def place_in_run(keys: np.ndarray) -> np.ndarray:
    """Place of each element within its run of equal keys: `[a a b] -> [0 1 0]`."""
    index = np.arange(len(keys))
    starts = np.ones(len(keys), dtype=bool)
    starts[1:] = keys[1:] != keys[:-1]
    return index - np.maximum.accumulate(np.where(starts, index, 0))


def examples(names: list, limit: int = 5) -> str:
    """A few of `names` for a message."""
    return ", ".join(map(repr, names[:limit])) + (", ..." if len(names) > limit else "")


def counted(number: int, thing: str) -> str:
    """`1 teacher`, `2 teachers`, `2 trajectories`."""
    if thing.endswith("y") and number != 1:
        return f"{number:,} {thing[:-1]}ies"
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
