"""How sure one can be of a difference between two ways to choose: arrays in, intervals out. Knows no model.

Two arms are compared problem by problem and seed by seed: `d[s, p]` is the metric of one arm minus that of its
control, trained with the same seed on the same problems and asked the same held-out problem. Problems are easy or hard
for both arms, so much of what varies cancels.

What is left is taken apart as in a two-way analysis of variance without replication: `d[s, p] = mean + seed[s] +
problem[p] + rest[s, p]`, with the mean squares of seeds, of problems and of the rest. A draw of the mean is

- the mean over resampled problems, its deviation scaled so that its variance is that of the problems alone (what the
  rest adds to the problems' mean square is in the seeds' mean square already, and must not count twice);
- plus a draw of Student's t with `seeds - 1` degrees of freedom times the standard error from the seeds' mean square.
  Three or five seeds are too few to be resampled themselves: such an interval covers far less than it states.

The interval holds the middle 95% of the draws. In simulations without any effect it includes zero 93-97% of the time,
with three seeds or more, whichever of the three parts is large. Below three seeds the seeds' part can't be known: only
problems are resampled, and the interval speaks of the students that these runs made, not of other runs. Of answers
that are right or wrong, often only a few differ: there, an invented problem is added on each side (`_adjusted`).
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.stats import norm, t


MIN_SEEDS = 3  # below, nothing can be said about other runs
NUM_DRAWS = 2000
POWER = 0.8
LIMIT = 1_000_000  # problems or seeds beyond which nobody would go


@dataclass(frozen=True)
class Difference:
    """
    A difference between two arms, with what it can be relied on for.

    Args:
        mean (`float`): Mean of the differences.
        low, high (`float`): Interval.
        seeds, problems (`int`): What it is made from.
        these_runs_only (`bool`): Whether the interval speaks of these runs only, because seeds are fewer than three.
        detectable (`float`): Size of a true difference that a pilot like this would tell from zero with probability
            0.8.
        needed_problems (`int`, *optional*): Held-out problems with which a true difference of the size seen would be
            told with that probability, the seeds being as many; `None` if no number suffices.
        needed_seeds (`int`, *optional*): The same for seeds, the problems being as many.
    """

    mean: float
    low: float
    high: float
    seeds: int
    problems: int
    these_runs_only: bool
    detectable: float
    needed_problems: int | None
    needed_seeds: int | None

    @property
    def told(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def difference(
    values: np.ndarray,
    control: np.ndarray,
    confidence: float = 0.95,
    bounded: bool = False,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> Difference:
    """
    Compare two arms.

    Args:
        values, control (float arrays of shape `(seeds, problems)`): Metric of the arm and of its control, in the same
            order of seeds and problems.
        confidence (`float`, *optional*, defaults to `0.95`): Level of the interval.
        bounded (`bool`, *optional*, defaults to `False`): Whether the metric is right or wrong (0 or 1).
        num_draws (`int`, *optional*, defaults to `2000`): Draws of the bootstrap.
        seed (`int`, *optional*, defaults to `0`): Seed of the draws.

    Raises:
        ValueError: shapes that differ, fewer than two problems, or a value that isn't finite.
    """
    if values.shape != control.shape or values.ndim != 2:
        raise ValueError(
            f"Two arrays of one shape (seeds, problems) are needed, got {values.shape} and {control.shape}."
        )
    d = values.astype(np.float64) - control
    num_seeds, num_problems = d.shape
    if num_problems < 2:
        raise ValueError(f"{num_problems} held-out problem: intervals need two at least.")
    if not np.isfinite(d).all():
        raise ValueError("A difference isn't finite.")
    low, high = (float(one[0]) for one in intervals(d[None], confidence, bounded, num_draws, seed))
    parts = _Parts.of(_adjusted(d[None])[0] if bounded else d)
    mean = float(d.mean())
    return Difference(
        mean=mean,
        low=low,
        high=high,
        seeds=num_seeds,
        problems=num_problems,
        these_runs_only=num_seeds < MIN_SEEDS,
        detectable=parts.detectable(num_seeds, num_problems, confidence),
        needed_problems=_least(
            lambda n: parts.detectable(num_seeds, n, confidence) <= abs(mean), num_problems, bool(mean)
        ),
        needed_seeds=None
        if num_seeds < MIN_SEEDS
        else _least(lambda n: parts.detectable(n, num_problems, confidence) <= abs(mean), num_seeds, bool(mean)),
    )


def intervals(
    d: np.ndarray, confidence: float = 0.95, bounded: bool = False, num_draws: int = NUM_DRAWS, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """
    Intervals of the mean difference of many comparisons at once.

    Args:
        d (float array of shape `(comparisons, seeds, problems)`): Paired differences.
        confidence (`float`, *optional*, defaults to `0.95`): Level.
        bounded (`bool`, *optional*, defaults to `False`): Whether they are differences of right and wrong (0 and 1).
        num_draws (`int`, *optional*, defaults to `2000`): Draws of the bootstrap, the same ones for all comparisons.
        seed (`int`, *optional*, defaults to `0`): Seed of the draws.

    Returns:
        Two float arrays of shape `(comparisons,)`: lower and upper end.
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
        # Stratified, so that the tails of so heavy a distribution don't hang on a few draws.
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
    of_seeds = max(1, num_seeds - 1)
    return (
        num_problems * (seeds**2).sum(axis=(1, 2)) / of_seeds,
        num_seeds * (problems**2).sum(axis=(1, 2)) / (num_problems - 1),
        (rest**2).sum(axis=(1, 2)) / (of_seeds * (num_problems - 1)),
    )


@dataclass(frozen=True)
class _Parts:
    """Variances of a difference: of seeds, of problems, of what is left. Below three seeds all is in `problem`."""

    seed: float
    problem: float
    rest: float

    @classmethod
    def of(cls, d: np.ndarray) -> "_Parts":
        num_seeds, num_problems = d.shape
        if num_seeds < MIN_SEEDS:
            return cls(0.0, float(d.mean(axis=0).var(ddof=1)), 0.0)
        by_seed, by_problem, rest = (float(one[0]) for one in mean_squares(d[None]))
        return cls(max(0.0, by_seed - rest) / num_problems, max(0.0, by_problem - rest) / num_seeds, rest)

    def detectable(self, seeds: int, problems: int, confidence: float) -> float:
        """True difference told from zero with probability 0.8 by so many seeds and problems."""
        of_seeds = self.seed / seeds + self.rest / (seeds * problems)
        of_problems = self.problem / problems
        variance = of_seeds + of_problems
        if variance == 0:
            return 0.0
        # Satterthwaite's degrees of freedom of the sum of both.
        freedom = variance**2 / (of_seeds**2 / max(1, seeds - 1) + of_problems**2 / (problems - 1))
        return float((_quantile((1 + confidence) / 2, round(freedom, 1)) + norm.ppf(POWER)) * math.sqrt(variance))


@cache
def _quantile(level: float, freedom: float) -> float:
    return float(t.ppf(level, max(1.0, freedom)))


def _least(suffices, start: int, possible: bool) -> int | None:
    """The least number from `start` on that suffices, to within a percent; `None` if none up to the limit does."""
    if not possible or not suffices(LIMIT):
        return None
    low, high = start, LIMIT
    while high - low > max(1, 0.01 * low):
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle + 1, high)
    return low if suffices(low) else high
