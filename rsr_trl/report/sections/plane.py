"""The paper's picture: every trajectory by its mean surprisal and its mean clipped rank."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from rsr_trl.report.charts import (
    INK,
    MAX_SERIES,
    MUTED,
    Chart,
    Key,
    draw,
    keys,
    log_limits,
    mark,
    plain_ticks,
    sample,
    series,
)
from rsr_trl.report.pool import Material, Pool
from rsr_trl.selection.failure_modes import near_guessing


MIN_LINES, MAX_LINES = 4, 8  # of equal RSR


@dataclass(frozen=True)
class Plane:
    """
    Args:
        chart ([`Chart`]): Mean surprisal against mean clipped rank.
        keys (`list[Key]`): Teachers.
        drawn (`int`): Trajectories in it.
        drawable (`int`): Trajectories with surprisal above 0, which it can show.
        scored (`int`): Trajectories with a score.
        near_guessing, chosen_near_guessing (`float`): Share of the scored, and of the chosen, that look like guesses
            among 2 to 10 equally likely words.
    """

    chart: Chart
    keys: list[Key]
    drawn: int
    drawable: int
    scored: int
    near_guessing: float
    chosen_near_guessing: float


def make(material: Material) -> Plane:
    pool = material.pool
    rows = np.flatnonzero(pool.finite & (pool.surprisal > 0))
    drawn = sample(rows)
    near = near_guessing(pool.rank, pool.surprisal)
    return Plane(
        chart=draw(
            "plane",
            "Mean surprisal against mean clipped rank of each trajectory, with lines of equal RSR and the line of "
            "pure guessing",
            5.4,
            lambda axes: _plot(axes, pool, drawn),
        ),
        keys=keys(pool.teacher.names) if pool.teacher else [],
        drawn=len(drawn),
        drawable=len(rows),
        scored=int(pool.scored.sum()),
        near_guessing=float(near[pool.scored].mean()),
        chosen_near_guessing=float(near[pool.chosen].mean()) if pool.chosen.any() else float("nan"),
    )


def _plot(axes: Axes, pool: Pool, rows: np.ndarray) -> None:
    x, y, chosen = pool.surprisal[rows], pool.rank[rows], pool.chosen[rows]
    names = pool.teacher.names if pool.teacher else [None]
    number = pool.teacher.number[rows] if pool.teacher else np.zeros(len(rows), dtype=np.int64)
    number = np.minimum(number, MAX_SERIES - 1)
    (low, high), (bottom, top) = log_limits(x), log_limits(y)
    _lines(axes, pool.rsr[rows], (low, high), (bottom, top))
    words = np.exp(np.geomspace(low, min(high, 50), 200))
    axes.plot(np.log(words), (words + 1) / 2, color=INK, linestyle=":", linewidth=1.8, gid="guessing")
    for i in range(series(len(names) - 1) + 1):
        own = number == i
        style = {"linestyle": "none", "markeredgewidth": 0, **mark(i, len(names))}
        axes.plot(x[own], y[own], markersize=5, alpha=0.6, gid=f"series-{i}", **style)
    for i in range(series(len(names) - 1) + 1):
        own = (number == i) & chosen
        axes.plot(
            x[own], y[own], "o", markersize=9, fillstyle="none", color=INK, markeredgewidth=0.9, gid=f"series-{i}"
        )
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom, top))
    plain_ticks(axes.xaxis, low, high)
    plain_ticks(axes.yaxis, bottom, top)
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
    inside = inside[:: -(-len(inside) // MAX_LINES)]
    for value in inside:
        axes.plot(across, [value * across[0], value * across[1]], color=MUTED, linewidth=0.8, alpha=0.8, zorder=1)
        # The label stands where the line leaves the picture, outside of it: at the right, or at the top.
        right = value * across[1] <= up[1]
        end = (across[1], value * across[1]) if right else (up[1] / value, up[1])
        if end[0] > across[0] and end[1] > up[0]:
            axes.annotate(
                f"RSR {value:g}",
                end,
                xytext=(4, 0) if right else (0, 3),
                textcoords="offset points",
                ha="left" if right else "center",
                va="center" if right else "bottom",
                annotation_clip=False,
            )
