"""How the RSR of single trajectories is spread, by teacher, by length and by correctness."""

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from scipy.stats import binomtest

from rsr_trl.report.charts import INK, MUTED, RATIO_AXIS, RATIO_UP, SERIES, draw, log_axis, mark, name_lines, sample
from rsr_trl.report.format import label
from rsr_trl.report.material import Material, Missing
from rsr_trl.selection.compare import correct_first, rank_correlation


MAX_DRAWN = 30
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 10
SKEWED = 6  # a 95% quantile so many times the 5% one is drawn on a logarithmic axis


def view(material: Material) -> dict:
    table = material.table
    rows = np.flatnonzero(material.finite & (table.tokens > 0))
    drawn = sample(rows)
    correlation = rank_correlation(np.column_stack([material.rsr[rows], table.tokens[rows]]))
    alt = "RSR of trajectories against their length in tokens, with the median of each decile of the lengths"
    return {
        "teachers": _boxes(material),
        "by_teacher": table.teacher is not None,
        "quantiles": np.quantile(material.rsr[material.finite], QUANTILES),
        "infinite": int(np.isinf(material.rsr).sum()),
        "lengths": draw("lengths", alt, 3.5, lambda axes: _against_length(axes, material, rows, drawn)),
        "drawn": len(drawn),
        "drawable": len(rows),
        "length_correlation": correlation[0, 1] if len(rows) > 2 else np.nan,
        "correctness": _correctness(material),
    }


def _boxes(material: Material) -> Markup:
    table, names = material.table, ["all trajectories"]
    teacher = np.zeros(len(table), dtype=np.int64)
    if table.teacher is not None:
        names, teacher = table.teachers, table.teacher
    own = [material.rsr[material.finite & (teacher == i)] for i in range(min(len(names), MAX_DRAWN))]
    shown = [(i, np.quantile(values, QUANTILES)) for i, values in enumerate(own) if len(values)]

    def plot(axes: Axes) -> None:
        for place, (i, (low, first, median, third, high)) in enumerate(shown):
            axes.plot([low, high], [place, place], color=MUTED, linewidth=1)
            axes.plot([first, third], [place, place], color=MUTED, linewidth=7, solid_capstyle="butt", alpha=0.45)
            axes.plot([median], [place], markersize=7, linestyle="none", **mark(i, len(names)))
        name_lines(axes, [label(names[i]) for i, _ in shown])
        _ratio_axis(axes, "x", np.concatenate([quantiles for _, quantiles in shown]))
        axes.set_xlabel(RATIO_AXIS)

    alt = "Spread of the RSR of single trajectories" + (" by teacher" if table.teachers else "")
    return draw("spread", alt, 1.1 + 0.3 * max(2, len(shown)), plot)


def _ratio_axis(axes: Axes, which: str, values: np.ndarray) -> None:
    """A logarithmic axis for the RSR where it is skewed."""
    low, high = np.quantile(values, [0.05, 0.95])
    if low > 0 and high / low > SKEWED and values.min() > 0:
        log_axis(axes, which, values)


def _against_length(axes: Axes, material: Material, rows: np.ndarray, drawn: np.ndarray) -> None:
    length, rsr = material.table.tokens, material.rsr
    axes.scatter(length[drawn], rsr[drawn], s=9, color=SERIES[0], alpha=0.45, linewidths=0)
    tokens, ratio = length[rows], rsr[rows]
    edges = np.unique(np.quantile(tokens, np.linspace(0, 1, BINS + 1)))
    place = np.clip(np.searchsorted(edges, tokens, side="right") - 1, 0, max(0, len(edges) - 2))
    middles = [(np.median(tokens[place == i]), np.median(ratio[place == i])) for i in np.unique(place)]
    axes.plot(*zip(*middles, strict=True), color=INK, linewidth=1.6, marker="D", markersize=5)
    log_axis(axes, "x", tokens)
    _ratio_axis(axes, "y", ratio)
    axes.set_xlabel("scored tokens")
    axes.set_ylabel(RATIO_UP)


def _correctness(material: Material) -> dict | Missing:
    column, correct = material.table.columns.correct, material.table.correct
    if correct is None:
        why = "No column says which trajectories are correct."
        return Missing(why, "Name a boolean column:", "rsr report --correctness_column COLUMN ...")
    known = material.finite & ~np.isnan(correct)
    if not known.any():
        return Missing(
            f"Column {column!r} is null wherever there is a score.", "Fill it in and write the report again."
        )
    ratio, correct = material.rsr[known], correct[known] == 1
    alt = "Share of correct trajectories in each RSR decile, from the most to the least suitable"
    return {
        "chart": draw("correctness", alt, 3.5, lambda axes: _plot_correct(axes, ratio, correct)),
        "column": column,
        "known": len(correct),
        "share": correct.mean(),
        "lower": correct_first(ratio, correct)[0],
    }


def _plot_correct(axes: Axes, ratio: np.ndarray, correct: np.ndarray) -> None:
    deciles = [correct[part] for part in np.array_split(np.argsort(ratio, kind="stable"), min(BINS, len(ratio)))]
    # Wilson's interval stays within 0 and 1, and means something at both ends.
    ends = [binomtest(int(part.sum()), len(part)).proportion_ci(method="wilson") for part in deciles]
    at = np.arange(1, len(deciles) + 1)
    axes.vlines(at, [100 * end.low for end in ends], [100 * end.high for end in ends], color=INK, linewidth=1.4)
    axes.plot(at, [100 * part.mean() for part in deciles], color=SERIES[0], marker="o", markersize=7, linewidth=1)
    axes.axhline(100 * correct.mean(), color=MUTED, linewidth=1, linestyle="--")
    axes.set_xticks(at)
    axes.set_ylim(-3, 103)
    axes.set_xlabel("RSR decile (1 = most suitable)")
    axes.set_ylabel("% correct")
