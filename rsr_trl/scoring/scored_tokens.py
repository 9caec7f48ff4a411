"""The scored tokens of many trajectories as flat arrays, and sums over each: what scores are made from.

This file knows no score, no model and no dataset.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from xxhash import xxh3_64_intdigest

from rsr_trl.rsr import R_MAX, trajectory_means


@dataclass(frozen=True)
class ScoredTokens:
    """
    The scored tokens of `n` trajectories, one trajectory behind another, `N` in all.

    Args:
        num_tokens (int array of shape `(n,)`): Scored tokens of each trajectory; 0 is allowed.
        ranks (array of shape `(N,)`): 1-based, unclipped.
        surprisals (array of shape `(N,)`): Nats.
        r_max (`float`, *optional*, defaults to `100`): Ranks are clipped here.
        token_ids, top1 (arrays of shape `(N,)`, *optional*): The tokens, and the student's most likely ones there.
        entropies, sum_squares (arrays of shape `(N,)`, *optional*): Of the student's prediction in each place.
        step_starts (bool array of shape `(N,)`, *optional*): Which tokens begin a reasoning step.
        content (uint64 array of shape `(n,)`, *optional*): [`content_hash`] of each trajectory.
        surprisals_alone (array of shape `(N,)`, *optional*): Surprisals without the prompt; NaN where the student
            can't predict without it.
        surprisals_local (array of shape `(N,)`, *optional*): Surprisals given only the prompt and the last 4 steps.
        teacher_steps (array of shape `(S,)`, *optional*): Surprisal, in sum, of each of the `S` steps to the teacher;
            NaN where it isn't known, or the teacher's tokens fall into other steps.
    """

    num_tokens: np.ndarray
    ranks: np.ndarray
    surprisals: np.ndarray
    r_max: float = R_MAX
    token_ids: np.ndarray | None = None
    top1: np.ndarray | None = None
    entropies: np.ndarray | None = None
    sum_squares: np.ndarray | None = None
    step_starts: np.ndarray | None = None
    content: np.ndarray | None = None
    surprisals_alone: np.ndarray | None = None
    surprisals_local: np.ndarray | None = None
    teacher_steps: np.ndarray | None = None

    @cached_property
    def means_of_rsr(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean clipped rank and mean surprisal of each trajectory, as [`trajectory_means`] gives them."""
        return trajectory_means(self.ranks, self.surprisals, self.num_tokens, self.r_max)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.num_tokens)

    @property
    def parts(self) -> list[slice]:
        """The tokens of each trajectory."""
        return [slice(end - count, end) for end, count in zip(self._ends, self.num_tokens, strict=True)]

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum of a value a token `(N,)` over each trajectory: float64 of shape `(n,)`."""
        sums, filled = np.zeros(len(self.num_tokens)), self.num_tokens > 0
        if filled.any():  # reduceat can't express an empty segment
            starts = (self._ends - self.num_tokens)[filled]
            sums[filled] = np.add.reduceat(np.asarray(values, np.float64), starts)
        return sums

    def means(self, values: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
        """Mean over each trajectory's tokens, or over those `where` is true: `(n,)`, NaN where there is none."""
        if where is None:
            return ratio(self.sums(values), self.num_tokens)
        return ratio(self.sums(np.where(where, values, 0.0)), self.sums(where))

    def step_means(self, values: np.ndarray) -> np.ndarray:
        """Mean of a value a token `(N,)` over each of the steps: float64 of shape `(S,)`."""
        starts = np.flatnonzero(self.step_starts)
        if not starts.size:
            return np.zeros(0)
        return np.add.reduceat(np.asarray(values, np.float64), starts) / self.step_lengths

    @property
    def step_lengths(self) -> np.ndarray:
        """Tokens of each step: `(S,)`."""
        return np.diff(np.append(np.flatnonzero(self.step_starts), len(self.step_starts)))

    def means_of_steps(self, values: np.ndarray) -> np.ndarray:
        """Mean of a value a step `(S,)` over those of each trajectory's steps that have one: `(n,)`, NaN without."""
        at_starts = np.full(len(self.step_starts), np.nan)
        at_starts[self.step_starts] = values
        return self.means(at_starts, where=~np.isnan(at_starts))


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """Quotients, with x / 0 = inf as in RSR; 0 / 0 is NaN, which means undefined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(numerators, denominators)


def content_hash(input_ids: np.ndarray, scored: np.ndarray) -> int:
    """64-bit hash of a trajectory: its token ids, and which of them are scored."""
    return xxh3_64_intdigest(np.asarray(input_ids, np.int32).tobytes() + np.asarray(scored, np.bool_).tobytes())
