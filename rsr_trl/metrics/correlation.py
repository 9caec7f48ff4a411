"""How well a suitability score orders teachers by what training on them gave: correlations with intervals."""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata


_BLOCK = 2**22  # pairs compared at once


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
        scores (array of shape `(n,)`): Score of each teacher or dataset, such as its dataset RSR.
        results (array of shape `(n,)`): Result after training on each, such as accuracy.
        groups (sequence of `n` labels, *optional*): Student of each pair. Coefficients are then computed for each
            student by itself and averaged (as in the paper), and the bootstrap draws within students.
        confidence (`float`, *optional*, defaults to `0.95`): Level of the intervals.
        num_draws (`int`, *optional*, defaults to `1000`): Bootstrap draws (percentile intervals). Draws in which a
            coefficient isn't defined because all values are alike don't count.
        seed (`int`, *optional*, defaults to `0`): Seed of the draws.

    Returns:
        `dict` with, for `spearman`, `pearson` and `kendall` (tau-b), the coefficient, and its interval as `<name>_low`
        and `<name>_high` (`None` if fewer than 90% of the draws count); and `n`. With groups also `<name>_by_group`.

    Raises:
        `ValueError`: not finite, different lengths, fewer than 3 values in a group, or values that are all alike.
    """
    x, y = np.asarray(scores, np.float64), np.asarray(results, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"scores and results must be 1-D and of one length, got shapes {x.shape} and {y.shape}.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("scores and results must be finite, got NaN, null or infinity.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}.")
    if groups is not None and len(groups) != len(x):
        raise ValueError(f"groups must have one label for each of the {len(x)} scores, got {len(groups)}.")
    members = _members(groups, len(x))
    for label, rows in members.items():
        where = "" if groups is None else f" in group {label!r}"
        if len(rows) < 3:
            raise ValueError(f"A correlation needs 3 values at least, got {len(rows)}{where}.")
        for name, values in (("scores", x), ("results", y)):
            if np.ptp(values[rows]) == 0:
                raise ValueError(f"All {name}{where} are {values[rows[0]]:g}: no correlation is defined.")

    rng = np.random.default_rng(seed)
    picked = {label: rng.choice(rows, (num_draws, len(rows))) for label, rows in members.items()}
    found = {"n": len(x)}
    tail = (1 - confidence) / 2
    for name, coefficient in {"spearman": _spearman, "pearson": _pearson, "kendall": _kendall}.items():
        each = {label: float(coefficient(x[rows][None], y[rows][None])[0]) for label, rows in members.items()}
        mean = np.mean([coefficient(x[draws], y[draws]) for draws in picked.values()], axis=0)
        mean = mean[np.isfinite(mean)]
        bounds = np.quantile(mean, [tail, 1 - tail]).tolist() if len(mean) >= 0.9 * num_draws else [None, None]
        found |= {name: float(np.mean(list(each.values()))), f"{name}_low": bounds[0], f"{name}_high": bounds[1]}
        if groups is not None:
            found[f"{name}_by_group"] = each
    return found


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's r of each row of two arrays of shape `(draws, n)`; `nan` where all values of a row are alike."""
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    scale = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return np.divide((x * y).sum(axis=1), scale, out=np.full(len(x), np.nan), where=scale > 1e-300)


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _pearson(rankdata(x, axis=1), rankdata(y, axis=1))


def _kendall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kendall's tau-b, which corrects for ties."""
    tau = np.full(len(x), np.nan)
    block = max(1, _BLOCK // x.shape[1] ** 2)
    for start in range(0, len(x), block):
        here = slice(start, start + block)
        signs = [np.sign(part[here, :, None] - part[here, None, :]) for part in (x, y)]
        agree, x_pairs, y_pairs = ((a * b).sum(axis=(1, 2)) for a, b in (signs, signs[:1] * 2, signs[1:] * 2))
        scale = np.sqrt(x_pairs * y_pairs)
        tau[here] = np.divide(agree, scale, out=np.full(len(scale), np.nan), where=scale > 0)
    return tau


def _members(groups: Sequence[Hashable] | None, size: int) -> dict[Hashable, np.ndarray]:
    """Rows of each group, groups in order of first appearance; one group of all without labels."""
    if groups is None:
        return {None: np.arange(size)}
    members: dict[Hashable, list[int]] = {}
    for row, label in enumerate(groups):
        members.setdefault(label, []).append(row)
    return {label: np.array(rows) for label, rows in members.items()}
