"""Ways to choose that a pilot compares, and which rows of the pool each of them chooses. Knows no model."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from datasets import Dataset

from rsr_trl.data import Columns, examples
from rsr_trl.rsr import ERROR, RSR, RSRError, did_you_mean
from rsr_trl.scoring.scores import SCORES, direction_of, known_score
from rsr_trl.selection.choose import all_short, choose_rows, least_tokens, long_enough
from rsr_trl.selection.table import ScoredTable


RANDOM, RENEWED, RESCORED = "random", "random_renewed", "rsr_rescored"
ORDERED = "_ordered"
DEFAULT = ("rsr", "surprisal", "length", RANDOM)
MAX_EXAMPLES = 128  # of the default budget


class Strategy(NamedTuple):
    """A way to choose."""

    name: str  # that the user gives it
    column: str | None = None  # score to choose by; by chance without one
    prefer: Literal["low", "high"] = "low"
    ordered: bool = False  # each epoch goes from the first choice to the last, instead of shuffled
    renewed: bool = False  # each epoch chooses again
    control: str | None = RANDOM  # what it is compared with; None for a control


def parse_strategies(names: Sequence[str]) -> list[Strategy]:
    """Strategies by the names that docs/pilot.md lists, each after the controls that it needs."""
    strategies: dict[str, Strategy] = {}

    def add(name: str) -> None:
        strategy = _parse(name)
        if strategy.control is not None:
            add(strategy.control)
        strategies.setdefault(name, strategy)

    for name in (RANDOM, *names):
        add(name)
    if len(strategies) == 1:
        raise RSRError("--strategies needs at least one to compare with the random choice, such as rsr.")
    return list(strategies.values())


def _parse(name: str) -> Strategy:
    if name in (RANDOM, RENEWED):
        return Strategy(name, renewed=name == RENEWED, control=None)
    if name == RESCORED:
        return Strategy(name, RSR, renewed=True, control=RENEWED)
    base = name.removesuffix(ORDERED)
    column, _, prefer = base.rpartition(":")
    if known_score(base) is not None and base != RANDOM:
        column, prefer = base, direction_of(base)
    elif not column or prefer not in ("low", "high"):
        raise RSRError(
            f"There is no strategy {name!r}.{did_you_mean(name, (*SCORES, RESCORED))} Strategies are "
            f"{', '.join((*SCORES, RESCORED))}, or a column with its better end, such as {name}:low or {name}:high."
        )
    return Strategy(name, column, prefer, ordered=base != name, control=RANDOM if base == name else base)


class Pool:
    """
    Scored trajectories, and how many of them (or the fewest that hold how many scored tokens) each arm trains on: one
    for each of some problems or, without a column of problems, of all. Rows without a score are left out, and
    those that are too short to be chosen ([`~rsr_trl.selection.choose.long_enough`]).
    """

    def __init__(
        self,
        dataset: Dataset,
        columns: Columns,
        strategies: Sequence[Strategy],
        num_examples=None,
        num_tokens=None,
        min_tokens=None,
    ):
        scores = {one.column: one.prefer for one in strategies if one.column is not None}
        table = ScoredTable.read(dataset, columns, scores, scores, optional=True)
        has_score, is_long = table.tokens > 0, long_enough(table.tokens, min_tokens)
        if not has_score.any():
            raise RSRError(f"None of the pool's {len(table)} rows is scored; {ERROR!r} says why.")
        if not (scored := np.flatnonzero(has_score & is_long)).size:
            raise RSRError(all_short(int(has_score.sum()), least_tokens(min_tokens)))
        self.dataset, self.table, self.left_out = dataset.select(scored), table.where(scored), int((~has_score).sum())
        self.min_tokens, self.short = least_tokens(min_tokens), int((has_score & ~is_long).sum())
        self._groups, self.num_problems, available, what = None, None, scored.size, "trajectories"
        if columns.problem is not None:
            self._problems, self._groups = np.unique(self.table.problem, return_inverse=True)
            self.num_problems = available = len(self._problems)
            what = f"problems in {columns.problem!r}"
        if num_examples is None and num_tokens is None:
            num_examples = max(1, min(MAX_EXAMPLES, available // 2))
        if num_examples is not None and num_examples > available:
            raise RSRError(f"--num_examples {num_examples} is more than the pool has: {available} {what}.")
        if num_examples is None and (renewed := [one.name for one in strategies if one.renewed]):
            raise RSRError(f"{renewed[0]} needs a budget in examples: pass --num_examples.")
        self.num_examples, self.num_tokens = num_examples, num_tokens

    def choose(self, strategy: Strategy, seed: int, num_epochs: int = 1) -> list[np.ndarray]:
        """
        Rows that an arm trains on, in its order: one int array for all epochs or, where the choice is renewed, one for
        each; for `"rsr_rescored"`, all that it may choose from. All strategies of a seed get the same problems.
        """
        if strategy.name == RESCORED:
            if self._groups is None:
                return [np.arange(len(self.table))]
            return [np.flatnonzero(self._draw(seed)[self._groups] < self.num_examples)]
        if strategy.column is None:  # a random choice is the choice by a random score
            draws = [np.random.default_rng([seed, i, 1]) for i in range(num_epochs if strategy.renewed else 1)]
            return [self._best(rng.random(len(self.table)), strategy.name, seed) for rng in draws]
        values = self.table.values[strategy.column]
        cost = values if strategy.prefer == "low" else -values
        rows = self._best(cost, strategy.column, seed)
        return [rows[choose_rows(cost[rows], self.table.tokens[rows], threshold=np.inf)] if strategy.ordered else rows]

    def _draw(self, seed: int) -> np.ndarray:
        """Place of each problem in the order in which this seed draws them."""
        return np.argsort(np.random.default_rng([seed, 0]).permutation(self.num_problems))

    def _best(self, cost: np.ndarray, name: str, seed: int) -> np.ndarray:
        """The best row of each problem in the order of this seed, or all rows, best first: as many as the budget."""
        tokens = self.table.tokens
        rows = choose_rows(cost, tokens, self._groups, threshold=np.inf if self._groups is None else None)
        if self._groups is not None:
            if empty := sorted({*range(self.num_problems)} - {*self._groups[rows].tolist()}):
                raise RSRError(
                    f"{len(empty)} of the pool's {self.num_problems} problems have no finite score in {name!r}: "
                    f"{examples([self.table.problems[self._problems[i]] for i in empty])}. Every arm needs the same "
                    "problems: filter them out."
                )
            rows = rows[np.argsort(self._draw(seed)[self._groups[rows]])]
        if self.num_examples is not None:
            if rows.size < self.num_examples:
                raise RSRError(
                    f"{name!r} has {rows.size} finite scores, fewer than --num_examples {self.num_examples}."
                )
            return rows[: self.num_examples]
        total = np.cumsum(tokens[rows])
        if (available := total[-1] if rows.size else 0) < self.num_tokens:
            raise RSRError(f"--num_tokens {self.num_tokens} is more than can be chosen by {name!r}: {available:.0f}.")
        return rows[: int(np.searchsorted(total, self.num_tokens)) + 1]

    def count_teachers(self, rows: np.ndarray) -> dict[str, int] | None:
        """How many of these rows each teacher wrote; `None` where it isn't known."""
        if self.table.teacher is None:
            return None
        counts = np.bincount(self.table.teacher[rows], minlength=len(self.table.teachers)).tolist()
        return {str(name): count for name, count in zip(self.table.teachers, counts, strict=True) if count}
