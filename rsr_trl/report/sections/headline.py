"""What the page says, in a few sentences."""

from rsr_trl.data import counted, is_selection
from rsr_trl.report.format import correct_text, name, number, percent, short_name
from rsr_trl.report.material import Material
from rsr_trl.rsr import DIRECTION, dataset_rsr
from rsr_trl.selection.choose import correctness
from rsr_trl.selection.teachers import SELECTED, TeacherRanking


def view(material: Material) -> dict:
    """`sentences`: what each is about, and the sentence."""
    sentences = [("Data", _counts(material))]
    if material.ranking is not None:
        sentences.append(("Teacher", SELECTED if is_selection(material.source) else best_teacher(material.ranking)))
    sentences.append(("Selection", _choice(material)))
    if facts := correctness(material.table, material.by, material.selection.rows):
        sentences.append(("Correct", correct_text(facts)))
    return {"sentences": sentences}


def _counts(material: Material) -> str:
    table, rows = material.table, len(material.table)
    of = f" of {counted(len(table.problems), 'problem')}" if table.problems else ""
    by = f" by {counted(len(table.teachers), 'teacher')}" if table.teachers else ""
    student, bits = material.student and short_name(material.student), material.settings.get("weights")
    student = f" the student {name(student)}{f' ({bits} weights)' if bits else ''}" if student else " its student"
    unscored = rows - int(table.scored.sum())
    rest = f", of which {unscored:,} couldn't be scored" if unscored else ""
    return f"{counted(rows, 'trajectory')}{of}{by}, scored with{student}{rest}."


def best_teacher(ranking: TeacherRanking) -> str:
    """Which teacher suits best, how sure that is, and the numbers behind it."""
    scored, judged = [row for row in ranking.table if row["trajectories"]], ranking.judged
    said = ranking.verdict(name)
    if len(scored) == 1:
        said = f"There is no other teacher to compare {name(scored[0]['teacher'])} with."
    if not judged:
        return said
    best = judged[0]
    low, high, probability = best["rsr_low"], best["rsr_high"], best["probability_best"]
    interval = f"{ranking.confidence:.0%} interval {number(low)} to {number(high)}"
    first = f"; it ranks first in {percent(probability)} of bootstrap resamples" if len(judged) > 1 else ""
    return f"{said} RSR of {name(best['teacher'])}: {number(best['rsr'], 3)} ({DIRECTION}; {interval}){first}."


def _choice(material: Material) -> str:
    table, by, chosen = material.table, material.by, material.chosen
    end = "most" if by.prefer == "low" else "least"
    rule = "trajectory of each problem" if by.group_column else f"{by.keep_fraction:.0%}"
    before, after = table.where(table.scored), table.where(chosen)
    rsr = [number(dataset_rsr(rows.rank, rows.surprisal)) for rows in (before, after)]
    tokens = [number(rows.tokens.mean(), 0) for rows in (before, after)]
    text = (
        f"Keeping the {end} suitable {rule} leaves {int(chosen.sum()):,} of {len(table):,}. RSR goes from {rsr[0]} to "
        f"{rsr[1]}, mean length from {tokens[0]} to {tokens[1]} tokens"
    )
    if table.teacher is None:
        return f"{text}."
    count = material.per_teacher(chosen)
    most = int(count.argmax())
    share, was = count[most] / count.sum(), (table.teacher == most).mean()
    return f"{text}; {percent(share)} of what is kept comes from {name(table.teachers[most])} ({percent(was)} before)."
