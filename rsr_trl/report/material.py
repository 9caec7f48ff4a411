"""What a page is made from: the scored dataset as one table, read once, and what is chosen, ranked and compared in it.

This file knows no page.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from rsr_trl.data import Columns, find_columns
from rsr_trl.report.rows import TurnFinder
from rsr_trl.rsr import ERROR, R_MAX, RSR, RSRError
from rsr_trl.scoring.rows import undecoded
from rsr_trl.selection.choose import Criteria, Selection, choose, choose_rows, long_enough, min_tokens_to_show
from rsr_trl.selection.compare import KEEP_FRACTION, Comparison, compare_table, comparison_table
from rsr_trl.selection.table import ScoredTable
from rsr_trl.selection.teachers import TeacherRanking, match_if_shared, rank_table


@dataclass(frozen=True)
class Missing:
    """A part that this dataset can't fill: what is missing, how to get it, and what to type for that."""

    why: str
    how: str
    command: str | None = None


@dataclass(frozen=True)
class Material:
    """
    All that parts of the page are made from.

    Args:
        dataset: The rows themselves, for their texts and tokens.
        table: The same as arrays. Teachers are numbered from the most to the least suitable, and the cost of RSR is
            that of the page's choice.
        by, selection: What the choice on the page is made by, and that choice.
        ranking, comparison: Of the teachers, and of RSR with the other scores that are there.
        notes: What was passed over while reading.
        source, student, settings: Where the dataset was read from, and what its card says: who scored it, and how.
        tokenizer, no_tokenizer: The student's, or why there is none.
        rows: Rows to show in any case.
        run, pilot: Output folders of a training run and of a pilot.
    """

    dataset: Dataset
    table: ScoredTable
    by: Criteria
    selection: Selection
    ranking: TeacherRanking | None
    comparison: Comparison
    notes: list[str]
    source: str | None = None
    student: str | None = None
    settings: dict = field(default_factory=dict)
    tokenizer: PreTrainedTokenizerBase | None = None
    no_tokenizer: str | None = None
    rows: tuple[int, ...] = ()
    run: Path | None = None
    pilot: Path | None = None

    @property
    def r_max(self) -> float:
        """Where ranks are clipped."""
        return float(self.settings.get("r_max", R_MAX))

    @property
    def rsr(self) -> np.ndarray:
        return self.table.values[RSR]

    @cached_property
    def finite(self) -> np.ndarray:
        """Rows with a ratio that can be drawn and averaged: bool array."""
        return np.isfinite(self.rsr)

    @cached_property
    def chosen(self) -> np.ndarray:
        """Rows that the page's choice keeps: bool array."""
        mask = np.zeros(len(self.table), dtype=bool)
        mask[self.selection.rows] = True
        return mask

    @cached_property  # it learns the chat template, which takes a moment
    def turns(self) -> TurnFinder:
        return TurnFinder(self.tokenizer)

    def choose(self, cost: np.ndarray) -> np.ndarray:
        """What the rule of the page's choice would keep if it went by another cost."""
        by, tokens = self.by, self.table.tokens
        cost = np.where(long_enough(tokens, by.min_tokens), cost, np.nan)
        return choose_rows(cost, tokens, self.table.problem, by.keep_per_group, by.keep_fraction)

    def per_teacher(self, rows: np.ndarray) -> np.ndarray:
        """How many of these rows (`...`: of all) are of each teacher."""
        return np.bincount(self.table.teacher[rows], minlength=len(self.table.teachers))

    def values(self, row: int) -> dict:
        """The row itself, its images as they are stored."""
        return undecoded(self.dataset.with_format(None))[row]

    def row(self, row: int) -> dict:
        """What the table says of a row."""
        table = self.table
        return {
            "row": row,
            "teacher": None if table.teacher is None else table.teachers[table.teacher[row]],
            "problem": None if table.problem is None else table.problems[table.problem[row]],
            "rsr": self.rsr[row],
            "rank": table.rank[row],
            "surprisal": table.surprisal[row],
            "tokens": table.tokens[row],
            "correct": None if table.correct is None else table.correct[row],
            "chosen": self.chosen[row],
            "truncated": table.truncated[row],
        }


def read_material(dataset: Dataset, asked: Columns, prefer: Literal["low", "high"], **more) -> Material:
    """Read a scored dataset, and choose, rank and compare in it. `more` are the other fields of [`Material`]."""
    if not len(dataset):
        raise RSRError("The dataset has no rows, so there is nothing to report.")
    columns = find_columns(dataset, asked)
    notes = list(columns.notes)
    table = comparison_table(dataset, "all", None, columns, notes)
    if not np.isfinite(table.values[RSR]).any():
        why = f" {ERROR!r} says why, most often: {next(iter(table.reasons))}." if table.reasons else ""
        raise RSRError(f"None of the {len(table)} rows has a finite RSR, so there is nothing to report.{why}")
    by = Criteria(
        columns.problem,
        keep_fraction=None if columns.problem else KEEP_FRACTION,
        prefer=prefer,
        min_tokens=min_tokens_to_show(table.tokens[np.isfinite(table.values[RSR])]),
    )
    comparison, ranking = _compare(table, notes), None
    if table.teacher is not None:
        ranking = rank_table(match_if_shared(table, notes))
        place = {row["teacher"]: i for i, row in enumerate(ranking.table)}
        number = np.array([place[name] for name in table.teachers])
        table = replace(table, teachers=list(place), teacher=number[table.teacher])
    table = replace(table, prefer=table.prefer | {RSR: prefer})
    return Material(dataset, table, by, choose(table, by), ranking, comparison, notes, **more)


def _compare(table: ScoredTable, notes: list[str]) -> Comparison:
    """All scores that are there; RSR alone where they have no row in common, which the page then says."""
    try:
        return compare_table(table)
    except RSRError as error:
        notes.append(f"RSR isn't compared with other scores. {error}")
        return compare_table(replace(table, values={RSR: table.values[RSR]}))
