"""How sure one can be of a difference between two ways to choose: arrays in, intervals out. Knows no model.

Two arms are compared problem by problem and seed by seed: `d[s, p]` is the metric of one arm minus that of its
control, trained with the same seed on the same problems and tested on the same held-out problem. What easy and hard
problems have in common cancels; the rest is split as in a two-way analysis of variance without replication: `d[s, p] =
mean + seed[s] + problem[p] + rest[s, p]`. So the variance of the mean has two parts:

- of the seeds, with the rest: the seeds' mean square / (seeds * problems), with `seeds - 1` degrees of freedom;
- of the problems alone: (the problems' mean square - that of the rest) / (seeds * problems), with `problems - 1`.

Each part by itself gives half a Student's t interval, and the root of the sum of their squares is half the interval
(MOVER: Zou & Donner, Statistics in Medicine 27, 2008). In simulations without any effect it includes zero 93-98% of
the time, with three seeds or more, whichever part is large. Below three seeds the seeds' part can't be known, and the
interval is about the students of these runs only.
"""

import math
from bisect import bisect_left

import numpy as np
from scipy.stats import norm, t

from rsr_trl.rsr import RSRError


CONFIDENCE = 0.95  # of the intervals
MIN_SEEDS = 3  # below, nothing can be said about other runs
POWER = 0.8
LIMIT = 1_000_000  # problems or seeds beyond which nobody would go


def difference(values: np.ndarray, control: np.ndarray, bounded: bool = False) -> dict:
    """
    Compare the metric of an arm with that of its control: float arrays of shape `(seeds, problems)`, in the same
    order. With `bounded`, the metric is right or wrong (1 or 0).

    Returns:
        `dict`: `mean`, `low` and `high` of the difference; `significant`: whether the interval leaves zero out;
        `seeds` and `problems`; `these_runs_only`: whether the seeds are too few to say something about other runs;
        `detectable`: the true difference that a pilot of this size finds significant with probability 0.8;
        `needed_problems` and `needed_seeds`: how many of one, with as many of the other, do that for the difference
        seen (`None` if no number does, or if it isn't known).
    """
    d = values.astype(np.float64) - control
    seeds, problems = d.shape
    if problems < 2:
        raise RSRError(f"{problems} held-out problem: intervals need two at least.")
    if not np.isfinite(d).all():
        raise RSRError("A difference isn't finite.")
    low, high = (float(end[0]) for end in intervals(d[None], bounded))
    variances, mean = _variances(_adjusted(d[None]) if bounded else d[None]), float(d.mean())

    def detectable(seeds: int, problems: int) -> float:
        spread = np.sqrt(np.sum(_parts(variances, seeds, problems)))
        return float(_half_width(variances, seeds, problems)[0] + norm.ppf(POWER) * spread)

    def least(start: int, size) -> int | None:
        """The least number above `start` with which the difference seen is detectable."""
        count = start + 1 + bisect_left(range(start + 1, LIMIT), True, key=lambda n: size(n) <= abs(mean))
        return count if mean and count < LIMIT else None

    return {
        "mean": mean,
        "low": low,
        "high": high,
        "significant": low > 0 or high < 0,
        "seeds": seeds,
        "problems": problems,
        "these_runs_only": seeds < MIN_SEEDS,
        "detectable": detectable(seeds, problems),
        "needed_problems": least(problems, lambda n: detectable(seeds, n)),
        "needed_seeds": least(seeds, lambda n: detectable(n, problems)) if seeds >= MIN_SEEDS else None,
    }


def intervals(d: np.ndarray, bounded: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the intervals, of shape `(n,)`, of `n` paired differences of shape `(n, seeds, problems)`."""
    d = _adjusted(d) if bounded else d
    mean, half = d.mean(axis=(1, 2)), _half_width(_variances(d), *d.shape[1:])
    return mean - half, mean + half


def _half_width(variances: tuple, seeds: int, problems: int) -> np.ndarray:
    of_seeds, of_problems = _parts(variances, seeds, problems)
    t_seeds, t_problems = t.ppf((1 + CONFIDENCE) / 2, [max(1, seeds - 1), problems - 1])
    return np.sqrt(t_seeds**2 * of_seeds + t_problems**2 * of_problems)


def _parts(variances: tuple, seeds: int, problems: int) -> tuple[np.ndarray, np.ndarray]:
    """The two parts of the variance of a mean over so many seeds and problems."""
    of_seed, of_problem, of_rest = variances
    return np.maximum(of_seed / seeds + of_rest / (seeds * problems), 0), of_problem / problems


def _variances(d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Variances of seeds, problems and rest, of shape `(n,)`. Below three seeds all is in the problems."""
    _, num_seeds, num_problems = d.shape
    if num_seeds < MIN_SEEDS:
        nothing = np.zeros(len(d))
        return nothing, d.mean(axis=1).var(axis=1, ddof=1), nothing
    by_seed, by_problem, rest = mean_squares(d)
    return (by_seed - rest) / num_problems, np.maximum(by_problem - rest, 0) / num_seeds, rest


def mean_squares(d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean squares of seeds, problems and the rest of `d`, of shape `(n, seeds, problems)`: arrays of shape `(n,)`."""
    _, num_seeds, num_problems = d.shape
    mean = d.mean(axis=(1, 2), keepdims=True)
    seeds, problems = d.mean(axis=2, keepdims=True) - mean, d.mean(axis=1, keepdims=True) - mean
    rest = ((d - mean - seeds - problems) ** 2).sum(axis=(1, 2))
    return (
        num_problems * seeds.var(axis=(1, 2), ddof=1),
        num_seeds * problems.var(axis=(1, 2), ddof=1),
        rest / ((num_seeds - 1) * (num_problems - 1)),
    )


def _adjusted(d: np.ndarray) -> np.ndarray:
    """
    With one more problem that only the arm gets right, and one that only its control does (Bonett & Price, 2012):
    where few answers differ, an interval from these alone is too narrow, and where none does it has no width. Several
    seeds answer a problem much alike, but not the same: together they weigh as one answer varies.
    """
    one = np.full_like(d[:, :, :1], 1 / math.sqrt(d.shape[1]))
    return np.concatenate([d, one, -one], axis=2)
