"""What a pilot says, in a table and in plain sentences. Knows records of arms, and no model."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rsr_trl.pilot.differences import CONFIDENCE, difference
from rsr_trl.pilot.strategies import Strategy


UNEVEN = 1.5  # times the tokens of the control
ONE_TEACHER = 0.6  # share of a strategy's choices


class Metric(NamedTuple):
    """What is measured on a held-out problem: its name in records, and how its differences are shown."""

    name: str
    label: str
    unit: str
    factor: int
    digits: int
    higher_is_better: bool

    def number(self, value: float, sign: str = "+") -> str:
        return f"{round(self.factor * value, self.digits) + 0.0:{sign}.{self.digits}f}"  # no minus before zero


METRICS = (
    Metric("correct", "share of right answers", "points", factor=100, digits=1, higher_is_better=True),
    Metric("loss", "loss on held-out references", "nats", factor=1, digits=4, higher_is_better=False),
)


def compare(records: dict[str, list[dict]], strategies: Sequence[Strategy]) -> list[dict]:
    """
    Each strategy that has a control beside it, by the records of each one's arms, in the same order of seeds.

    Returns:
        `list[dict]`: a row for each metric and strategy: `strategy`, `control`, `metric`, `value`, `control_value`,
        `better` (whether a significant difference is one for the better, else `None`) and what
        [`~rsr_trl.pilot.differences.difference`] returns.
    """
    rows = []
    for metric in METRICS:
        for strategy in strategies:
            if strategy.control is None or records[strategy.name][0][metric.name] is None:
                continue
            ours, theirs = (
                np.array([[problem[metric.name] for problem in record["problems"]] for record in records[name]], float)
                for name in (strategy.name, strategy.control)
            )
            result = difference(ours, theirs, bounded=metric.name == "correct")
            row = {
                "strategy": strategy.name,
                "control": strategy.control,
                "metric": metric.name,
                "value": float(ours.mean()),
                "control_value": float(theirs.mean()),
                "better": (result["mean"] > 0) == metric.higher_is_better if result["significant"] else None,
            }
            rows.append(row | result)
    return rows


def sentences(table: Sequence[dict]) -> list[str]:
    """The verdict in plain sentences."""
    lines = []
    for metric in METRICS:
        rows = [row for row in table if row["metric"] == metric.name]
        for row in (row for row in rows if row["significant"]):
            what = "better" if row["better"] else "worse"
            where = "In these runs, " if row["these_runs_only"] else ""
            mean, low, high = (metric.number(row[name]) for name in ("mean", "low", "high"))
            lines.append(
                f"{where}{row['strategy']} is {what} than {row['control']} in {metric.label}: {mean} {metric.unit} "
                f"({CONFIDENCE:.0%}: {low} to {high})."
            )
        unclear = [row for row in rows if not row["significant"]]
        for control in dict.fromkeys(row["control"] for row in unclear):
            lines.append(_unclear(metric, control, [row for row in unclear if row["control"] == control]))
    if table and table[0]["these_runs_only"]:
        seeds = table[0]["seeds"]
        lines.append(
            f"With {seeds} seed{'s' if seeds > 1 else ''}, all intervals are about these runs only: another order or "
            "other problems to train on may turn a difference around. Three seeds or more say something about that."
        )
    if sum(row["significant"] for row in table) and len(table) > 1:
        lines.append(
            f"{len(table)} comparisons were made, and each interval by itself leaves zero out by chance in "
            f"{1 - CONFIDENCE:.0%} of pilots without any difference."
        )
    return lines


def _unclear(metric: Metric, control: str, rows: list[dict]) -> str:
    """What isn't significant, what would likely have been, and what it would take."""
    names, detectable = ", ".join(row["strategy"] for row in rows), max(row["detectable"] for row in rows)
    text = (
        f"No significant difference to {control} in {metric.label} ({names}): with this budget, one below about "
        f"{metric.number(detectable, '')} {metric.unit} is likely to stay hidden."
    )
    needs = [f"{row['strategy']} ({metric.number(row['mean'])}) {_needed(row)}" for row in rows if row["mean"]]
    return f"{text} Differences as large as those seen need: {'; '.join(needs)}." if needs else text


def _needed(row: dict) -> str:
    """How many problems or seeds would make a difference as large as the one seen significant."""
    ways = []
    for what, label in (("problems", "held-out problems"), ("seeds", "seeds")):
        if (count := row[f"needed_{what}"]) is not None:
            ways.append(f"about {max(count, row[what] + 1):,} {label}")
    return " or ".join(ways) or "more of both, seeds and held-out problems"


def lopsided(strategy: Strategy, records: dict[str, list[dict]]) -> list[str]:
    """Where a strategy differs from its control in more than what it chooses by."""
    ours, notes = records[strategy.name], []
    tokens = [record["tokens"] for record in ours]
    if strategy.control is not None and None not in tokens:
        factor = sum(tokens) / sum(record["tokens"] for record in records[strategy.control])
        if not 1 / UNEVEN < factor < UNEVEN:
            notes.append(
                f"{strategy.name} trained on {factor:.1f} times the tokens of {strategy.control}: num_tokens instead "
                "of num_examples gives all as many."
            )
    counts: Counter[str] = Counter()
    for record in ours:
        counts.update(record["teachers"] or {})
    if len(counts) > 1 and (top := counts.most_common(1)[0])[1] > ONE_TEACHER * counts.total():
        notes.append(f"{top[1] / counts.total():.0%} of what {strategy.name} chose is by {top[0]}: read some of it.")
    return notes
