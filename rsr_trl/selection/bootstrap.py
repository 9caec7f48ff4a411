"""Error bars of ratios of sums, by resampling units: arrays in, arrays out.

A unit is what was drawn independently: a problem with the trajectories of all teachers, or a single trajectory.
Intervals are studentised ("bootstrap-t", Efron & Tibshirani 1993, ch. 12.5) on the logarithm of the ratio, with the
delta-method standard error. In simulations of 100 units and more they cover what they state also where ranks are so
skewed that percentile and BCa intervals cover too little. For means that may be 0 or negative the same is done without
the logarithm.

Fewer than `FEW_UNITS` units have too few different resamples for that: some are nearly constant, and their pivots
explode. There the logarithm is taken to be Student-t with `units - 1` degrees of freedom about its value, with the
same standard error, for draws and intervals alike. A single unit tells nothing about the next: it has no draws.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats


FEW_UNITS = 10  # units from which resampling gives intervals
_BLOCK = 2**21  # numbers held at once: small enough for a processor's cache
_LARGE = 10_000  # units from which counting draw by draw beats counting a block at once


@dataclass(frozen=True)
class RatioDraws:
    """
    Resampled ratios.

    Args:
        draws (float array of shape `(num_draws, teachers)`): Ratio of each teacher in each draw; `nan` for a single
            unit.
        low, high (float arrays of shape `(teachers,)`): Interval; `nan` where there are too few units for one.
    """

    draws: np.ndarray
    low: np.ndarray
    high: np.ndarray


def resample_ratios(
    numerators: np.ndarray,
    denominators: np.ndarray,
    num_draws: int,
    confidence: float,
    rng: np.random.Generator,
    on_log: bool = True,
) -> RatioDraws:
    """
    Bootstrap `sum(numerators) / sum(denominators)` of every teacher, with the same resampled units for all teachers.
    Fewer than `FEW_UNITS` units aren't resampled: draws and intervals are Student-t's, with the units' own correlation
    between teachers.

    Args:
        numerators (float array of shape `(units, teachers)`): Part of each unit in the numerator (sum of mean ranks).
        denominators (float array of shape `(units, teachers)`): Part of each unit in the denominator (sum of mean
            surprisals), with a positive sum.
        num_draws (`int`): Number of resamples.
        confidence (`float`): Level of the intervals in (0, 1).
        rng (`np.random.Generator`): Source of the draws.
        on_log (`bool`, *optional*, defaults to `True`): Whether intervals are made on the logarithm of the ratio,
            which then has to be positive, or on the ratio itself.
    """
    units, teachers = numerators.shape
    if units < FEW_UNITS:
        return _student_t(numerators, denominators, num_draws, confidence, rng, on_log)
    parts = np.hstack([numerators, denominators, numerators**2, denominators**2, numerators * denominators])
    whole = np.hsplit(parts.sum(axis=0), 5)
    standard_error = _standard_error if on_log else _plain_standard_error
    with np.errstate(divide="ignore"):
        ratio, error = whole[0] / whole[1], standard_error(*whole)
    draws, pivots = np.empty((num_draws, teachers)), np.empty((num_draws, teachers))
    block = max(1, _BLOCK // max(units, 5 * teachers))
    for start in range(0, num_draws, block):
        counts = _counts(units, min(block, num_draws - start), rng)
        here = slice(start, start + len(counts))
        sums = np.hsplit((parts.T @ counts.T).T, 5)
        with np.errstate(divide="ignore", invalid="ignore"):
            draws[here] = sums[0] / sums[1]
            difference = np.log(draws[here] / ratio) if on_log else draws[here] - ratio
            pivots[here] = _quotient(difference, standard_error(*sums))
    tail = (1 - confidence) / 2
    with np.errstate(invalid="ignore", over="ignore"):
        low_pivot, high_pivot = np.quantile(pivots, [tail, 1 - tail], axis=0)
        if on_log:
            low, high = ratio * np.exp(-high_pivot * error), ratio * np.exp(-low_pivot * error)
        else:
            low, high = ratio - high_pivot * error, ratio - low_pivot * error
    return RatioDraws(draws, *_usable(low, high, on_log))


def probability_best(draws: np.ndarray) -> np.ndarray:
    """
    Share of the draws in which each teacher has the lowest ratio; teachers that tie share the draw. `nan` for teachers
    without draws, which take no part, and for all if fewer than two are left.
    """
    found = np.full(draws.shape[1], np.nan)
    judged = ~np.isnan(draws).any(axis=0)
    if judged.sum() > 1:
        draws = draws[:, judged]
        lowest = draws == draws.min(axis=1, keepdims=True)
        found[judged] = (lowest / lowest.sum(axis=1, keepdims=True)).mean(axis=0)
    return found


def probability_below(draws: np.ndarray, first: int, second: int) -> float:
    """
    Share of the draws in which teacher `first` has a lower ratio than teacher `second`; a tie counts half. `nan` where
    one of them has no draws.
    """
    if np.isnan(draws[:, [first, second]]).any():
        return np.nan
    return float((draws[:, first] < draws[:, second]).mean() + 0.5 * (draws[:, first] == draws[:, second]).mean())


def _student_t(
    numerators: np.ndarray,
    denominators: np.ndarray,
    num_draws: int,
    confidence: float,
    rng: np.random.Generator,
    on_log: bool,
) -> RatioDraws:
    """[`resample_ratios`] of few units: `log(ratio)`, or the ratio itself, plus Student-t noise."""
    units, teachers = numerators.shape
    if units == 1:
        nothing = np.full(teachers, np.nan)
        return RatioDraws(np.full((num_draws, teachers), np.nan), nothing, nothing)
    freedom = units - 1
    normal, scale = rng.normal(size=(num_draws, units)), np.sqrt(freedom / rng.chisquare(freedom, (num_draws, 1)))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        top, bottom = numerators.sum(axis=0), denominators.sum(axis=0)
        ratio = top / bottom
        # What each unit adds to the deviation, to first order; their sum of squares is the delta-method variance.
        part, slope = (numerators / top, 1.0) if on_log else (numerators / bottom, ratio)
        influence = (part - slope * denominators / bottom) * np.sqrt(units / freedom)
        error = np.sqrt((influence**2).sum(axis=0))
        alike = error < 1e-6 * np.sqrt((part**2).sum(axis=0))  # below that it is rounding
        influence, error = np.where(alike, 0.0, influence), np.where(alike, 0.0, error)
        # Unit by unit: in a matrix product teachers that are alike may round differently, and no longer tie.
        noise = scale * sum(normal[:, [i]] * influence[i] for i in range(units))
        reach = stats.t.ppf((1 + confidence) / 2, freedom) * error
        draws = ratio * np.exp(noise) if on_log else ratio + noise
        low, high = (ratio * np.exp(move) if on_log else ratio + move for move in (-reach, reach))
    return RatioDraws(np.where(np.isnan(draws), ratio, draws), *_usable(low, high, on_log))


def _usable(low: np.ndarray, high: np.ndarray, on_log: bool) -> tuple[np.ndarray, np.ndarray]:
    """Bounds, `nan` where one of them isn't a number to show."""
    usable = np.isfinite(low) & np.isfinite(high) & ((low > 0) | (not on_log))
    return np.where(usable, low, np.nan), np.where(usable, high, np.nan)


def _counts(units: int, num_draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often each unit is drawn, shape `(num_draws, units)`: multinomial with equal probabilities."""
    picked = rng.integers(0, units, size=(num_draws, units), dtype=np.int32)
    if units >= _LARGE:
        return np.stack([np.bincount(draw, minlength=units) for draw in picked]).astype(np.float64)
    picked = picked + units * np.arange(num_draws)[:, None]
    return np.bincount(picked.ravel(), minlength=num_draws * units).reshape(num_draws, units).astype(np.float64)


def _standard_error(
    top: np.ndarray, bottom: np.ndarray, top_squared: np.ndarray, bottom_squared: np.ndarray, product: np.ndarray
) -> np.ndarray:
    """Delta-method standard error of `log(top / bottom)`, all arguments being sums over units."""
    variance = top_squared / top**2 + bottom_squared / bottom**2 - 2 * product / (top * bottom)
    scale = top_squared / top**2
    return np.sqrt(np.where(variance > 1e-12 * scale, variance, 0.0))  # below that it is rounding


def _plain_standard_error(
    top: np.ndarray, bottom: np.ndarray, top_squared: np.ndarray, bottom_squared: np.ndarray, product: np.ndarray
) -> np.ndarray:
    """Delta-method standard error of `top / bottom`, all arguments being sums over units."""
    ratio = top / bottom
    variance = top_squared + ratio**2 * bottom_squared - 2 * ratio * product
    return np.sqrt(np.where(variance > 1e-12 * top_squared, variance, 0.0)) / bottom


def _quotient(difference: np.ndarray, error: np.ndarray) -> np.ndarray:
    """`difference / error`, where units that are all alike differ from the whole by rounding only."""
    return np.where((error == 0) & (np.abs(difference) < 1e-9), 0.0, difference / error)
