"""One problem: what each teacher wrote, side by side, and which of it selection keeps and why."""

import numpy as np
import pandas as pd

from rsr_trl.report.format import number, prose
from rsr_trl.report.images import images_of
from rsr_trl.report.material import Material, Missing
from rsr_trl.report.rows import prompt_of, response_of
from rsr_trl.report.sections.reading import MAX_TOKENS, PROMPT_LENGTH, heatmap, unreadable
from rsr_trl.selection.choose import choose_rows, least_tokens, long_enough


MAX_CARDS = 16
RESPONSE_LENGTH = 4000


def view(material: Material) -> dict | Missing:
    table = material.table
    if table.problem is None:
        return Missing(
            "No column names the problem, so trajectories can't be grouped.",
            "Name one:",
            "rsr report --problem_column COLUMN ...",
        )
    which = _which(material)
    own = np.flatnonzero(table.problem == which)
    # As selection orders them; those that it never chooses come last.
    order = own[choose_rows(table.cost()[own], table.tokens[own], threshold=np.inf)]
    rows = [*order.tolist(), *np.setdiff1d(own, order).tolist()]
    shown = rows[:MAX_CARDS]
    limit = MAX_TOKENS // 3 // len(shown) if unreadable(material) is None else None
    values = {row: material.values(row) for row in shown}
    return {
        "name": table.problems[which],
        "asked": bool(material.rows),
        "prompt": prose(prompt_of(values[shown[0]]), PROMPT_LENGTH),
        "images": images_of(values[shown[0]], thumbnails=True),
        "candidates": [
            material.row(row)
            | {
                "heatmap": heatmap(material, values[row], limit) if limit else None,
                "text": None if limit else prose(response_of(values[row]), RESPONSE_LENGTH),
            }
            for row in shown
        ],
        "more": len(rows) - len(shown),
        "reason": _reason(material, order),
    }


def _which(material: Material) -> int:
    """The problem of the first row asked for; else a typical one of those that most teachers have answered."""
    table = material.table
    if material.rows:
        return int(table.problem[material.rows[0]])
    ratio = pd.Series(material.rsr[material.finite])
    problems = ratio.groupby(table.problem[material.finite]).agg(["size", "min", "max"])
    full = problems[problems["size"] == problems["size"].max()]
    return int((full["max"] - full["min"]).sort_values(kind="stable").index[(len(full) - 1) // 2])


def _reason(material: Material, order: np.ndarray) -> str:
    """Why the first of these rows is chosen."""
    least = material.by.min_tokens
    able = order[long_enough(material.table.tokens[order], least)]
    ratios = material.rsr[able]
    if not len(ratios):
        return "None of its trajectories has a finite RSR and enough tokens, so none is chosen."
    end, word = ("lowest", "most") if material.by.prefer == "low" else ("highest", "least")
    enough = "" if len(able) == len(order) else f" with {least_tokens(least)} tokens or more"
    best = f"The {end} RSR of the problem{enough}, {number(ratios[0], 3)}, is chosen: it is the {word} suitable."
    if len(ratios) == 1:
        return f"{best} It is the only one that can be chosen."
    if ratios[1] == ratios[0]:
        return f"{best} The next has the same RSR, and the shorter one goes first."
    return f"{best} The next is {abs(ratios[1] / ratios[0] - 1):.0%} {'higher' if ratios[1] > ratios[0] else 'lower'}."
