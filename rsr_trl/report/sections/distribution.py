"""How the RSR of single trajectories is spread, by teacher, by length and by correctness."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from scipy.stats import rankdata

from rsr_trl.report.charts import (
    INK,
    MUTED,
    SERIES,
    Chart,
    draw,
    few_ticks,
    log_limits,
    mark,
    plain_ticks,
    sample,
)
from rsr_trl.report.format import label
from rsr_trl.report.pool import Material, Missing, Pool


MAX_DRAWN = 30
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 10
SKEWED = 6  # a 95% quantile so many times the 5% one is drawn on a logarithmic axis


@dataclass(frozen=True)
class Distribution:
    """
    Args:
        teachers ([`Chart`]): Boxes of the RSR by teacher, or of all trajectories.
        by_teacher (`bool`): Which of the two.
        quantiles (`list[float]`): Of all trajectories.
        infinite (`int`): Trajectories with infinite RSR, which aren't drawn.
        lengths ([`Chart`]): RSR against length.
        drawn, drawable (`int`): Trajectories in that chart, and those that could be.
        length_correlation (`float`): Spearman's, of RSR and length; NaN where it isn't defined.
        correctness ([`Correctness`] or [`Missing`]): RSR against correctness.
    """

    teachers: Chart
    by_teacher: bool
    quantiles: list[float]
    infinite: int
    lengths: Chart
    drawn: int
    drawable: int
    length_correlation: float
    correctness: "Correctness | Missing"


@dataclass(frozen=True)
class Correctness:
    """
    Args:
        chart ([`Chart`]): Share of correct trajectories by tenth of the RSR.
        column (`str`): Where correctness comes from.
        known (`int`): Trajectories of which it is known.
        share (`float`): Correct ones among them.
        lower (`float`): Probability that a correct one has a lower RSR than a wrong one; NaN without both kinds.
    """

    chart: Chart
    column: str
    known: int
    share: float
    lower: float


def make(material: Material) -> Distribution:
    pool = material.pool
    rows = np.flatnonzero(pool.finite & (pool.tokens > 0))
    drawn = sample(rows)
    return Distribution(
        teachers=_boxes(pool),
        by_teacher=pool.teacher is not None,
        quantiles=np.quantile(pool.rsr[pool.finite], QUANTILES).tolist(),
        infinite=int(np.isinf(pool.rsr).sum()),
        lengths=draw(
            "lengths",
            "RSR of trajectories against their length in tokens, with the median of each tenth of the lengths",
            4.0,
            lambda axes: _against_length(axes, pool, rows, drawn),
        ),
        drawn=len(drawn),
        drawable=len(rows),
        length_correlation=length_correlation(pool),
        correctness=_correctness(pool),
    )


def length_correlation(pool: Pool) -> float:
    """Spearman's correlation of RSR and length."""
    ratio, tokens = (rankdata(values[pool.finite]) for values in (pool.rsr, pool.tokens))
    if len(ratio) < 3 or not np.ptp(ratio) or not np.ptp(tokens):
        return float("nan")
    return float(np.corrcoef(ratio, tokens)[0, 1])


def _boxes(pool: Pool) -> Chart:
    names, number = ["all trajectories"], np.zeros(len(pool), dtype=np.int64)
    if pool.teacher is not None:
        names, number = pool.teacher.names, pool.teacher.number
    own = [pool.rsr[pool.finite & (number == i)] for i in range(min(len(names), MAX_DRAWN))]
    shown = [(i, np.quantile(values, QUANTILES)) for i, values in enumerate(own) if len(values)]

    def plot(axes: Axes) -> None:
        for place, (i, (low, first, median, third, high)) in enumerate(shown):
            axes.plot([low, high], [place, place], color=MUTED, linewidth=1)
            axes.plot([first, third], [place, place], color=MUTED, linewidth=7, solid_capstyle="butt", alpha=0.45)
            axes.plot([median], [place], markersize=7, linestyle="none", **mark(i, len(names)))
        axes.set_yticks(range(len(shown)), [label(names[i]) for i, _ in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        few_ticks(axes)
        _ratio_axis(axes, "x", np.concatenate([quantiles for _, quantiles in shown]))
        axes.set_xlabel("← more suitable  ·  RSR  ·  less suitable →")

    alt = "Spread of the RSR of single trajectories" + (" by teacher" if pool.teacher else "")
    return draw("spread", alt, 1.1 + 0.3 * max(2, len(shown)), plot)


def _ratio_axis(axes: Axes, which: str, values: np.ndarray) -> None:
    """A logarithmic axis for the RSR where it is skewed."""
    low, high = np.quantile(values, [0.05, 0.95])
    if low > 0 and high / low > SKEWED and values.min() > 0:
        limits = log_limits(values)
        axes.set(**{f"{which}scale": "log", f"{which}lim": limits})
        plain_ticks(axes.xaxis if which == "x" else axes.yaxis, *limits)


def _against_length(axes: Axes, pool: Pool, rows: np.ndarray, drawn: np.ndarray) -> None:
    tokens, ratio = pool.tokens[rows], pool.rsr[rows]
    axes.scatter(pool.tokens[drawn], pool.rsr[drawn], s=9, color=SERIES[0], alpha=0.45, linewidths=0)
    edges = np.unique(np.quantile(tokens, np.linspace(0, 1, BINS + 1)))
    place = np.clip(np.searchsorted(edges, tokens, side="right") - 1, 0, max(0, len(edges) - 2))
    middles = [(np.median(tokens[place == i]), np.median(ratio[place == i])) for i in np.unique(place)]
    axes.plot(*zip(*middles, strict=True), color=INK, linewidth=1.6, marker="D", markersize=5)
    limits = log_limits(tokens)
    axes.set(xscale="log", xlim=limits)
    plain_ticks(axes.xaxis, *limits)
    _ratio_axis(axes, "y", ratio)
    axes.set_xlabel("scored tokens")
    axes.set_ylabel("← more suitable  ·  RSR")


def _correctness(pool: Pool) -> Correctness | Missing:
    if pool.correct is None:
        return Missing(
            "No column says which trajectories are correct.",
            "Name a boolean column:",
            "rsr report --correctness_column COLUMN ...",
        )
    known = pool.finite & ~np.isnan(pool.correct)
    if not known.any():
        return Missing(
            f"Column {pool.correctness_column!r} is null wherever there is a score.",
            "Fill it in, and make the page again.",
        )
    ratio, correct = pool.rsr[known], pool.correct[known]
    alt = "Share of correct trajectories in each tenth of the RSR, from the most to the least suitable"
    wrong = ratio[correct == 0]
    lower = float("nan")
    if 0 < len(wrong) < len(ratio):
        right = len(ratio) - len(wrong)
        above = rankdata(ratio)[correct == 0].sum() - len(wrong) * (len(wrong) + 1) / 2  # Mann-Whitney's U
        lower = float(above / (right * len(wrong)))
    return Correctness(
        chart=draw("correctness", alt, 4.0, lambda axes: _plot_correct(axes, ratio, correct)),
        column=pool.correctness_column,
        known=int(known.sum()),
        share=float(correct.mean()),
        lower=lower,
    )


def _plot_correct(axes: Axes, ratio: np.ndarray, correct: np.ndarray) -> None:
    parts = np.array_split(np.argsort(ratio, kind="stable"), min(BINS, len(ratio)))
    share, size = (np.array([f(correct[part]) for part in parts]) for f in (np.mean, len))
    # Wilson's interval: it stays within 0 and 1, and means something at both ends.
    z = 1.96
    middle = (share + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z * np.sqrt(share * (1 - share) / size + z**2 / (4 * size**2)) / (1 + z**2 / size)
    at = np.arange(1, len(parts) + 1)
    axes.vlines(at, 100 * (middle - half), 100 * (middle + half), color=INK, linewidth=1.4)
    axes.plot(at, 100 * share, color=SERIES[0], marker="o", markersize=7, linewidth=1)
    axes.axhline(100 * correct.mean(), color=MUTED, linewidth=1, linestyle="--")
    axes.set_xticks(at)
    axes.set_ylim(-3, 103)
    axes.set_xlabel("tenth of the RSR (1 = most suitable)")
    axes.set_ylabel("% correct")
