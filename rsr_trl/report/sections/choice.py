"""What selection changes: teachers before and after, and what a cap, a correctness filter or chance would choose."""

from dataclasses import dataclass, replace
from shlex import quote

import numpy as np
from matplotlib.axes import Axes

from rsr_trl.report.charts import INK, MUTED, SERIES, Chart, draw
from rsr_trl.report.format import label, percent
from rsr_trl.report.pool import Material, Pool
from rsr_trl.report.sections.headline import chosen_by_teacher
from rsr_trl.rsr import dataset_rsr
from rsr_trl.selection.choose import Criteria, choose
from rsr_trl.selection.table import ScoredTable, place_in_run


CAP = 0.4  # of one teacher, or half as much again as an even share where teachers are few
MAX_DRAWN = 30


@dataclass(frozen=True)
class Way:
    """
    A way to choose, and what it gives.

    Args:
        name (`str`): What it does.
        options (`str`, *optional*): Options of `rsr select` for it; `None` for a baseline.
        rows (`int`): How many it keeps.
        rsr, rank, surprisal, tokens (`float`): Of what it keeps.
        correct (`float`): Share of correct ones; NaN where unknown.
        most (`float`): Share of the teacher of whom it keeps most; NaN where unknown.
        shared (`float`): Share of what it keeps that the page's choice keeps too.
        failed (`str`, *optional*): Why it can't be done.
    """

    name: str
    options: str | None
    rows: int = 0
    rsr: float = float("nan")
    rank: float = float("nan")
    surprisal: float = float("nan")
    tokens: float = float("nan")
    correct: float = float("nan")
    most: float = float("nan")
    shared: float = float("nan")
    failed: str | None = None


@dataclass(frozen=True)
class Choice:
    """
    Args:
        chart ([`Chart`], *optional*): Share of each teacher before and after.
        drawn (`int`): Teachers in it.
        teachers (`int`): Teachers in all.
        ways (`list[Way]`): The choice, and others beside it.
        left_out (`dict[str, int]`): Reason -> rows that could not be chosen.
        empty_groups (`dict[str, int]`): Reason -> problems for which nothing is chosen.
        has_teacher, has_correct (`bool`): Which columns of the table say something.
    """

    chart: Chart | None
    drawn: int
    teachers: int
    ways: list[Way]
    left_out: dict[str, int]
    empty_groups: dict[str, int]
    has_teacher: bool
    has_correct: bool


def make(material: Material) -> Choice:
    pool = material.pool
    chart, drawn = None, 0
    if pool.teacher is not None:
        drawn = min(MAX_DRAWN, len(pool.teacher.names))
        chart = _composition(pool, drawn)
    return Choice(
        chart=chart,
        drawn=drawn,
        teachers=len(pool.teacher.names) if pool.teacher else 0,
        ways=_ways(pool),
        left_out=pool.selection.left_out,
        empty_groups={reason: len(groups) for reason, groups in pool.selection.empty_groups.items()},
        has_teacher=pool.teacher is not None,
        has_correct=pool.correct is not None,
    )


def _ways(pool: Pool) -> list[Way]:
    end = "Most" if pool.criteria.prefer == "low" else "Least"
    of = "of each problem" if pool.problem else f"{pool.criteria.keep_fraction:.0%}"
    plain = f"--keep_fraction {pool.criteria.keep_fraction}"
    if pool.problem is not None:
        plain = f"--group_column {quote(pool.problem.column)}"
    plain += "" if pool.criteria.prefer == "low" else " --prefer high"
    ways = [
        _way(pool, "All, as they are", None, np.flatnonzero(pool.scored)),
        _way(pool, f"{end} suitable {of} (chosen on this page)", plain, pool.selection.rows),
    ]
    if pool.correct is not None:
        criteria = replace(pool.criteria, require=pool.correctness_column)
        options = f"{plain} --require {quote(pool.correctness_column)}"
        ways.append(_chosen(pool, "… of the correct ones", options, criteria))
    if pool.teacher is not None and len(pool.teacher.names) > 1:
        cap = round(max(CAP, 1.5 / len(pool.teacher.names)), 2)
        criteria = replace(pool.criteria, max_share_per_teacher=cap, teacher_column=pool.teacher.column)
        options = f"{plain} --max_share_per_teacher {cap:g} --teacher_column {quote(pool.teacher.column)}"
        ways.append(_chosen(pool, f"… at most {cap:.0%} of one teacher", options, criteria))
    chance = np.random.default_rng(0).random(len(pool))
    ways.append(_way(pool, f"Baseline: random {of}", None, _first(pool, chance)))
    ways.append(_way(pool, f"Baseline: shortest {of}", None, _first(pool, pool.tokens)))
    return ways


def _chosen(pool: Pool, name: str, options: str, criteria: Criteria) -> Way:
    try:
        return _way(pool, name, options, choose(ScoredTable.read(pool.dataset, criteria.columns), criteria).rows)
    except ValueError as error:  # a cap that can't be kept: the message says which can
        return Way(name, options, failed=str(error))


def _way(pool: Pool, name: str, options: str | None, rows: np.ndarray) -> Way:
    if not len(rows):
        return Way(name, options, failed="Nothing meets it.")
    correct = float("nan")
    if pool.correct is not None and (known := pool.correct[rows])[~np.isnan(known)].size:
        correct = float(np.nanmean(known))
    most = float("nan")
    if pool.teacher is not None:
        most = float(np.bincount(pool.teacher.number[rows]).max() / len(rows))
    return Way(
        name=name,
        options=options,
        rows=len(rows),
        rsr=dataset_rsr(pool.rank[rows], pool.surprisal[rows]),
        rank=float(pool.rank[rows].mean()),
        surprisal=float(pool.surprisal[rows].mean()),
        tokens=float(pool.tokens[rows].mean()),
        correct=correct,
        most=most,
        shared=float(pool.chosen[rows].mean()),
    )


def _first(pool: Pool, key: np.ndarray) -> np.ndarray:
    """What the plain rule would keep if it went by `key`, lowest first."""
    rows = np.flatnonzero(pool.finite)
    if pool.problem is None:
        kept = int(np.ceil(pool.criteria.keep_fraction * len(rows) - 1e-9))
        return rows[np.argsort(key[rows], kind="stable")[:kept]]
    group = pool.problem.number[rows]
    order = np.lexsort((key[rows], group))
    return rows[order[place_in_run(group[order]) < pool.criteria.keep_per_group]]


def _composition(pool: Pool, drawn: int) -> Chart:
    before = 100 * pool.teacher.counts / len(pool)
    chosen = chosen_by_teacher(pool)
    after = 100 * chosen / max(1, chosen.sum())
    order = np.argsort(-after, kind="stable")[:drawn]

    def plot(axes: Axes) -> None:
        place = np.arange(len(order))
        axes.hlines(place, before[order], after[order], color=MUTED, linewidth=1.5)
        axes.plot(before[order], place, "o", fillstyle="none", color=INK, markersize=8, label="before")
        axes.plot(after[order], place, "D", color=SERIES[0], markersize=7, label="chosen")
        axes.set_yticks(place, [label(pool.teacher.names[i]) for i in order])
        axes.set_ylim(len(order) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlim(left=-1)
        axes.set_xlabel("% of the trajectories")
        axes.figure.legend(loc="outside upper center", ncols=2, frameon=False)

    alt = "Share of each teacher before and after selection: " + "; ".join(
        f"{label(pool.teacher.names[i])} {percent(before[i] / 100)} to {percent(after[i] / 100)}" for i in order[:12]
    )
    return draw("composition", alt, 1.4 + 0.3 * max(2, len(order)), plot)
