"""What the page says, in a few sentences."""

from dataclasses import dataclass

import numpy as np

from rsr_trl.data import counted, is_selection
from rsr_trl.report.format import name, number, percent
from rsr_trl.report.pool import Material, Pool
from rsr_trl.rsr import DIRECTION, dataset_rsr
from rsr_trl.selection.teachers import SELECTED


@dataclass(frozen=True)
class Headline:
    """
    Args:
        sentences (`list[tuple[str, str]]`): What each is about, and the sentence.
    """

    sentences: list[tuple[str, str]]


def make(material: Material) -> Headline:
    pool = material.pool
    said = [("Data", _counts(pool, material.student))]
    if pool.teacher is not None:
        said.append(("Teacher", SELECTED if is_selection(material.source) else best_teacher(pool)))
    return Headline([*said, ("Selection", _choice(pool))])


def _counts(pool: Pool, student: str | None) -> str:
    of = f" of {counted(len(pool.problem.names), 'problem')}" if pool.problem else ""
    by = f" by {counted(len(pool.teacher.names), 'teacher')}" if pool.teacher else ""
    scored = int(pool.scored.sum())
    unscored = "" if scored == len(pool) else f", of which {len(pool) - scored:,} couldn't be scored"
    whose = f" the student {name(student)}" if student else " its student"
    return f"{counted(len(pool), 'trajectory')}{of}{by}, scored with{whose}{unscored}."


def best_teacher(pool: Pool) -> str:
    """Which teacher suits best, and how sure that is."""
    ranking = pool.ranking
    scored = [row for row in ranking.table if row["trajectories"]]
    if len(scored) == 1:
        return f"There is no other teacher to compare {name(scored[0]['teacher'])} with: {_figures(scored[0], pool)}."
    figures = f" {name(ranking.judged[0]['teacher'])}: {_figures(ranking.judged[0], pool)}." if ranking.judged else ""
    return ranking.verdict(name) + figures


def _figures(row: dict, pool: Pool) -> str:
    text = f"RSR {number(row['rsr'], 3)} ({DIRECTION}"
    if row["rsr_low"] is not None:
        text += f"; {pool.ranking.confidence:.0%} interval {number(row['rsr_low'])} to {number(row['rsr_high'])}"
    return f"{text})"


def _choice(pool: Pool) -> str:
    chosen, scored = pool.chosen, pool.scored
    end = "most" if pool.criteria.prefer == "low" else "least"
    rule = f"the {end} suitable trajectory of each problem"
    if pool.problem is None:
        rule = f"the {end} suitable {pool.criteria.keep_fraction:.0%}"
    before, after = (dataset_rsr(pool.rank[rows], pool.surprisal[rows]) for rows in (scored, chosen))
    text = (
        f"Keeping {rule} leaves {int(chosen.sum()):,} of {len(pool):,}. RSR goes from {number(before)} to "
        f"{number(after)}, mean length from {number(pool.tokens[scored].mean(), 0)} to "
        f"{number(pool.tokens[chosen].mean(), 0)} tokens"
    )
    if pool.teacher is None:
        return f"{text}."
    share = Share.of(pool)
    before = f"{percent(share.before)} before"
    return f"{text}; {percent(share.after)} of what is kept comes from {name(share.teacher)} ({before})."


@dataclass(frozen=True)
class Share:
    """The teacher of whom most is chosen, and its shares."""

    teacher: object
    before: float
    after: float

    @classmethod
    def of(cls, pool: Pool) -> "Share":
        counts = chosen_by_teacher(pool)
        most = int(counts.argmax())
        return cls(
            pool.teacher.names[most],
            float(pool.teacher.counts[most] / len(pool)),
            float(counts[most] / counts.sum()),
        )


def chosen_by_teacher(pool: Pool) -> np.ndarray:
    """Chosen rows of each teacher."""
    return np.bincount(pool.teacher.number[pool.chosen], minlength=len(pool.teacher.names))
