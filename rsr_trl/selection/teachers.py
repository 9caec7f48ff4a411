"""Rank teachers by the RSR of what they wrote, with error bars, on problems that all of them solved."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from datasets import Dataset

from rsr_trl.data import counted
from rsr_trl.rsr import RSR
from rsr_trl.scoring.scores import direction_of
from rsr_trl.selection.bootstrap import RatioDraws, probability_below, resample_ratios
from rsr_trl.selection.teacher_rows import TeacherRows


PAIRED_BEST = 20  # teachers among which every pair gets a probability
FEW_PROBLEMS = 20


@dataclass(frozen=True)
class TeacherRanking:
    """
    Teachers from the most to the least suitable, as [`rank_teachers`] returns them. **Lower RSR = more suitable.**

    Args:
        table (`list[dict]`): One row a teacher, best first; see [`rank_teachers`] for the columns.
        pairs (`list[dict]`): For each pair among the best 20: `better`, `worse`, `rsr_ratio` (worse over better; with
            another score `score_difference`, worse minus better) and `probability` that this order is right (null for
            a teacher with a single problem or trajectory).
        num_problems (`int` or `None`): Problems compared on; `None` without a problem column.
        num_problems_in_all (`int` or `None`): Problems that any teacher has.
        confidence (`float`): Level of the intervals.
        notes (`list[str]`): What to know before trusting the numbers; empty in a normal run.
        score (`str`, *optional*, defaults to `"rsr"`): What they are ranked by.
        prefer (`str`, *optional*, defaults to `"low"`): Which end of it is the better one.
    """

    table: list[dict]
    pairs: list[dict]
    num_problems: int | None
    num_problems_in_all: int | None
    confidence: float
    notes: list[str]
    score: str = RSR
    prefer: Literal["low", "high"] = "low"

    @property
    def best(self):
        """The most suitable teacher of those that can be judged; where none can be, the first."""
        return (self.judged or self.table)[0]["teacher"]

    @property
    def judged(self) -> list[dict]:
        """Rows of the teachers that have an interval, which takes two problems or trajectories."""
        bound = "rsr_low" if self.score == RSR else "score_low"
        return [row for row in self.table if row[bound] is not None]

    def caution(self, name: Callable[[object], str] = str) -> str:
        """
        Which teachers lead without an interval and why, in a sentence; empty where the leader has one, and for a
        single teacher. `name` writes a teacher's name.
        """
        scored = [row for row in self.table if row["trajectories"]]
        if len(scored) < 2:
            return ""
        if self.num_problems == 1:
            return "One problem can't tell teachers apart."
        judged = self.judged
        ahead = scored[: scored.index(judged[0])] if judged else scored
        if not ahead:
            return ""
        single = all(row["trajectories"] == 1 for row in ahead)
        if not judged:
            return f"No teacher can be judged: {'each has only one trajectory' if single else 'none has an interval'}."
        who = ", ".join(name(row["teacher"]) for row in ahead[:5]) + (", ..." if len(ahead) > 5 else "")
        why = "only one trajectory" if single else "no interval"
        comes, has = ("comes", "has") if len(ahead) == 1 else ("come", "have")
        return f"{who} {comes} first, but {has} {why} and can't be judged."

    def to_pandas(self) -> pd.DataFrame:
        """The table as a `DataFrame`."""
        return pd.DataFrame(self.table)

    def to_dataset(self) -> Dataset:
        """The table as a [`~datasets.Dataset`]."""
        return Dataset.from_list(self.table)

    def __str__(self) -> str:
        hidden = ["rsr_all", "score_all"]
        shown = self.to_pandas().head(PAIRED_BEST).drop(columns=hidden, errors="ignore").dropna(axis=1, how="all")
        on = "on unmatched problems" if self.num_problems is None else f"on {counted(self.num_problems, 'problem')}"
        direction = "RSR: lower = more suitable"
        if self.score != RSR:
            direction = f"score: mean of {self.score}, {self.prefer}er first; {direction}"
        lines = [f"{counted(len(self.table), 'teacher')} {on}, most suitable first ({direction})"]
        lines.append(shown.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
        if len(self.table) > len(shown):
            lines.append(f"... and {len(self.table) - len(shown)} more")
        lines += [self.caution()] if self.caution() else []
        return "\n".join(lines + [f"Note: {note}" for note in self.notes])


def rank_teachers(
    dataset: Dataset,
    teacher_column: str,
    problem_column: str | None = None,
    correctness_column: str | None = None,
    confidence: float = 0.95,
    num_draws: int = 1000,
    seed: int = 0,
    score: str = RSR,
    prefer: Literal["low", "high"] | None = None,
) -> TeacherRanking:
    """
    Rank the teachers of a scored dataset by dataset RSR (Eq. 9: `sum of mean clipped ranks / sum of mean surprisals`
    over a teacher's trajectories). **Lower = more suitable.** With another `score`, by its mean over a teacher's
    trajectories.

    With `problem_column`, teachers are compared on the problems for which all of them have a scored trajectory, and
    the bootstrap draws whole problems, the same for all teachers, so that what makes a problem hard cancels. Without
    it, the trajectories of each teacher are drawn by themselves: a teacher with a single one can't be judged.

    Args:
        dataset (`Dataset`): Scored with [`RSRScorer`] or `rsr score`.
        teacher_column (`str`): Column that names the teacher.
        problem_column (`str`, *optional*): Column that says which trajectories answer the same problem.
        correctness_column (`str`, *optional*): Boolean column from which to report each teacher's accuracy.
        confidence (`float`, *optional*, defaults to `0.95`): Level of the intervals.
        num_draws (`int`, *optional*, defaults to `1000`): Bootstrap draws.
        seed (`int`, *optional*, defaults to `0`): Seed of the draws: the same rows in any order give the same numbers.
        score (`str`, *optional*, defaults to `"rsr"`): What to rank by: a score of `RSRScorer(scores=...)` by its
            name, such as `"surprisal"`, or any numeric column (see [`~rsr_trl.selection.table.read_score`]).
        prefer (`str`, *optional*): `"low"` or `"high"`: which end of it is the better one. By default the score's own
            (RSR: `"low"`); a column of your own has none and needs it.

    Returns:
        [`TeacherRanking`], with these columns in its table, all but the last two over the compared trajectories:
        `teacher`; `rsr` with `rsr_low` and `rsr_high` (bootstrap interval, with fewer than 10 problems Student-t's;
        null for a single one); `probability_best` (share of the draws in which the teacher has the lowest RSR of those
        that can be judged; null for a single problem, and without a rival); `mean_rank` (clipped); `mean_surprisal`
        (nats); `mean_tokens`; `trajectories`; `truncated_share`; `accuracy` (null without `correctness_column`);
        `unscored` (the teacher's rows without a score); `rsr_all` (over all scored trajectories
        of the teacher, whoever it is compared with). Teachers without a scored trajectory come last, with nulls. With
        another score its mean, interval and `probability_best` are in `score`, `score_low`, `score_high` and
        `score_all` in place of RSR's, `rsr` follows as the last column, and rows without either score are left out.

    Raises:
        `ValueError`: a missing column, a null teacher or problem, scores of different students, no scored row at all,
            or no problem that all teachers have in common.

    Warns:
        `UserWarning`: everything in `notes`: teachers without a score, problems left out because not all teachers have
            them, unmatched problems, repeated rows, few problems.

    Example:

    ```python
    >>> ranking = rank_teachers(scored, teacher_column="teacher", problem_column="problem_id")
    >>> print(ranking)
    >>> ranking.best
    ```
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}.")
    if num_draws < 100:
        raise ValueError(f"num_draws must be at least 100 for an interval to mean anything, got {num_draws}.")
    prefer = direction_of(score, prefer)
    sign = 1 if prefer == "low" else -1
    rows = TeacherRows.read(dataset, teacher_column, problem_column, correctness_column, score)
    notes = rows.notes()
    compared, num_problems, in_all = rows.matched(notes)
    valid = np.unique(rows.teacher[compared])
    resampled = _resample(rows, compared, valid, confidence, num_draws, seed)
    if num_problems == 1:
        notes.append("With one problem there are no error bars; 200 are the paper's choice.")
    elif num_problems is not None and num_problems < FEW_PROBLEMS:
        notes.append(f"With {num_problems} problems the error bars are rough; 200 are the paper's choice.")
    for note in notes:
        warnings.warn(note, stacklevel=2)
    table = rows.table(compared, valid, resampled, sign)
    name = "rsr" if rows.score is None else "score"
    ratio = [np.inf if row[name] is None else sign * row[name] for row in table]
    order = sorted(range(len(valid)), key=lambda i: (ratio[i], table[i]["mean_tokens"], i))
    missing = [rows.empty_row(t) for t in np.setdiff1d(np.arange(len(rows.names)), valid).tolist()]
    return TeacherRanking(
        table=[table[i] for i in order] + missing,
        pairs=_pairs(table, order[:PAIRED_BEST], sign * resampled.draws, name),
        num_problems=num_problems,
        num_problems_in_all=in_all,
        confidence=confidence,
        notes=notes,
        score=score,
        prefer=prefer,
    )


def _resample(
    rows: TeacherRows, compared: np.ndarray, valid: np.ndarray, confidence: float, num_draws: int, seed: int
) -> RatioDraws:
    """Draws of all teachers in `valid`: problems drawn together, or else each teacher's trajectories by themselves."""
    teacher, top, bottom = rows.teacher[compared], *(part[compared] for part in rows.parts)
    on_log = rows.score is None  # a ratio of positive sums; a mean may have either sign
    seat = np.searchsorted(valid, teacher)
    if rows.problem is not None:
        _, problem = np.unique(rows.problem[compared], return_inverse=True)
        shape = (int(problem.max()) + 1, len(valid))
        cell = problem * shape[1] + seat
        parts = [np.bincount(cell, weights=part, minlength=shape[0] * shape[1]) for part in (top, bottom)]
        rng = np.random.default_rng(seed)
        return resample_ratios(*(part.reshape(shape) for part in parts), num_draws, confidence, rng, on_log)
    # Sorted by value, the rows meet the same draws in whatever order they come.
    order = np.lexsort((bottom, top, seat))
    top, bottom = top[order, None], bottom[order, None]
    ends = np.cumsum(np.bincount(seat))
    each = []
    for t, (start, end) in enumerate(zip(np.append(0, ends[:-1]), ends, strict=True)):
        # A generator of its own for each teacher: independent draws, which no other teacher moves.
        name = str(rows.names[valid[t]]).encode()
        rng = np.random.default_rng([seed, *name])
        each.append(resample_ratios(top[start:end], bottom[start:end], num_draws, confidence, rng, on_log))
    return RatioDraws(
        draws=np.hstack([one.draws for one in each]),
        low=np.concatenate([one.low for one in each]),
        high=np.concatenate([one.high for one in each]),
    )


def _pairs(table: list[dict], order: list[int], costs: np.ndarray, name: str) -> list[dict]:
    """`costs` are the draws, lower being better; `name` the column of the table that they are draws of."""

    def gap(better: float, worse: float) -> dict:
        if name == "score":
            return {"score_difference": worse - better}
        return {"rsr_ratio": worse / better if worse else None}

    return [
        {
            "better": table[a]["teacher"],
            "worse": table[b]["teacher"],
            **gap(table[a][name], table[b][name]),
            "probability": None if np.isnan(probability := probability_below(costs, a, b)) else probability,
        }
        for place, a in enumerate(order)
        for b in order[place + 1 :]
    ]
