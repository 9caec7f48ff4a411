"""Choose trajectories by a score that is already in the dataset: per group, by share, or by threshold."""

import warnings
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict

from rsr_trl import columns
from rsr_trl.selection.arrays import check_one_student, examples, flags, labels, numbers, place_in_run, read_table
from rsr_trl.selection.cap import least_total
from rsr_trl.selection.criteria import Criteria
from rsr_trl.selection.scores import read_score


@dataclass(frozen=True)
class Selection:
    """
    Which rows were chosen, and why the others weren't: what [`select_trajectories`] returns, before it is a dataset.

    Args:
        rows (int array): Chosen rows, in source order.
        num_rows (`int`): Rows to choose from.
        left_out (`dict[str, int]`): Reason -> rows that could not be chosen for it.
        num_groups (`int`, *optional*): Groups to choose from; `None` without `group_column`.
        empty_groups (`dict[str, list]`): Reason -> groups from which nothing was chosen.
        relaxed_groups (`list`): Groups without a row that meets `require`, where all rows were let in.
        excess_bound (`float`): By how much the total score can exceed the least possible under the cap, at most.
    """

    rows: np.ndarray
    num_rows: int
    left_out: dict[str, int]
    num_groups: int | None = None
    empty_groups: dict[str, list] = field(default_factory=dict)
    relaxed_groups: list = field(default_factory=list)
    excess_bound: float = 0.0


def select_trajectories(
    dataset: Dataset | DatasetDict,
    group_column: str | None = None,
    keep_per_group: int = 1,
    keep_fraction: float | None = None,
    score_threshold: float | None = None,
    prefer: Literal["low", "high"] | None = None,
    score: str = columns.RSR,
    require: str | None = None,
    when_none_qualifies: Literal["drop", "any", "error"] = "drop",
    min_tokens: int | None = None,
    max_tokens: int | None = None,
    max_share_per_teacher: float | None = None,
    teacher_column: str | None = None,
) -> Dataset | DatasetDict:
    """
    Choose the most suitable trajectories. RSR: **lower = more suitable**, and the default keeps those.

    Give exactly one of `group_column` (the best of each problem), `keep_fraction` (the best share of all) and
    `score_threshold` (all at least this good). Of equal scores the trajectory with fewer tokens (`rsr_num_tokens`)
    goes first, then the one that comes first in the dataset. Rows whose score is null, NaN or infinite are never
    chosen.

    Args:
        dataset (`Dataset` or `DatasetDict`): Scored with [`RSRScorer`] or `rsr score`, or with a score column of your
            own. Every split of a `DatasetDict` is chosen from by itself.
        group_column (`str`, *optional*): Column that says which trajectories answer the same problem.
        keep_per_group (`int`, *optional*, defaults to `1`): How many to keep of each group; smaller groups are kept
            whole.
        keep_fraction (`float`, *optional*): Share in (0, 1] of the rows that can be chosen, rounded up.
        score_threshold (`float`, *optional*): Keep scores up to this value (from this value on with `prefer="high"`).
        prefer (`str`, *optional*): `"low"` or `"high"`: which end of the score to keep. By default the score's own
            (RSR: `"low"`); a column of your own has none and needs it.
        score (`str`, *optional*, defaults to `"rsr"`): What to choose by: a score of `RSRScorer(scores=...)` by its
            name, such as `"surprisal"`, or any numeric column (see [`~rsr_trl.selection.scores.read_score`]).
        require (`str`, *optional*): Boolean column (such as `correct`) that must be true. Null isn't true.
        when_none_qualifies (`str`, *optional*, defaults to `"drop"`): What to do with a group in which no scored row
            meets `require`: `"drop"` the group (with a warning), let in `"any"` of its rows, or raise an `"error"`.
        min_tokens (`int`, *optional*): Leave out trajectories with fewer scored tokens than this: bare answers, whose
            ratio is noisy.
        max_tokens (`int`, *optional*): Leave out trajectories with more scored tokens than this.
        max_share_per_teacher (`float`, *optional*): No teacher gets more than this share of the chosen rows. Of all
            choices that keep the cap it is the one with the least total score (with `prefer="high"` the highest).
            Needs `teacher_column`, and `group_column` or `keep_fraction`.
        teacher_column (`str`, *optional*): Column that names the teacher.

    Returns:
        `Dataset` or `DatasetDict`: the chosen rows, in source order, with all their columns.

    Raises:
        `ValueError`: options that contradict each other, a missing column, a null group, scores of different students,
            no row with a score, or a cap that can't be kept (the message names the smallest that can).

    Warns:
        `UserWarning`: groups from which nothing could be chosen, with the reason.

    Example:

    ```python
    >>> best = select_trajectories(scored, group_column="problem_id", require="correct")
    >>> likely = select_trajectories(scored, group_column="problem_id", score="surprisal")
    >>> mixed = select_trajectories(
    ...     scored, group_column="problem_id", max_share_per_teacher=0.3, teacher_column="teacher"
    ... )
    ```
    """
    by = Criteria(
        group_column=group_column,
        keep_per_group=keep_per_group,
        keep_fraction=keep_fraction,
        score_threshold=score_threshold,
        prefer=prefer,
        score=score,
        require=require,
        when_none_qualifies=when_none_qualifies,
        min_tokens=min_tokens,
        max_tokens=max_tokens,
        max_share_per_teacher=max_share_per_teacher,
        teacher_column=teacher_column,
    )
    if isinstance(dataset, DatasetDict):
        return DatasetDict({split: _select(rows, by, f" of split {split!r}") for split, rows in dataset.items()})
    return _select(dataset, by, "")


def _select(dataset: Dataset, by: Criteria, where: str) -> Dataset:
    selection = choose(dataset, by)
    for reason, groups in selection.empty_groups.items():
        warnings.warn(
            f"{len(groups)} of {selection.num_groups} groups in {by.group_column!r}{where} {reason} and give nothing: "
            f"{examples(groups)}.",
            stacklevel=3,
        )
    return dataset.select(selection.rows)


def choose(dataset: Dataset, by: Criteria) -> Selection:
    """As [`select_trajectories`], but returns a [`Selection`] with the counts, warns of nothing and copies no row."""
    capped = by.max_share_per_teacher is not None
    wanted_columns = [by.group_column, by.require, by.teacher_column if capped else None]
    if by.min_tokens is not None or by.max_tokens is not None:
        wanted_columns.append(columns.NUM_TOKENS)
    table = read_table(dataset, wanted_columns)
    if by.score in columns.SCORE_COLUMNS:
        check_one_student(dataset)
    num_rows = len(dataset)
    cost = read_score(dataset, by.score) * by.sign
    group, names = labels(table, by.group_column) if by.group_column else (np.zeros(num_rows, np.int64), [None])
    # A score of the user's own may come without token counts: then ties go by source order alone.
    tokens = np.zeros(num_rows)
    if columns.NUM_TOKENS in dataset.column_names:
        tokens = numbers(read_table(dataset, [columns.NUM_TOKENS]), columns.NUM_TOKENS)
    if num_rows and not np.isfinite(cost).any():
        raise ValueError(
            f"None of the {num_rows} rows has a finite score in {by.score!r}: there is nothing to choose from. "
            f"{columns.ERROR!r} holds the reasons."
        )

    eligible, selection = _eligible(table, by, cost, tokens, group, names)
    # lexsort is stable, so rows that tie on group, score and tokens stay in source order.
    ordered = np.flatnonzero(eligible)
    tie = np.where(np.isnan(tokens), np.inf, tokens)[ordered]
    ordered = ordered[np.lexsort((tie, cost[ordered], group[ordered]))]
    if by.score_threshold is not None:
        rows = ordered[cost[ordered] <= by.score_threshold * by.sign]
        return replace(selection, rows=np.sort(rows))

    sizes = np.bincount(group[ordered], minlength=len(names))
    if by.keep_fraction is None:
        wanted = np.minimum(sizes, by.keep_per_group)
    else:  # the tolerance keeps 0.07 * 100 = 7.000000000000001 from becoming 8 rows
        wanted = np.ceil(by.keep_fraction * sizes - 1e-9).astype(np.int64)
    rows, excess = ordered[place_in_run(group[ordered]) < wanted[group[ordered]]], 0.0
    if capped and len(rows):
        teacher, _ = labels(table, by.teacher_column)
        cap = int(by.max_share_per_teacher * len(rows) + 1e-9)
        if np.bincount(teacher[rows]).max() > cap:
            present, seat = np.unique(group[ordered], return_inverse=True)
            mask, excess = least_total(seat, teacher[ordered], cost[ordered], wanted[present], cap)
            rows = ordered[mask]
    return replace(selection, rows=np.sort(rows), excess_bound=excess)


def _eligible(
    table: pa.Table, by: Criteria, cost: np.ndarray, tokens: np.ndarray, group: np.ndarray, names: list
) -> tuple[np.ndarray, Selection]:
    """Which rows can be chosen at all, and a [`Selection`] without rows that says why the others can't."""

    def groups_of(rows: np.ndarray) -> np.ndarray:
        return np.bincount(group[rows], minlength=len(names)) > 0

    relaxed = np.zeros(len(names), dtype=bool)
    filters = [(np.isfinite(cost), "no finite score", "have no scored trajectory")]
    if by.min_tokens is not None:
        long = f"of {by.min_tokens} or more scored tokens"
        filters.append((tokens >= by.min_tokens, f"not {long}", f"have no scored trajectory {long}"))
    if by.max_tokens is not None:
        short = f"within {by.max_tokens} scored tokens"
        filters.append((tokens <= by.max_tokens, f"not {short}", f"have no scored trajectory {short}"))
    if by.require is not None:
        met = flags(table, by.require)
        open_rows = np.logical_and.reduce([passes for passes, _, _ in filters])
        if by.when_none_qualifies != "drop":
            relaxed = groups_of(open_rows) & ~groups_of(open_rows & met)
        if relaxed.any() and by.when_none_qualifies == "error":
            found = [names[i] for i in np.flatnonzero(relaxed)]
            raise ValueError(
                f"{len(found)} of {len(names)} groups in {by.group_column!r} have no scored trajectory for which "
                f"{by.require!r} is true: {examples(found)}."
            )
        reason = f"for which {by.require!r} is true"
        filters.append((met | relaxed[group], f"{by.require!r} not true", f"have no scored trajectory {reason}"))

    eligible, left_out, empty_groups = np.ones(len(cost), dtype=bool), {}, {}
    for passes, row_reason, group_reason in filters:
        before, eligible = eligible, eligible & passes
        if lost := int(before.sum() - eligible.sum()):
            left_out[row_reason] = lost
        emptied = np.flatnonzero(groups_of(before) & ~groups_of(eligible))
        if by.group_column and len(emptied):
            empty_groups[group_reason] = [names[i] for i in emptied]
    return eligible, Selection(
        rows=np.zeros(0, dtype=np.int64),
        num_rows=len(cost),
        left_out=left_out,
        num_groups=len(names) if by.group_column else None,
        empty_groups=empty_groups,
        relaxed_groups=[names[i] for i in np.flatnonzero(relaxed)],
    )
