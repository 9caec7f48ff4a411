"""How well a suitability score orders teachers by what training on them gave: correlations with intervals."""

import warnings
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from rsr_trl.rsr import RSRError


FEW_VALUES = 10  # from which resampling gives intervals: fewer, drawn again, are nearly the same few points
_BLOCK = 2**20  # differences held at once


def correlate(
    scores: ArrayLike,
    results: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    num_draws: int = 1000,
    seed: int = 0,
) -> dict:
    """
    Correlation between a suitability score and results after training.

    **RSR is lower for what suits better, so a useful RSR has a negative correlation with accuracy.**

    Args:
        scores, results (arrays of shape `(n,)`): Score of each teacher or dataset, such as its dataset RSR, and result
            after training on it, such as accuracy.
        groups (sequence of `n` labels, *optional*): Student of each pair. Coefficients are then computed for each
            student by itself and averaged (as in the paper), and the bootstrap draws within students.
        confidence, num_draws, seed (*optional*, default to `0.95`, `1000` and `0`): Level of the intervals, and
            bootstrap draws. Those in which a coefficient isn't defined because all values are alike don't count.
            With fewer than 10 values in a group intervals are Fisher's instead, wide and approximate.

    Returns:
        `dict` with, for `spearman`, `pearson` and `kendall` (tau-b), the coefficient, and its interval as `<name>_low`
        and `<name>_high` (`None` if fewer than 90% of the draws count, and for 3 values, with `kendall` also 4); and
        `n`. With groups also `<name>_by_group`.

    Raises:
        `RSRError`: not finite, different lengths, fewer than 3 values in a group, or values that are all alike.
    """
    x, y = np.asarray(scores, np.float64), np.asarray(results, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise RSRError(f"scores and results must be 1-D and of one length, got shapes {x.shape} and {y.shape}.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise RSRError("scores and results must be finite, got NaN, null or infinity.")
    if not 0 < confidence < 1:
        raise RSRError(f"confidence must be in (0, 1), got {confidence}.")
    if groups is not None and len(groups) != len(x):
        raise RSRError(f"groups must have one label for each of the {len(x)} scores, got {len(groups)}.")
    members: dict[Hashable, list[int]] = {}  # in order of first appearance; one group of all without labels
    for row, label in enumerate([None] * len(x) if groups is None else groups):
        members.setdefault(label, []).append(row)
    for label, rows in members.items():
        where = "" if groups is None else f" in group {label!r}"
        if len(rows) < 3:
            raise RSRError(f"A correlation needs 3 values at least, got {len(rows)}{where}.")
        for name, values in (("scores", x), ("results", y)):
            if np.ptp(values[rows]) == 0:
                raise RSRError(f"All {name}{where} are {values[rows[0]]:g}: no correlation is defined.")

    rng = np.random.default_rng(seed)
    sizes = np.array([len(rows) for rows in members.values()])
    picked = [rng.choice(rows, (num_draws, len(rows))) for rows in members.values()]
    result = {"n": len(x)}
    tail = (1 - confidence) / 2
    for name, coefficient in {"spearman": _spearman, "pearson": _pearson, "kendall": _kendall}.items():
        each = {label: float(coefficient(x[[rows]], y[[rows]])[0]) for label, rows in members.items()}
        value, low, high = float(np.mean(list(each.values()))), None, None
        if sizes.min() < FEW_VALUES:
            low, high = _fisher(name, value, sizes, tail)
        else:
            mean = np.mean([coefficient(x[draws], y[draws]) for draws in picked], axis=0)
            mean = mean[np.isfinite(mean)]
            if len(mean) >= 0.9 * num_draws:
                low, high = np.quantile(mean, [tail, 1 - tail]).tolist()
        result |= {name: value, f"{name}_low": low, f"{name}_high": high}
        if groups is not None:
            result[f"{name}_by_group"] = each
    return result


def _fisher(name: str, value: float, sizes: np.ndarray, tail: float) -> tuple[float | None, float | None]:
    """
    Interval of a coefficient, or of the mean of one per group, on Fisher's scale `atanh`: with the variances of Bonett
    & Wright (2000, Psychometrika 65). A perfect order has none there, so it counts as `1 - 1 / n`.
    """
    left = sizes - (4 if name == "kendall" else 3)
    if left.min() < 1:
        return None, None
    variance = {"pearson": 1.0, "spearman": 1 + value**2 / 2, "kendall": 0.437}[name] / left
    reach = stats.norm.isf(tail) * np.sqrt(variance.mean() / len(sizes))
    centre = np.arctanh(np.clip(value, 1 / sizes.sum() - 1, 1 - 1 / sizes.sum()))
    return min(value, float(np.tanh(centre - reach))), max(value, float(np.tanh(centre + reach)))


# Of each row of two arrays of shape (draws, n); nan where all values of a row are alike.


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return stats.pearsonr(x, y, axis=1).statistic


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _pearson(stats.rankdata(x, axis=1), stats.rankdata(y, axis=1))


def _kendall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """tau-b, the cosine of the signs of all differences: on few values 50 times as fast as scipy's `kendalltau`."""
    tau, (first, second) = [], np.triu_indices(x.shape[1], 1)
    for rows in np.array_split(np.arange(len(x)), 1 + len(x) * len(first) // _BLOCK):
        a, b = (np.sign(values[rows][:, first] - values[rows][:, second]) for values in (x, y))
        with np.errstate(invalid="ignore"):
            tau.append((a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1)))
    return np.concatenate(tau)
