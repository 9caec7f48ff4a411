"""The order in which an epoch draws its examples, from live scores.

It reads a `ScoreTable` and knows no model, no process and no batch: the order depends on scores, seed and epoch alone,
so every process draws the same stream.
"""

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils.data import Sampler

from rsr_trl.rsr import RSRError, share_count
from rsr_trl.scoring.scores import direction_of
from rsr_trl.selection.choose import all_short, choose_rows, least_tokens, long_enough
from rsr_trl.training.live_table import ScoreTable


Sampling = Literal["weighted", "ordered", "random"]
_LAST = np.finfo(np.float64).max  # cost of a row without a score: it comes last, and can still be drawn


def is_past(scores: ArrayLike, score_threshold: float | None, prefer: Literal["low", "high"]) -> np.ndarray:
    """Whether scores are past a threshold (above it for `prefer="low"`); missing and infinite ones always are."""
    scores = np.asarray(scores, dtype=np.float64)
    if score_threshold is None:
        return np.zeros(scores.shape, dtype=bool)
    return ~(np.isfinite(scores) & (scores <= score_threshold if prefer == "low" else scores >= score_threshold))


def check_order(
    sampling: str,
    temperature: float,
    keep_fraction: float,
    keep_per_group: int,
    min_tokens: int | None,
    grouped: bool,
    prefix: str = "",
) -> None:
    """Check the options that [`RSRSampler`] and, with the prefix `rsr_`, the trainer's config share."""
    if sampling not in get_args(Sampling):
        raise RSRError(f"{prefix}sampling must be one of {str(get_args(Sampling))[1:-1]}, got {sampling!r}.")
    if not 0 < temperature < float("inf"):
        ends = f"set {prefix}sampling='ordered' or 'random' for the two ends"
        raise RSRError(f"{prefix}temperature must be above 0 and finite, got {temperature}: {ends}.")
    if not 0 < keep_fraction <= 1:
        raise RSRError(f"{prefix}keep_fraction must be in (0, 1], got {keep_fraction}.")
    if not keep_per_group >= 1:
        raise RSRError(f"{prefix}keep_per_group must be 1 or more, got {keep_per_group}.")
    if min_tokens is not None and not min_tokens >= 0:
        raise RSRError(f"{prefix}min_tokens must be 0 or more, got {min_tokens}.")
    if min_tokens and not grouped and keep_fraction == 1:
        raise RSRError(f"{prefix}min_tokens={min_tokens} needs {prefix}keep_fraction or groups to choose from.")
    if grouped and keep_fraction < 1:
        raise RSRError(f"Choose by groups or by {prefix}keep_fraction, not both: set one of them.")


class RSRSampler(Sampler[int]):
    """
    Draws each kept example once an epoch, the most suitable first, and re-reads its table before each draw.

    RSR is **lower = more suitable**, and the default puts the lowest first. The length is constant, however the scores
    change in between. Rows without a score (for RSR: without a scored token) come last and are never chosen by
    `keep_fraction` or `groups`, nor are, by default, those of fewer than 32 scored tokens (`min_tokens`). Where
    `pad_to_multiple_of` or `score_threshold` is set, some draws don't train: a row past the threshold is drawn as
    `n + row` and padding as `2 * n`, which only [`DrawnRows`] understands (a plain dataset of `n` rows raises
    `IndexError`).

    Args:
        table ([`ScoreTable`]): Scores of all `n` examples.
        sampling, temperature, prefer, keep_fraction, keep_per_group, min_tokens, score_threshold: `rsr_...` in
            [`RSRSFTConfig`].
        groups (int array of shape `(n,)`, *optional*): Group (problem) of each example: an epoch draws the
            `keep_per_group` most suitable of each. Chosen again whenever scores change, among the groups that aren't
            done in this epoch.
        seed (`int`, *optional*, defaults to `0`): The order of epoch `e` depends on `seed + e`: call `set_epoch(e)`
            before each epoch.
        pad_to_multiple_of (`int`, *optional*, defaults to `1`): Pad the end of the epoch to a multiple of this, so
            that no process repeats an example to fill its last batch.
        live (`bool`, *optional*, defaults to `True`): Re-read the table before each draw. `False` reads it at the
            start of an epoch and on [`RSRSampler.refresh`], as a trainer needs whose workers read ahead.

    Example:

    ```python
    >>> table = ScoreTable.from_dataset(scored)
    >>> loader = DataLoader(scored, batch_size=8, sampler=RSRSampler(table, sampling="ordered"))
    ```
    """

    def __init__(
        self,
        table: ScoreTable,
        sampling: Sampling = "weighted",
        temperature: float = 0.2,
        prefer: Literal["low", "high"] | None = None,
        keep_fraction: float = 1.0,
        groups: ArrayLike | None = None,
        keep_per_group: int = 1,
        min_tokens: int | None = None,
        score_threshold: float | None = None,
        seed: int = 0,
        pad_to_multiple_of: int = 1,
        live: bool = True,
    ):
        if not isinstance(table, ScoreTable):
            raise TypeError(f"RSRSampler needs ScoreTable.from_dataset(dataset), got {type(table).__name__}.")
        if len(table) == 0:
            raise RSRError("The score table is empty: there is nothing to draw.")
        check_order(sampling, temperature, keep_fraction, keep_per_group, min_tokens, groups is not None)
        self.table, self.sampling, self.temperature, self.seed, self.live = table, sampling, temperature, seed, live
        self.prefer = direction_of(table.score, prefer)
        self._threshold = (score_threshold, self.prefer)
        # An epoch draws `_quota[g]` of the choosable rows of group g; without groups all rows are one.
        scorable, self._groups = table.scorable, np.zeros(len(table), dtype=np.int64)
        self._choosable = scorable & long_enough(table.num_tokens, min_tokens)
        if groups is not None:
            _, self._groups = np.unique(np.asarray(groups), return_inverse=True)
            if self._groups.shape != (len(table),):
                raise RSRError(f"groups must name one group for each of {len(table)} rows, got {self._groups.shape}.")
            self._quota = np.minimum(np.bincount(self._groups, weights=self._choosable), keep_per_group)
        elif keep_fraction < 1:
            self._quota = share_count(keep_fraction, [self._choosable.sum()])
        else:
            self._choosable, self._quota = np.ones(len(table), dtype=bool), np.array([len(table)])
        self._quota = self._quota.astype(np.int64)
        self.num_kept = int(self._quota.sum())  # distinct examples of an epoch
        if self.num_kept == 0 and not scorable.any():
            raise RSRError("No example has a score: there is nothing to choose from.")
        if self.num_kept == 0:
            raise RSRError(all_short(int(scorable.sum()), least_tokens(min_tokens)))
        self._length = -(-self.num_kept // pad_to_multiple_of) * pad_to_multiple_of
        self.epoch, self._restored_epoch = 0, None
        self._begin()

    def __len__(self) -> int:
        return self._length

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is. Calling it again changes nothing."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self._restored_epoch != self.epoch:
            self._begin()
        self._restored_epoch = None  # only the first iteration replays what was restored
        for position in range(self.num_kept):
            if self.live and self._version != self.table.version:
                self.refresh()
            self.commit(position + 1)
            yield self._stream[position]
        for _ in range(self.num_kept, len(self)):
            yield 2 * len(self.table)

    def commit(self, count: int) -> None:
        """Decide the first `count` draws of the epoch by the scores read last; nothing changes them afterwards."""
        count = min(count, self.num_kept) - len(self._stream)
        if count <= 0:
            return
        if self._upcoming is None:
            self._upcoming = self._order()
        rows, self._upcoming = self._upcoming[:count], self._upcoming[count:]
        self._drawn[rows] = True
        self._stream.extend((rows + len(self.table) * is_past(self._scores[rows], *self._threshold)).tolist())

    def refresh(self) -> None:
        """Read the table again: all draws that aren't committed follow it from now on."""
        self._scores, self._version, self._upcoming = self.table.scores, self.table.version, None

    def candidates(self) -> np.ndarray:
        """Rows that this epoch may still draw: int64 array, ascending."""
        return self._open(self._drawn)[0]

    def kept(self) -> np.ndarray:
        """Which examples an epoch with the table's scores of now trains on: bool array of shape `(n,)`."""
        scores, mask = self.table.scores, np.zeros(len(self.table), dtype=bool)
        rows = self._chosen(scores, mask)
        mask[rows[~is_past(scores[rows], *self._threshold)]] = True
        return mask

    def kept_share(self) -> float:
        """Their share of all examples."""
        return float(self.kept().mean())

    def num_masked(self, count: int) -> int:
        """How many of the first `count` draws of this epoch don't train because of `score_threshold`."""
        return sum(index >= len(self.table) for index in self._stream[:count])

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything that decides the rest of the epoch. The table is saved by its owner."""
        return {
            "epoch": torch.tensor(self.epoch),
            "stream": torch.tensor(self._stream, dtype=torch.int64),
            "scores": torch.from_numpy(self._scores),
        }

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take over a saved state: the next iteration of the same epoch repeats its draws, then goes on."""
        if state["scores"].numel() != len(self.table) or state["stream"].numel() > self.num_kept:
            raise RSRError(
                f"The saved order is of {state['scores'].numel()} rows with {state['stream'].numel()} draws, this one "
                f"of {len(self.table)} rows with {self.num_kept}. Resume with the same dataset, keep_fraction, "
                "group_column and keep_per_group."
            )
        self.epoch = self._restored_epoch = int(state["epoch"])
        self._begin()
        self._scores, self._stream = state["scores"].numpy().copy(), state["stream"].tolist()
        self._drawn[np.asarray(self._stream, dtype=np.int64) % len(self.table)] = True

    def _begin(self) -> None:
        """Start an epoch: nothing drawn, scores read."""
        self._stream: list[int] = []
        self._drawn = np.zeros(len(self.table), dtype=bool)
        self.refresh()

    def _open(self, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows that may still be drawn, and how many of each group are to be."""
        left = self._quota - np.bincount(self._groups, weights=drawn).astype(np.int64)
        return np.flatnonzero(self._choosable & ~drawn & (left > 0)[self._groups]), left

    def _shuffle(self) -> tuple[np.ndarray, np.ndarray]:
        """This epoch's place of each row in SFTTrainer's own order, and its noise: uniform in [0, 1)."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.table), generator=generator).numpy()
        noise = torch.rand(len(self.table), generator=generator, dtype=torch.float64).numpy()
        return np.argsort(order), noise

    def _best(self, rows: np.ndarray, scores: np.ndarray, **choice) -> np.ndarray:
        """The choice of these rows, most suitable first: rows without a score last, ties by this epoch's shuffle."""
        cost = scores[rows] if self.prefer == "low" else -scores[rows]
        almost = np.nextafter(_LAST, 0)  # an infinite score comes before none
        cost = np.nan_to_num(cost, nan=_LAST, posinf=almost, neginf=almost)
        return rows[choose_rows(cost, self._shuffle()[0][rows], **choice)]

    def _chosen(self, scores: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """Rows that the rest of the epoch draws under `scores`, most suitable first."""
        rows, left = self._open(drawn)
        return self._best(rows, scores, groups=self._groups[rows], keep_per_group=left)

    def _order(self) -> np.ndarray:
        """The rest of the epoch, int64 array of rows, under the scores read last: the same for the same scores."""
        scores, rows = self._scores, self._chosen(self._scores, self._drawn)
        place, noise = self._shuffle()
        if self.sampling == "random":
            rows = rows[np.argsort(place[rows])]
        elif self.sampling == "weighted":
            # Ranks count what was drawn before too, so that reading unchanged scores again changes no order.
            kept = self._best(np.concatenate([np.flatnonzero(self._drawn), rows]), scores, threshold=np.inf)
            log_weight = np.empty(len(self.table))
            log_weight[kept] = -np.arange(kept.size) / (self.temperature * kept.size)
            # Gumbel top-k: sorting by log-weight + Gumbel noise draws without replacement in proportion to weights.
            key = log_weight[rows] - np.log(-np.log1p(-noise[rows]))
            rows = rows[np.lexsort((-key, ~np.isfinite(scores[rows])))]
        # A stable sort: what doesn't train comes last and keeps its order.
        return rows[np.argsort(is_past(scores[rows], *self._threshold), kind="stable")]
