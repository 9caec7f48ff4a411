"""What a pilot found: each way to choose beside its control, after training on a small budget."""

import json
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from rsr_trl.report.charts import INK, MUTED, SERIES, Chart, draw, few_ticks
from rsr_trl.report.format import label
from rsr_trl.report.pool import Material, Missing


RESULT = "pilot.json"  # of a pilot's folder, once it is done
# Of a metric: its name, the unit of differences, the factor that gives it, digits, and which end is better.
METRICS = {
    "correct": ("Share of right answers", "percentage points", 100, 1, "better →"),
    "loss": ("Loss on held-out references", "nats per token", 1, 4, "← better"),
}


@dataclass(frozen=True)
class Measured:
    """
    One metric.

    Args:
        title, unit (`str`): What it is.
        factor (`float`): From the pilot's numbers to the unit.
        digits (`int`): Of numbers in the unit.
        better (`str`): Which end is better.
        chart ([`Chart`]): Differences with intervals.
        rows (`list[dict]`): The pilot's comparisons with it.
    """

    title: str
    unit: str
    factor: float
    digits: int
    better: str
    chart: Chart
    rows: list[dict]


@dataclass(frozen=True)
class Pilot:
    """
    Args:
        folder (`str`): Of the pilot.
        verdict (`list[str]`): In plain sentences.
        notes (`list[str]`): What would make the verdict worth less.
        metrics (`list[Measured]`): What was measured.
        confidence (`float`): Level of the intervals.
    """

    folder: str
    verdict: list[str]
    notes: list[str]
    metrics: list[Measured]
    confidence: float


def make(material: Material) -> Pilot | Missing:
    if material.pilot is None:
        return Missing(
            "No pilot was given.",
            "Only training says which choice teaches better: a pilot tries some on a small budget. With its folder:",
            "rsr report --pilot OUTPUT_DIR ...",
        )
    result = _read(material.pilot)
    measured = []
    for name, (title, unit, factor, digits, better) in METRICS.items():
        if rows := [row for row in result["table"] if row["metric"] == name]:
            chart = _draw(name, title, unit, factor, better, rows)
            measured.append(Measured(title, unit, factor, digits, better, chart, rows))
    return Pilot(
        folder=str(material.pilot),
        verdict=result["verdict"],
        notes=result["notes"],
        metrics=measured,
        confidence=result["confidence"],
    )


def _read(folder: Path) -> dict:
    file = folder / RESULT
    if not file.is_file():
        raise ValueError(
            f"There is no {RESULT} in {str(folder)!r}: `rsr pilot` writes it to its output folder when it is done."
        )
    return json.loads(file.read_text(encoding="utf-8"))


def _draw(name: str, title: str, unit: str, factor: float, better: str, rows: list[dict]) -> Chart:
    def plot(axes: Axes) -> None:
        axes.axvline(0, color=MUTED, linewidth=1)
        for place, row in enumerate(rows):
            axes.plot([factor * row["low"], factor * row["high"]], [place, place], color=INK, linewidth=1.4)
            # Filled: the interval leaves zero out.
            style = {"fillstyle": "full" if row["told"] else "none", "color": SERIES[0], "marker": "o"}
            axes.plot([factor * row["mean"]], [place], markersize=8, linestyle="none", **style)
        names = [f"{label(row['strategy'])}\nover {label(row['control'])}" for row in rows]
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        few_ticks(axes)
        axes.set_xlabel(f"difference, {unit}  ·  {better}")

    return draw(f"pilot-{name}", f"{title}: differences to the control", 1.2 + 0.45 * max(2, len(rows)), plot)
