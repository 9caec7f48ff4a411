"""What a command says at its end: the figures of a scored dataset, and how they look in a terminal.

People read it on standard error, programs read JSON on standard output: a pipe gets data and nothing else.
"""

from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from rsr_trl.cli.tables import console, print_json, print_next, without_bars  # noqa: F401 - until all commands moved
from rsr_trl.data import READERS
from rsr_trl.report.format import number as format_number
from rsr_trl.report.format import share  # noqa: F401
from rsr_trl.rsr import (
    DIRECTION,
    ERROR,
    MEAN_CLIPPED_RANK,
    MEAN_SURPRISAL,
    NOISY_BELOW,
    NUM_TOKENS,
    RSR,
    SCORE_COLUMNS,
    TRUNCATED,
    rsr_from_means,
)


MAX_TEACHERS = 20  # lines of a table in the terminal; JSON has them all


def teacher_column_of(dataset: Dataset, teacher_column: str | None) -> str | None:
    """The column that names the teacher: the one asked for, else `teacher` where there is one."""
    if teacher_column is not None and teacher_column not in dataset.column_names:
        names = ", ".join(dataset.column_names)
        raise ValueError(f"There is no column {teacher_column!r} (teacher_column). The dataset has: {names}.")
    return teacher_column or ("teacher" if "teacher" in dataset.column_names else None)


def figures(dataset: Dataset, teacher_column: str | None = None) -> dict:
    """
    Summarise a scored dataset.

    Args:
        dataset (`Dataset`): Scored, with or without nulls.
        teacher_column (`str`, *optional*): Column to summarise by as well.

    Returns:
        `dict` that JSON can hold: counts (`truncated` and `short` of those scored), reasons of what isn't scored, the
        dataset's RSR (Eq. 9), the spread of its trajectories' RSR, means, and `teachers`, most suitable first. A
        figure of no trajectories is `None`.
    """
    if missing := [name for name in SCORE_COLUMNS if name not in dataset.column_names]:
        raise ValueError(f"The dataset has no column {missing[0]!r}. Score it first with `rsr score`.")
    table = dataset.select_columns([*SCORE_COLUMNS, *([teacher_column] if teacher_column else [])])
    table = table.with_format("arrow")[:]
    ratios = table[RSR].drop_null().to_numpy()
    # inverted_cdf takes values that occur: an infinite ratio can't be interpolated.
    quantiles = np.quantile(ratios, [0.1, 0.5, 0.9], method="inverted_cdf") if len(ratios) else [None] * 3
    # What is in brackets is of one row: its lengths, its words.
    reasons = Counter(reason.split(" (")[0] for reason in table[ERROR].drop_null().to_pylist())
    is_scored = pc.is_valid(table[RSR])
    is_short = pc.less(table[NUM_TOKENS], NOISY_BELOW)
    result = {
        "trajectories": table.num_rows,
        **_means(table, [])[0],
        "rsr_p10": finite(quantiles[0]),
        "rsr_median": finite(quantiles[1]),
        "rsr_p90": finite(quantiles[2]),
        "direction": DIRECTION,
        "not_scored": dict(reasons.most_common()),
        "truncated": pc.sum(pc.and_(is_scored, table[TRUNCATED]), min_count=0).as_py(),
        "short": pc.sum(pc.and_(is_scored, is_short), min_count=0).as_py(),
    }
    if teacher_column:
        teachers = _means(table, [teacher_column])
        result["teachers"] = sorted(teachers, key=lambda one: np.inf if one["rsr"] is None else one["rsr"])
    return result


def _means(table: pa.Table, by: list[str]) -> list[dict]:
    """Figures of the scored rows of `table`, for each value of the column in `by`, or of all rows if it is empty."""
    sums = table.group_by(by, use_threads=False).aggregate(
        [
            (RSR, "count"),
            (MEAN_CLIPPED_RANK, "mean"),
            (MEAN_SURPRISAL, "mean"),
            (NUM_TOKENS, "sum"),  # 0 where nothing is scored
        ]
    )
    result = []
    for row in sums.to_pylist():
        scored, rank, surprisal, tokens = (
            row[f"{RSR}_count"],
            row[f"{MEAN_CLIPPED_RANK}_mean"],
            row[f"{MEAN_SURPRISAL}_mean"],
            row[f"{NUM_TOKENS}_sum"],
        )
        # A quotient of means over the same trajectories is the quotient of sums of Eq. 9.
        ratio = float(rsr_from_means(rank, surprisal)) if scored else None
        result.append(
            {
                **({"teacher": row[by[0]]} if by else {}),
                "scored": scored,
                "rsr": finite(ratio),
                "mean_clipped_rank": rank,
                "mean_surprisal": surprisal,
                "mean_tokens": tokens / scored if scored else None,
            }
        )
    return result


def finite(value: float | None) -> float | None:
    """JSON has no infinity."""
    return None if value is None or not np.isfinite(value) else float(value)


def number(value: float | None, digits: int = 3) -> str:
    return format_number(value, digits)


def plain_table(*headings: str) -> Table:
    """A table whose first column is text and whose others are numbers."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left", overflow="fold", no_wrap=place > 0)
    return table


def add_row(table: Table, *cells: object) -> None:
    # As Text: a teacher called "[red]" is a name, not markup.
    table.add_row(*(Text(str(cell)) for cell in cells))


def given(arguments: object) -> list[str]:
    """The options of a dataclass that aren't at their defaults, as words of a command line."""
    words = []
    for option in fields(arguments):
        value = vars(arguments)[option.name]
        if value != option.default:
            words += [f"--{option.name}"] if value is True else [f"--{option.name}", str(value)]
    return words


def beside(name: str, ending: str) -> str:
    """A folder to propose for what is made from a dataset: beside it, or here if it isn't a file or folder."""
    path = Path(name)
    stem = path.stem if path.suffix.lower() in READERS else path.name
    return str((path.parent if path.exists() else Path()) / f"{stem}-{ending}")
