"""RSR beside other scores of the same trajectories, and a look before training at what is known to mislead it.

The rank statistics at the end are over all rows or within problems, and take scores as costs: lower = more suitable.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy.special import expit, logit
from scipy.stats import rankdata, t

from rsr_trl.data import Columns, counted, examples, find_columns, read_table
from rsr_trl.rsr import ERROR, RSR, SCORE_PREFIX, RSRError, did_you_mean
from rsr_trl.scoring.scores import SCORES, known_score
from rsr_trl.selection.choose import Criteria, balance, choose_rows, long_enough, min_tokens_to_show
from rsr_trl.selection.display import as_html, shown
from rsr_trl.selection.failure_modes import Finding, look_at_rows, look_at_scores
from rsr_trl.selection.table import ScoredTable, available_scores


BESIDE_RSR = ("surprisal", "rank", "length", "random")  # what is compared where no scores are named
KEEP_FRACTION = 0.5  # what each score chooses where no column names the problem


@dataclass(frozen=True)
class Comparison:
    """
    What [`compare_scores`] finds. Scores are compared **by what each rates more suitable**, whichever end of it that
    is. Matrices have a row and a column for each score, in the order of `scores`; what isn't defined is `None`.

    Args:
        scores (`list[dict]`): One for each score, RSR first: `name`, `prefer` (`"low"` or `"high"`: the end
            that is more suitable); `rank_correlation`, `overlap` and `teacher_agreement` with RSR;
            `length_correlation` (with scored tokens; above 0: long ones are more suitable) and `length_r2` (its
            square); `correct_first` (share of pairs of a correct and an incorrect trajectory in which the correct one
            is more suitable, 0.5 being chance) with `correct_first_low` and `correct_first_high` (95% interval); and,
            of what it would choose, `chosen_tokens` (mean), `chosen_accuracy`, `chosen_balance` ([`balance`]),
            `chosen_top_teacher` and `chosen_top_teacher_share`.
        teachers (`list[dict]`): The most suitable by RSR first: `teacher`, `trajectories` (compared), and by score
            `values` (mean over the teacher's trajectories; for RSR the teacher's RSR of Eq. 9) and `places` among the
            teachers (1 = most suitable).
    """

    scores: list[dict]
    rank_correlation: list[list[float | None]]  # Spearman's; within problems where there is a problem column
    overlap: list[list[float]]  # o: share of one score's choice that the other would choose too; Jaccard: o / (2 - o)
    chance_overlap: float  # of choices made at random
    teachers: list[dict]
    teacher_agreement: list[list[float | None]]  # Spearman's of the orders of teachers; None for fewer than 3
    findings: list[Finding]  # known failure modes of RSR that are there, the gravest first
    notes: list[str]  # what was left out of the comparison, and why
    rule: str  # what each score would choose, as options of `rsr select`
    num_rows: int
    num_compared: int  # rows that have all scores
    num_problems: int | None  # of the rows compared
    num_shared_problems: int | None  # with all teachers, which are compared on them; None: on all that each has

    @property
    def _heading(self) -> str:
        of = "" if self.num_problems is None else f" of {counted(self.num_problems, 'problem')}"
        return f"{counted(len(self.scores), 'score')} of {counted(self.num_compared, 'trajectory')}{of}"

    def _shown(self) -> pd.DataFrame:
        """Scores and what each would choose, as texts."""
        formats = {"rank_correlation": "+.2f", "overlap": ".0%", "teacher_agreement": "+.2f"}
        formats |= {"length_correlation": "+.2f", "correct_first": ".0%", "chosen_accuracy": ".0%"}
        formats |= {"chosen_balance": ".3f", "chosen_tokens": ",.0f"}
        names = {"score": [f"{row['name']} ({row['prefer']})" for row in self.scores]}
        cells = {name: [shown(row[name], how) for row in self.scores] for name, how in formats.items()}
        return pd.DataFrame(names | {name.replace("_", " "): column for name, column in cells.items()})

    def __repr__(self) -> str:
        found = examples([finding.name for finding in self.findings], show=str) or "none"
        return f"Comparison({self._heading}; known failure modes found: {found})"

    def __str__(self) -> str:
        found = [f"{finding.name}: {finding.what} {finding.what_to_do}" for finding in self.findings]
        return "\n".join([f"{self._heading}, compared with RSR", self._shown().T.to_string(header=False), *found])

    def _repr_html_(self) -> str:
        found = [f"{finding.name}: {finding.what} {finding.why} {finding.what_to_do}" for finding in self.findings]
        return as_html(f"{self._heading}, compared with RSR", self._shown(), found)

    def to_dict(self) -> dict:
        """Everything as numbers, strings, lists and dicts that JSON can hold."""
        return asdict(self)


def compare_scores(
    dataset: Dataset,
    scores: Sequence[str] | Literal["all"] | None = None,
    own_scores: Mapping[str, Literal["low", "high"]] | None = None,
    teacher_column: str | None = None,
    problem_column: str | None = None,
    correctness_column: str | None = None,
    keep_per_group: int = 1,
    keep_fraction: float | None = None,
) -> Comparison:
    """
    Compare RSR (**lower = more suitable**) with the other scores of a dataset: how far they agree, what each would
    choose, how each orders teachers, and how much of each is length and correctness. Known failure modes of RSR that
    the dataset shows come with it.

    None of it says which score teaches better: only training does. But where two scores choose the same, no training
    can tell them apart.

    Args:
        dataset (`Dataset`): Scored with [`RSRScorer`] or `rsr score`.
        scores (sequence of `str` or `"all"`, *optional*): Names of scores to compare with RSR. By default
            `surprisal`, `rank`, `length` and `random`, as far as they are there; `"all"` adds the columns
            `score_<name>`.
        own_scores (mapping, *optional*): Columns with scores of your own -> the end that is more suitable, `"low"` or
            `"high"`. The name of a score turns it round: `{"length": "low"}`.
        teacher_column, problem_column, correctness_column (`str`, *optional*): As in [`rank_teachers`], and found by
            themselves as there. With a problem column everything is compared within problems: what makes a problem
            hard plays no part.
        keep_per_group, keep_fraction (*optional*): What each score chooses, as in [`select_trajectories`]: of each
            problem, or a share of all (0.5 without `problem_column`).

    Raises:
        `RSRError`: a missing column, a score whose direction isn't known, scores of different students, or no row on
            which all scores are finite.

    Example:

    ```python
    >>> comparison = compare_scores(scored)  # columns teacher, problem_id, correct
    >>> for finding in comparison.findings:
    ...     print(finding.name, finding.what)
    ```
    """
    columns = find_columns(dataset, Columns(teacher_column, problem_column, correctness_column))
    notes = list(columns.notes)
    table = comparison_table(dataset, scores, own_scores, columns, notes)
    return compare_table(table, keep_per_group, keep_fraction, notes)


def comparison_table(
    dataset: Dataset,
    scores: Sequence[str] | Literal["all"] | None,
    own_scores: Mapping[str, Literal["low", "high"]] | None,
    columns: Columns | None,
    notes: list[str],
) -> ScoredTable:
    """Read what [`compare_table`] compares, RSR first; `notes` gets a sentence about columns of unknown scores."""
    read_table(dataset, [RSR])  # its error is the right one for a dataset that isn't scored
    own_scores, there = own_scores or {}, available_scores(dataset)
    if scores in (None, "all"):
        others = [] if scores == "all" else [name for name in there if name not in (RSR, *BESIDE_RSR, *own_scores)]
        scores = [name for name in there if name not in others]
        if others:
            notes.append(f"Not compared, but in the dataset: {', '.join(others)} (scores='all' compares them too).")
        added = [column for column in dataset.column_names if column.startswith(SCORE_PREFIX)]
        if unknown := [column for column in added if known_score(column) is None and column not in own_scores]:
            notes.append(
                f"{examples(unknown)}: not a known score, so not compared. To compare such a column, name it as one "
                "of your own scores, with its more suitable end."
            )
    for name in scores:
        if name not in SCORES:
            raise RSRError(
                f"There is no score {name!r}.{did_you_mean(name, SCORES)} Scores are {', '.join(SCORES)}; name a "
                "column of your own as an own score, with its better end."
            )
        if name not in there:
            raise RSRError(
                f"The dataset has no score {name!r}; it has {', '.join(there)}. `rsr score --scores {name}` adds it."
            )
    for name, prefer in own_scores.items():
        if prefer not in ("low", "high"):
            raise RSRError(f"The more suitable end of {name!r} must be 'low' or 'high', got {prefer!r}.")
        if name == RSR and prefer != "low":
            raise RSRError("RSR can't be reversed: lower is more suitable.")
    prefer = {name: SCORES[name].prefer for name in (RSR, *scores)} | dict(own_scores)
    # Read by the score's full name: the dataset may have a column of its own that is called as a score is.
    full = {name: SCORE_PREFIX + name if name in SCORES else name for name in prefer}
    table = ScoredTable.read(dataset, columns, full.values(), {full[name]: prefer[name] for name in prefer})
    return replace(table, values={name: table.values[full[name]] for name in prefer}, prefer=prefer)


def compare_table(
    table: ScoredTable, keep_per_group: int = 1, keep_fraction: float | None = None, notes: Iterable[str] = ()
) -> Comparison:
    """As [`compare_scores`], of what [`comparison_table`] read. The comparison's notes begin with `notes`."""
    notes, by_problem = list(notes), table.problem is not None and keep_fraction is None
    if not by_problem and keep_fraction is None:
        keep_fraction = KEEP_FRACTION
    group_column = table.columns.problem if by_problem else None
    Criteria(group_column, keep_per_group, keep_fraction)  # raises where they are out of range

    def able(rows: ScoredTable) -> np.ndarray:
        return long_enough(rows.tokens, min_tokens_to_show(rows.tokens))

    def choice(rows: ScoredTable, score: str) -> np.ndarray:
        """What `rsr select` would choose: bool array of shape `(rows,)`."""
        mask, groups = np.zeros(len(rows), dtype=bool), rows.problem if by_problem else None
        cost = np.where(able(rows), rows.cost(score), np.nan)
        mask[choose_rows(cost, rows.tokens, groups, keep_per_group, keep_fraction)] = True
        return mask

    rows = table.where(_comparable(table, notes))
    several = f" --keep_per_group {keep_per_group}" if keep_per_group > 1 else ""
    several += " --min_tokens 0" if min_tokens_to_show(rows.tokens) == 0 else ""
    costs = np.column_stack([rows.cost(score) for score in rows.values])
    kept = np.column_stack([choice(rows, score) for score in rows.values])
    overlap = (kept.T.astype(np.float64) @ kept) / kept[:, 0].sum()
    there = able(rows)
    chance = chance_overlap(kept[there, 0], rows.problem[there] if by_problem else None)
    correlation = rank_correlation(np.column_stack([costs, -rows.tokens]), rows.problem)
    teachers, orders, num_shared = _teachers(rows, costs, notes)
    scores = [
        {
            "name": name,
            "prefer": rows.prefer[name],
            "rank_correlation": _number(correlation[j, 0]),
            "overlap": float(overlap[j, 0]),
            "teacher_agreement": _number(orders[j, 0]),
            "length_correlation": _number(correlation[j, -1]),
            "length_r2": _number(correlation[j, -1] ** 2),
            **_correctness_and_choice(rows, costs[:, j], kept[:, j]),
        }
        for j, name in enumerate(rows.values)
    ]
    scored = table.where(np.isfinite(table.cost(RSR)))
    return Comparison(
        scores=scores,
        rank_correlation=[list(map(_number, row)) for row in correlation[:-1, :-1]],
        overlap=overlap.tolist(),
        chance_overlap=chance,
        teachers=teachers,
        teacher_agreement=[list(map(_number, row)) for row in orders],
        findings=[*look_at_rows(scored, choice(scored, RSR)), *look_at_scores(scores, chance, len(rows))],
        notes=notes,
        rule=(f"--group_column {group_column}" if by_problem else f"--keep_fraction {keep_fraction:g}") + several,
        num_rows=len(table),
        num_compared=len(rows),
        num_problems=None if rows.problem is None else len(np.unique(rows.problem)),
        num_shared_problems=num_shared,
    )


def _comparable(table: ScoredTable, notes: list[str]) -> np.ndarray:
    """Which rows have a finite value of every score; what the others lack goes to `notes`."""
    finite = {name: np.isfinite(values) for name, values in table.values.items()}
    together = np.logical_and.reduce(list(finite.values()))
    missing = {name: int((~there).sum()) for name, there in finite.items()}
    if not together.any():
        most = max(missing, key=missing.get)
        raise RSRError(
            f"None of the {len(table)} rows has a finite value of every score ({most!r} lacks most, in "
            f"{missing[most]} rows), so there is nothing to compare. {ERROR!r} may say why. Or leave that score out."
        )
    if not together.all():
        lacking = ", ".join(f"{name} in {count:,}" for name, count in missing.items() if count)
        notes.append(
            f"Compared on the {together.sum():,} of {len(table):,} trajectories on which every score is finite; not "
            f"finite: {lacking}."
        )
    return together


def _teachers(rows: ScoredTable, costs: np.ndarray, notes: list[str]) -> tuple[list[dict], np.ndarray, int | None]:
    """Teachers by every score, how far the orders agree, and on how many problems that every teacher has."""
    agreement, num_shared = np.full((costs.shape[1],) * 2, np.nan), None
    if rows.teacher is None:
        return [], agreement, None
    if lost := np.setdiff1d(np.arange(len(rows.teachers)), rows.teacher).tolist():
        lost = examples([rows.teachers[i] for i in lost])
        notes.append(f"Not compared, because no trajectory has a finite value of every score: {lost}.")
    if rows.problem is not None and (shared := rows.shared_problems()).any():
        kept, num_shared = shared[rows.problem], int(shared.sum())
        rows, costs = rows.where(kept), costs[kept]
    elif len(np.unique(rows.teacher)) > 1:
        why = "no problem has all of them" if rows.problem is not None else "no column names the problem"
        notes.append(f"Teachers are compared on whatever each of them solved: {why}.")
    present, teacher, count = np.unique(rows.teacher, return_inverse=True, return_counts=True)
    sums = [np.bincount(teacher, weights=part) for part in (*costs.T, rows.rank, rows.surprisal)]
    means = np.stack(sums[:-2], axis=1) / count[:, None]
    means[:, 0] = sums[-2] / sums[-1]  # Eq. 9
    if len(present) > 2:
        agreement = rank_correlation(means)
    places = rankdata(means, method="min", axis=0).astype(int)
    values = means * [1 if rows.prefer[name] == "low" else -1 for name in rows.values]
    teachers = [
        {
            "teacher": rows.teachers[present[i]],
            "trajectories": int(count[i]),
            "values": dict(zip(rows.values, values[i].tolist(), strict=True)),
            "places": dict(zip(rows.values, places[i].tolist(), strict=True)),
        }
        for i in np.argsort(means[:, 0], kind="stable")
    ]
    return teachers, agreement, num_shared


def _correctness_and_choice(rows: ScoredTable, cost: np.ndarray, kept: np.ndarray) -> dict:
    first, accuracy, balanced, top, share = (np.nan,) * 3, np.nan, np.nan, None, None
    if rows.correct is not None:
        known = ~np.isnan(rows.correct)
        problem = None if rows.problem is None else rows.problem[known]
        first = correct_first(cost[known], rows.correct[known] == 1, problem)
        accuracy = rows.correct[known & kept].mean() if (known & kept).any() else np.nan
        balanced = np.nan if problem is None else balance(kept, rows.correct, rows.problem)
    if rows.teacher is not None:
        count = np.bincount(rows.teacher[kept])
        top, share = rows.teachers[count.argmax()], float(count.max() / count.sum())
    names = ("correct_first", "correct_first_low", "correct_first_high", "chosen_accuracy", "chosen_balance")
    figures = map(_number, (*first, accuracy, balanced, rows.tokens[kept].mean()))
    names += ("chosen_tokens",)
    return dict(zip(names, figures, strict=True)) | {"chosen_top_teacher": top, "chosen_top_teacher_share": share}


def _number(value: float) -> float | None:
    """As JSON can hold it: `nan` becomes `None`."""
    return None if np.isnan(value) else float(value)


def rank_correlation(values: np.ndarray, group: np.ndarray | None = None) -> np.ndarray:
    """
    Spearman's rank correlation between every two columns: shape `(k, k)`, `nan` where a column doesn't vary.

    `values` are finite, of shape `(n, k)`. With `group`, of shape `(n,)`, rows are ranked within their group alone, as
    a share of its size, so that what differs from group to group (how hard a problem is) plays no part and every row
    weighs about the same. Ties have their average rank.
    """
    group = np.zeros(len(values), dtype=np.int64) if group is None else group
    ranks, size = pd.DataFrame(values).groupby(group).rank(pct=True).to_numpy(), np.bincount(group)[group]
    ranks = ranks - ((size + 1) / (2 * size))[:, None]
    products = ranks.T @ ranks
    spread = np.diag(products)
    # What doesn't vary differs from 0 by rounding only.
    spread = np.sqrt(np.where(spread > 1e-12 * len(values), spread, np.nan))
    return np.round(products / np.outer(spread, spread), 12)  # so that 1 is 1


def correct_first(
    cost: np.ndarray, correct: np.ndarray, group: np.ndarray | None = None, confidence: float = 0.95
) -> tuple[float, float, float]:
    """
    How often a correct trajectory is rated more suitable than an incorrect one: the area under the ROC curve, a tie
    counting half. With `group`, pairs are of one group (of the same problem), and all such pairs weigh the same.

    The interval is symmetric on the logit. Its standard error is that of DeLong, DeLong & Clarke-Pearson (1988)
    without groups, and that of a ratio of sums over groups with them, as groups and not rows were drawn independently.
    Where all pairs go one way, it ends at what n groups (or rows of the rarer kind) still allow, tail ** (1 / n), as
    the exact binomial interval does.

    `cost` (finite; lower = more suitable), `correct` (bool) and `group` have the shape `(n,)`. Returns the share of
    pairs (`nan` if there is no pair) and the ends of its interval (`nan` where there is too little).
    """
    groups = np.zeros(len(cost), dtype=np.int64) if group is None else group
    width = int(groups.max(initial=0)) + 1
    num_correct = np.bincount(groups[correct], minlength=width)
    num_pairs = num_correct * np.bincount(groups[~correct], minlength=width)
    if not num_pairs.any():
        return np.nan, np.nan, np.nan
    # Mann-Whitney's U of every group at once: the ranks of correct rows, less those that they have among themselves.
    place = pd.Series(-cost).groupby(groups).rank().to_numpy()
    won = np.bincount(groups[correct], weights=place[correct], minlength=width) - num_correct * (num_correct + 1) / 2
    share = float(won.sum() / num_pairs.sum())
    if group is None:
        error, freedom = _delong(cost, correct)
    else:
        won, num_pairs = won[num_pairs > 0], num_pairs[num_pairs > 0]
        freedom, residual = len(won) - 1, won - share * num_pairs
        error = np.sqrt((residual**2).sum() * len(won) / max(1, freedom)) / num_pairs.sum()
    if share in (0, 1):
        allowed = ((1 - confidence) / 2) ** (1 / (freedom + 1))
        return (share, 0.0, 1 - allowed) if share == 0 else (share, allowed, 1.0)
    if freedom < 1 or not error > 1e-12:
        return share, np.nan, np.nan
    half = t.ppf((1 + confidence) / 2, freedom) * error / (share * (1 - share))
    low, high = expit(logit(share) + np.array([-half, half]))
    return share, float(low), float(high)


def _delong(cost: np.ndarray, correct: np.ndarray) -> tuple[float, int]:
    """Standard error of the share of pairs, and its degrees of freedom."""
    counts = correct.sum(), (~correct).sum()
    if min(counts) < 2:
        return np.nan, 0  # a variance needs two of each
    place, variance = rankdata(-cost), 0.0
    for mine, other in ((correct, counts[1]), (~correct, counts[0])):
        beaten = (place[mine] - rankdata(-cost[mine])) / other  # share of the other kind that each row is ahead of
        variance += beaten.var(ddof=1) / mine.sum()
    return float(np.sqrt(variance)), int(min(counts)) - 1


def chance_overlap(chosen: np.ndarray, group: np.ndarray | None = None) -> float:
    """Share of a choice, `(n,)` booleans, that one at random of as many rows of each group would have in common."""
    group = np.zeros(len(chosen), dtype=np.int64) if group is None else group
    kept, size = np.bincount(group[chosen], minlength=int(group.max()) + 1), np.bincount(group)
    return float((kept[size > 0] ** 2 / size[size > 0]).sum() / kept.sum())
