"""RSR beside other scores of the same trajectories, and what is known to mislead it, looked for before training."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from datasets import Dataset
from scipy.stats import rankdata

from rsr_trl.data import examples
from rsr_trl.rsr import ERROR
from rsr_trl.selection.agreement import chance_overlap, correct_first, rank_correlation
from rsr_trl.selection.choose import Criteria, choose_rows
from rsr_trl.selection.failure_modes import Finding, look_at_rows, look_at_scores
from rsr_trl.selection.scored_rows import Score, ScoredRows, find_scores


KEEP_FRACTION = 0.5  # what each score chooses where no column names the problem


@dataclass(frozen=True)
class Comparison:
    """
    What [`compare_scores`] finds. Scores are compared **by what each rates more suitable**, whichever end of it that
    is. Matrices have a row and a column for each score, in the order of `scores`; what can't be told is `None`.

    Args:
        scores (`list[dict]`): One for each score, RSR first: `name`, `prefer` (`"low"` or `"high"`: the end
            that is more suitable); `rank_correlation`, `overlap` and `teacher_agreement` with RSR;
            `length_correlation` (with scored tokens; above 0: long ones are more suitable) and `length_r2` (its
            square); `correct_first` (share of pairs of a correct and an incorrect trajectory in which the correct one
            is more suitable, 0.5 being chance) with `correct_first_low` and `correct_first_high` (95% interval); and,
            of what it would choose, `chosen_tokens` (mean), `chosen_accuracy`, `chosen_top_teacher` and
            `chosen_top_teacher_share`.
        rank_correlation (`list[list]`): Spearman's; within problems where there is a problem column.
        overlap (`list[list]`): Share of what one score would choose that the other would choose too. With an overlap
            of o, Jaccard's index is o / (2 - o).
        chance_overlap (`float`): The overlap of choices made at random.
        teachers (`list[dict]`): The most suitable by RSR first: `teacher`, `trajectories` (compared), and by score
            `values` (mean over the teacher's trajectories; for RSR the teacher's RSR of Eq. 9) and `places` among the
            teachers (1 = most suitable).
        teacher_agreement (`list[list]`): Spearman's correlation of the orders of teachers; `None` for fewer than 3.
        findings (`list[Finding]`): Known failure modes of RSR that are there, the gravest first; empty if none is.
        notes (`list[str]`): What was left out of the comparison, and why.
        rule (`str`): What each score would choose, as options of `rsr select`.
        num_rows, num_compared (`int`): Rows of the dataset, and those that all scores are compared on.
        num_problems, num_shared_problems (`int`, *optional*): Problems of the rows compared, and those with a
            trajectory of every teacher, on which teachers are compared (`None`: on all that each has).
    """

    scores: list[dict]
    rank_correlation: list[list[float | None]]
    overlap: list[list[float]]
    chance_overlap: float
    teachers: list[dict]
    teacher_agreement: list[list[float | None]]
    findings: list[Finding]
    notes: list[str]
    rule: str
    num_rows: int
    num_compared: int
    num_problems: int | None
    num_shared_problems: int | None

    def to_dict(self) -> dict:
        """Everything as numbers, strings, lists and dicts that JSON can hold."""
        return asdict(self)


def compare_scores(
    dataset: Dataset,
    scores: Sequence[str] | None = None,
    own_scores: Mapping[str, Literal["low", "high"]] | None = None,
    teacher_column: str | None = None,
    problem_column: str | None = None,
    correctness_column: str | None = None,
    keep_per_group: int = 1,
    keep_fraction: float | None = None,
) -> Comparison:
    """
    Compare RSR (**lower = more suitable**) with the other scores of a dataset: how far they agree, what each would
    choose, how each orders teachers, and how much of each is length and correctness. And look for RSR's known failure
    modes.

    None of it says which score teaches better: only training does. But where two scores choose the same, no training
    can tell them apart.

    Args:
        dataset (`Dataset`): Scored with [`RSRScorer`] or `rsr score`.
        scores (sequence of `str`, *optional*): Names of scores to compare with RSR. By default all that are there:
            `surprisal`, `rank` and `length`, which every scored dataset has, and the columns `score_<name>`.
        own_scores (mapping, *optional*): Columns with scores of your own -> the end that is more suitable, `"low"` or
            `"high"`. The name of a score turns it round: `{"length": "low"}`.
        teacher_column (`str`, *optional*): Column that names the teacher.
        problem_column (`str`, *optional*): Column that says which trajectories answer the same problem. Everything is
            then compared within problems: what makes a problem hard plays no part.
        correctness_column (`str`, *optional*): Boolean column; null is unknown.
        keep_per_group (`int`, *optional*, defaults to `1`): How many each score chooses of each problem.
        keep_fraction (`float`, *optional*): Share of all that each score chooses instead; 0.5 without
            `problem_column`.

    Returns:
        [`Comparison`].

    Raises:
        `ValueError`: a missing column, a score whose direction isn't known, scores of different students, or no row on
            which all scores are finite.

    Example:

    ```python
    >>> comparison = compare_scores(scored, teacher_column="teacher", problem_column="problem_id")
    >>> for finding in comparison.findings:
    ...     print(finding.name, finding.what)
    ```
    """
    notes: list[str] = []
    compared_scores = find_scores(dataset, scores, own_scores or {}, notes)
    by_problem = problem_column is not None and keep_fraction is None
    if not by_problem and keep_fraction is None:
        keep_fraction = KEEP_FRACTION
    group = "problem" if by_problem else None
    criteria = Criteria(
        group_column=group, keep_per_group=keep_per_group, keep_fraction=keep_fraction, score="cost", prefer="low"
    )
    everything = ScoredRows.read(dataset, compared_scores, teacher_column, problem_column, correctness_column)
    scored = everything.where(np.isfinite(everything.costs[:, 0]))
    rows = everything.where(_comparable(everything, compared_scores, notes))

    kept = np.column_stack([_choose(rows, j, criteria) for j in range(len(compared_scores))])
    overlap = (kept.T.astype(np.float64) @ kept) / kept[:, 0].sum()
    chance = chance_overlap(kept[:, 0], rows.problem if by_problem else None)
    correlation = rank_correlation(np.column_stack([rows.costs, -rows.tokens]), rows.problem)
    teachers, orders, num_shared = _teachers(rows, compared_scores, notes)
    described = [
        _plain(
            {
                **asdict(score),
                "rank_correlation": correlation[j, 0],
                "overlap": overlap[j, 0],
                "teacher_agreement": orders[j, 0],
                "length_correlation": correlation[j, -1],
                "length_r2": correlation[j, -1] ** 2,
                **_correctness(rows, rows.costs[:, j], kept[:, j]),
                "chosen_tokens": rows.tokens[kept[:, j]].mean(),
                **_top_teacher(rows, kept[:, j]),
            }
        )
        for j, score in enumerate(compared_scores)
    ]
    findings = [*look_at_rows(scored, _choose(scored, 0, criteria)), *look_at_scores(described, chance, len(rows))]
    return Comparison(
        scores=described,
        rank_correlation=_matrix(correlation[:-1, :-1]),
        overlap=_matrix(overlap),
        chance_overlap=chance,
        teachers=teachers,
        teacher_agreement=_matrix(orders),
        findings=findings,
        notes=notes,
        rule=_rule(criteria, problem_column),
        num_rows=len(dataset),
        num_compared=len(rows),
        num_problems=None if rows.problem is None else len(np.unique(rows.problem)),
        num_shared_problems=num_shared,
    )


def _comparable(rows: ScoredRows, scores: list[Score], notes: list[str]) -> np.ndarray:
    """Which rows have a finite value of every score; what the others lack goes to `notes`."""
    finite = np.isfinite(rows.costs)
    together = finite.all(axis=1)
    missing = {score.name: int((~finite[:, j]).sum()) for j, score in enumerate(scores)}
    if not together.any():
        most = max(missing, key=missing.get, default=None)
        raise ValueError(
            f"None of the {len(rows)} rows has a finite value of every score ({most!r} lacks most, in {missing[most]} "
            f"rows), so there is nothing to compare. {ERROR!r} may say why; or leave that score out."
        )
    if not together.all():
        lacking = ", ".join(f"{name} in {count:,}" for name, count in missing.items() if count)
        notes.append(
            f"Compared on the {together.sum():,} of {len(rows):,} trajectories on which every score is finite; not "
            f"finite: {lacking}."
        )
    return together


def _choose(rows: ScoredRows, j: int, criteria: Criteria) -> np.ndarray:
    """What `rsr select` would choose by score `j`: boolean array of shape `(rows,)`."""
    groups = rows.problem if criteria.group_column else None
    mask = np.zeros(len(rows), dtype=bool)
    mask[choose_rows(rows.costs[:, j], rows.tokens, groups, criteria.keep_per_group, criteria.keep_fraction)] = True
    return mask


def _rule(criteria: Criteria, problem_column: str | None) -> str:
    if criteria.keep_fraction is not None:
        return f"--keep_fraction {criteria.keep_fraction:g}"
    more = f" --keep_per_group {criteria.keep_per_group}" if criteria.keep_per_group > 1 else ""
    return f"--group_column {problem_column}{more}"


def _teachers(rows: ScoredRows, scores: list[Score], notes: list[str]) -> tuple[list[dict], np.ndarray, int | None]:
    """Teachers by every score, how far the orders agree, and on how many problems that every teacher has."""
    agreement, num_shared = np.full((len(scores),) * 2, np.nan), None
    if rows.teacher is None:
        return [], agreement, None
    if lost := np.setdiff1d(np.arange(len(rows.teachers)), rows.teacher).tolist():
        lost = examples([rows.teachers[i] for i in lost])
        notes.append(f"Without a trajectory on which every score is finite, so not compared: {lost}.")
    if rows.problem is not None and (shared := rows.shared_problems()).any():
        rows, num_shared = rows.where(shared[rows.problem]), int(shared.sum())
    elif len(np.unique(rows.teacher)) > 1:
        why = "no problem has all of them" if rows.problem is not None else "no column names the problem"
        notes.append(f"Teachers are compared on whatever each of them solved: {why}.")
    present, seat, count = np.unique(rows.teacher, return_inverse=True, return_counts=True)
    sums = [np.bincount(seat, weights=part) for part in (*rows.costs.T, rows.rank, rows.surprisal)]
    means = np.stack(sums[: len(scores)], axis=1) / count[:, None]
    means[:, 0] = sums[-2] / sums[-1]  # Eq. 9
    if len(present) > 2:
        agreement = rank_correlation(means)
    places = rankdata(means, method="min", axis=0).astype(int)
    values = means * [score.sign for score in scores]
    names = [score.name for score in scores]
    table = [
        {
            "teacher": rows.teachers[present[i]],
            "trajectories": int(count[i]),
            "values": dict(zip(names, values[i].tolist(), strict=True)),
            "places": dict(zip(names, places[i].tolist(), strict=True)),
        }
        for i in np.argsort(means[:, 0], kind="stable")
    ]
    return table, agreement, num_shared


def _correctness(rows: ScoredRows, cost: np.ndarray, kept: np.ndarray) -> dict:
    names = ("correct_first", "correct_first_low", "correct_first_high", "chosen_accuracy")
    if rows.correct is None:
        return dict.fromkeys(names)
    known = ~np.isnan(rows.correct)
    problem = None if rows.problem is None else rows.problem[known]
    share, low, high, _ = correct_first(cost[known], rows.correct[known] == 1, problem)
    accuracy = rows.correct[known & kept].mean() if (known & kept).any() else np.nan
    return dict(zip(names, (share, low, high, accuracy), strict=True))


def _top_teacher(rows: ScoredRows, kept: np.ndarray) -> dict:
    if rows.teacher is None:
        return {"chosen_top_teacher": None, "chosen_top_teacher_share": None}
    count = np.bincount(rows.teacher[kept], minlength=len(rows.teachers))
    most = int(count.argmax())
    return {"chosen_top_teacher": rows.teachers[most], "chosen_top_teacher_share": count[most] / count.sum()}


def _plain(values: dict) -> dict:
    """As JSON can hold it: `nan` becomes `None`."""
    return {name: _number(value) if isinstance(value, float) else value for name, value in values.items()}


def _matrix(values: np.ndarray) -> list[list[float | None]]:
    return [[_number(value) for value in row] for row in values]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
