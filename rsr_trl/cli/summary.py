"""The figures of scored trajectories that several commands say at their end."""

import numpy as np

from rsr_trl.rsr import DIRECTION, NOISY_BELOW, rsr_from_means
from rsr_trl.selection.table import ScoredTable


def figures(table: ScoredTable) -> dict:
    """
    Summarise scored trajectories: `dict` that JSON can hold, where a figure of no trajectories is `None`.

    It has counts (`truncated` and `short` of those scored), reasons of what isn't scored, the RSR of all (Eq. 9), the
    spread of the trajectories' RSR, means, and where there is a teacher column `teachers`, most suitable first.
    """
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
