"""Where sentences come from: their classes in the dataset's columns, which `rsr_trl.experimental.provenance` adds.

Read from the columns alone: the page needs no method that still changes.
"""

from collections.abc import Iterable

import numpy as np

from rsr_trl.report.format import prose
from rsr_trl.report.material import Material
from rsr_trl.report.rows import prompt_of
from rsr_trl.report.sections.reading import PROMPT_LENGTH


SENTENCES, NUM_SENTENCES = "provenance_sentences", "provenance_num_sentences"  # columns
CLASSES = {  # in the order in which they are shown
    "teacher": "the teacher gives it over 0.1 more probability than the student",
    "student": "the student gives it over 0.1 more probability than the teacher",
    "boosted": "teacher and student are near each other, the trained student isn't",
    "shared": "all three give it nearly the same probability",
    "common": "teacher and student give it nearly the same probability",
}
MODELS = {"p_student": "student", "p_teacher": "teacher", "p_trained": "trained student"}
MAX_SENTENCES = 1_500  # on the whole page


def by_class(sentences: Iterable[list[dict] | None]) -> list[dict]:
    """
    Of each class that occurs in a column of sentences: `class`, `sentences` (how many), `share`, and the mean
    probability that each model gives them (`p_student`, ...).
    """
    known = [one for row in sentences for one in row or () if one["class"]]
    rows = []
    for name in CLASSES:
        if own := [one for one in known if one["class"] == name]:
            means = {model: float(np.mean([one[model] for one in own])) for model in MODELS if model in own[0]}
            rows.append({"class": name, "sentences": len(own), "share": len(own) / len(known)} | means)
    return rows


def view(material: Material) -> dict | None:
    """Nothing where the columns aren't there or say nothing."""
    if SENTENCES not in material.dataset.column_names:
        return None
    sentences = material.dataset.with_format(None)[SENTENCES][:]
    if not (classes := by_class(sentences)):
        return None
    counts = np.array([sum(one["class"] == "teacher" for one in row or ()) for row in sentences])
    score = next((one for one in material.comparison.scores if one["name"] == "provenance"), None)
    rows = _rows(material, np.array([bool(row) for row in sentences]), counts)
    limit = MAX_SENTENCES // len(rows)
    return {
        "classes": classes,
        "meanings": CLASSES,
        "models": {model: name for model, name in MODELS.items() if model in classes[0]},
        "rows": sum(map(bool, sentences)),
        "length_correlation": None if score is None else score["length_correlation"],
        "trajectories": [
            material.row(row)
            | {
                "why": why,
                "prompt": prose(prompt_of(material.dataset.with_format(None)[row]), PROMPT_LENGTH),
                "count": int(counts[row]),
                "known": sum(bool(one["class"]) for one in sentences[row]),
                "sentences": sentences[row][:limit],
                "more": max(0, len(sentences[row]) - limit),
            }
            for row, why in rows.items()
        ],
    }


def _rows(material: Material, known: np.ndarray, counts: np.ndarray) -> dict[int, str]:
    """Rows to show -> why: those asked for, and those with the most, the median and the fewest teacher sentences."""
    order = np.flatnonzero(known)
    order = order[np.argsort(-counts[order], kind="stable")].tolist()
    shown = {row: "asked for" for row in material.rows if known[row]}
    ends = {
        order[0]: "most teacher sentences",
        order[len(order) // 2]: "median",
        order[-1]: "fewest teacher sentences",
    }
    return shown | {row: why for row, why in ends.items() if row not in shown}
