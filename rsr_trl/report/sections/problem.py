"""One problem: what each teacher wrote, side by side, and which of it selection keeps and why."""

from dataclasses import dataclass

import numpy as np

from rsr_trl.report.format import number, prose
from rsr_trl.report.pool import Material, Missing, Pool
from rsr_trl.report.rows import prompt_of, response_of
from rsr_trl.report.sections.reading import MAX_TOKENS, PROMPT_LENGTH, Heatmap, heatmap, unreadable


MAX_CARDS = 16
RESPONSE_LENGTH = 4000


@dataclass(frozen=True)
class Candidate:
    """
    Args:
        row (`int`): Its row.
        teacher (`object`): Who wrote it; `None` where that isn't known.
        rsr, rank, surprisal, tokens (`float`): Its scores.
        correct (`float`): 1, 0, or NaN where unknown.
        chosen, truncated (`bool`): Whether selection keeps it; whether it was cut.
        heatmap ([`Heatmap`], *optional*): Its tokens, where they are known.
        text (`str`, *optional*): Its text otherwise.
    """

    row: int
    teacher: object
    rsr: float
    rank: float
    surprisal: float
    tokens: float
    correct: float
    chosen: bool
    truncated: bool
    heatmap: Heatmap | None
    text: str | None


@dataclass(frozen=True)
class Problem:
    """
    Args:
        name (`object`): Which problem.
        asked (`bool`): Whether a row of it was asked for.
        prompt (`str`): What it asks.
        candidates (`list[Candidate]`): Its trajectories, the most suitable first.
        more (`int`): Trajectories that aren't shown.
        reason (`str`): Why the chosen one is chosen.
    """

    name: object
    asked: bool
    prompt: str
    candidates: list[Candidate]
    more: int
    reason: str


def make(material: Material) -> Problem | Missing:
    pool = material.pool
    if pool.problem is None:
        return Missing(
            "No column names the problem, so it isn't known which trajectories answer the same one.",
            "Name one:",
            "rsr report --problem_column COLUMN ...",
        )
    which = _which(material)
    rows = np.flatnonzero(pool.problem.number == which)
    # As selection orders them: of equal scores the shorter one first, then the one that comes first.
    sign = pool.criteria.sign
    rows = rows[np.lexsort((pool.tokens[rows], np.nan_to_num(sign * pool.rsr[rows], nan=np.inf)))]
    shown = rows[:MAX_CARDS].tolist()
    limit = MAX_TOKENS // 3 // len(shown) if unreadable(material) is None else None
    candidates = [_candidate(material, row, limit) for row in shown]
    first = pool.dataset.with_format(None)[shown[0]]
    return Problem(
        name=pool.problem.names[which],
        asked=bool(material.rows),
        prompt=prose(prompt_of(first), PROMPT_LENGTH),
        candidates=candidates,
        more=len(rows) - len(shown),
        reason=_reason(pool, rows),
    )


def _which(material: Material) -> int:
    """The problem of the first row asked for; else a typical one of those that most teachers have answered."""
    pool = material.pool
    if material.rows:
        return int(pool.problem.number[material.rows[0]])
    number, ratio = pool.problem.number[pool.finite], pool.rsr[pool.finite]
    size = np.bincount(number, minlength=len(pool.problem.names))
    lowest, highest = np.full(len(size), np.inf), np.full(len(size), -np.inf)
    np.minimum.at(lowest, number, ratio)
    np.maximum.at(highest, number, ratio)
    full = np.flatnonzero(size == size.max())
    spread = highest[full] - lowest[full]
    return int(full[np.argsort(spread, kind="stable")[(len(full) - 1) // 2]])


def _candidate(material: Material, row: int, limit: int | None) -> Candidate:
    pool, values = material.pool, material.pool.dataset.with_format(None)[row]
    return Candidate(
        row=row,
        teacher=pool.teacher and values[pool.teacher.column],
        rsr=float(pool.rsr[row]),
        rank=float(pool.rank[row]),
        surprisal=float(pool.surprisal[row]),
        tokens=float(pool.tokens[row]),
        correct=float("nan") if pool.correct is None else float(pool.correct[row]),
        chosen=bool(pool.chosen[row]),
        truncated=bool(pool.truncated[row]),
        heatmap=heatmap(material, values, limit) if limit else None,
        text=None if limit else prose(response_of(values), RESPONSE_LENGTH),
    )


def _reason(pool: Pool, rows: np.ndarray) -> str:
    ratios = pool.rsr[rows][pool.finite[rows]]
    if not len(ratios):
        return "None of its trajectories has a finite RSR, so none is chosen."
    end, word = ("lowest", "most") if pool.criteria.prefer == "low" else ("highest", "least")
    best = f"The {end} RSR of the problem, {number(ratios[0], 3)}, is chosen: it is the {word} suitable."
    if len(ratios) == 1:
        return f"{best} It is the only one with a finite score."
    if ratios[1] == ratios[0]:
        return f"{best} The next has the same RSR, and the shorter one goes first."
    return f"{best} The next is {abs(ratios[1] / ratios[0] - 1):.0%} {'higher' if ratios[1] > ratios[0] else 'lower'}."
