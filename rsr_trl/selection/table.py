"""A scored dataset as arrays: its columns read and checked once, for every choice, ranking and page made from it.

It knows names and types of columns, and nothing of what is chosen with them. No row is ever touched in Python.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from rsr_trl.data import Columns, examples, read_table
from rsr_trl.formats import as_booleans, chats_as_text
from rsr_trl.rsr import (
    CONTENT,
    ERROR,
    MEAN_CLIPPED_RANK,
    MEAN_SURPRISAL,
    NUM_TOKENS,
    RSR,
    SCORE_PREFIX,
    STUDENT,
    TRUNCATED,
    RSRError,
    reason_of,
)
from rsr_trl.scoring.scores import CASL_PARTS, SCORES, STORED, casl, check_name, direction_of, known_score, uniform


GUESS_SHARE = SCORE_PREFIX + "guess_share"


@dataclass(frozen=True)
class ScoredTable:
    """`n` rows of a scored dataset as arrays of shape `(n,)`. NaN stands for what a row doesn't have."""

    row: np.ndarray  # place in the dataset
    values: dict[str, np.ndarray]  # name of a score -> float values
    prefer: dict[str, str]  # name of a score -> its more suitable end, "low" or "high"
    rank: np.ndarray  # mean clipped rank
    surprisal: np.ndarray  # mean surprisal, nats
    tokens: np.ndarray  # scored ones, as float
    truncated: np.ndarray  # bool
    guess_share: np.ndarray  # as the score of that name
    reason: np.ndarray  # why a row has no score, without what is of that row alone; None where it has one
    teacher: np.ndarray | None  # int: which of `teachers`
    problem: np.ndarray | None  # int: which of `problems`
    correct: np.ndarray | None  # 1., 0., or NaN where unknown
    teachers: list  # distinct names, ascending
    problems: list
    columns: Columns  # where teacher, problem and correctness come from
    students: list[str]  # fingerprints of the student that scored

    @classmethod
    def read(
        cls,
        dataset: Dataset,
        columns: Columns | None = None,
        scores: Iterable[str] = (RSR,),
        prefer: Mapping[str, Literal["low", "high"] | None] | None = None,
        optional: bool = False,
    ) -> "ScoredTable":
        """
        Read a dataset that [`RSRScorer`] or `rsr score` has scored.

        Args:
            dataset (`Dataset`): Any format set on it is ignored.
            columns (*optional*): As [`~rsr_trl.data.find_columns`] gives them.
            scores (*optional*): Scores to read, as [`read_score`] takes them.
            prefer (*optional*): The more suitable end of scores that have none of their own, or another one.
            optional (`bool`, *optional*, defaults to `False`): Whether the columns of a scoring pass may be missing,
                as in a dataset with a score of the user's own, or one that isn't scored yet.

        Raises `RSRError` for a missing column, one of the wrong type, a null teacher or problem, scores of different
        students, or a score without a direction.
        """
        columns, scores, prefer = columns or Columns(), tuple(scores), prefer or {}
        measured = (MEAN_CLIPPED_RANK, MEAN_SURPRISAL, NUM_TOKENS, TRUNCATED)
        there = [name for name in (*measured, ERROR, GUESS_SHARE) if name in dataset.column_names]
        table = read_table(dataset, [*(there if optional else (*measured, *there)), *columns.names])
        students = check_one_student(dataset) if scores or not optional else []
        sources = {name: _score_columns(dataset, name) for name in scores}
        more = dict.fromkeys(column for names in sources.values() for column in names)
        rest = read_table(dataset, [column for column in more if column not in table.column_names])
        for column in rest.column_names:
            table = table.append_column(column, rest[column])
        n = table.num_rows

        def number(name: str) -> np.ndarray:
            return numbers(table, name) if name in table.column_names else np.full(n, np.nan)

        teacher, teachers = labels(table, columns.teacher) if columns.teacher else (None, [])
        problem, problems = labels(table, columns.problem) if columns.problem else (None, [])
        correct = None
        if columns.correct:
            unknown = table[columns.correct].is_null().to_numpy()
            correct = np.where(unknown, np.nan, flags(table, columns.correct))
        return cls(
            row=np.arange(n),
            values={name: _values(table, names) for name, names in sources.items()},
            prefer={name: direction_of(name, prefer.get(name)) for name in (*scores, *prefer)},
            rank=number(MEAN_CLIPPED_RANK),
            surprisal=number(MEAN_SURPRISAL),
            tokens=number(NUM_TOKENS),
            guess_share=number(GUESS_SHARE),
            truncated=flags(table, TRUNCATED) if TRUNCATED in table.column_names else np.zeros(n, dtype=bool),
            reason=_reasons(table),
            teacher=teacher,
            problem=problem,
            correct=correct,
            teachers=teachers,
            problems=problems,
            columns=columns,
            students=students,
        )

    def __len__(self) -> int:
        return len(self.row)

    def where(self, rows: np.ndarray) -> "ScoredTable":
        """These rows (bool mask, or places). Teachers and problems keep their numbers."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        kept = {name: array[rows] for name, array in arrays.items() if isinstance(array, np.ndarray)}
        return replace(self, **kept, values={name: values[rows] for name, values in self.values.items()})

    def cost(self, score: str = RSR) -> np.ndarray:
        """Values of a score, turned so that **lower = more suitable**."""
        return self.values[score] if self.prefer[score] == "low" else -self.values[score]

    @cached_property
    def scored(self) -> np.ndarray:
        """Which rows have both parts of the RSR (an infinite ratio counts): bool array."""
        return np.isfinite(self.rank) & np.isfinite(self.surprisal)

    @property
    def reasons(self) -> dict[str, int]:
        """Why rows have no score -> how many, the most frequent first."""
        return dict(Counter(reason for reason in self.reason if reason is not None).most_common())

    def problems_per_teacher(self) -> np.ndarray:
        """Distinct problems of each teacher: int array of shape `(teachers,)`."""
        return np.bincount(self._pairs // max(1, len(self.problems)), minlength=len(self.teachers))

    def shared_problems(self) -> np.ndarray:
        """Which problems have a row of every teacher that has any: bool array of shape `(problems,)`."""
        count = np.bincount(self._pairs % max(1, len(self.problems)), minlength=len(self.problems))
        return count == len(np.unique(self.teacher))

    @cached_property
    def _pairs(self) -> np.ndarray:
        """Each teacher's problems, every pair once, as one number: teacher * problems + problem."""
        return np.unique(self.teacher * len(self.problems) + self.problem)


def _reasons(table: pa.Table) -> np.ndarray:
    """Reason of each row without a score, `None` for the others."""
    if ERROR not in table.column_names or pa.types.is_null(table[ERROR].type):
        return np.full(table.num_rows, None, dtype=object)
    encoded = table[ERROR].cast(pa.string()).dictionary_encode().combine_chunks()
    reasons = np.array([*map(reason_of, encoded.dictionary.to_pylist()), None], dtype=object)
    return reasons[pc.fill_null(encoded.indices, -1).to_numpy()]


def read_score(dataset: Dataset, score: str) -> np.ndarray:
    """
    Values of a score for each row: float64 array of shape `(n,)`, NaN where a row has none.

    Args:
        dataset (`Dataset`): Scored with [`RSRScorer`] or `rsr score`, or with a column of your own.
        score (`str`): A name of [`~rsr_trl.scoring.scores.SCORES`] (`"surprisal"`, also as `"score_surprisal"`), read
            from its column, or from what every scoring pass stores where that says it exactly (rsr, surprisal, rank,
            length); `casl` is fitted to the rows of `dataset`. Or any numeric column.

    Raises:
        `RSRError`: the score isn't there, its name is also that of another column, or students differ.
    """
    if known_score(score):
        check_one_student(dataset)
    columns = _score_columns(dataset, score)
    return _values(read_table(dataset, columns), columns)


def _score_columns(dataset: Dataset, score: str) -> tuple[str, ...]:
    """Columns that a score is read from: its own, or those that `casl` is fitted to."""
    name, present = known_score(score), set(dataset.column_names)
    if name is None:
        return (score,)
    check_name(score, present)
    if name == "casl" and SCORE_PREFIX + name not in present and present.issuperset(CASL_PARTS):
        return CASL_PARTS
    column = SCORE_PREFIX + name if SCORE_PREFIX + name in present else STORED.get(name)
    if name == "random" and column is None and CONTENT in present:
        column = CONTENT  # the hash that it is made from
    if column is None:
        raise RSRError(
            f"The dataset has no score {name!r}; its columns are {dataset.column_names}. Score it with "
            f"RSRScorer(student, scores=[{name!r}]) or `rsr score --scores {name}`."
        )
    return (column,)


def _values(table: pa.Table, columns: tuple[str, ...]) -> np.ndarray:
    """Values of the score that [`_score_columns`] says is in these columns."""
    if columns == (CONTENT,):
        hashes = table[CONTENT].to_pylist()
        values = uniform(np.array([int(one, 16) if one else 0 for one in hashes], dtype=np.uint64))
        return np.where([one is None for one in hashes], np.nan, values)
    values = [numbers(table, column) for column in columns]
    if columns == CASL_PARTS:
        return casl(*values)
    return np.where(values[0] > 0, values[0], np.nan) if columns == (NUM_TOKENS,) else values[0]


def available_scores(dataset: Dataset) -> list[str]:
    """Names of all scores that [`read_score`] can read from this dataset, in their order."""
    present = set(dataset.column_names)
    stored = STORED | {"random": CONTENT}
    there = {name for name in SCORES if not present.isdisjoint((SCORE_PREFIX + name, stored.get(name)))}
    return [name for name in SCORES if name in there or (name == "casl" and present.issuperset(CASL_PARTS))]


def check_one_student(dataset: Dataset) -> list[str]:
    """The student that scored the rows; nothing where it isn't known. `RSRError` if there are several."""
    if STUDENT not in dataset.column_names:
        return []
    students = pc.unique(read_table(dataset, [STUDENT])[STUDENT]).drop_null().to_pylist()
    if len(students) > 1:
        raise RSRError(
            f"The rows were scored by {len(students)} different students or settings ({STUDENT}: "
            f"{examples(students, 3)}), and such scores can't be compared. Score all rows with one student, or filter "
            "the dataset to one."
        )
    return students


def numbers(table: pa.Table, name: str) -> np.ndarray:
    """The column as float64 of shape `(n,)`, null as NaN. `RSRError` unless it holds numbers."""
    column = table[name]
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan)
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise RSRError(f"Column {name!r} must hold numbers, but it is {column.type}.")
    return column.cast(pa.float64(), safe=False).to_numpy()


def flags(table: pa.Table, name: str) -> np.ndarray:
    """
    The column as booleans of shape `(n,)`, null as False. `RSRError` unless it holds booleans, or what files without a
    type for them have: 0 and 1, true and false as text.
    """
    if (column := as_booleans(table[name])) is None:
        raise RSRError(f"Column {name!r} must hold true or false, but it is {table[name].type}.")
    return pc.fill_null(column, False).to_numpy()


def labels(table: pa.Table, name: str) -> tuple[np.ndarray, list]:
    """
    The column as group numbers: int64 array of shape `(n,)`, and the distinct labels that they index, ascending.
    Chats are labelled by their text. `RSRError` for nulls, and for values that can't name a group (other lists).
    """
    column = chats_as_text(table[name])
    if pa.types.is_nested(column.type):
        raise RSRError(f"Column {name!r} must hold strings or whole numbers to group by, but it is {column.type}.")
    if column.null_count:
        first = pc.index(column.is_null(), True).as_py()
        raise RSRError(
            f"Column {name!r} is null in {column.null_count} of {len(column)} rows (the first is row {first}): every "
            "trajectory needs its group. Fill it in or filter those rows out."
        )
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    encoded = column.dictionary_encode().combine_chunks()
    # Ascending labels make every result independent of the order of the rows.
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank[encoded.indices.to_numpy(zero_copy_only=False)], encoded.dictionary.take(pa.array(order)).to_pylist()


def place_in_run(keys: np.ndarray) -> np.ndarray:
    """Place of each element within its run of equal keys: `[a a b] -> [0 1 0]`."""
    index = np.arange(len(keys))
    starts = np.ones(len(keys), dtype=bool)
    starts[1:] = keys[1:] != keys[:-1]
    return index - np.maximum.accumulate(np.where(starts, index, 0))
