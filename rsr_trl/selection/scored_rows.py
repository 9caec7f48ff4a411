"""A dataset with several scores as arrays: which scores are there, which end of each is suitable, and its rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
from datasets import Dataset

from rsr_trl.data import examples, read_table
from rsr_trl.rsr import MEAN_CLIPPED_RANK, MEAN_SURPRISAL, NUM_TOKENS, RSR, SCORE_PREFIX, TRUNCATED
from rsr_trl.scoring.scores import SCORES, known_score
from rsr_trl.selection.table import available_scores, check_one_student, flags, labels, numbers, read_score


_UNKNOWN = (
    "{}: no score that is known here, so not compared. To compare such a column, say which end of it is more suitable "
    "(own_scores)."
)


@dataclass(frozen=True)
class Score:
    """
    A score of a dataset.

    Args:
        name (`str`): What it is called.
        prefer (`str`): Which end of it is more suitable: `"low"` or `"high"`.
    """

    name: str
    prefer: Literal["low", "high"]

    @property
    def sign(self) -> int:
        """Factor that turns it into a cost: lower = more suitable."""
        return 1 if self.prefer == "low" else -1


def find_scores(
    dataset: Dataset, names: Sequence[str] | None, own_scores: Mapping[str, Literal["low", "high"]], notes: list[str]
) -> list[Score]:
    """
    The scores to compare, RSR first.

    Args:
        dataset (`Dataset`): Scored.
        names (sequence of `str`, *optional*): Scores by name; all that are there by default.
        own_scores (mapping): Other columns, or scores to turn round -> the end that is more suitable.
        notes (`list[str]`): Gets a sentence about `score_` columns whose direction isn't known.

    Raises:
        `ValueError`: a name that is no score or isn't there, or a direction that is none.
    """
    read_table(dataset, [RSR])  # its errors are the right ones for what isn't scored
    there = available_scores(dataset)
    added = [column for column in dataset.column_names if column.startswith(SCORE_PREFIX)]
    unknown = [column for column in added if known_score(column) is None and column not in own_scores]
    if names is None:
        names = there
        if unknown:
            notes.append(_UNKNOWN.format(examples(unknown)))
    for name in names:
        if name not in SCORES:
            raise ValueError(f"There is no score {name!r}. Scores are {', '.join(SCORES)}; own_scores names columns.")
        if name not in there:
            raise ValueError(
                f"The dataset has no score {name!r}; it has {', '.join(there)}. `rsr score --scores {name}` adds it."
            )
    for name, prefer in own_scores.items():
        if prefer not in ("low", "high"):
            raise ValueError(f"own_scores[{name!r}] must be 'low' or 'high' (more suitable), got {prefer!r}.")
        if name == RSR and prefer != "low":
            raise ValueError("own_scores can't turn RSR round: lower is more suitable.")
    directions = {name: SCORES[name].prefer for name in (RSR, *names)} | dict(own_scores)
    return [Score(name, prefer) for name, prefer in directions.items()]


@dataclass(frozen=True)
class ScoredRows:
    """
    Rows of a dataset as arrays of shape `(rows,)`.

    Args:
        row (int array): Place of each in the dataset.
        costs (float array of shape `(rows, scores)`): Scores, turned so that **lower = more suitable**.
        rank, surprisal (float arrays): Mean clipped rank and mean surprisal (nats).
        tokens (float array): Scored tokens.
        truncated (boolean array): Whether it was cut.
        teacher (int array, *optional*): Teacher, counted along `teachers`.
        problem (int array, *optional*): Problem.
        correct (float array, *optional*): 1, 0, or `nan` where unknown.
        teachers (`list`): Names of the teachers.
    """

    row: np.ndarray
    costs: np.ndarray
    rank: np.ndarray
    surprisal: np.ndarray
    tokens: np.ndarray
    truncated: np.ndarray
    teacher: np.ndarray | None
    problem: np.ndarray | None
    correct: np.ndarray | None
    teachers: list

    @classmethod
    def read(
        cls,
        dataset: Dataset,
        scores: Sequence[Score],
        teacher_column: str | None,
        problem_column: str | None,
        correctness_column: str | None,
    ) -> "ScoredRows":
        """Read the columns. Errors are those of the readers in `arrays.py`."""
        known = [MEAN_CLIPPED_RANK, MEAN_SURPRISAL, NUM_TOKENS, TRUNCATED]
        by_name = [teacher_column, problem_column, correctness_column]
        table = read_table(dataset, [*known, *by_name])
        check_one_student(dataset)
        # By the score's full name: the dataset may have a column of its own that is called as a score is.
        full = [SCORE_PREFIX + score.name if score.name in SCORES else score.name for score in scores]
        teacher, teachers = labels(table, teacher_column) if teacher_column else (None, [])
        correct = None
        if correctness_column:
            is_known = ~table[correctness_column].is_null().to_numpy()
            correct = np.where(is_known, flags(table, correctness_column), np.nan)
        return cls(
            row=np.arange(table.num_rows),
            costs=np.column_stack([read_score(dataset, f) * s.sign for s, f in zip(scores, full, strict=True)]),
            rank=numbers(table, MEAN_CLIPPED_RANK),
            surprisal=numbers(table, MEAN_SURPRISAL),
            tokens=numbers(table, NUM_TOKENS),
            truncated=flags(table, TRUNCATED),
            teacher=teacher,
            problem=labels(table, problem_column)[0] if problem_column else None,
            correct=correct,
            teachers=teachers,
        )

    def __len__(self) -> int:
        return len(self.row)

    def where(self, mask: np.ndarray) -> "ScoredRows":
        """The rows of the mask. Teachers and problems keep their numbers."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "teachers"}
        return replace(self, **{name: array[mask] for name, array in arrays.items() if array is not None})

    def shared_problems(self) -> np.ndarray:
        """Which problems have a row of every teacher that has any: boolean array, indexed by problem."""
        span = int(self.problem.max()) + 1
        pairs = np.unique(self.teacher * span + self.problem)
        return np.bincount(pairs % span, minlength=span) == len(np.unique(self.teacher))
