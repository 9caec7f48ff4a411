"""The figures of scored trajectories that several commands say at their end."""

import numpy as np
from datasets import Dataset
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from rsr_trl.cli.tables import beside, console, given, print_json, print_next, without_bars  # noqa: F401 - until all commands moved
from rsr_trl.data import Columns, find_columns
from rsr_trl.report.format import number as format_number
from rsr_trl.report.format import share  # noqa: F401
from rsr_trl.rsr import DIRECTION, NOISY_BELOW, rsr_from_means
from rsr_trl.selection.table import ScoredTable


MAX_TEACHERS = 20


def figures(table: ScoredTable | Dataset, teacher_column: str | None = None) -> dict:
    """
    Summarise scored trajectories: `dict` that JSON can hold, where a figure of no trajectories is `None`.

    It has counts (`truncated` and `short` of those scored), reasons of what isn't scored, the RSR of all (Eq. 9), the
    spread of the trajectories' RSR, means, and where there is a teacher column `teachers`, most suitable first.
    """
    if isinstance(table, Dataset):
        table = ScoredTable.read(table, Columns(teacher=teacher_column))
    scored = table.scored
    ratios = rsr_from_means(table.rank[scored], table.surprisal[scored])
    # inverted_cdf takes values that occur: an infinite ratio can't be interpolated.
    quantiles = np.quantile(ratios, [0.1, 0.5, 0.9], method="inverted_cdf") if len(ratios) else [None] * 3
    result = {
        "trajectories": len(table),
        **_means(table, scored),
        **{name: finite(value) for name, value in zip(("rsr_p10", "rsr_median", "rsr_p90"), quantiles, strict=True)},
        "direction": DIRECTION,
        "not_scored": table.reasons,
        "truncated": int((scored & table.truncated).sum()),
        "short": int((scored & (table.tokens < NOISY_BELOW)).sum()),
    }
    if table.columns.teacher:
        teachers = [
            {"teacher": table.teachers[i], **_means(table, scored & (table.teacher == i))}
            for i in np.unique(table.teacher)
        ]
        result["teachers"] = sorted(teachers, key=lambda one: np.inf if one["rsr"] is None else one["rsr"])
    return result


def _means(table: ScoredTable, rows: np.ndarray) -> dict:
    """Figures of these rows, which all have a score."""
    if not rows.any():
        return {"scored": 0, **dict.fromkeys(("rsr", "mean_clipped_rank", "mean_surprisal", "mean_tokens"))}
    rank, surprisal, tokens = (part[rows].mean() for part in (table.rank, table.surprisal, table.tokens))
    return {
        "scored": int(rows.sum()),
        # A quotient of means over the same trajectories is the quotient of sums of Eq. 9.
        "rsr": finite(float(rsr_from_means(rank, surprisal))),
        "mean_clipped_rank": float(rank),
        "mean_surprisal": float(surprisal),
        "mean_tokens": float(tokens),
    }


def finite(value: float | None) -> float | None:
    """JSON has no infinity."""
    return None if value is None or not np.isfinite(value) else float(value)


# ------------------------------------------------------------------------------- until all commands print by tables.py


def teacher_column_of(dataset: Dataset, teacher_column: str | None) -> str | None:
    return find_columns(dataset, Columns(teacher_column, "none", "none")).teacher


def number(value: float | None, digits: int = 3) -> str:
    return format_number(value, digits)


def plain_table(*headings: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left", overflow="fold", no_wrap=place > 0)
    return table


def add_row(table: Table, *cells: object) -> None:
    table.add_row(*(Text(str(cell)) for cell in cells))
