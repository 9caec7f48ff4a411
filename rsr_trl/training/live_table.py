"""The live scores of a training set, one row per example.

`LiveScores` is its one writer and gives every process the same values; the sampler reads it. This file knows no model,
no text and no order.
"""

from os import PathLike

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import ArrayLike
from safetensors.torch import load_file, save_file

from rsr_trl.data import read_table
from rsr_trl.rsr import MEAN_CLIPPED_RANK, MEAN_SURPRISAL, NUM_TOKENS, RSR, RSRError, rsr_from_means
from rsr_trl.scoring.scores import check_name, known_score
from rsr_trl.selection.table import numbers, read_score


LIVE = {"rsr": "rsr", "surprisal": "mean_surprisal", "rank": "mean_clipped_rank"}  # score -> attribute of a table
_SAVED = ("num_tokens", "mean_clipped_rank", "mean_surprisal", "step", "train_mode")


class ScoreTable:
    """
    Rank-Surprisal Ratio of every example of a training set, its two parts, and when each was measured; and what the
    examples are ordered by, which is RSR (**lower = more suitable**) unless another `score` is named. NaN stands for a
    score that a row doesn't have, or not yet.

    Args:
        num_tokens (int array of shape `(n,)`): Scored tokens of each example.
        score (`str`, *optional*, defaults to `"rsr"`): What the examples are ordered by: `"rsr"`, `"surprisal"` or
            `"rank"`, which follow the measurements, or the name of `static` values.
        static (float array of shape `(n,)`, *optional*): Values that don't change; NaN where an example has none.

    Attributes:
        mean_clipped_rank (float64 array of shape `(n,)`): Mean clipped rank (1-based).
        mean_surprisal (float64 array of shape `(n,)`): Mean surprisal in nats.
        step (int64 array of shape `(n,)`): Training steps the student had taken when it was measured; -1 where not.
        train_mode (bool array of shape `(n,)`): Whether a training step (dropout on) measured it, not a scoring pass.
        version (`int`): Grows with every change, so that a reader can tell whether to read again.

    Example:

    ```python
    >>> table = ScoreTable.from_dataset(scored)  # the columns that RSRScorer adds
    >>> table.update([3, 5], mean_clipped_rank=[4.0, 2.5], mean_surprisal=[0.8, 1.1], step=100)
    >>> table.rsr[3]
    np.float64(5.0)
    ```
    """

    def __init__(self, num_tokens: ArrayLike, score: str = RSR, static: ArrayLike | None = None):
        self.num_tokens = np.array(num_tokens, dtype=np.int64)
        if self.num_tokens.ndim != 1 or (self.num_tokens < 0).any():
            raise RSRError("num_tokens must be a 1-D array of whole numbers, 0 or more.")
        n = self.num_tokens.size
        self.score, self._live = score, LIVE.get(known_score(score))
        self.static = None if static is None else np.array(static, dtype=np.float64)
        if (self.static is None) == (self._live is None):
            raise RSRError(
                f"Of the scores, {', '.join(LIVE)} are measured live, and others need `static` values: got "
                f"score={score!r} {'without' if static is None else 'with'} them."
            )
        if self.static is not None and self.static.shape != (n,):
            raise RSRError(f"static must have a value for each of {n} rows, got shape {self.static.shape}.")
        self.mean_clipped_rank, self.mean_surprisal = np.full(n, np.nan), np.full(n, np.nan)
        self.step, self.train_mode = np.full(n, -1, dtype=np.int64), np.zeros(n, dtype=bool)
        self.version = 0

    @classmethod
    def from_dataset(cls, dataset: Dataset, score: str = RSR, static: ArrayLike | None = None) -> "ScoreTable":
        """
        The scores that [`RSRScorer`] or `rsr score` put into `dataset`, as measured at step 0.

        Args:
            dataset (`Dataset`): Scored.
            score (`str`, *optional*, defaults to `"rsr"`): What to order by: the name of a score, or a numeric column.
            static (float array of shape `(n,)`, *optional*): Its values, where it isn't live. By default read from
                the dataset ([`~rsr_trl.selection.table.read_score`]).

        Raises:
            RSRError: for a missing score column, or a row with scored tokens but without a score.
        """
        names = [MEAN_CLIPPED_RANK, MEAN_SURPRISAL, NUM_TOKENS]
        data = read_table(dataset, names)
        ranks, surprisals, num_tokens = (numbers(data, name) for name in names)
        check_name(score, dataset.column_names)
        if static is None and known_score(score) not in LIVE:
            static = read_score(dataset, score)
        table = cls(np.nan_to_num(num_tokens).astype(np.int64), score, static)
        rows = np.flatnonzero(table.num_tokens)
        table.update(rows, ranks[rows], surprisals[rows], step=0)
        return table

    def __len__(self) -> int:
        return self.num_tokens.size

    @property
    def rsr(self) -> np.ndarray:
        """Ratio of each row, Eq. 7: float64 of shape `(n,)`."""
        return rsr_from_means(self.mean_clipped_rank, self.mean_surprisal)

    @property
    def scores(self) -> np.ndarray:
        """What the examples are ordered by, as it is now: float64 of shape `(n,)`."""
        return np.array(self.static if self._live is None else getattr(self, self._live))

    @property
    def scorable(self) -> np.ndarray:
        """Which rows have a score, or get one when they are measured: bool of shape `(n,)`."""
        return self.num_tokens > 0 if self.static is None else np.isfinite(self.static)

    def update(
        self,
        rows: ArrayLike,
        mean_clipped_rank: ArrayLike,
        mean_surprisal: ArrayLike,
        step: int,
        train_mode: bool = False,
    ) -> None:
        """
        Write new measurements of some rows.

        Args:
            rows (int array of shape `(m,)`): Distinct rows, each with scored tokens.
            mean_clipped_rank (array of shape `(m,)`): 1 or more.
            mean_surprisal (array of shape `(m,)`): Nats, 0 or more.
            step (`int`): Training steps the student has taken.
            train_mode (`bool`, *optional*, defaults to `False`): Whether a training step measured them.

        Raises:
            RSRError: for arrays of different lengths, rows that don't exist or have no scored token, or values that
                no measurement gives (NaN, infinite); names the first such row.
        """
        rows = np.asarray(rows, dtype=np.int64)
        ranks, surprisals = np.asarray(mean_clipped_rank, np.float64), np.asarray(mean_surprisal, np.float64)
        if not rows.shape == ranks.shape == surprisals.shape or rows.ndim != 1:
            raise RSRError(
                "rows, mean_clipped_rank and mean_surprisal must be 1-D arrays of one length, got shapes "
                f"{rows.shape}, {ranks.shape} and {surprisals.shape}."
            )
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise RSRError(f"rows must be in [0, {len(self)}), got {rows.min()} to {rows.max()}.")
        if (empty := rows[self.num_tokens[rows] == 0]).size:
            raise RSRError(f"Row {empty[0]} has no scored token and can't have a score.")
        bad = np.flatnonzero(~(np.isfinite(ranks) & np.isfinite(surprisals) & (ranks >= 1) & (surprisals >= 0)))
        if bad.size:
            raise RSRError(
                f"{bad.size} of {rows.size} scores aren't numbers that a language model can give, the first is row "
                f"{rows[bad[0]]}: mean clipped rank {ranks[bad[0]]}, mean surprisal {surprisals[bad[0]]}. NaN means "
                "that the student's logits are broken: check its weights and dtype."
            )
        self.mean_clipped_rank[rows], self.mean_surprisal[rows] = ranks, surprisals
        self.step[rows], self.train_mode[rows] = step, train_mode
        self.version += 1

    def state_dict(self) -> dict[str, torch.Tensor]:
        arrays = {name: torch.from_numpy(getattr(self, name)) for name in _SAVED}
        return arrays | {"version": torch.tensor(self.version)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take over a saved state. `RSRError` if it is of other examples than this table's."""
        saved = state["num_tokens"].numpy()
        if not np.array_equal(saved, self.num_tokens):
            raise RSRError(
                f"The saved scores are of {saved.size} examples with {saved.sum()} scored tokens, the training set "
                f"has {len(self)} with {self.num_tokens.sum()}. Resume with the dataset, tokenizer and max_length of "
                "the run that saved them."
            )
        for name in _SAVED:
            setattr(self, name, state[name].numpy().copy())
        self.version = int(state["version"])

    def save(self, path: str | PathLike) -> None:
        """Write the table to a safetensors file."""
        save_file(self.state_dict(), path)

    @classmethod
    def load(cls, path: str | PathLike) -> "ScoreTable":
        """Read a table from a file that [`ScoreTable.save`] wrote."""
        state = load_file(path)
        table = cls(state["num_tokens"].numpy())
        table.load_state_dict(state)
        return table
