"""What a pilot says, in a table and in plain sentences. Knows records of arms, and no model."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rsr_trl.data import counted
from rsr_trl.pilot.differences import CONFIDENCE, difference
from rsr_trl.pilot.strategies import Pool, Strategy


UNEVEN = 1.5  # times the tokens of the control
ONE_TEACHER = 0.6  # share of a strategy's choices
CUT_SHARE = 0.1  # of responses that ran into the length limit, beyond which accuracy says little


class Metric(NamedTuple):
    """What is measured on a held-out problem: its name in records, and how it is shown."""

    name: str
    label: str
    unit: str
    factor: int
    digits: int
    higher_is_better: bool

    def number(self, value: float, sign: str = "+") -> str:
        return f"{round(self.factor * value, self.digits) + 0.0:{sign}.{self.digits}f}"  # no minus before zero


METRICS = (
    Metric("correct", "accuracy", "points", factor=100, digits=1, higher_is_better=True),
    Metric("loss", "loss on held-out references", "nats", factor=1, digits=4, higher_is_better=False),
)


def compare(records: dict[str, list[dict]], strategies: Sequence[Strategy]) -> list[dict]:
    """
    A row for each metric and each strategy with a control, from the records of their arms, seeds in the same order:
    what `difference` returns, and whether a significant one is for the `better` (else `None`).
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
            better = (result["mean"] > 0) == metric.higher_is_better if result["significant"] else None
            row = {"strategy": strategy.name, "control": strategy.control, "metric": metric.name, "better": better}
            rows.append(row | {"value": float(ours.mean()), "control_value": float(theirs.mean())} | result)
    return rows


def sentences(table: Sequence[dict]) -> list[str]:
    """The verdict in plain sentences."""
    lines = []
    for metric in METRICS:
        rows, unclear = [row for row in table if row["metric"] == metric.name], {}
        for row in rows:
            if not row["significant"]:
                unclear.setdefault(row["control"], []).append(row)
                continue
            what, where = "better" if row["better"] else "worse", "In these runs, " if row["these_runs_only"] else ""
            mean, low, high = (metric.number(row[name]) for name in ("mean", "low", "high"))
            lines.append(
                f"{where}{row['strategy']} is {what} than {row['control']} in {metric.label}: {mean} {metric.unit} "
                f"({CONFIDENCE:.0%}: {low} to {high})."
            )
        lines += [_unclear(metric, control, rows) for control, rows in unclear.items()]
    if table and table[0]["these_runs_only"]:
        lines.append(
            f"With {counted(table[0]['seeds'], 'seed')}, all intervals are about these runs only: another order or "
            "other problems to train on may reverse a difference. Use three seeds or more."
        )
    if len(table) > 1 and any(row["significant"] for row in table):
        lines.append(
            f"These are {len(table)} comparisons, and each interval on its own excludes zero by chance in "
            f"{1 - CONFIDENCE:.0%} of pilots without any difference."
        )
    return lines


def _unclear(metric: Metric, control: str, rows: list[dict]) -> str:
    """What isn't significant, what would likely have been, and what it would take."""
    names, detectable = ", ".join(row["strategy"] for row in rows), max(row["detectable"] for row in rows)
    text = (
        f"No significant difference from {control} in {metric.label} ({names}). With this budget, differences below "
        f"about {metric.number(detectable, '')} {metric.unit} would likely go undetected."
    )
    needs = []
    for row in (row for row in rows if row["mean"]):
        counts = {"held-out problems": row["needed_problems"], "seeds": row["needed_seeds"]}
        ways = " or ".join(f"about {count:,} {what}" for what, count in counts.items() if count is not None)
        what = ways or "more of both, seeds and held-out problems"
        needs.append(f"{row['strategy']} ({metric.number(row['mean'])}) {what}")
    return f"{text} To detect differences as large as those observed: {'; '.join(needs)}." if needs else text


def notes(before: dict, records: dict[str, list[dict]], strategies: Sequence[Strategy], pool: Pool) -> list[str]:
    """What would make the verdict worth less, by the records of the student `before` and of each strategy's arms."""
    lines, seeds = [], len(records["random"])
    if before["loss"] is not None and (after := np.mean([arm["loss"] for arm in records["random"]])) >= before["loss"]:
        lines.append(
            f"Training on random choices didn't lower the held-out loss ({before['loss']:.4f} -> {after:.4f}): train "
            "longer, with another --learning_rate, or check whether the references match the style of the pool."
        )
    arms = [before, *(record for name in records for record in records[name])]
    cut = [problem["cut"] for record in arms for problem in record["problems"]]
    if cut[0] is not None and np.mean(cut) > CUT_SHARE:
        lines.append(
            f"{np.mean(cut):.0%} of the responses were truncated at --max_new_tokens or the student's positions."
        )
    tokens = {name: [record["tokens"] for record in records[name]] for name in records}
    for strategy in strategies:
        ours, theirs = tokens[strategy.name], tokens.get(strategy.control, [])
        factor = sum(ours) / sum(theirs) if theirs and None not in ours + theirs else 1.0
        if not 1 / UNEVEN < factor < UNEVEN:
            lines.append(
                f"{strategy.name} trained on {factor:.1f} times the tokens of {strategy.control}: set --num_tokens "
                "instead of --num_examples to give all strategies the same number."
            )
        teachers = sum((Counter(record["teachers"]) for record in records[strategy.name]), Counter())
        if len(teachers) > 1 and (top := teachers.most_common(1)[0])[1] > ONE_TEACHER * teachers.total():
            share = top[1] / teachers.total()
            lines.append(f"{share:.0%} of what {strategy.name} chose comes from {top[0]}: read some of it.")
    if pool.left_out:
        lines.append(f"Left out of the pool, without a score: {counted(pool.left_out, 'trajectory')}.")
    if pool.short:
        short = f"with fewer than {pool.min_tokens} scored tokens"
        lines.append(f"Left out of the pool, {short}: {counted(pool.short, 'trajectory')}.")
    if seeds > 1 and pool.num_problems is None:
        lines.append("Without --group_column a strategy chooses the same for all seeds: they differ only in order.")
    elif seeds > 1 and pool.num_examples == pool.num_problems:
        lines.append("Every seed trains on all of the pool's problems: seeds differ only in order.")
    return lines
