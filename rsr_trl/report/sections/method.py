"""How the numbers were measured, and what to be careful about with this data."""

import importlib.metadata
import platform
from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np

from rsr_trl import __version__
from rsr_trl.data import counted
from rsr_trl.report.format import name, percent, prose
from rsr_trl.report.material import Material
from rsr_trl.rsr import CITATION


MAX_LENGTH = 600  # characters of a caution: names of teachers may be long
MAX_REASONS = 20
PACKAGES = ("torch", "transformers", "datasets", "matplotlib")
SETTINGS = {
    "dtype": "Dtype of the student",
    "weights": "Quantized weights",
    "logits_dtype": "Dtype of the logits",
    "max_length": "Length limit, tokens",
    "assistant_only_loss": "assistant_only_loss",
    "chat_template_path": "Chat template",
}


def view(material: Material) -> dict:
    return {
        "cautions": list(_cautions(material)),
        "facts": list(_facts(material)),
        "reasons": dict(list(material.table.reasons.items())[:MAX_REASONS]),
        "citation": CITATION,
    }


def _cautions(material: Material) -> Iterator[dict]:
    """Known failure modes of RSR that this data shows, the gravest first, and what else to know about its scores."""

    def caution(name: str, what: str, what_to_do: str = "", rows: list[int] = ()) -> dict:
        return {"name": name, "what": what, "what_to_do": what_to_do, "rows": rows}

    table = material.table
    if material.by.prefer == "high":
        what = "This page selects the highest RSR (`--prefer high`): the least suitable."
        yield caution("reversed", what)
    for finding in material.comparison.findings:
        what = prose(f"{finding.what} {finding.why}", MAX_LENGTH)
        yield caution(finding.name, what, finding.what_to_do, finding.example_rows)
    if lost := int((~table.scored).sum()):
        what = f"{counted(lost, 'trajectory')} ({percent(lost / len(table))}) without a score: never chosen."
        yield caution("not scored", what)
    if infinite := int(np.isinf(material.rsr).sum()):
        what = f"The student knows {counted(infinite, 'trajectory')} by heart: infinite RSR, not drawn, never chosen."
        yield caution("infinite", what)


def _facts(material: Material) -> Iterator[tuple[str, str]]:
    table, settings = material.table, material.settings
    if material.source:
        yield "Dataset", name(material.source, 200)
    yield "Student", name(material.student, 200) if material.student else "not named by the dataset"
    yield "Fingerprint of student and settings", ", ".join(map(name, table.students)) or "none"
    for key in (key for key in SETTINGS if key in settings):
        yield SETTINGS[key], name(str(settings[key]).removeprefix("torch."))
    if "bfloat16" in str(settings.get("dtype")):
        yield "Precision", "bfloat16 logits often tie: ranks are slightly optimistic; expect about 2% error in scores"
    if not settings:
        yield "Settings", "not recorded; folders written by rsr score have them"
    yield "Ranks", f"1 + number of more likely tokens (ties don't count), clipped at {material.r_max:g}"
    yield "Surprisal", "−ln p, in nats"
    yield "RSR", "sum of clipped ranks / sum of surprisals; of a teacher, sum of mean ranks / sum of mean surprisals"
    scored = int(table.scored.sum())
    cut = int((table.truncated & table.scored).sum())
    yield "Truncated at the length limit", f"{counted(cut, 'trajectory')} ({percent(cut / scored)} of the scored)"
    yield "Without a score", counted(len(table) - scored, "trajectory")
    columns = (table.columns.teacher, table.columns.problem, table.columns.correct)
    for title, column in zip(("Teachers", "Problems", "Correctness"), columns, strict=True):
        yield title, f"column {name(column)}" if column else "no column"
    if material.ranking is not None:
        method = "studentised bootstrap (Student's t under 10 problems), 1,000 draws, seed 0"
        yield "Intervals", f"{material.ranking.confidence:.0%}, {method}"
    yield "Page written", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC by rsr-trl {__version__}"
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    yield "With", f"Python {platform.python_version()}, {versions}"
