"""A dataset as fixed ranges of rows, one after another: what becomes a shard each.

Which rows make a part depends on data and settings alone, never on how many processes there are. A table on disk is
read where it is needed; a stream is read from its beginning, and what isn't needed of it is passed over.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from datasets import Dataset, Features, IterableDataset

from rsr_trl.scoring.batches import WINDOW_TOKENS
from rsr_trl.scoring.tokens import TokenizedExample


SAMPLE_ROWS = 256  # rows by whose lengths the parts are measured
MAX_PARTS = 2000  # about as many files as a folder on the Hub and a file system handle well
STREAM_WINDOWS = 4  # windows of a part where nobody knows how long the stream is


@dataclass(frozen=True)
class Part:
    """
    A range of rows.

    Args:
        index (`int`): Number of the part.
        first_row (`int`): Row of the dataset with which it begins.
        load (`Callable`): Gives its rows as a `Dataset`.
    """

    index: int
    first_row: int
    load: Callable[[], Dataset]


class Parts:
    """
    A dataset in parts.

    Args:
        dataset (`Dataset` or `IterableDataset`): To split.
        rows (`int`): Rows of a part; the last may have fewer.
        num_rows (`int`, *optional*): Rows in all, where a stream doesn't tell.

    Attributes:
        num_rows (`int` or `None`): Rows in all; of a stream, known when its end was seen.
    """

    def __init__(self, dataset: Dataset | IterableDataset, rows: int, num_rows: int | None = None):
        if rows < 1:
            raise ValueError(f"shard_rows must be at least 1, got {rows}.")
        self.dataset = dataset
        self.rows = rows
        self.num_rows = len(dataset) if isinstance(dataset, Dataset) else num_rows

    @property
    def count(self) -> int | None:
        return None if self.num_rows is None else -(-self.num_rows // self.rows)

    def __iter__(self) -> Iterator[Part]:
        if isinstance(self.dataset, IterableDataset):
            yield from self._of_stream()
            return
        for index, first in enumerate(range(0, self.num_rows, self.rows)):
            stop = min(first + self.rows, self.num_rows)
            yield Part(index, first, lambda first=first, stop=stop: self.dataset.select(range(first, stop)))

    def _of_stream(self) -> Iterator[Part]:
        stream, index, first = iter(self.dataset), 0, 0
        while rows := list(islice(stream, self.rows)):
            yield Part(index, first, lambda rows=rows, first=first: self._typed(rows, first))
            index, first = index + 1, first + len(rows)
        self.num_rows = first

    def _typed(self, rows: list[dict], first_row: int) -> Dataset:
        try:
            return Dataset.from_list(rows, features=self.dataset.features)
        except (ValueError, TypeError, OverflowError) as error:
            for i, row in enumerate(rows):
                for name, kind in self.dataset.features.items():
                    try:
                        Dataset.from_list([{name: row[name]}], features=Features({name: kind}))
                    except (ValueError, TypeError, OverflowError) as reason:
                        raise ValueError(
                            f"Row {first_row + i}, column {name!r}, doesn't have the type of the first rows, {kind}: "
                            f"{reason}. Mend the row, or read the dataset without --dataset_streaming."
                        ) from error
            raise


def with_features(dataset: IterableDataset) -> IterableDataset:
    """A stream that knows the types of its columns; where nobody says, its first rows decide."""
    if dataset.features is not None:
        return dataset
    first = list(islice(iter(dataset), SAMPLE_ROWS))
    if not first:
        raise ValueError("The dataset is empty: it holds no row.")
    return dataset.cast(Dataset.from_list(first, on_mixed_types="use_json").features)


def sample(dataset: Dataset | IterableDataset) -> Dataset:
    """Some rows that stand for all: evenly spread, or a stream's first."""
    if isinstance(dataset, Dataset):
        step = max(1, len(dataset) // SAMPLE_ROWS)
        return dataset.select(range(0, len(dataset), step)[:SAMPLE_ROWS])
    rows = list(islice(iter(dataset), SAMPLE_ROWS))
    return Dataset.from_list(rows, features=dataset.features)


def rows_of_part(dataset: Dataset | IterableDataset, examples: list[TokenizedExample]) -> int:
    """
    Rows of a part so that it is a window or some: small enough that a killed process loses minutes, and few enough
    parts for a folder. `examples` are the [`sample`], tokenized.
    """
    mean = max(1.0, sum(len(example.input_ids) for example in examples) / max(1, len(examples)))
    tokens = STREAM_WINDOWS * WINDOW_TOKENS
    if isinstance(dataset, Dataset):
        tokens = max(WINDOW_TOKENS, mean * len(dataset) / MAX_PARTS)
    return max(1, round(tokens / mean))
