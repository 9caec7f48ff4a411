"""Which score to choose by: a name or a column in, its values and its direction out.

The one place where selection, training and reports agree on what `score="surprisal"` means.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Literal

import numpy as np
from datasets import Dataset

from rsr_trl import columns
from rsr_trl.scoring.rivals import SCORES, casl
from rsr_trl.selection.arrays import check_one_student, numbers, read_table


# Scores that the columns of every scoring pass say already.
STORED = {
    "rsr": columns.RSR,
    "surprisal": columns.MEAN_SURPRISAL,
    "rank": columns.MEAN_CLIPPED_RANK,
    "length": columns.NUM_TOKENS,
}
_CASL_PARTS = (columns.MEAN_SURPRISAL, columns.SCORE_PREFIX + "drop", columns.STEP_SHARE)


def known_score(score: str) -> str | None:
    """The name in [`~rsr_trl.scoring.rivals.SCORES`] that `score` or `score_<name>` says; `None` for other columns."""
    name = score.removeprefix(columns.SCORE_PREFIX)
    return name if name in SCORES else None


def direction_of(score: str, prefer: Literal["low", "high"] | None = None) -> Literal["low", "high"]:
    """
    Which end of a score is chosen: `prefer` if it is given, else the score's own.

    Raises:
        ValueError: for a column of the user's without `prefer`, or a `prefer` that is neither.
    """
    if prefer not in ("low", "high", None):
        raise ValueError(f"prefer must be 'low' or 'high', got {prefer!r}. RSR: lower is more suitable.")
    name = known_score(score)
    if prefer is None and name is None:
        close = get_close_matches(score, SCORES, n=1)
        hint = f" Or did you mean the score {close[0]!r}?" if close else ""
        raise ValueError(
            f"Which end of the column {score!r} is the better one? Pass prefer='low' or prefer='high'.{hint} (Only "
            f"the scores {', '.join(SCORES)} have a direction of their own.)"
        )
    return SCORES[name].prefer if prefer is None else prefer


def check_name(score: str, column_names: Iterable[str]) -> None:
    """Raise `ValueError` where the name of a score is also that of another column of the dataset."""
    if score in SCORES and score != columns.RSR and score in column_names:
        raise ValueError(
            f"score={score!r} may mean the score of that name or the dataset's own column {score!r}: pass "
            f"score={columns.SCORE_PREFIX + score!r} for the score, or rename the column."
        )


def columns_of(score: str) -> tuple[str, ...]:
    """Columns that may hold the values of a score, the first that is there counting; none for `casl`."""
    name = known_score(score)
    if name is None:
        return (score,)
    if name == "casl":
        return ()
    return (columns.SCORE_PREFIX + name, *([STORED[name]] if name in STORED else []))


def read_score(dataset: Dataset, score: str) -> np.ndarray:
    """
    Values of a score for each row.

    Args:
        dataset (`Dataset`): Scored with [`RSRScorer`] or `rsr score`, or with a column of your own.
        score (`str`): A name of [`~rsr_trl.scoring.rivals.SCORES`] (`"surprisal"`, also as `"score_surprisal"`), read
            from its column, or from what every scoring pass stores where that says it exactly (rsr, surprisal, rank,
            length); `casl` is fitted to the rows of `dataset`. Or any numeric column.

    Returns:
        float64 array of shape `(n,)`: NaN where a row has no score.

    Raises:
        ValueError: if the score isn't in the dataset, if the name is also that of another column, or if the scores
            are of different students.
    """
    name = known_score(score)
    present = set(dataset.column_names)
    if name is None:
        return numbers(read_table(dataset, [score]), score)
    column = columns.SCORE_PREFIX + name
    check_name(score, present)
    check_one_student(dataset)
    if column in present:
        return numbers(read_table(dataset, [column]), column)
    if name == "casl" and present.issuperset(_CASL_PARTS):
        table = read_table(dataset, _CASL_PARTS)
        return casl(*(numbers(table, part) for part in _CASL_PARTS))
    if name not in STORED:
        raise ValueError(
            f"The dataset has no score {name!r}; its columns are {dataset.column_names}. Score it with "
            f"RSRScorer(student, scores=[{name!r}]) or `rsr score --scores {name}`."
        )
    values = numbers(read_table(dataset, [STORED[name]]), STORED[name])
    return np.where(values > 0, values, np.nan) if name == "length" else values


def available_scores(dataset: Dataset) -> list[str]:
    """Names of all scores that [`read_score`] can read from this dataset, in their order."""
    present = set(dataset.column_names)
    return [
        name
        for name in SCORES
        if columns.SCORE_PREFIX + name in present
        or STORED.get(name) in present
        or (name == "casl" and present.issuperset(_CASL_PARTS))
    ]
