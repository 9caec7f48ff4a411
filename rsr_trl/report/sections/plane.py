"""The paper's picture: every trajectory by its mean surprisal and its mean clipped rank."""

import numpy as np
from matplotlib.axes import Axes

from rsr_trl.report.charts import INK, MUTED, draw, each_series, legend, log_axis, mark, sample
from rsr_trl.report.material import Material


MIN_LINES, MAX_LINES = 4, 8  # of equal RSR


def view(material: Material) -> dict:
    table = material.table
    rows = np.flatnonzero(material.finite & (table.surprisal > 0))
    drawn = sample(rows)
    alt = "Mean surprisal against mean clipped rank of each trajectory, with lines of equal RSR and of fair guesses"
    return {
        "chart": draw("plane", alt, 4.4, lambda axes: _plot(axes, material, drawn)),
        "legend": legend(table.teachers),
        "drawn": len(drawn),
        "drawable": len(rows),
        "scored": int(table.scored.sum()),
    }


def _plot(axes: Axes, material: Material, rows: np.ndarray) -> None:
    table, chosen = material.table, material.chosen[rows]
    x, y = table.surprisal[rows], table.rank[rows]
    teacher = np.zeros(len(rows), dtype=np.int64) if table.teacher is None else table.teacher[rows]
    num_teachers = max(1, len(table.teachers))
    low, high = log_axis(axes, "x", x)
    _lines(axes, material.rsr[rows], (low, high), log_axis(axes, "y", y))
    words = np.exp(np.geomspace(low, min(high, 50), 200))
    axes.plot(np.log(words), (words + 1) / 2, color=INK, linestyle=":", linewidth=1.8)
    groups = each_series(teacher, num_teachers)
    for i, own in enumerate(groups):
        style = {"linestyle": "none", "markeredgewidth": 0, **mark(i, num_teachers)}
        axes.plot(x[own], y[own], markersize=5, alpha=0.6, gid=f"series-{i}", **style)
    ring = {"markersize": 9, "fillstyle": "none", "color": INK, "markeredgewidth": 0.9}
    for i, own in enumerate(groups):
        axes.plot(x[own & chosen], y[own & chosen], "o", gid=f"series-{i}", **ring)
    axes.grid(visible=False)
    axes.set_xlabel("mean surprisal, nats  ·  more to learn →")
    axes.set_ylabel("← close to the student  ·  mean clipped rank")


def _lines(axes: Axes, ratio: np.ndarray, across: tuple[float, float], up: tuple[float, float]) -> None:
    """Lines of equal RSR, at round values."""
    low, high = np.quantile(ratio, [0.01, 0.99])
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), np.arange(1, 10, 0.25)):
        values = [float(step) * 10.0**power for power in range(-3, 7) for step in steps]
        inside = [value for value in values if low / 1.3 <= value <= high * 1.3]
        if len(inside) >= MIN_LINES:
            break
    for value in inside[:: -(-len(inside) // MAX_LINES)]:
        axes.plot(across, [value * across[0], value * across[1]], color=MUTED, linewidth=0.8, alpha=0.8, zorder=1)
        # The label stands where the line leaves the picture, outside of it: at the right, or at the top.
        right = value * across[1] <= up[1]
        end = (across[1], value * across[1]) if right else (up[1] / value, up[1])
        if end[0] > across[0] and end[1] > up[0]:
            side = {"xytext": (4, 0), "ha": "left", "va": "center"}
            above = {"xytext": (0, 3), "ha": "center", "va": "bottom"}
            place = side if right else above
            axes.annotate(f"RSR {value:g}", end, textcoords="offset points", annotation_clip=False, **place)
