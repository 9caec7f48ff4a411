"""The scores of a training set, one row per example: as they are now, as they were, and in a few numbers.

`LiveScores` is their one writer and gives every process the same values; the sampler reads them. This file knows no
model, no text and no order.
"""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from numpy.typing import ArrayLike
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr

from rsr_trl.data import read_table
from rsr_trl.rsr import MEAN_CLIPPED_RANK, MEAN_SURPRISAL, NUM_TOKENS, RSR, RSRError, dataset_rsr, rsr_from_means
from rsr_trl.scoring.scores import check_name, known_score
from rsr_trl.scoring.shards import UNFINISHED, written_whole
from rsr_trl.selection.table import numbers, read_score


LIVE = {"rsr": "rsr", "surprisal": "mean_surprisal", "rank": "mean_clipped_rank"}  # score -> attribute of a table
HISTORY_DIR = "rsr_history"  # in the output folder of a training
_SAVED = ("num_tokens", "mean_clipped_rank", "mean_surprisal", "step", "train_mode")


class ScoreTable:
    """
    Rank-Surprisal Ratio of every example of a training set, its two parts, and when each was measured; and what the
    examples are ordered by, which is RSR (**lower = more suitable**) unless another `score` is named. NaN stands for a
    score that a row doesn't have, or not yet.

    Args:
        num_tokens (int array of shape `(n,)`): Scored tokens of each example.
        score (`str`, *optional*, defaults to `"rsr"`): What to order by: `"rsr"`, `"surprisal"` or `"rank"`, which
            follow the measurements, or the name of `static` values.
        static (float array of shape `(n,)`, *optional*): Values that don't change; NaN where an example has none.

    Attributes:
        mean_clipped_rank, mean_surprisal (float64 arrays of shape `(n,)`): Ranks are 1-based, surprisals in nats.
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
        if (static is None) == (self._live is None):
            got = f"score={score!r} {'without' if static is None else 'with'} them"
            raise RSRError(f"{', '.join(LIVE)} are measured live, other scores need `static` values: got {got}.")
        if static is not None and self.static.shape != (n,):
            raise RSRError(f"static must have a value for each of {n} rows, got shape {self.static.shape}.")
        self.mean_clipped_rank, self.mean_surprisal = np.full(n, np.nan), np.full(n, np.nan)
        self.step, self.train_mode = np.full(n, -1, dtype=np.int64), np.zeros(n, dtype=bool)
        self.version = 0

    @classmethod
    def from_dataset(cls, dataset: Dataset, score: str = RSR) -> "ScoreTable":
        """
        The scores that [`RSRScorer`] or `rsr score` put into `dataset`, to order by the named one or a numeric column.
        `RSRError` for a missing column, or a row with scored tokens but without a score.
        """
        check_name(score, dataset.column_names)
        num_tokens = numbers(read_table(dataset, [NUM_TOKENS]), NUM_TOKENS)
        static = None if known_score(score) in LIVE else read_score(dataset, score)
        table = cls(np.nan_to_num(num_tokens).astype(np.int64), score, static)
        table.take(dataset)
        return table

    def take(self, dataset: Dataset) -> None:
        """Take over what a scoring pass measured of the same examples, as of step 0."""
        names, rows = [MEAN_CLIPPED_RANK, MEAN_SURPRISAL], np.flatnonzero(self.num_tokens)
        data = read_table(dataset, names)
        self.update(rows, *(numbers(data, name)[rows] for name in names), step=0)

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

    def update(self, rows: ArrayLike, mean_clipped_rank: ArrayLike, mean_surprisal: ArrayLike, step, train_mode=False):
        """
        Write new measurements, after `step` training steps, of `rows` (distinct, each with scored tokens): ranks of at
        least 1, surprisals of at least 0 nats, all of shape `(m,)`. `RSRError` for arrays of different lengths, rows
        that don't exist or have no scored token, and values that no measurement gives; it names the first such row.
        """
        rows = np.asarray(rows, dtype=np.int64)
        ranks, surprisals = np.asarray(mean_clipped_rank, np.float64), np.asarray(mean_surprisal, np.float64)
        if not rows.shape == ranks.shape == surprisals.shape or rows.ndim != 1:
            shapes = f"{rows.shape}, {ranks.shape} and {surprisals.shape}"
            raise RSRError(f"Rows, ranks and surprisals must be 1-D arrays of one length, got {shapes}.")
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
                f"has {len(self)} with {self.num_tokens.sum()}: pass the same dataset, tokenizer and max_length."
            )
        for name in _SAVED:
            setattr(self, name, state[name].numpy().copy())
        self.version = int(state["version"])

    def save(self, path: str | os.PathLike) -> None:
        """Write the table to a safetensors file."""
        save_file(self.state_dict(), path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "ScoreTable":
        """Read a table from a file that [`ScoreTable.save`] wrote."""
        state = load_file(path)
        table = cls(state["num_tokens"].numpy())
        table.load_state_dict(state)
        return table


def summarize(scores: np.ndarray, name: str = RSR) -> dict[str, float]:
    """Mean and quantiles of the finite scores."""
    finite = np.isfinite(scores)
    if not finite.any():
        return {}
    p10, median, p90 = np.quantile(scores[finite], [0.1, 0.5, 0.9])
    values = {"mean": scores[finite].mean(), "median": median, "p10": p10, "p90": p90}
    return {f"{name}/{key}": float(value) for key, value in values.items()}


def summarize_teachers(table: ScoreTable, teachers: tuple[np.ndarray, list], name: str = RSR) -> dict[str, float]:
    """
    The score of each teacher that has one, by the teacher's number in each row and all names: what `rank_teachers`
    calls `rsr_all` or `score_all`. RSR is the ratio of means over the teacher's trajectories (Eq. 9), any other score
    their mean.
    """
    values = {}
    for i, teacher in enumerate(teachers[1]):
        own = teachers[0] == i
        if name == RSR:
            value = dataset_rsr(table.mean_clipped_rank[own], table.mean_surprisal[own])
        else:
            scores = table.scores[own]
            value = scores[np.isfinite(scores)].mean() if np.isfinite(scores).any() else np.nan
        if np.isfinite(value):
            values[f"{name}/teacher/{teacher}"] = float(value)
    return values


def spearman(before: np.ndarray, after: np.ndarray) -> float | None:
    """Rank correlation of two scorings over the rows that have both; `None` where it isn't defined."""
    both = ~(np.isnan(before) | np.isnan(after))
    if min(len(np.unique(scores[both])) for scores in (before, after)) < 2:
        return None
    return float(spearmanr(before[both], after[both]).statistic)


class ScoreHistory:
    """
    All scores ever measured, in `rsr_history/step-<step>-<kind>.parquet` of `output_dir`: files that `datasets`,
    pandas and polars read as one table. `source_rows` are the numbers of the rows in the dataset that the user passed.
    """

    def __init__(self, output_dir: str, source_rows: np.ndarray):
        self.folder, self.source_rows = Path(output_dir) / HISTORY_DIR, source_rows

    def start(self, step: int | None) -> None:
        """Drop what an earlier run wrote after `step`; everything for `None`."""
        for path in self.folder.glob(f".*{UNFINISHED}"):  # of a run that was killed
            path.unlink()
        for path in self.folder.glob("step-*.parquet"):
            if step is None or int(path.stem.split("-")[1]) > step:
                path.unlink()

    def write(self, table: ScoreTable, rows: np.ndarray, step: int, kind: str) -> None:
        """Write the scores that rows have now, and where from: a `"pass"`, training `"online"`, the `"dataset"`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        columns = {RSR: table.rsr, MEAN_CLIPPED_RANK: table.mean_clipped_rank, MEAN_SURPRISAL: table.mean_surprisal}
        columns |= {"step": table.step, "train_mode": table.train_mode}
        data = {"row": self.source_rows[rows]} | {name: values[rows] for name, values in columns.items()}
        with written_whole(self.folder / f"step-{step:08d}-{kind}.parquet") as path:
            pq.write_table(pa.table(data), path)
