"""The order in which an epoch draws its examples, from live scores.

It reads a `ScoreTable` and knows no model, no process and no batch: the order depends on scores, seed and epoch alone,
so every process draws the same stream.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils.data import Sampler

from rsr_trl.scoring.scores import direction_of
from rsr_trl.training.score_table import ScoreTable


def is_past(scores: ArrayLike, score_threshold: float, prefer: Literal["low", "high"]) -> np.ndarray:
    """Whether scores are past a threshold (above it for `prefer="low"`); missing and infinite ones always are."""
    scores = np.asarray(scores, dtype=np.float64)
    return ~(np.isfinite(scores) & (scores <= score_threshold if prefer == "low" else scores >= score_threshold))


class RSRSampler(Sampler[int]):
    """
    Draws each kept example once an epoch, the most suitable first, and re-reads its table before each draw.

    RSR is **lower = more suitable**, and the default puts the lowest first. The length is constant, however the scores
    change in between. Rows without a score (for RSR: without a scored token) come last and are never chosen by
    `keep_fraction` or `groups`.

    Where `pad_to_multiple_of` or `score_threshold` is set, some draws don't train: a row past the threshold is drawn
    as `n + row` and padding as `2 * n`, which only [`DrawnRows`] understands (a plain dataset of `n` rows raises
    `IndexError`).

    Args:
        table ([`ScoreTable`]):
            Scores of all `n` examples.
        sampling (`"weighted"`, `"ordered"` or `"random"`, *optional*, defaults to `"weighted"`):
            `"weighted"` draws without replacement with a probability that falls with the rank of the score: a bias
            towards suitable examples that still mixes them. `"ordered"` is strictly the most suitable first: a
            curriculum, ties broken by seed and epoch. `"random"` is the order of `SFTTrainer`: scores then only
            choose.
        temperature (`float`, *optional*, defaults to `0.2`):
            For `"weighted"`: the share of the kept examples over which the probability falls by a factor e. Small
            values come near `"ordered"`, large ones near `"random"`.
        prefer (`"low"` or `"high"`, *optional*):
            Which end of the table's score comes first. By default the score's own (RSR: `"low"`); a column of your
            own has none and needs it.
        keep_fraction (`float`, *optional*, defaults to `1.0`):
            Share in (0, 1] of the scored examples that an epoch draws, the most suitable ones; rounded up.
        groups (int array of shape `(n,)`, *optional*):
            Group (problem) of each example: an epoch draws the `keep_per_group` most suitable of each. Chosen anew
            whenever scores change, among the groups that aren't done in this epoch.
        keep_per_group (`int`, *optional*, defaults to `1`):
            Examples of each group; smaller groups are drawn whole.
        score_threshold (`float`, *optional*):
            Examples with a score past this value, or without one, come last and don't train. Decided at the draw.
        seed (`int`, *optional*, defaults to `0`):
            The order of epoch `e` depends on `seed + e`: call `set_epoch(e)` before each epoch.
        pad_to_multiple_of (`int`, *optional*, defaults to `1`):
            Pad the end of the epoch to a multiple of this, so that no process repeats an example to fill its last
            batch.
        live (`bool`, *optional*, defaults to `True`):
            Re-read the table before each draw. `False` reads it at the start of an epoch and on
            [`RSRSampler.refresh`], as a trainer needs whose workers read ahead.

    Example:

    ```python
    >>> table = ScoreTable.from_dataset(scored)
    >>> loader = DataLoader(scored, batch_size=8, sampler=RSRSampler(table, sampling="ordered"))
    ```
    """

    def __init__(
        self,
        table: ScoreTable,
        sampling: Literal["weighted", "ordered", "random"] = "weighted",
        temperature: float = 0.2,
        prefer: Literal["low", "high"] | None = None,
        keep_fraction: float = 1.0,
        groups: ArrayLike | None = None,
        keep_per_group: int = 1,
        score_threshold: float | None = None,
        seed: int = 0,
        pad_to_multiple_of: int = 1,
        live: bool = True,
    ):
        if not isinstance(table, ScoreTable):
            raise TypeError(
                f"RSRSampler draws by a ScoreTable, got {type(table).__name__}: pass ScoreTable.from_dataset(dataset)."
            )
        if len(table) == 0:
            raise ValueError("The score table is empty: there is nothing to draw.")
        if sampling not in ("weighted", "ordered", "random"):
            raise ValueError(f"sampling must be 'weighted', 'ordered' or 'random', got {sampling!r}.")
        prefer = direction_of(table.score, prefer)
        if not 0 < temperature < float("inf"):
            raise ValueError(
                f"temperature must be above 0 and finite, got {temperature}: see sampling='ordered', 'random'."
            )
        if not 0 < keep_fraction <= 1:
            raise ValueError(f"keep_fraction must be in (0, 1], got {keep_fraction}.")
        if keep_per_group < 1:
            raise ValueError(f"keep_per_group must be 1 or more, got {keep_per_group}.")
        if groups is not None and keep_fraction < 1:
            raise ValueError("Choose by groups or by keep_fraction, not both: set keep_fraction=1.")
        self.table, self.sampling, self.temperature, self.prefer = table, sampling, temperature, prefer
        self.score_threshold, self.seed, self.live = score_threshold, seed, live

        scored = table.scorable
        self._groups = self._quota = None
        self._choosable = np.ones(len(table), dtype=bool)
        self.num_kept = len(table)  # distinct examples of an epoch
        if groups is not None:
            _, self._groups = np.unique(np.asarray(groups), return_inverse=True)
            if self._groups.shape != (len(table),):
                raise ValueError(
                    f"groups must name one group for each of {len(table)} rows, got {self._groups.shape}."
                )
            self._quota = np.minimum(np.bincount(self._groups, weights=scored).astype(np.int64), keep_per_group)
            self._choosable, self.num_kept = scored, int(self._quota.sum())
        elif keep_fraction < 1:
            # The tolerance keeps 0.1 * 30 = 3.0000000000000004 from becoming 4 rows.
            self._choosable, self.num_kept = scored, int(np.ceil(keep_fraction * scored.sum() - 1e-9))
        if self.num_kept == 0:
            raise ValueError("No example has a score: there is nothing to choose from.")
        self._length = -(-self.num_kept // pad_to_multiple_of) * pad_to_multiple_of

        self.epoch = 0
        self._restored_epoch: int | None = None
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
        for position in range(len(self)):
            if position >= self.num_kept:
                yield 2 * len(self.table)
                continue
            if self.live and self._version != self.table.version:
                self.refresh()
            self.commit(position + 1)
            yield self._stream[position]

    def commit(self, count: int) -> None:
        """Decide the first `count` draws of the epoch by the scores read last; nothing changes them afterwards."""
        n = len(self.table)
        count = min(count, self.num_kept) - len(self._stream)
        if count <= 0:
            return
        if self._upcoming is None:
            self._upcoming = self._order(self._scores, self._drawn)
        rows, self._upcoming = self._upcoming[:count], self._upcoming[count:]
        self._drawn[rows] = True
        self._stream.extend(np.where(self._is_past(self._scores[rows]), rows + n, rows).tolist())

    def refresh(self) -> None:
        """Read the table again: all draws that aren't committed follow it from now on."""
        self._scores, self._version, self._upcoming = self.table.scores, self.table.version, None

    def candidates(self) -> np.ndarray:
        """Rows that this epoch may still draw: int64 array, ascending."""
        return np.flatnonzero(self._open(self._drawn))

    def kept_share(self) -> float:
        """Share of all examples that an epoch with the table's scores of now trains on."""
        scores = self.table.scores
        rows = self._chosen(scores, np.zeros(len(self.table), dtype=bool))
        return float((~self._is_past(scores[rows])).sum() / len(self.table))

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
            raise ValueError(
                f"The saved order is of {state['scores'].numel()} rows and has {state['stream'].numel()} draws, this "
                f"sampler has {len(self.table)} rows and draws {self.num_kept}. Resume with the dataset and the "
                "choice (keep_fraction, group_column, keep_per_group) of the run that saved it."
            )
        self.epoch = self._restored_epoch = int(state["epoch"])
        self._stream = state["stream"].tolist()
        self._scores, self._version, self._upcoming = state["scores"].numpy().copy(), self.table.version, None
        self._drawn = np.zeros(len(self.table), dtype=bool)
        self._drawn[np.asarray(self._stream, dtype=np.int64) % len(self.table)] = True

    def _begin(self) -> None:
        """Start an epoch: nothing drawn, scores read."""
        self._stream: list[int] = []
        self._drawn = np.zeros(len(self.table), dtype=bool)
        self.refresh()

    def _is_past(self, scores: np.ndarray) -> np.ndarray:
        """Whether each score is past the threshold; a missing or infinite one is."""
        if self.score_threshold is None:
            return np.zeros(scores.shape, dtype=bool)
        return is_past(scores, self.score_threshold, self.prefer)

    def _open(self, drawn: np.ndarray) -> np.ndarray:
        """Which rows may still be drawn: bool of shape `(n,)`."""
        still = self._choosable & ~drawn
        if self._groups is not None:
            still &= (np.bincount(self._groups, weights=drawn) < self._quota)[self._groups]
        return still

    def _shuffle(self) -> tuple[np.ndarray, np.ndarray]:
        """This epoch's place of each row in SFTTrainer's own order, and its noise: uniform in [0, 1)."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.table), generator=generator).numpy()
        noise = torch.rand(len(self.table), generator=generator, dtype=torch.float64).numpy()
        place = np.empty_like(order)
        place[order] = np.arange(order.size)
        return place, noise

    def _sorted(self, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """`rows`, most suitable first: scores, rows without a finite one last, ties by this epoch's shuffle."""
        value = scores[rows] if self.prefer == "low" else -scores[rows]
        return rows[np.lexsort((self._shuffle()[0][rows], value, ~np.isfinite(value)))]

    def _chosen(self, scores: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """Rows that the rest of the epoch draws under `scores`, most suitable first."""
        rows = self._sorted(np.flatnonzero(self._open(drawn)), scores)
        if self._groups is None:
            return rows[: self.num_kept - drawn.sum()]
        left = self._quota - np.bincount(self._groups, weights=drawn).astype(np.int64)
        group = self._groups[rows]
        by_group = np.argsort(group, kind="stable")
        starts = np.searchsorted(group[by_group], group[by_group])
        place = np.empty_like(by_group)  # 0 for the best open row of its group, 1 for the second, ...
        place[by_group] = np.arange(rows.size) - starts
        return rows[place < left[group]]

    def _order(self, scores: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """The rest of the epoch under `scores`: int64 array of rows. With the same scores it is the same rest."""
        rows = self._chosen(scores, drawn)
        place, noise = self._shuffle()
        if self.sampling == "random":
            rows = rows[np.argsort(place[rows])]
        elif self.sampling == "weighted":
            # Ranks count what was drawn before too, so that reading unchanged scores again changes no order.
            kept = self._sorted(np.concatenate([np.flatnonzero(drawn), rows]), scores)
            log_weight = np.empty(len(self.table))
            log_weight[kept] = -np.arange(kept.size) / (self.temperature * kept.size)
            # Gumbel top-k: sorting by log-weight + Gumbel noise draws without replacement in proportion to the
            # weights.
            key = log_weight[rows] - np.log(-np.log1p(-noise[rows]))
            rows = rows[np.lexsort((-key, ~np.isfinite(scores[rows])))]
        # A stable sort: what doesn't train comes last and keeps its order.
        return rows[np.argsort(self._is_past(scores[rows]), kind="stable")]
