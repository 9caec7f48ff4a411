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
    scored = table.where(table.scored)
    ratios = rsr_from_means(scored.rank, scored.surprisal)
    # inverted_cdf takes values that occur: an infinite ratio can't be interpolated.
    quantiles = np.quantile(ratios, [0.1, 0.5, 0.9], method="inverted_cdf") if len(ratios) else [None] * 3
    result = {
        "trajectories": len(table),
        **_means(scored),
        **dict(zip(("rsr_p10", "rsr_median", "rsr_p90"), map(finite, quantiles), strict=True)),
        "direction": DIRECTION,
        "not_scored": table.reasons,
        "truncated": int(scored.truncated.sum()),
        "short": int((scored.tokens < NOISY_BELOW).sum()),
    }
    if table.columns.teacher:
        each = [(i, scored.where(np.flatnonzero(scored.teacher == i))) for i in np.unique(table.teacher)]
        teachers = [{"teacher": table.teachers[i], **_means(rows)} for i, rows in each]
        result["teachers"] = sorted(teachers, key=lambda one: np.inf if one["rsr"] is None else one["rsr"])
    return result


def _means(rows: ScoredTable) -> dict:
    names, parts = ("mean_clipped_rank", "mean_surprisal", "mean_tokens"), (rows.rank, rows.surprisal, rows.tokens)
    means = [float(part.mean()) if len(rows) else None for part in parts]
    # A quotient of means over the same trajectories is the quotient of sums of Eq. 9.
    ratio = finite(rsr_from_means(*means[:2])) if len(rows) else None
    return {"scored": len(rows), "rsr": ratio, **dict(zip(names, means, strict=True))}


def finite(value: float | None) -> float | None:
    """JSON has no infinity."""
    return None if value is None or not np.isfinite(value) else float(value)
