"""Ways to choose that a pilot compares, and which rows of the pool each of them chooses. Knows no model."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from datasets import Dataset

from rsr_trl.data import examples, read_table
from rsr_trl.rsr import ERROR, NUM_TOKENS, RSR
from rsr_trl.scoring.scores import SCORES, direction_of, known_score
from rsr_trl.selection.choose import select_trajectories
from rsr_trl.selection.table import labels, numbers, read_score


RANDOM, RENEWED, RESCORED = "random", "random_renewed", "rsr_rescored"
ORDERED = "_ordered"
DEFAULT = ("rsr", "surprisal", "length", RANDOM)
_ROW, _DRAWN = "pilot_row", "pilot_drawn"


@dataclass(frozen=True)
class Strategy:
    """
    A way to choose.

    Args:
        name (`str`): As the user calls it.
        column (`str`, *optional*): Score to choose by, as [`select_trajectories`] takes it; `None`: by chance.
        prefer (`str`, *optional*, defaults to `"low"`): Which end of it.
        ordered (`bool`, *optional*, defaults to `False`): Whether each epoch goes from the first choice to the last,
            instead of in an order of its own.
        renewed (`bool`, *optional*, defaults to `False`): Whether each epoch chooses anew.
        control (`str`, *optional*): What it is compared with; `None` for a control.
    """

    name: str
    column: str | None = None
    prefer: Literal["low", "high"] = "low"
    ordered: bool = False
    renewed: bool = False
    control: str | None = RANDOM


def parse_strategies(names: Sequence[str]) -> list[Strategy]:
    """
    Strategies by name, with the controls that they need put in front of them.

    Args:
        names (`Sequence[str]`): A name of [`~rsr_trl.scoring.scores.SCORES`] (`"rsr"`, `"surprisal"`, `"length"`,
            ...; each chooses its own better end), or `"<column>:low"` and `"<column>:high"` for any column, each also
            with `"_ordered"` at its end (trained in the order of the score; its control is the same choice shuffled);
            `"rsr_rescored"` (chosen anew each epoch by the student as it is then; its control `"random_renewed"` draws
            anew each epoch); `"random"`.

    Raises:
        ValueError: for a name that means nothing.
    """
    found: dict[str, Strategy] = {}

    def add(name: str) -> None:
        strategy = _parse(name)
        if strategy.control is not None and strategy.control not in found:
            add(strategy.control)
        found[name] = strategy

    add(RANDOM)
    for name in names:
        if name not in found:
            add(name)
    if len(found) == 1:
        raise ValueError("strategies: name one to compare with the random choice, such as rsr.")
    return list(found.values())


def _parse(name: str) -> Strategy:
    if name == RANDOM:
        return Strategy(name, control=None)
    if name == RENEWED:
        return Strategy(name, renewed=True, control=None)
    if name == RESCORED:
        return Strategy(name, RSR, renewed=True, control=RENEWED)
    base = name.removesuffix(ORDERED)
    column, _, prefer = base.rpartition(":")
    if known_score(base) is not None and base != RANDOM:
        column, prefer = base, direction_of(base)
    elif not column or prefer not in ("low", "high"):
        raise ValueError(
            f"There is no strategy {name!r}. It is one of {', '.join((*SCORES, RESCORED))}, or a column "
            f"with the end to choose, such as {name}:low or {name}:high. RSR: lower is more suitable."
        )
    if base == name:
        return Strategy(name, column, prefer)
    return Strategy(name, column, prefer, ordered=True, control=base)


@dataclass(frozen=True)
class Budget:
    """How much an arm trains on: so many `examples`, or the fewest that hold so many scored `tokens`."""

    examples: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        if (self.examples is None) == (self.tokens is None):
            raise ValueError("Give one budget: num_examples or num_tokens.")
        if not (self.examples or self.tokens) >= 1:
            raise ValueError(f"The budget must be 1 or more, got {self.examples or self.tokens}.")


class Pool:
    """
    Trajectories to choose from, scored.

    Args:
        dataset (`Dataset`): With the columns of [`RSRScorer`].
        group_column (`str`, *optional*): Column that says which trajectories answer the same problem. With it, a
            pilot's arms of one seed choose a trajectory each for the same problems; without it, they choose from all.

    Attributes:
        dataset (`Dataset`): Those of them that are scored. The others are left out for all arms alike.
        left_out (`int`): How many those are.
    """

    def __init__(self, dataset: Dataset, group_column: str | None):
        tokens = numbers(read_table(dataset, [NUM_TOKENS]), NUM_TOKENS)
        kept = np.flatnonzero(tokens > 0)
        if not kept.size:
            raise ValueError(f"None of the pool's {len(dataset)} rows is scored; {ERROR!r} says why.")
        self.dataset = dataset.select(kept) if kept.size < len(dataset) else dataset
        self.left_out = len(dataset) - kept.size
        self.group_column = group_column
        self.tokens = tokens[kept].astype(np.int64)
        self.groups: np.ndarray | None = None
        self.num_groups = kept.size
        if group_column is not None:
            self.groups, names = labels(read_table(self.dataset, [group_column]), group_column)
            self.num_groups = len(names)

    def choose(self, strategy: Strategy, budget: Budget, seed: int, num_epochs: int = 1) -> list[np.ndarray]:
        """
        Rows that an arm trains on.

        Args:
            strategy ([`Strategy`]): How to choose.
            budget ([`Budget`]): How much.
            seed (`int`): Draws the problems, the same for all strategies, and the random choice.
            num_epochs (`int`, *optional*, defaults to `1`): Epochs, for a random choice that is renewed.

        Returns:
            Rows of `dataset`, int64 arrays: one for all epochs or, where the choice is renewed, one for each. Of an
            ordered strategy in its order. For `"rsr_rescored"`, which chooses while it trains, all that it may choose
            from.

        Raises:
            ValueError: if the pool is too small for the budget, or has problems without a finite score.
        """
        if budget.examples is not None and budget.examples > self.num_groups:
            what = "trajectories" if self.groups is None else f"problems in {self.group_column!r}"
            raise ValueError(f"num_examples={budget.examples} is more than the pool has: {self.num_groups} {what}.")
        if strategy.renewed and budget.tokens is not None:
            raise ValueError(f"{strategy.name} needs a budget in examples: give num_examples.")
        if strategy.name == RESCORED:
            if self.groups is None:
                return [np.arange(len(self.dataset))]
            taken = self._problems(seed) < budget.examples
            return [np.flatnonzero(taken[self.groups])]
        if strategy.column is None:
            epochs = range(num_epochs if strategy.renewed else 1)
            return [self._first(self._drawn(seed, epoch), budget, seed) for epoch in epochs]
        score = read_score(self.dataset, strategy.column)
        chosen = self._first((score, strategy.prefer, strategy.column), budget, seed)
        if strategy.ordered:
            sign = 1 if strategy.prefer == "low" else -1
            chosen = chosen[np.lexsort((chosen, self.tokens[chosen], sign * score[chosen]))]
        return [chosen]

    def _drawn(self, seed: int, epoch: int) -> tuple[np.ndarray, str, str]:
        """A random choice is the choice by a random score."""
        return np.random.default_rng([seed, epoch, 1]).random(len(self.dataset)), "low", _DRAWN

    def _problems(self, seed: int) -> np.ndarray:
        """Place of each problem in the order in which this seed draws them."""
        place = np.empty(self.num_groups, dtype=np.int64)
        place[np.random.default_rng([seed, 0]).permutation(self.num_groups)] = np.arange(self.num_groups)
        return place

    def _first(self, by: tuple[np.ndarray, str, str], budget: Budget, seed: int) -> np.ndarray:
        """
        The best row of each problem, in the order of this seed's problems, or all rows, best first: as many as fit the
        budget.
        """
        score, prefer, name = by
        if not np.isfinite(score).any():
            raise ValueError(f"None of the pool's {len(score)} scored rows has a finite value in {name!r}.")
        rows = Dataset.from_dict({_ROW: np.arange(len(score)), _DRAWN: score, NUM_TOKENS: self.tokens})
        options: dict = {"keep_fraction": 1.0}
        if self.groups is not None:
            rows, options = rows.add_column("group", self.groups), {"group_column": "group"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # groups without a score are an error, below
            chosen = select_trajectories(rows, score=_DRAWN, prefer=prefer, **options)
        row = numbers(read_table(chosen, [_ROW]), _ROW).astype(np.int64)
        if self.groups is None:
            sign = 1 if prefer == "low" else -1
            row = row[np.lexsort((row, self.tokens[row], sign * score[row]))]
        else:
            if row.size < self.num_groups:
                names = labels(read_table(self.dataset, [self.group_column]), self.group_column)[1]
                empty = sorted(set(range(self.num_groups)) - set(self.groups[row].tolist()))
                raise ValueError(
                    f"{len(empty)} of the pool's {self.num_groups} problems have no finite score in {name!r}: "
                    f"{examples([names[i] for i in empty])}. Every arm needs the same problems: filter them out."
                )
            row = row[np.argsort(self._problems(seed)[self.groups[row]], kind="stable")]
        if budget.examples is not None:
            if row.size < budget.examples:
                raise ValueError(f"{name!r} has {row.size} finite scores, fewer than num_examples={budget.examples}.")
            return row[: budget.examples]
        total = np.cumsum(self.tokens[row])
        if not row.size or total[-1] < budget.tokens:
            raise ValueError(
                f"num_tokens={budget.tokens} is more than can be chosen by {name!r}: {total[-1] if row.size else 0}."
            )
        return row[: int(np.searchsorted(total, budget.tokens)) + 1]
