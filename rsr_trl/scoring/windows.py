"""Rows go through the student window by window: one is scored while the next is tokenized in the background.

Sorting by length happens within a window, so memory depends on the window and not on the dataset. Where windows end
depends on rows and tokens alone. This file knows neither the student nor the columns that scoring adds.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event

from datasets import Dataset
from datasets.utils import tqdm

from rsr_trl.scoring.tokens import TokenizedExample


WINDOW_TOKENS = 2**20  # many batches, so that sorting within a window loses little against sorting everything
# Rows that are tokenized in one call: enough for the tokenizer's threads, few enough for texts of megabytes.
CHUNK = 64


@dataclass(frozen=True)
class Window:
    """
    Consecutive rows that are sorted and scored together.

    Args:
        first_row (`int`): Position of the first one in the dataset.
        examples (list of [`TokenizedExample`]): In source order.
    """

    first_row: int
    examples: list[TokenizedExample]

    @property
    def num_tokens(self) -> int:
        return sum(len(example.input_ids) for example in self.examples if not example.error)


def windows(
    dataset: Dataset,
    tokenize: Callable[[Sequence[dict]], list[TokenizedExample]],
    window_tokens: int = WINDOW_TOKENS,
) -> Iterator[Window]:
    """
    Tokenize a dataset window by window, in source order.

    Args:
        dataset (`Dataset`): With the columns that `tokenize` reads and no others.
        tokenize (`Callable`): Rows to [`TokenizedExample`]s.
        window_tokens (`int`, *optional*, defaults to 2**20): A window ends with the chunk of rows that reaches it.

    Yields:
        [`Window`]: while one is looked at, the next is tokenized in a background thread.
    """
    stopped = Event()
    made = _made(dataset, tokenize, window_tokens, stopped)
    with ThreadPoolExecutor(1, "rsr-tokenize") as background:
        try:
            ahead = background.submit(next, made, None)
            while (window := ahead.result()) is not None:
                ahead = background.submit(next, made, None)
                yield window
        finally:
            stopped.set()


def _made(dataset: Dataset, tokenize, window_tokens: int, stopped: Event) -> Iterator[Window]:
    first, examples, tokens = 0, [], 0
    for start in range(0, len(dataset), CHUNK):
        if stopped.is_set():  # nobody waits for the rest
            return
        batch = dataset[start : start + CHUNK]
        chunk = tokenize([dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)])
        examples += chunk
        tokens += sum(len(example.input_ids) for example in chunk)
        if tokens >= window_tokens:
            yield Window(first, examples)
            first, examples, tokens = first + len(examples), [], 0
    if examples:
        yield Window(first, examples)


class TokenBar:
    """
    A progress bar in tokens, with tokens/s and the time left. How many tokens there are in all is estimated from the
    rows seen so far.

    Args:
        num_rows (`int`, *optional*): Rows in all; without it there is no time left to tell.
        disable (`bool`, *optional*, defaults to `False`): Whether to show nothing, but count.
    """

    def __init__(self, num_rows: int | None, disable: bool = False):
        self.num_rows = num_rows
        self._bar = tqdm(desc="Scoring", unit=" tokens", unit_scale=True, smoothing=0, disable=disable)
        self._seen = [0, 0]  # rows and tokens
        self.rows = self.tokens = 0

    def expect(self, rows: int, tokens: int) -> None:
        """These rows are known to have these tokens; they are still to be scored."""
        self._seen[0] += rows
        self._seen[1] += tokens
        if self.num_rows is not None and not self._bar.disable:
            self._bar.total = round(self._seen[1] * self.num_rows / self._seen[0])
            self._bar.refresh()

    def update(self, rows: int, tokens: int) -> None:
        """These have been scored, whether here or in another process."""
        self.rows += rows
        self.tokens += tokens
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
