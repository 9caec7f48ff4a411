"""What the page says, in a few sentences."""

from dataclasses import dataclass

import numpy as np

from rsr_trl.data import counted, is_selection
from rsr_trl.report.format import name, number, percent
from rsr_trl.report.pool import Material, Pool
from rsr_trl.rsr import DIRECTION, dataset_rsr
from rsr_trl.selection.teacher_rows import SELECTED


CERTAIN = 0.95
POSSIBLE = 0.05  # a teacher with this probability of being the best may be it


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
    judged, said = ranking.judged, [caution] if (caution := ranking.caution(name)) else []
    scored = [row for row in ranking.table if row["trajectories"]]
    if len(scored) == 1:
        return f"There is no other teacher to compare {name(scored[0]['teacher'])} with: {_figures(scored[0], pool)}."
    if len(judged) == 1:
        best = name(judged[0]["teacher"])
        said.append(f"{best} is the only teacher that can be judged: {_figures(judged[0], pool)}.")
    if len(judged) < 2:
        return " ".join(said)
    best = judged[0]
    who = f"Of the others, {name(best['teacher'])}" if said else name(best["teacher"])
    said.append(f"{who} suits best: {_figures(best, pool)}.")
    rivals = [row["teacher"] for row in judged[1:] if (row["probability_best"] or 0) >= POSSIBLE]
    certainty = f"It is the lowest in {percent(best['probability_best'])} of resamplings"
    if best["probability_best"] >= CERTAIN:
        return " ".join([*said, f"{certainty}: fairly sure."])
    others = ", ".join(map(name, rivals[:3])) + (f" and {len(rivals) - 3} more" if len(rivals) > 3 else "")
    return " ".join([*said, f"{certainty}: not sure.", *([f"{others} may suit as well or better."] if rivals else [])])


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
