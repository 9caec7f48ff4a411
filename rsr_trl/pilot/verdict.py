"""What a pilot found, in a table and in plain sentences. Knows records of arms, and no model."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from rsr_trl.pilot.differences import LIMIT, difference
from rsr_trl.pilot.strategies import Strategy


UNEVEN = 1.5  # times the tokens of the control
ONE_TEACHER = 0.6  # share of a strategy's choices


@dataclass(frozen=True)
class Metric:
    """What is measured on a held-out problem: its name in records, whether a higher value is better, and its unit."""

    name: str
    label: str
    higher_is_better: bool

    def number(self, value: float, sign: str = "+") -> str:
        """In percentage points, or nats per token."""
        scaled, digits = (100 * value, 1) if self.higher_is_better else (value, 4)
        return f"{round(scaled, digits) + 0.0:{sign}.{digits}f}"  # no minus before zero

    @property
    def unit(self) -> str:
        return "points" if self.higher_is_better else "nats"


LOSS = Metric("loss", "loss on held-out references", higher_is_better=False)
CORRECT = Metric("correct", "share of right answers", higher_is_better=True)


def values(records: Sequence[dict], metric: Metric) -> np.ndarray | None:
    """A metric of the arms of one strategy: array of shape `(seeds, problems)`; `None` if it wasn't measured."""
    found = [[problem[metric.name] for problem in record["problems"]] for record in records]
    return None if found[0][0] is None else np.asarray(found, dtype=np.float64)


def compare(records: dict[str, list[dict]], strategies: Sequence[Strategy], confidence: float = 0.95) -> list[dict]:
    """
    Each strategy beside its control.

    Args:
        records (`dict[str, list[dict]]`): Strategy's name -> records of its arms, seeds in the same order for all.
        strategies (`Sequence[Strategy]`): Those with a control are compared.
        confidence (`float`, *optional*, defaults to `0.95`): Level of the intervals.

    Returns:
        `list[dict]`: a row for each strategy and metric: `strategy`, `control`, `metric`, `value`, `control_value`,
        `told` (whether the interval leaves zero out), `better` (whether it then is better than its control; else
        `None`) and the fields of [`Difference`].
    """
    rows = []
    for metric in (CORRECT, LOSS):
        for strategy in strategies:
            if strategy.control is None:
                continue
            ours, theirs = (values(records[name], metric) for name in (strategy.name, strategy.control))
            if ours is None:
                continue
            found = difference(ours, theirs, confidence, bounded=metric is CORRECT)
            rows.append(
                {
                    "strategy": strategy.name,
                    "control": strategy.control,
                    "metric": metric.name,
                    "value": float(ours.mean()),
                    "control_value": float(theirs.mean()),
                    "told": found.told,
                    "better": (found.mean > 0) == metric.higher_is_better if found.told else None,
                    **asdict(found),
                }
            )
    return rows


def sentences(table: Sequence[dict], confidence: float = 0.95) -> list[str]:
    """The verdict in plain sentences."""
    found = []
    for metric in (CORRECT, LOSS):
        rows = [row for row in table if row["metric"] == metric.name]
        for row in (row for row in rows if row["told"]):
            what = "better" if row["better"] else "worse"
            where = "In these runs, " if row["these_runs_only"] else ""
            found.append(
                f"{where}{row['strategy']} is {what} than {row['control']} in {metric.label}: "
                f"{metric.number(row['mean'])} {metric.unit} ({confidence:.0%}: {metric.number(row['low'])} to "
                f"{metric.number(row['high'])})."
            )
        open_ = [row for row in rows if not row["told"]]
        for control in dict.fromkeys(row["control"] for row in open_):
            found.append(_not_told(metric, control, [row for row in open_ if row["control"] == control]))
    if table and table[0]["these_runs_only"]:
        seeds = table[0]["seeds"]
        found.append(
            f"With {seeds} seed{'s' if seeds > 1 else ''}, all intervals speak of these runs only: another order or "
            "other problems to train on may turn a difference around. Three seeds or more say something about that."
        )
    if sum(row["told"] for row in table) and len(table) > 1:
        found.append(
            f"{len(table)} comparisons were made, and each interval by itself leaves zero out by chance in "
            f"{1 - confidence:.0%} of pilots without any difference."
        )
    return found


def _not_told(metric: Metric, control: str, rows: list[dict]) -> str:
    """What can't be told, what could have been, and what it would take."""
    names = ", ".join(row["strategy"] for row in rows)
    detectable = max(row["detectable"] for row in rows)
    text = (
        f"No difference to {control} in {metric.label} can be told with this budget ({names}): one of less than "
        f"about {metric.number(detectable, '')} {metric.unit} is likely to stay hidden."
    )
    needs = [f"{row['strategy']} ({metric.number(row['mean'])}) {needed(row)}" for row in rows if row["mean"]]
    return f"{text} To tell differences as large as those seen: {'; '.join(needs)}." if needs else text


def needed(row: dict) -> str:
    """How many problems or seeds would tell a difference as large as the one seen."""
    ways = []
    for count, have, what in (
        (row["needed_problems"], row["problems"], "held-out problems"),
        (row["needed_seeds"], row["seeds"], "seeds"),
    ):
        if count is not None and count < LIMIT:
            ways.append(f"about {max(count, have + 1):,} {what}")
    return " or ".join(ways) if ways else "more of both, seeds and held-out problems"


def lopsided(strategy: Strategy, records: dict[str, list[dict]]) -> list[str]:
    """Where a strategy differs from its control in more than what it chooses by."""
    ours, found = records[strategy.name], []
    tokens = [record["tokens"] for record in ours]
    if strategy.control is not None and None not in tokens:
        factor = sum(tokens) / sum(record["tokens"] for record in records[strategy.control])
        if not 1 / UNEVEN < factor < UNEVEN:
            found.append(
                f"{strategy.name} trained on {factor:.1f} times the tokens of {strategy.control}: num_tokens "
                "instead of num_examples gives all as many."
            )
    counts: Counter[str] = Counter()
    for record in ours:
        counts.update(record["teachers"] or {})
    if len(counts) > 1 and (top := counts.most_common(1)[0])[1] > ONE_TEACHER * counts.total():
        found.append(f"{top[1] / counts.total():.0%} of what {strategy.name} chose is by {top[0]}: read some of it.")
    return found
