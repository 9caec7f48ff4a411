"""What selection changes: teachers before and after, and what a cap, a correctness filter or chance would choose."""

from dataclasses import replace
from shlex import quote

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from rsr_trl.report.charts import INK, MUTED, SERIES, draw, key_above, name_lines
from rsr_trl.report.format import label, percent
from rsr_trl.report.material import Material
from rsr_trl.rsr import RSRError, dataset_rsr
from rsr_trl.selection.choose import choose


CAP = 0.4  # of one teacher, or half as much again as an even share where teachers are few
MAX_DRAWN = 30


def view(material: Material) -> dict:
    table, selection = material.table, material.selection
    drawn = min(MAX_DRAWN, len(table.teachers))
    return {
        "chart": _composition(material, drawn) if table.teachers else None,
        "drawn": drawn,
        "teachers": len(table.teachers),
        "ways": _ways(material),
        "left_out": selection.left_out,
        "empty_groups": {reason: len(groups) for reason, groups in selection.empty_groups.items()},
        "problems": len(table.problems),
        "has_correct": table.correct is not None,
    }


def _ways(material: Material) -> list[dict]:
    """The choice on the page, and others beside it: `options` are those of `rsr select`, `None` for a baseline."""
    table, by = material.table, material.by
    end = "Most" if by.prefer == "low" else "Least"
    of = "of each problem" if by.group_column else f"{by.keep_fraction:.0%}"
    plain = f"--group_column {quote(by.group_column)}" if by.group_column else f"--keep_fraction {by.keep_fraction}"
    plain += "" if by.prefer == "low" else " --prefer high"
    plain += "" if by.min_tokens is None else f" --min_tokens {by.min_tokens}"
    ways = [
        _way(material, "All", None, np.flatnonzero(table.scored)),
        _way(material, f"{end} suitable {of} (chosen on this page)", plain, material.selection.rows),
    ]
    if material.selection.short:
        options = f"{plain} --min_tokens 0"
        ways.append(_other(material, "… bare answers included", options, min_tokens=0))
    if table.correct is not None:
        column = table.columns.correct
        ways.append(_other(material, "… only correct ones", f"{plain} --require {quote(column)}", require=column))
    if len(table.teachers) > 1:
        cap, column = round(max(CAP, 1.5 / len(table.teachers)), 2), table.columns.teacher
        options = f"{plain} --max_share_per_teacher {cap:g} --teacher_column {quote(column)}"
        criteria = {"max_share_per_teacher": cap, "teacher_column": column}
        ways.append(_other(material, f"… at most {cap:.0%} of one teacher", options, **criteria))
    chance = np.random.default_rng(0).random(len(table))
    baselines = {"random": chance, "lowest surprisal": table.surprisal, "shortest": table.tokens}
    for name, cost in baselines.items():
        rows = material.choose(np.where(material.finite, cost, np.nan))
        once = " (one draw)" if name == "random" else ""
        ways.append(_way(material, f"Baseline: {name} {of}{once}", None, rows))
    return ways


def _other(material: Material, name: str, options: str, **criteria) -> dict:
    try:
        rows = choose(material.table, replace(material.by, **criteria)).rows
    except RSRError as error:  # a cap that can't be kept: the message says which can
        return {"name": name, "options": options, "failed": str(error)}
    return _way(material, name, options, rows)


def _way(material: Material, name: str, options: str | None, rows: np.ndarray) -> dict:
    if not len(rows):
        return {"name": name, "options": options, "failed": "No trajectory meets it."}
    kept = material.table.where(rows)
    known = [] if kept.correct is None else kept.correct[~np.isnan(kept.correct)]
    return {
        "name": name,
        "options": options,
        "failed": None,
        "rows": len(rows),
        "rsr": dataset_rsr(kept.rank, kept.surprisal),
        "rank": kept.rank.mean(),
        "surprisal": kept.surprisal.mean(),
        "tokens": kept.tokens.mean(),
        "correct": np.mean(known) if len(known) else None,
        "most": np.bincount(kept.teacher).max() / len(rows) if kept.teachers else None,
        "shared": material.chosen[rows].mean(),
    }


def _composition(material: Material, drawn: int) -> Markup:
    table = material.table
    count, chosen = material.per_teacher(...), material.per_teacher(material.chosen)
    before, after = 100 * count / len(table), 100 * chosen / max(1, chosen.sum())
    order = np.argsort(-after, kind="stable")[:drawn]
    names = [label(table.teachers[i]) for i in order]

    def plot(axes: Axes) -> None:
        place = np.arange(drawn)
        axes.hlines(place, before[order], after[order], color=MUTED, linewidth=1.5)
        axes.plot(before[order], place, "o", fillstyle="none", color=INK, markersize=8, label="before")
        axes.plot(after[order], place, "D", color=SERIES[0], markersize=7, label="chosen")
        name_lines(axes, names)
        axes.set_xlim(left=-1)
        axes.set_xlabel("% of the trajectories")
        key_above(axes)

    alt = "Share of each teacher before and after selection: " + "; ".join(
        f"{names[place]} {percent(before[i] / 100)} to {percent(after[i] / 100)}" for place, i in enumerate(order[:12])
    )
    return draw("composition", alt, 1.4 + 0.3 * max(2, drawn), plot)
