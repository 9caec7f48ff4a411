"""How the numbers were made, and what to be careful about with this data."""

import importlib.metadata
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from rsr_trl import __version__
from rsr_trl.data import counted
from rsr_trl.report.format import name, percent, prose
from rsr_trl.report.pool import Material
from rsr_trl.rsr import CITATION


MAX_LENGTH = 600  # characters of a caution: names of teachers may be long
PACKAGES = ("torch", "transformers", "datasets", "matplotlib")


@dataclass(frozen=True)
class Caution:
    """
    Something to be careful about.

    Args:
        name (`str`): In a word or two.
        what (`str`): What it is, and why it matters. Commands stand in backticks.
        what_to_do (`str`): What helps; may be empty.
        rows (`list[int]`): A few rows that show it.
    """

    name: str
    what: str
    what_to_do: str
    rows: list[int]


@dataclass(frozen=True)
class Made:
    """
    Args:
        cautions (`list[Caution]`): What to be careful about with this data.
        facts (`list[tuple[str, str]]`): Student, settings, columns, versions.
        reasons (`dict[str, int]`): Why trajectories have no score.
        citation (`str`): BibTeX.
    """

    cautions: list[Caution]
    facts: list[tuple[str, str]]
    reasons: dict[str, int]
    citation: str


def make(material: Material) -> Made:
    return Made(
        cautions=list(_cautions(material)),
        facts=list(_facts(material)),
        reasons=dict(list(material.pool.reasons.items())[:20]),
        citation=CITATION,
    )


def _cautions(material: Material) -> Iterator[Caution]:
    """Known failure modes of RSR that this data shows, the gravest first, and what else to know about its scores."""
    pool = material.pool
    if pool.criteria.prefer == "high":
        yield Caution(
            "reversed", "The choice on this page keeps the highest RSR (`--prefer high`): the least suitable.", "", []
        )
    for finding in pool.comparison.findings:
        what = prose(f"{finding.what} {finding.why}", MAX_LENGTH)
        yield Caution(finding.name, what, finding.what_to_do, finding.example_rows)
    if lost := len(pool) - int(pool.scored.sum()):
        what = f"{counted(lost, 'trajectory')} ({percent(lost / len(pool))}) without a score: never chosen."
        yield Caution("not scored", what, "", [])
    if infinite := int(np.isinf(pool.rsr).sum()):
        what = (
            f"The student knows {counted(infinite, 'trajectory')} by heart: infinite RSR, never drawn, never chosen."
        )
        yield Caution("infinite", what, "", [])
    if "bfloat16" in str((material.manifest or {}).get("student", {}).get("dtype")):
        what = "In bfloat16 logits often tie, and ties don't count: ranks are a little too good, scores good to 2%."
        yield Caution("low precision", what, "", [])


def _facts(material: Material) -> Iterator[tuple[str, str]]:
    pool, manifest = material.pool, material.manifest or {}
    if material.source:
        yield "Dataset", name(material.source, 200)
    yield "Student", name(material.student, 200) if material.student else "not named by the dataset"
    yield "Fingerprint of student and settings", ", ".join(map(name, pool.students)) or "none"
    student = manifest.get("student", {})
    for key, title in (
        ("dtype", "Dtype of the student"),
        ("logits_dtype", "Dtype of the logits"),
        ("max_length", "Length limit, tokens"),
        ("assistant_only_loss", "assistant_only_loss"),
    ):
        if key in student:
            yield title, name(str(student[key]).removeprefix("torch."))
    if not student:
        yield "Settings", "not recorded here; a folder that rsr score has written has them"
    yield "Ranks", f"1 + number of more likely tokens (ties don't count), clipped at {material.r_max:g}"
    yield "Surprisal", "−ln p, in nats"
    yield "RSR", "sum of clipped ranks / sum of surprisals; of a teacher, sum of mean ranks / sum of mean surprisals"
    cut = int((pool.truncated & pool.scored).sum())
    yield "Cut at the length limit", f"{counted(cut, 'trajectory')} ({percent(cut / pool.scored.sum())} of the scored)"
    yield "Without a score", counted(len(pool) - int(pool.scored.sum()), "trajectory")
    for title, group in (("Teachers", pool.teacher), ("Problems", pool.problem)):
        yield title, f"column {name(group.column)}" if group else "no column"
    yield "Correctness", f"column {name(pool.correctness_column)}" if pool.correctness_column else "no column"
    if pool.ranking is not None:
        method = "studentised bootstrap (Student's t under 10 problems), 1,000 draws, seed 0"
        yield "Intervals", f"{pool.ranking.confidence:.0%}, {method}"
    yield "Page made", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC by rsr-trl {__version__}"
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    yield "With", f"Python {platform.python_version()}, {versions}"
