"""Teachers by RSR with intervals: a dot plot and a table."""

from matplotlib.axes import Axes

from rsr_trl.report.charts import INK, MAX_SERIES, RATIO_AXIS, draw, mark, mark_svg, name_lines
from rsr_trl.report.format import label
from rsr_trl.report.material import Material, Missing


MAX_DRAWN = 30
MAX_LISTED = 300
# An interval is drawn as far as this times the largest RSR, and the smallest over this: the rest is an arrow.
REACH = 2.0


def view(material: Material) -> dict | Missing:
    ranking = material.ranking
    if ranking is None:
        return Missing("No column names the teacher.", "Name one:", "rsr report --teacher_column COLUMN ...")
    rows = [row for row in ranking.table if row["rsr"] is not None][:MAX_DRAWN]
    alt = "RSR of each teacher with its interval, most suitable on top: " + "; ".join(
        f"{label(row['teacher'])} {row['rsr']:.2f}" for row in rows[:12]
    )
    number = len(ranking.table)
    least, most = span(rows)
    table = [
        {**row, "mark": mark_svg(min(place, MAX_SERIES), number)}
        for place, row in enumerate(ranking.table[:MAX_LISTED])
    ]
    return {
        "chart": draw("teachers", alt, 1.1 + 0.3 * max(2, len(rows)), lambda axes: _plot(axes, rows, number)),
        "table": table,
        "drawn": len(rows),
        "more": number - len(table),
        "beyond": any(row["rsr_low"] < least or row["rsr_high"] > most for row in rows if row["rsr_low"] is not None),
        "problems": ranking.num_problems,
        "has": {
            "interval": any(row["rsr_low"] is not None for row in table),
            "accuracy": any(row["accuracy"] is not None for row in table),
            "truncated": any(row["truncated_share"] for row in table),
            "unscored": any(row["unscored"] for row in table),
        },
        "confidence": ranking.confidence,
        "notes": ranking.notes,
    }


def span(rows: list[dict]) -> tuple[float, float]:
    """Where intervals are drawn: one from two or three problems may be so wide that it leaves no room for the rest."""
    ratios = [row["rsr"] for row in rows] or [1.0]
    return min(ratios) / REACH, max(ratios) * REACH


def _plot(axes: Axes, rows: list[dict], number: int) -> None:
    least, most = span(rows)
    for place, row in enumerate(rows):
        if row["rsr_low"] is not None:
            low, high = max(row["rsr_low"], least), min(row["rsr_high"], most)
            axes.plot([low, high], [place, place], color=INK, linewidth=1.4)
            for end, whole, arrow in ((low, row["rsr_low"], "<"), (high, row["rsr_high"], ">")):
                if end != whole:
                    axes.plot([end], [place], marker=arrow, color=INK, markersize=5)
        axes.plot([row["rsr"]], [place], markersize=8, linestyle="none", **mark(place, number))
    name_lines(axes, [label(row["teacher"]) for row in rows])
    axes.set_xlabel(RATIO_AXIS)
