"""A scored dataset as arrays, read once for all parts of the page, and what selection would choose of it."""

import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from rsr_trl.data import read_table
from rsr_trl.report.turns import TurnFinder
from rsr_trl.rsr import ERROR, MEAN_CLIPPED_RANK, MEAN_SURPRISAL, NUM_TOKENS, RSR, STUDENT, TRUNCATED
from rsr_trl.selection.choose import Criteria, Selection, choose
from rsr_trl.selection.compare import Comparison, compare_scores
from rsr_trl.selection.table import ScoredTable, check_one_student, flags, labels, numbers
from rsr_trl.selection.teachers import TeacherRanking, rank_teachers


# Columns that are taken for what their names say where none is named; the page says which were.
TEACHER_NAMES = ("teacher",)
PROBLEM_NAMES = ("problem_id", "question_id", "prompt_id", "problem", "question", "prompt")
CORRECTNESS_NAMES = ("correct", "is_correct")
KEEP_FRACTION = 0.5  # what selection keeps where no column names the problem


@dataclass(frozen=True)
class Missing:
    """
    A part that this dataset can't fill.

    Args:
        why (`str`): What is missing.
        how (`str`): How to get it.
        command (`str`, *optional*): What to type for it.
    """

    why: str
    how: str
    command: str | None = None


@dataclass(frozen=True)
class Group:
    """
    A column that names the teacher or the problem of each row.

    Args:
        column (`str`): Its name.
        number (int array of shape `(n,)`): Which of `names` a row has.
        names (`list`): Distinct values.
    """

    column: str
    number: np.ndarray
    names: list

    @cached_property
    def counts(self) -> np.ndarray:
        """Rows of each."""
        return np.bincount(self.number, minlength=len(self.names))


@dataclass(frozen=True)
class Pool:
    """
    A scored dataset of `n` rows. Arrays have shape `(n,)`; NaN where a row has no score.

    Args:
        dataset (`Dataset`): The rows themselves.
        rsr (float array): Lower = more suitable; infinite where there is nothing to learn.
        rank, surprisal (float arrays): Mean clipped rank and mean surprisal (nats).
        tokens (float array): Scored tokens.
        truncated (boolean array): Whether the row was cut.
        reasons (`dict[str, int]`): Why rows have no score -> how many.
        students (`list[str]`): Fingerprints of the student.
        teacher ([`Group`], *optional*): Teachers, the most suitable first.
        problem ([`Group`], *optional*): Problems.
        correct (float array, *optional*): 1, 0, or NaN where unknown.
        correctness_column (`str`, *optional*): Where `correct` comes from.
        criteria ([`Criteria`]): What the choice on the page is made by.
        selection ([`Selection`]): That choice.
        ranking ([`TeacherRanking`], *optional*): Of the teachers.
        comparison ([`Comparison`]): RSR beside the other scores that are there, and its known failure modes.
        notes (`list[str]`): What was passed over while reading.
    """

    dataset: Dataset
    rsr: np.ndarray
    rank: np.ndarray
    surprisal: np.ndarray
    tokens: np.ndarray
    truncated: np.ndarray
    reasons: dict[str, int]
    students: list[str]
    teacher: Group | None
    problem: Group | None
    correct: np.ndarray | None
    correctness_column: str | None
    criteria: Criteria
    selection: Selection
    ranking: TeacherRanking | None
    comparison: Comparison
    notes: list[str]

    def __len__(self) -> int:
        return len(self.rsr)

    @cached_property
    def scored(self) -> np.ndarray:
        """Rows that have a score, an infinite one too."""
        return np.isfinite(self.rank) & np.isfinite(self.surprisal)

    @cached_property
    def finite(self) -> np.ndarray:
        """Rows with a ratio that can be drawn and averaged."""
        return np.isfinite(self.rsr)

    @cached_property
    def chosen(self) -> np.ndarray:
        """Rows that selection keeps."""
        mask = np.zeros(len(self), dtype=bool)
        mask[self.selection.rows] = True
        return mask


@dataclass(frozen=True)
class Material:
    """
    All that parts of the page are made from.

    Args:
        pool ([`Pool`]): The scored dataset.
        source (`str`, *optional*): Where it was read from.
        student (`str`, *optional*): Name of the student, where it is known.
        manifest (`dict`, *optional*): What `rsr score` noted about student and settings.
        tokenizer (*optional*): The student's; `None` where token statistics can't be read, for the reason `untold`.
        untold (`str`, *optional*): Why there is no tokenizer.
        rows (`tuple[int, ...]`): Rows to show by all means.
        run (`Path`, *optional*): Output folder of a training run.
        pilot (`Path`, *optional*): Output folder of a pilot.
        r_max (`float`): Where ranks are clipped.
    """

    pool: Pool
    source: str | None
    student: str | None
    manifest: dict | None
    tokenizer: PreTrainedTokenizerBase | None
    untold: str | None
    rows: tuple[int, ...]
    run: Path | None
    pilot: Path | None
    r_max: float

    @cached_property  # it learns the chat template, which takes a moment
    def turns(self) -> TurnFinder:
        """Finds turns again, with the tokenizer."""
        return TurnFinder(self.tokenizer)


def read_pool(
    dataset: Dataset,
    teacher_column: str | None = None,
    problem_column: str | None = None,
    correctness_column: str | None = None,
    prefer: Literal["low", "high"] = "low",
) -> Pool:
    """
    Read a scored dataset.

    Args:
        dataset (`Dataset`): Scored with [`RSRScorer`] or `rsr score`.
        teacher_column, problem_column, correctness_column (`str`, *optional*): By default columns with well-known
            names, if they can be used.
        prefer (`str`, *optional*, defaults to `"low"`): Which end of the RSR selection keeps.

    Raises:
        `ValueError`: no rows, missing columns, no row with a finite score, or scores of different students.
    """
    if not len(dataset):
        raise ValueError("The dataset has no rows, so there is nothing to report.")
    needed = [RSR, MEAN_CLIPPED_RANK, MEAN_SURPRISAL, NUM_TOKENS, TRUNCATED]
    table = read_table(dataset, [*needed, ERROR, STUDENT])
    check_one_student(dataset)
    ratios = numbers(table, RSR)
    if not np.isfinite(ratios).any():
        reasons = table[ERROR].drop_null().to_pylist()
        why = f" {ERROR!r} says why, in the first of them: {reasons[0]}." if reasons else ""
        raise ValueError(f"None of the {len(dataset)} rows has a finite RSR, so there is nothing to report.{why}")
    notes: list[str] = []
    teacher = _group(dataset, teacher_column, TEACHER_NAMES, notes)
    problem = _group(dataset, problem_column, PROBLEM_NAMES, notes, repeats=True)
    correctness_column, correct = _correct(dataset, correctness_column)
    group_column = problem.column if problem else None
    criteria = Criteria(
        group_column=group_column, keep_fraction=None if group_column else KEEP_FRACTION, prefer=prefer
    )
    ranking = None
    if teacher is not None:
        ranking = _rank(dataset, teacher, problem, correctness_column, notes)
        teacher = _in_order(teacher, ranking)
    return Pool(
        dataset=dataset,
        rsr=ratios,
        rank=numbers(table, MEAN_CLIPPED_RANK),
        surprisal=numbers(table, MEAN_SURPRISAL),
        tokens=numbers(table, NUM_TOKENS),
        truncated=flags(table, TRUNCATED),
        # What is in brackets is of one row: its lengths, its words.
        reasons=dict(Counter(reason.split(" (")[0] for reason in table[ERROR].drop_null().to_pylist()).most_common()),
        students=table[STUDENT].unique().drop_null().to_pylist(),
        teacher=teacher,
        problem=problem,
        correct=correct,
        correctness_column=correctness_column,
        criteria=criteria,
        selection=choose(ScoredTable.read(dataset, criteria.columns), criteria),
        ranking=ranking,
        comparison=_compare(dataset, teacher, problem, correctness_column, notes),
        notes=notes,
    )


def _group(
    dataset: Dataset, named: str | None, known: tuple[str, ...], notes: list[str], repeats: bool = False
) -> Group | None:
    """The column asked for, whatever is wrong with it; else the first of the `known` that can be used."""
    if named is not None:
        return Group(named, *labels(read_table(dataset, [named]), named))
    for name in known:
        if name not in dataset.column_names:
            continue
        column = read_table(dataset, [name])[name]
        if pa.types.is_nested(column.type) or pa.types.is_null(column.type):
            continue
        if column.null_count:
            notes.append(f"Column {name!r} is null in {column.null_count:,} rows, so it isn't used.")
            continue
        group = Group(name, *labels(read_table(dataset, [name]), name))
        if not repeats or len(group.names) < len(dataset):
            return group
    return None


def _correct(dataset: Dataset, named: str | None) -> tuple[str | None, np.ndarray | None]:
    for name in CORRECTNESS_NAMES if named is None else (named,):
        if named is None and name not in dataset.column_names:
            continue
        table = read_table(dataset, [name])
        if named is None and not pa.types.is_boolean(table[name].type):
            continue
        return name, np.where(table[name].is_null().to_numpy(), np.nan, flags(table, name))
    return None, None


def _rank(
    dataset: Dataset, teacher: Group, problem: Group | None, correctness_column: str | None, notes: list[str]
) -> TeacherRanking:
    """Teachers on the problems they share; on all they have where they share none, which the page then says."""
    problem_column = problem.column if problem else None
    if problem is not None:
        scored = np.isfinite(numbers(read_table(dataset, [MEAN_SURPRISAL]), MEAN_SURPRISAL))
        pairs = np.unique(problem.number[scored] * len(teacher.names) + teacher.number[scored])
        present = len(np.unique(teacher.number[scored]))
        if pairs.size and np.bincount(pairs // len(teacher.names)).max() < present:
            notes.append(f"No problem in {problem.column!r} has a scored trajectory of every teacher.")
            problem_column = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are the ranking's notes, which the page shows
        return rank_teachers(dataset, teacher.column, problem_column, correctness_column)


def _compare(
    dataset: Dataset, teacher: Group | None, problem: Group | None, correctness_column: str | None, notes: list[str]
) -> Comparison:
    """All scores that are there; RSR alone where they have no row in common, which the page then says."""
    named = {
        "teacher_column": teacher and teacher.column,
        "problem_column": problem and problem.column,
        "correctness_column": correctness_column,
    }
    try:
        return compare_scores(dataset, **named)
    except ValueError as error:
        notes.append(f"RSR isn't compared with other scores. {error}")
        return compare_scores(dataset, scores=[], **named)


def _in_order(teacher: Group, ranking: TeacherRanking) -> Group:
    """Teachers numbered from the most to the least suitable."""
    order = [row["teacher"] for row in ranking.table]
    place = {name: number for number, name in enumerate(order)}
    return Group(teacher.column, np.array([place[name] for name in teacher.names])[teacher.number], order)
