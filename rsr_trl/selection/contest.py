"""The sequential rule by itself: which teachers are still open, given the rounds that were scored so far."""

from typing import Literal

import numpy as np

from rsr_trl.selection.sequential import log_evidence


class Contest:
    """
    Who is still open, given what was scored so far: the sequential rule by itself.

    Args:
        num_teachers (`int`): Teachers that take part.
        goal (`str`): `"best"`: a teacher is closed when one that is open is better. `"order"`: when it is ordered with
            respect to all others.
        certainty (`float`): Probability in (0, 1) with which the answer is right.
    """

    def __init__(self, num_teachers: int, goal: Literal["best", "order"], certainty: float) -> None:
        self.goal = goal
        self.threshold = np.log(max(1, num_teachers - 1) / (1 - certainty))
        self.ranks = self.surprisals = np.empty((0, num_teachers))
        self.open = np.ones(num_teachers, dtype=bool)
        self.unscored = np.zeros(num_teachers, dtype=bool)
        self._below = np.eye(num_teachers, dtype=bool) if goal == "order" else None

    def add(self, ranks: np.ndarray, surprisals: np.ndarray) -> None:
        """
        Take in a round and close whoever is settled by it.

        Args:
            ranks, surprisals (float arrays of shape `(problems, teachers)`): Sums of mean clipped ranks and of mean
                surprisals (nats); `nan` where a teacher has no score.
        """
        self.ranks = np.concatenate([self.ranks, ranks])
        self.surprisals = np.concatenate([self.surprisals, surprisals])
        self.unscored = np.isnan(self.ranks).all(axis=0)
        self.open &= ~self.unscored
        if self.goal == "best":
            self._close_the_beaten()
        else:
            self._close_the_placed()

    @property
    def ratio(self) -> np.ndarray:
        """RSR of each teacher over what was scored of it; `nan` without a score."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.nansum(self.ranks, axis=0) / np.nansum(self.surprisals, axis=0)

    @property
    def ranking(self) -> np.ndarray:
        """Teachers, most suitable first: by what is settled, then by RSR; those without a score last."""
        if self.goal == "best":
            settled = ~self.open
        elif self.open.any():
            settled = np.zeros_like(self.open)
        else:
            settled = self._below.sum(axis=0)  # how many are below
        return np.lexsort((self.ratio, settled, self.unscored))

    def _evidence(self, better: np.ndarray, worse: np.ndarray) -> np.ndarray:
        a, b = ((self.ranks[:, who], self.surprisals[:, who]) for who in (better, worse))
        return log_evidence(a, b)

    def _close_the_beaten(self) -> None:
        # Comparing with the leader alone suffices, and is linear in the number of teachers.
        open_ = np.flatnonzero(self.open)
        if len(open_) < 2:
            return
        leader = open_[np.argmin(self.ratio[open_])]
        beaten = self._evidence(np.full(len(open_), leader), open_) >= self.threshold
        self.open[open_[beaten]] = False

    def _close_the_placed(self) -> None:
        undecided = ~(self._below | self._below.T) & self.open & self.open[:, None]
        first, second = np.nonzero(undecided & (self.ratio[:, None] < self.ratio))
        settled = self._evidence(first, second) >= self.threshold
        self._below[first[settled], second[settled]] = True
        for middle in range(len(self.open)):  # who is below someone who is below a third is below the third
            self._below |= self._below[:, [middle]] & self._below[[middle], :]
        undecided = ~(self._below | self._below.T)
        undecided[:, self.unscored] = False
        self.open &= undecided.any(axis=1)
