"""How sure one can be of a difference between two ways to choose: arrays in, intervals out. Knows no model.

Two arms are compared problem by problem and seed by seed: `d[s, p]` is the metric of one arm minus that of its
control, trained with the same seed on the same problems and tested on the same held-out problem. Problems are easy or
hard for both arms, so much of what varies cancels.

What is left is split as in a two-way analysis of variance without replication: `d[s, p] = mean + seed[s] +
problem[p] + rest[s, p]`, with the mean squares of seeds, of problems and of the rest. A draw of the mean is

- the mean over resampled problems, its deviation scaled so that its variance is that of the problems alone (what the
  rest adds to the problems' mean square is in the seeds' mean square already, and must not count twice);
- plus a draw of Student's t with `seeds - 1` degrees of freedom times the standard error from the seeds' mean square.
  Three or five seeds are too few to be resampled themselves: such an interval covers far less than it states.

The interval holds the middle 95% of the draws. In simulations without any effect it includes zero 93-97% of the time,
with three seeds or more, whichever of the three parts is large. Below three seeds the seeds' part can't be known: only
problems are resampled, and the interval is about the students of these runs, not about other runs. Of answers that are
right or wrong, often only a few differ: there, an invented problem is added on each side (`_adjusted`).
"""

import math
from bisect import bisect_left
from collections.abc import Callable

import numpy as np
from scipy.stats import norm, t

from rsr_trl.rsr import RSRError


MIN_SEEDS = 3  # below, nothing can be said about other runs
NUM_DRAWS = 2000
POWER = 0.8
LIMIT = 1_000_000  # problems or seeds beyond which nobody would go


def difference(
    values: np.ndarray,
    control: np.ndarray,
    confidence: float = 0.95,
    bounded: bool = False,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> dict:
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
    if values.shape != control.shape or values.ndim != 2:
        raise RSRError(
            f"Two arrays of one shape (seeds, problems) are needed, got {values.shape} and {control.shape}."
        )
    d = values.astype(np.float64) - control
    seeds, problems = d.shape
    if problems < 2:
        raise RSRError(f"{problems} held-out problem: intervals need two at least.")
    if not np.isfinite(d).all():
        raise RSRError("A difference isn't finite.")
    low, high = (float(end[0]) for end in intervals(d[None], confidence, bounded, num_draws, seed))
    variances, mean = _variances(_adjusted(d[None])[0] if bounded else d), float(d.mean())

    def detectable(seeds: int, problems: int) -> float:
        return _detectable(variances, seeds, problems, confidence)

    def least(start: int, size: Callable[[int], float]) -> int | None:
        """The least number from `start` on with which the difference seen is detectable."""
        counts = range(start, LIMIT)
        place = bisect_left(counts, True, key=lambda n: size(n) <= abs(mean)) if mean else LIMIT
        return counts[place] if place < len(counts) else None

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


def intervals(
    d: np.ndarray, confidence: float = 0.95, bounded: bool = False, num_draws: int = NUM_DRAWS, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """
    Ends, of shape `(comparisons,)`, of the intervals of paired differences, of shape `(comparisons, seeds, problems)`.
    """
    if bounded:
        d = _adjusted(d)
    _, num_seeds, num_problems = d.shape
    rng = np.random.default_rng(seed)
    mean, of_problem = d.mean(axis=(1, 2)), d.mean(axis=1)
    picked = rng.integers(0, num_problems, size=(num_draws, num_problems))
    picked += num_problems * np.arange(num_draws)[:, None]
    counts = np.bincount(picked.ravel(), minlength=num_draws * num_problems).reshape(num_draws, num_problems)
    deviation = (of_problem - mean[:, None]) @ counts.T / num_problems  # (comparisons, draws)
    by_seed, by_problem, rest = mean_squares(d)
    tail = (1 - confidence) / 2
    unbiased = num_problems / (num_problems - 1)  # a resample varies as if the sample were the population
    if num_seeds >= MIN_SEEDS:
        own = np.divide(np.maximum(by_problem - rest, 0), by_problem, out=np.zeros_like(rest), where=by_problem > 0)
        draws = deviation * np.sqrt(own * unbiased)[:, None]
        # Stratified, so that the tails of so heavy a distribution don't depend on a few draws.
        student = t.ppf((rng.permutation(num_draws) + 0.5) / num_draws, num_seeds - 1)
        draws += np.sqrt(by_seed / (num_seeds * num_problems))[:, None] * student
    else:
        small = t.ppf(1 - tail, num_problems - 1) / norm.ppf(1 - tail)
        draws = deviation * (math.sqrt(unbiased) * small)
    low, high = np.quantile(draws, [tail, 1 - tail], axis=1)
    return mean + low, mean + high


def _adjusted(d: np.ndarray) -> np.ndarray:
    """
    With one more problem that only the arm gets right, and one that only its control does (Bonett & Price, 2012):
    where few answers differ, an interval from these alone is too narrow, and where none does it has no width. Several
    seeds answer a problem much alike, but not the same: together they weigh as one answer varies.
    """
    one = np.full_like(d[:, :, :1], 1 / math.sqrt(d.shape[1]))
    return np.concatenate([d, one, -one], axis=2)


def mean_squares(d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Mean squares of seeds, problems and the rest of `d`, of shape `(comparisons, seeds, problems)`: arrays of shape
    `(comparisons,)`. With one seed those of seeds and of the rest are zero.
    """
    _, num_seeds, num_problems = d.shape
    mean = d.mean(axis=(1, 2), keepdims=True)
    seeds, problems = d.mean(axis=2, keepdims=True) - mean, d.mean(axis=1, keepdims=True) - mean
    rest = d - mean - seeds - problems
    freedom = max(1, num_seeds - 1)
    return (
        num_problems * (seeds**2).sum(axis=(1, 2)) / freedom,
        num_seeds * (problems**2).sum(axis=(1, 2)) / (num_problems - 1),
        (rest**2).sum(axis=(1, 2)) / (freedom * (num_problems - 1)),
    )


def _variances(d: np.ndarray) -> tuple[float, float, float]:
    """Variances of a difference: of seeds, of problems, of the rest. Below three seeds all is in the problems."""
    num_seeds, num_problems = d.shape
    if num_seeds < MIN_SEEDS:
        return 0.0, float(d.mean(axis=0).var(ddof=1)), 0.0
    by_seed, by_problem, rest = (float(one[0]) for one in mean_squares(d[None]))
    return max(0.0, by_seed - rest) / num_problems, max(0.0, by_problem - rest) / num_seeds, rest


def _detectable(variances: tuple[float, float, float], seeds: int, problems: int, confidence: float) -> float:
    """True difference that so many seeds and problems find significant with probability 0.8."""
    seed, problem, rest = variances
    of_seeds, of_problems = seed / seeds + rest / (seeds * problems), problem / problems
    variance = of_seeds + of_problems
    if variance == 0:
        return 0.0
    # Satterthwaite's degrees of freedom of the sum of both.
    freedom = variance**2 / (of_seeds**2 / max(1, seeds - 1) + of_problems**2 / (problems - 1))
    return float((t.ppf((1 + confidence) / 2, max(1.0, freedom)) + norm.ppf(POWER)) * math.sqrt(variance))
