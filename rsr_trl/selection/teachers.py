"""Rank teachers by the RSR of what they wrote, with error bars, on problems that all of them solved."""

import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np
import pandas as pd
from datasets import Dataset

from rsr_trl.data import Columns, counted, examples, find_columns
from rsr_trl.rsr import DIRECTION, ERROR, RSR, RSRError
from rsr_trl.scoring.scores import direction_of
from rsr_trl.selection.bootstrap import RatioDraws, probability_below, probability_best, resample_ratios
from rsr_trl.selection.display import as_html, shown
from rsr_trl.selection.table import ScoredTable


WIDTH = 100  # of a printed ranking
PAIRED_BEST = 20  # teachers among which every pair gets a probability
FEW_PROBLEMS = 20
POSSIBLE = 0.05  # a teacher with this probability of being the most suitable may be it
SELECTED = (
    "These trajectories were chosen by their score (`rsr select`), so they don't tell which teacher suits: rank "
    "teachers on the dataset that they were chosen from."
)


@dataclass(frozen=True)
class TeacherRanking:
    """
    Teachers from the most to the least suitable, as [`rank_teachers`] returns them. **Lower RSR = more suitable.**

    Args:
        table (`list[dict]`): One row per teacher, best first; see [`rank_teachers`] for the columns.
        pairs (`list[dict]`): For each pair among the best 20: `better`, `worse`, `rsr_ratio` (worse over better; with
            another score `score_difference`, worse minus better) and `probability` that this order is right (null for
            a teacher with a single problem or trajectory).
    """

    table: list[dict]
    pairs: list[dict]
    num_problems: int | None  # compared on; None without a problem column
    num_problems_in_all: int | None  # that any teacher has
    confidence: float  # level of the intervals
    notes: list[str]  # what to know before trusting the numbers; empty in a normal run
    score: str = RSR  # what they are ranked by
    prefer: Literal["low", "high"] = "low"  # which end of it is the better one

    @property
    def best(self):
        """The most suitable teacher of those that can be judged; where none can be, the first."""
        return (self.judged or self.table)[0]["teacher"]

    @property
    def judged(self) -> list[dict]:
        """Rows of the teachers that have an interval, which takes two problems or trajectories."""
        return [row for row in self.table if row["rsr_low" if self.score == RSR else "score_low"] is not None]

    def verdict(self, name: Callable[[object], str] = str) -> str:
        """
        What may be said of this ranking, in a sentence or two; empty for a single teacher. `name` writes a teacher's.

        A teacher is called the most suitable only if none of the others that can be judged has a probability of 5% or
        more of being it; else it leads, and those are named. Teachers that come first without an interval are said to.
        """
        if len(self.table) < 2:
            return ""
        if self.num_problems == 1:
            return "One problem can't tell teachers apart."

        def listed(rows: list[dict]) -> str:
            return examples([row["teacher"] for row in rows], show=name)

        scored, judged = [row for row in self.table if row["trajectories"]], self.judged
        ahead = scored[: scored.index(judged[0])] if judged else scored
        single = all(row["trajectories"] == 1 for row in ahead)
        if not judged:
            return f"No teacher can be judged: {'each has only one trajectory' if single else 'none has an interval'}."
        said, first = [], name(judged[0]["teacher"])
        if ahead:
            comes, has = ("comes", "has") if len(ahead) == 1 else ("come", "have")
            why = "only one trajectory" if single else "no interval"
            said.append(f"{listed(ahead)} {comes} first, but {has} {why} and can't be judged.")
        if len(judged) == 1:
            return " ".join([*said, f"{first} is the only teacher that can be judged."])
        first = f"Of the others, {first}" if ahead else first
        possible = [row for row in judged[1:] if (row["probability_best"] or 0) >= POSSIBLE]
        if possible:
            return " ".join([*said, f"{first} leads; {listed(possible)} may suit as well or better."])
        return " ".join([*said, f"{first} is the most suitable."])

    def to_pandas(self) -> pd.DataFrame:
        """The table as a `DataFrame`."""
        return pd.DataFrame(self.table)

    def to_dataset(self) -> Dataset:
        """The table as a [`~datasets.Dataset`]."""
        return Dataset.from_list(self.table)

    @property
    def _heading(self) -> str:
        on = "unmatched problems" if self.num_problems is None else counted(self.num_problems, "problem")
        by = "" if self.score == RSR else f"score: mean of {self.score}, {self.prefer}er first; "
        return f"{counted(len(self.table), 'teacher')} on {on}, most suitable first ({by}RSR: {DIRECTION})"

    def _shown(self, name_length: int = 60) -> pd.DataFrame:
        """The best 20 as texts, in at most 100 characters with names of 30."""
        name = RSR if self.score == RSR else "score"

        def cells(row: dict) -> dict:
            low, high = (shown(row[f"{name}_{end}"], ".3f") for end in ("low", "high"))
            teacher = str(row["teacher"])
            return {
                "teacher": teacher if len(teacher) <= name_length else f"{teacher[: name_length - 1]}…",
                name: shown(row[name], ".3f"),
                f"{self.confidence:.0%} interval": "–" if row[f"{name}_low"] is None else f"{low} to {high}",
                "best": shown(row["probability_best"], ".0%"),
                "rank": shown(row["mean_rank"], ".2f"),
                "nats": shown(row["mean_surprisal"], ".2f"),
                "tokens": shown(row["mean_tokens"], ",.0f"),
                "correct": shown(row["accuracy"], ".0%"),
                "rows": row["trajectories"],
            }

        table = pd.DataFrame([cells(row) for row in self.table[:PAIRED_BEST]])
        return table.loc[:, (table != "–").any()]

    def __repr__(self) -> str:
        return f"TeacherRanking({self._heading}: {examples([row['teacher'] for row in self.table], show=str)})"

    def __str__(self) -> str:
        # Notes came as warnings when it was made.
        more = len(self.table) - PAIRED_BEST
        heading, verdict = (textwrap.wrap(text, WIDTH) for text in (self._heading, self.verdict()))
        lines = [*heading, self._shown(30).to_string(index=False), f"... and {more} more" if more > 0 else ""]
        return "\n".join(filter(None, [*lines, *verdict]))

    def _repr_html_(self) -> str:
        return as_html(self._heading, self._shown(), filter(None, [self.verdict()]))


def rank_teachers(
    dataset: Dataset,
    teacher_column: str | None = None,
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

    With a column of problems, teachers are compared on those for which all of them have a scored trajectory, and the
    bootstrap draws whole problems, the same for all teachers, so that what makes a problem hard cancels. Without
    one, the trajectories of each teacher are drawn by themselves: a teacher with a single one can't be judged.

    Args:
        dataset (`Dataset`): Scored with [`RSRScorer`] or `rsr score`.
        teacher_column (`str`, *optional*): Column that names the teacher. By default, as the next two, what
            [`~rsr_trl.data.find_columns`] finds: `teacher`.
        problem_column (`str`, *optional*): Column that says which trajectories answer the same problem; by default
            `problem_id` or the like. `"none"`: no column, as for the next.
        correctness_column (`str`, *optional*): Boolean column from which to report each teacher's accuracy; by default
            `correct` or `is_correct`.
        confidence (`float`, *optional*, defaults to `0.95`): Level of the intervals.
        num_draws, seed (`int`, *optional*, default to `1000` and `0`): Bootstrap draws; the same rows in any order
            give the same numbers.
        score, prefer (*optional*): What to rank by, and its better end: as in [`select_trajectories`].

    Returns:
        [`TeacherRanking`], with these columns in its table, all but the last two over the compared trajectories:
        `teacher`; `rsr` with `rsr_low` and `rsr_high` (bootstrap interval, with fewer than 30 problems Student-t's if
        wider; null for a single one); `probability_best` (share of the draws in which the teacher has the lowest RSR
        of those that can be judged; null for a single problem, and for a single teacher); `mean_rank` (clipped);
        `mean_surprisal` (nats); `mean_tokens`; `trajectories`; `truncated_share`; `accuracy` (null without
        `correctness_column`); `unscored` (the teacher's rows without a score); `rsr_all` (over all scored trajectories
        of the teacher, whoever it is compared with). Teachers without a scored trajectory come last, with nulls. With
        another score its mean, interval and `probability_best` are in `score`, `score_low`, `score_high` and
        `score_all` instead of RSR's, `rsr` follows as the last column, and rows without either score are left out.

    Raises:
        `RSRError`: a missing column, a null teacher or problem, scores of different students, no scored row at all,
            or no problem that all teachers have in common. Everything in `notes` comes as a `UserWarning`.

    Example:

    ```python
    >>> ranking = rank_teachers(scored)  # columns teacher, problem_id, correct
    >>> print(ranking)
    >>> ranking.best
    ```
    """
    table, notes = read_ranked(dataset, Columns(teacher_column, problem_column, correctness_column), score, prefer)
    ranking = rank_table(table, score, confidence, num_draws, seed)
    ranking.notes[:0] = notes
    for note in ranking.notes:
        warnings.warn(note, stacklevel=2)
    return ranking


def read_ranked(
    dataset: Dataset, asked: Columns, score: str = RSR, prefer: Literal["low", "high"] | None = None
) -> tuple[ScoredTable, list[str]]:
    """What [`rank_table`] takes, with the columns `asked` for and well-known ones; and what is to be said of these."""
    columns = find_columns(dataset, asked, needed=["teacher"])
    notes = list(columns.notes)
    # RSR itself comes from its two parts, so its column may be missing.
    table = ScoredTable.read(dataset, columns, [] if score == RSR else [score], {score: prefer})
    return (table if asked.problem else match_if_shared(table, notes, score)), notes


def match_if_shared(table: ScoredTable, notes: list[str], score: str = RSR) -> ScoredTable:
    """
    The table for [`rank_table`]: without its problems, which `notes` then says, where no problem has a scored
    trajectory of every teacher. For a column of problems that was found; one that the user asked for is an error.
    """
    if table.problem is None or table.where(_usable(table, score)).shared_problems().any():
        return table
    notes.append(f"No problem in {table.columns.problem!r} has a scored trajectory of every teacher.")
    return replace(table, problem=None)


def _usable(table: ScoredTable, score: str) -> np.ndarray:
    """Rows to rank by: bool array."""
    return table.scored if score == RSR else table.scored & np.isfinite(table.values[score])


def rank_table(
    table: ScoredTable, score: str = RSR, confidence: float = 0.95, num_draws: int = 1000, seed: int = 0
) -> TeacherRanking:
    """As [`rank_teachers`], without warnings, of a table read with teachers and with `score`, where it isn't RSR."""
    if not 0 < confidence < 1:
        raise RSRError(f"confidence must be in (0, 1), got {confidence}.")
    if num_draws < 100:
        raise RSRError(f"num_draws must be at least 100 for an interval to mean anything, got {num_draws}.")
    prefer = table.prefer.get(score) or direction_of(score)
    sign = 1 if prefer == "low" else -1
    usable = _usable(table, score)
    if not usable.any():
        raise RSRError(f"None of the {len(table)} rows has a score, so there is nothing to rank. {ERROR!r} says why.")
    scored, name = table.where(usable), RSR if score == RSR else "score"
    notes = _notes_on_rows(scored)
    compared, num_problems, in_all = _matched(scored, notes)
    if num_problems == 1:
        notes.append("With one problem there are no error bars; the paper uses 200.")
    elif num_problems is not None and num_problems < FEW_PROBLEMS:
        notes.append(f"With {num_problems} problems the error bars are rough; the paper uses 200.")
    resampled = _resample(compared, score, confidence, num_draws, seed)
    frame = _means(compared, score)
    frame[f"{name}_low"], frame[f"{name}_high"] = resampled.low, resampled.high
    frame["probability_best"] = probability_best(sign * resampled.draws)
    order = np.lexsort((frame["mean_tokens"], np.where(np.isfinite(frame[name]), sign * frame[name], np.inf)))
    pairs = _pairs(frame, order[:PAIRED_BEST], sign * resampled.draws, table.teachers, name)
    last = np.setdiff1d(np.arange(len(table.teachers)), frame.index)
    frame = frame.reindex([*frame.index[order], *last])  # teachers without a score come last, with nulls
    frame["trajectories"] = np.bincount(compared.teacher, minlength=len(table.teachers))[frame.index]
    frame["unscored"] = np.bincount(table.teacher[~usable], minlength=len(table.teachers))[frame.index]
    frame[f"{name}_all"] = _means(scored, score)[name]
    names = [name, f"{name}_low", f"{name}_high", "probability_best", "mean_rank", "mean_surprisal", "mean_tokens"]
    names += ["trajectories", "truncated_share", "accuracy", "unscored", f"{name}_all"]
    lists = {key: frame[key].tolist() for key in (names if score == RSR else [*names, RSR])}
    lists = {key: [value if np.isfinite(value) else None for value in values] for key, values in lists.items()}
    columns = {"teacher": [table.teachers[t] for t in frame.index]} | lists
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return TeacherRanking(rows, pairs, num_problems, in_all, confidence, notes, score, prefer)


def _notes_on_rows(scored: ScoredTable) -> list[str]:
    """What is wrong with the rows themselves, in words: teachers without a score, repeated rows."""
    notes = []
    count = np.bincount(scored.teacher, minlength=len(scored.teachers))
    if lost := [scored.teachers[t] for t in np.flatnonzero(count == 0)]:
        have, are = ("has", "isn't") if len(lost) == 1 else ("have", "aren't")
        notes.append(
            f"{counted(len(lost), 'teacher')} {have} no scored trajectory and {are} compared: {examples(lost)}."
        )
    problem = np.zeros(len(scored)) if scored.problem is None else scored.problem
    keys = dict(enumerate((scored.teacher, problem, scored.rank, scored.surprisal, scored.tokens)))
    if repeated := int(pd.DataFrame(keys).duplicated().sum()):
        same = "teacher" if scored.problem is None else "teacher and problem"
        repeat, count = ("repeats", "counts") if repeated == 1 else ("repeat", "count")
        notes.append(
            f"{counted(repeated, 'row')} {repeat} another of the same {same} (equal length, rank, surprisal) and "
            f"{count} again. Remove duplicates for honest error bars."
        )
    return notes


def _matched(scored: ScoredTable, notes: list[str]) -> tuple[ScoredTable, int | None, int | None]:
    """Rows to compare, problems that all teachers share, problems in all; adds to `notes`."""
    present, count = np.unique(scored.teacher, return_counts=True)
    if scored.problem is None:
        if len(present) > 1:
            least, most = int(count.min()), int(count.max())
            solved = f"{counted(most, 'trajectory')} each" if least == most else f"{least} to {most} trajectories"
            notes.append(
                f"Not matched by problem, the {len(present)} teachers are compared on whatever each of them solved "
                f"({solved}): name a column of problems that they share to compare like with like."
            )
        if alone := [scored.teachers[t] for t in present[count == 1]]:
            single = f"{counted(len(alone), 'teacher')} with a single trajectory"
            notes.append(f"{single} can't be judged: {examples(alone)}.")
        return scored, None, None
    shared = scored.shared_problems()
    in_all, num_shared = len(np.unique(scored.problem)), int(shared.sum())
    if num_shared < in_all:
        has = scored.problems_per_teacher()
        fewest = present[np.argsort(has[present], kind="stable")[:5]]
        detail = ", ".join(f"{scored.teachers[t]!r} {has[t]}" for t in fewest)
        if num_shared == 0:
            raise RSRError(
                f"No problem has a scored trajectory of all {len(present)} teachers, so they can't be compared on "
                f"equal terms. Problems of those with the fewest: {detail} (of {in_all}). Leave those teachers "
                "out, or compare unmatched, without a column of problems."
            )
        notes.append(
            f"The {len(present)} teachers share {num_shared} of {in_all} problems, and only "
            f"{'these are' if num_shared > 1 else 'that one is'} compared. "
            f"Problems of those with the fewest: {detail}."
        )
    return scored.where(shared[scored.problem]), num_shared, in_all


def _means(rows: ScoredTable, score: str) -> pd.DataFrame:
    """What is averaged over a teacher's rows, and its RSR: one row per teacher that has any, in ascending order."""
    columns = {"mean_rank": rows.rank, "mean_surprisal": rows.surprisal, "mean_tokens": rows.tokens}
    columns |= {"truncated_share": rows.truncated.astype(float)}
    columns |= {"accuracy": np.full(len(rows), np.nan) if rows.correct is None else rows.correct}
    columns |= {} if score == RSR else {"score": rows.values[score]}
    means = pd.DataFrame(columns).groupby(rows.teacher).mean()  # an unknown correctness doesn't count
    means[RSR] = means["mean_rank"] / means["mean_surprisal"]  # Eq. 9
    return means


def _resample(compared: ScoredTable, score: str, confidence: float, num_draws: int, seed: int) -> RatioDraws:
    """Draws of all teachers that have rows: problems drawn together, or else each teacher's trajectories alone."""
    on_log = score == RSR  # a ratio of positive sums; a mean may have either sign
    top, bottom = (compared.rank, compared.surprisal) if on_log else (compared.values[score], np.ones(len(compared)))
    present, teacher = np.unique(compared.teacher, return_inverse=True)
    if compared.problem is not None:
        _, problem = np.unique(compared.problem, return_inverse=True)
        shape = (int(problem.max()) + 1, len(present))
        cell = problem * shape[1] + teacher
        parts = [np.bincount(cell, weights=part, minlength=shape[0] * shape[1]) for part in (top, bottom)]
        rng = np.random.default_rng(seed)
        return resample_ratios(*(part.reshape(shape) for part in parts), num_draws, confidence, rng, on_log)
    # Sorted by value, the rows meet the same draws in whatever order they come.
    order = np.lexsort((bottom, top, teacher))
    each = []
    for t, rows in zip(present, np.split(order, np.cumsum(np.bincount(teacher))[:-1]), strict=True):
        # A generator of its own for each teacher: independent draws, which no other teacher moves.
        rng = np.random.default_rng([seed, *str(compared.teachers[t]).encode()])
        each.append(resample_ratios(top[rows, None], bottom[rows, None], num_draws, confidence, rng, on_log))
    return RatioDraws(*map(np.hstack, zip(*each, strict=True)))


def _pairs(frame: pd.DataFrame, order: np.ndarray, costs: np.ndarray, teachers: list, name: str) -> list[dict]:
    """`costs` are the draws, lower being better; `name` the column of the frame that they are draws of."""
    pairs, values = [], frame[name].tolist()
    for a, b in combinations(order, 2):
        probability = probability_below(costs, a, b)
        gap = {"score_difference": values[b] - values[a]}
        if name == RSR:
            gap = {"rsr_ratio": values[b] / values[a] if np.isfinite(values[b]) and values[b] else None}
        pair = {"better": teachers[frame.index[a]], "worse": teachers[frame.index[b]]} | gap
        pairs.append(pair | {"probability": None if np.isnan(probability) else probability})
    return pairs
