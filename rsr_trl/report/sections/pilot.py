"""What a pilot found: each way to choose beside its control, after training on a small budget."""

import json
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes

from rsr_trl.data import STATE_FOLDER, examples, source_files
from rsr_trl.pilot.verdict import METRICS, Metric
from rsr_trl.report.charts import INK, MUTED, SERIES, draw, name_lines
from rsr_trl.report.format import label
from rsr_trl.report.material import Material, Missing
from rsr_trl.rsr import RSRError
from rsr_trl.scoring.shards import digests_of, read_json


RESULT = "pilot.json"  # of a pilot's folder, once it is done


def view(material: Material) -> dict | Missing:
    if material.pilot is None:
        why = "No pilot yet. Only training shows which choice teaches better."
        return Missing(why, "Run `rsr pilot`, then add its folder:", "rsr report --pilot OUTPUT_DIR ...")
    if not (file := material.pilot / RESULT).is_file():
        raise RSRError(f"There is no {RESULT} in {str(material.pilot)!r}: `rsr pilot` writes it when it is done.")
    result, measured = json.loads(file.read_text(encoding="utf-8")), []
    _check_same_pool(material, result)
    for metric in METRICS:
        if rows := [row for row in result["table"] if row["metric"] == metric.name]:
            better = "better →" if metric.higher_is_better else "← better"
            chart = _draw(metric, better, rows)
            measured.append({"metric": metric, "better": better, "rows": rows, "chart": chart})
    return {**result, "folder": material.pilot, "measured": measured}


def _check_same_pool(material: Material, result: dict) -> None:
    """Raise for the pilot of another dataset, by the files of both; of one in memory by the number of rows."""
    pool, num_rows = result.get("settings", {}).get("pool") or {}, result.get("pool", {}).get("trajectories")
    if (source := material.source) is not None:
        files = digests_of(source_files(source))
        scored_from = read_json(Path(source).expanduser() / STATE_FOLDER / "manifest.json").get("data", {})
        here, there = (_contents(one) for one in (files | (scored_from.get("files") or {}), pool.get("files") or {}))
        is_other = bool(there) and not here & there
    else:
        is_other = num_rows not in (None, len(material.dataset))
    if is_other:
        raise RSRError(
            f"The pilot in {str(material.pilot)!r} was run on another dataset, "
            f"{examples(list(pool.get('files') or {}))} with {num_rows:,} trajectories (here: "
            f"{len(material.dataset):,}). Pass the dataset that it was run on, or leave the pilot out."
        )


def _contents(files: dict[str, str | None]) -> set[str]:
    """Hashes of files, and the addresses of those on the Hub, which have none."""
    return {digest or name for name, digest in files.items()}


def _draw(metric: Metric, better: str, rows: list[dict]) -> Markup:
    def plot(axes: Axes) -> None:
        axes.axvline(0, color=MUTED, linewidth=1)
        for place, row in enumerate(rows):
            low, mean, high = (metric.factor * row[name] for name in ("low", "mean", "high"))
            axes.plot([low, high], [place, place], color=INK, linewidth=1.4)
            # Filled: the interval excludes zero.
            style = {"fillstyle": "none" if row["better"] is None else "full", "color": SERIES[0], "marker": "o"}
            axes.plot([mean], [place], markersize=8, linestyle="none", **style)
        name_lines(axes, [f"{label(row['strategy'])}\nover {label(row['control'])}" for row in rows])
        axes.set_xlabel(f"difference, {metric.unit}  ·  {better}")

    alt = f"{metric.label.capitalize()}: differences to the control"
    return draw(f"pilot-{metric.name}", alt, 1.2 + 0.45 * max(2, len(rows)), plot)
