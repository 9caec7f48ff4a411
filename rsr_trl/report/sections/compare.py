"""RSR beside the other scores of the same trajectories: how far they agree, and what each would choose."""

from rsr_trl.report.material import Material, Missing


MAX_TEACHERS = 100
FREE = {"rsr", "surprisal", "rank", "length"}  # scores that every scored dataset has


def view(material: Material) -> dict | Missing:
    comparison = material.comparison
    if len(comparison.scores) < 2:
        return Missing("There is no other score on the same rows.", "The notes below the teachers explain why.")
    rsr = comparison.scores[0]
    return {
        "comparison": comparison,
        "has": {
            "agreement": rsr["teacher_agreement"] is not None,
            "correct": rsr["correct_first"] is not None,
            "accuracy": rsr["chosen_accuracy"] is not None,
            "balance": rsr["chosen_balance"] is not None,
            "teachers": bool(comparison.teachers),
        },
        "teachers": comparison.teachers[:MAX_TEACHERS] if len(comparison.teachers) > 1 else [],
        "only_free": {score["name"] for score in comparison.scores} <= FREE,
    }
