"""RSR beside the other scores of the same trajectories: how far they agree, and what each would choose."""

from dataclasses import dataclass

from rsr_trl.report.pool import Material, Missing
from rsr_trl.selection.compare import Comparison


MAX_TEACHERS = 100


@dataclass(frozen=True)
class Compare:
    """
    Args:
        comparison ([`Comparison`]): What is compared.
        has (`dict[str, bool]`): Which columns of the tables say something.
        teachers (`list[dict]`): Teachers with their places by each score; at most 100.
        only_free (`bool`): Whether there are only scores that every scored dataset has.
    """

    comparison: Comparison
    has: dict[str, bool]
    teachers: list[dict]
    only_free: bool


def make(material: Material) -> Compare | Missing:
    comparison = material.pool.comparison
    if len(comparison.scores) < 2:
        return Missing("There is no other score on the same rows.", "The notes below the teachers say why.")
    rsr = comparison.scores[0]
    names = {score["name"] for score in comparison.scores}
    return Compare(
        comparison=comparison,
        has={
            "agreement": rsr["teacher_agreement"] is not None,
            "correct": rsr["correct_first"] is not None,
            "accuracy": rsr["chosen_accuracy"] is not None,
            "teachers": bool(comparison.teachers),
        },
        teachers=comparison.teachers[:MAX_TEACHERS] if len(comparison.teachers) > 1 else [],
        only_free=names <= {"rsr", "surprisal", "rank", "length"},
    )
