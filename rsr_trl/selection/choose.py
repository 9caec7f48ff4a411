"""Who is chosen: the best rows of each group, the best share of all, or all up to a threshold."""

import math
import warnings
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from datasets import Dataset, DatasetDict

from rsr_trl.data import Columns, examples, find_columns
from rsr_trl.rsr import ERROR, NOISY_BELOW, NUM_TOKENS, RSR, TOO_SHORT, RSRError, share_count
from rsr_trl.scoring.scores import direction_of
from rsr_trl.selection.cap import least_total
from rsr_trl.selection.table import ScoredTable, place_in_run


# Relative error of RSR by the dtype in which the student scored: near ties of ranks, rounded logits.
NUMERICAL_ERROR = {"float32": 0.001, "bfloat16": 0.02, "float16": 0.02}
ENOUGH_CORRECT = 8  # of one problem: more don't raise its balance


def long_enough(tokens: np.ndarray, min_tokens: int | None = None) -> np.ndarray:
    """
    Which rows may be chosen by their number of scored tokens (NaN, unknown: may be): bool array of shape `(n,)`. By
    default those of 32 tokens or more: the one rule about bare answers, for every choice that this package makes.
    """
    return ~(tokens < least_tokens(min_tokens))


def least_tokens(min_tokens: int | None) -> int:
    """Scored tokens that a trajectory needs to be chosen, by a `min_tokens` that may be left out."""
    return NOISY_BELOW if min_tokens is None else min_tokens


def min_tokens_to_show(tokens: np.ndarray) -> int | None:
    """The `min_tokens` of a comparison or page: the default, or 0 where all are short, which its findings then say."""
    return None if long_enough(tokens).any() else 0


def all_short(count: int, least: int, prefix: str = "") -> str:
    """What is said where no trajectory is long enough to be chosen; the option's name begins with `prefix`."""
    to_do = f"Lower {prefix}min_tokens."
    if least <= NOISY_BELOW:
        to_do = f"{TOO_SHORT}. Choose at random or by correctness, or let them in with {prefix}min_tokens=0."
    return f"All {count} trajectories with a score have fewer than {least} scored tokens. {to_do}"


def choose_rows(
    cost: np.ndarray,
    tokens: np.ndarray,
    groups: np.ndarray | None = None,
    keep_per_group: int | np.ndarray = 1,
    keep_fraction: float | None = None,
    threshold: float | None = None,
) -> np.ndarray:
    """
    The rows of the least cost, least first: the one rule by which this package chooses, wherever it does.

    Of equal costs the row with fewer tokens goes first (NaN last), then the earlier one. A row without a finite cost
    is never chosen.

    Args:
        cost, tokens (float arrays of shape `(n,)`): Of each row.
        groups (int array of shape `(n,)`, *optional*): Group of each row. Without it all rows are one group.
        keep_per_group (`int` or int array of shape `(groups,)`, *optional*, defaults to `1`): Rows of each group.
        keep_fraction (`float`, *optional*): Share in (0, 1] of each group's finite rows, rounded up, instead.
        threshold (`float`, *optional*): All rows up to this cost, instead.
    """
    rows = np.flatnonzero(np.isfinite(cost))
    # lexsort is stable, so rows that tie on cost and tokens stay in source order, and NaN comes last.
    rows = rows[np.lexsort((tokens[rows], cost[rows]))]
    if threshold is not None:
        return rows[cost[rows] <= threshold]
    group = np.zeros(len(rows), dtype=np.int64) if groups is None else groups[rows]
    by_group = np.argsort(group, kind="stable")
    place = np.empty_like(by_group)  # 0 for the best row of its group, 1 for the second, ...
    place[by_group] = place_in_run(group[by_group])
    if keep_fraction is not None:
        wanted = share_count(keep_fraction, np.bincount(group))[group]
    else:
        wanted = keep_per_group if np.ndim(keep_per_group) == 0 else keep_per_group[group]
    return rows[place < wanted]


@dataclass(frozen=True)
class Criteria:
    """The options of [`select_trajectories`]. `RSRError` if one is out of its range or contradicts another."""

    group_column: str | None = None
    keep_per_group: int = 1
    keep_fraction: float | None = None
    score_threshold: float | None = None
    prefer: Literal["low", "high"] | None = None  # afterwards never None
    score: str = RSR
    require: str | None = None
    when_none_qualifies: Literal["drop", "any", "error"] = "drop"
    min_tokens: int | None = None
    max_tokens: int | None = None
    max_share_per_teacher: float | None = None
    teacher_column: str | None = None

    def __post_init__(self) -> None:
        ways = ("group_column", "keep_fraction", "score_threshold")
        given = [name for name in ways if vars(self)[name] is not None]
        if len(given) != 1:
            raise RSRError(
                "Pass one of group_column (the best of each problem), keep_fraction (the best fraction of all) or "
                f"score_threshold (all at least this good); got {' and '.join(given) or 'none'}."
            )
        if isinstance(self.keep_per_group, bool) or not self.keep_per_group >= 1 or self.keep_per_group % 1:
            raise RSRError(f"keep_per_group must be a whole number, 1 or more, got {self.keep_per_group}.")
        if self.keep_per_group != 1 and self.group_column is None:
            raise RSRError(f"keep_per_group={self.keep_per_group} needs group_column.")
        for name in ("keep_fraction", "max_share_per_teacher"):
            if (share := vars(self)[name]) is not None and not 0 < share <= 1:
                raise RSRError(f"{name} must be in (0, 1], got {share}.")
        if self.score_threshold is not None and not math.isfinite(self.score_threshold):
            raise RSRError(f"score_threshold must be a finite number, got {self.score_threshold}.")
        object.__setattr__(self, "prefer", direction_of(self.score, self.prefer))  # frozen otherwise
        if self.when_none_qualifies not in ("drop", "any", "error"):
            raise RSRError(f"when_none_qualifies must be 'drop', 'any' or 'error', got {self.when_none_qualifies!r}.")
        if self.when_none_qualifies != "drop" and (self.require is None or self.group_column is None):
            raise RSRError(f"when_none_qualifies={self.when_none_qualifies!r} needs require and group_column.")
        for name, least in (("min_tokens", 0), ("max_tokens", 1)):
            if (limit := vars(self)[name]) is not None and not limit >= least:
                raise RSRError(f"{name} must be {least} or more, got {limit}.")
        if self.max_tokens is not None and (least := least_tokens(self.min_tokens)) > self.max_tokens:
            default = " (its default; 0 lets bare answers in)" if self.min_tokens is None else ""
            raise RSRError(f"min_tokens={least}{default} is above max_tokens={self.max_tokens}.")
        if self.max_share_per_teacher is not None:
            if self.teacher_column is None:
                raise RSRError("max_share_per_teacher needs teacher_column.")
            if self.score_threshold is not None:
                raise RSRError(
                    "max_share_per_teacher needs to know how many rows are chosen: use group_column or keep_fraction "
                    "instead of score_threshold."
                )

    @classmethod
    def found(cls, dataset: Dataset, **options) -> "Criteria":
        """
        With columns that [`~rsr_trl.data.find_columns`] finds where none are named: of teachers, and of problems if
        neither `keep_fraction` nor `score_threshold` says how to choose.
        """
        group = options.pop("group_column", None)
        by_group = options.get("keep_fraction") is None and options.get("score_threshold") is None
        asked = Columns(options.pop("teacher_column", None), "none" if group or not by_group else None, "none")
        columns = find_columns(dataset, asked)
        group = columns.problem if group is None else None if group == "none" else group
        return cls(group_column=group, teacher_column=columns.teacher, **options)

    @property
    def sign(self) -> int:
        """Factor that turns the score into a cost: the least is the best."""
        return 1 if self.prefer == "low" else -1

    @property
    def columns(self) -> Columns:
        """The columns that a table has to have for this choice."""
        teacher = self.teacher_column if self.max_share_per_teacher is not None else None
        return Columns(teacher, self.group_column, self.require)


@dataclass(frozen=True)
class Selection:
    """Which rows were chosen, and why the others weren't."""

    rows: np.ndarray  # chosen ones, in source order
    num_rows: int  # to choose from
    left_out: dict[str, int]  # reason -> rows that could not be chosen for it
    short: int  # of them, for having too few scored tokens
    num_groups: int | None = None  # to choose from; None without group_column
    empty_groups: dict[str, list] = field(default_factory=dict)  # reason -> groups from which nothing was chosen
    relaxed_groups: list = field(default_factory=list)  # without a row that meets `require`: all rows were let in
    # Of each group of which something was left out: the difference in score of the worst chosen and the best left out,
    # over the former. None without group_column, and with a cap per teacher, which leaves out better ones.
    margins: np.ndarray | None = None

    def close_calls(self, dtype: str | None) -> int | None:
        """In how many groups RSR in this dtype can't tell the chosen from the next by its numerical error; or None."""
        if self.margins is None or dtype not in NUMERICAL_ERROR:
            return None
        return int((self.margins < NUMERICAL_ERROR[dtype]).sum())


def select_trajectories(
    dataset: Dataset | DatasetDict,
    group_column: str | None = None,
    keep_per_group: int = 1,
    keep_fraction: float | None = None,
    score_threshold: float | None = None,
    prefer: Literal["low", "high"] | None = None,
    score: str = RSR,
    require: str | None = None,
    when_none_qualifies: Literal["drop", "any", "error"] = "drop",
    min_tokens: int | None = None,
    max_tokens: int | None = None,
    max_share_per_teacher: float | None = None,
    teacher_column: str | None = None,
) -> Dataset | DatasetDict:
    """
    Choose the most suitable trajectories. RSR: **lower = more suitable**, and the default keeps those.

    The best of each problem (`group_column`), or with `keep_fraction` the best share of all, or with `score_threshold`
    all at least this good. Of equal scores the trajectory with fewer tokens (`rsr_num_tokens`)
    goes first, then the one that comes first in the dataset. Rows whose score is null, NaN or infinite are never
    chosen.

    Args:
        dataset (`Dataset` or `DatasetDict`): Scored with [`RSRScorer`] or `rsr score`, or with a score column of your
            own. Every split of a `DatasetDict` is chosen from by itself.
        group_column (`str`, *optional*): Column that says which trajectories answer the same problem. Where neither
            `keep_fraction` nor `score_threshold` is given, by default `problem_id` or the like, as in
            [`~rsr_trl.data.find_columns`].
        keep_per_group (`int`, *optional*, defaults to `1`): How many to keep of each group; smaller groups are kept
            whole.
        keep_fraction (`float`, *optional*): Share in (0, 1] of the rows that can be chosen, rounded up.
        score_threshold (`float`, *optional*): Keep scores up to this value (from this value on with `prefer="high"`).
        prefer (`str`, *optional*): `"low"` or `"high"`: which end of the score to keep. By default the score's own
            (RSR: `"low"`); a column of your own has none and needs it.
        score (`str`, *optional*, defaults to `"rsr"`): What to choose by: a score of
            [`~rsr_trl.selection.table.read_score`] by its name, such as `"surprisal"`, or any numeric column.
        require (`str`, *optional*): Boolean column (such as `correct`) that must be true. Null isn't true.
        when_none_qualifies (`str`, *optional*, defaults to `"drop"`): What to do with a group in which no scored row
            meets `require`: `"drop"` the group (with a warning), let in `"any"` of its rows, or raise an `"error"`.
        min_tokens (`int`, *optional*): Leave out trajectories with fewer scored tokens. By default 32, whatever the
            score: RSR isn't made for bare answers, which it would often choose. `0` lets them in. A group of nothing
            else gives nothing. Without a column `rsr_num_tokens` the default leaves nothing out.
        max_tokens (`int`, *optional*): Leave out trajectories with more scored tokens.
        max_share_per_teacher (`float`, *optional*): No teacher gets more than this share of the chosen rows. Of all
            choices that keep the cap it is the one with the least total score (with `prefer="high"` the highest).
            Needs `teacher_column`, and `group_column` or `keep_fraction`.
        teacher_column (`str`, *optional*): Column that names the teacher; by default `teacher`.

    Returns:
        `Dataset` or `DatasetDict`: the chosen rows, in source order, with all their columns. A `UserWarning` counts
        bare answers that the default of `min_tokens` leaves out, and names groups from which nothing could be chosen,
        with the reason.

    Raises:
        `RSRError`: options that contradict each other, a missing column, a null group, scores of different students,
            no row with a score, or none of `min_tokens`, or a cap that can't be kept (the message names the
            smallest that can).

    Example:

    ```python
    >>> best = select_trajectories(scored, group_column="problem_id", require="correct")
    >>> likely = select_trajectories(scored, group_column="problem_id", score="surprisal")
    >>> mixed = select_trajectories(scored, group_column="problem_id", max_share_per_teacher=0.3)
    ```
    """
    options = dict(locals())
    del options["dataset"]
    by = Criteria.found(next(iter(dataset.values())) if isinstance(dataset, DatasetDict) else dataset, **options)
    if isinstance(dataset, DatasetDict):
        return DatasetDict({split: _select(rows, by, f" of split {split!r}") for split, rows in dataset.items()})
    return _select(dataset, by, "")


def _select(dataset: Dataset, by: Criteria, where: str) -> Dataset:
    table = ScoredTable.read(dataset, by.columns, [by.score], {by.score: by.prefer}, optional=True)
    selection = choose(table, by)
    if selection.short and by.min_tokens is None:
        warnings.warn(
            f"{selection.short} of {len(table)} trajectories{where} have fewer than {NOISY_BELOW} scored tokens and "
            f"are left out. {TOO_SHORT}. min_tokens=0 lets them in.",
            stacklevel=3,
        )
    for reason, groups in selection.empty_groups.items():
        warnings.warn(
            f"{len(groups)} of {selection.num_groups} groups in {by.group_column!r}{where} {reason} and give nothing: "
            f"{examples(groups)}.",
            stacklevel=3,
        )
    return dataset.select(selection.rows)


def choose(table: ScoredTable, by: Criteria) -> Selection:
    """As [`select_trajectories`], of a table with the columns of `by.columns`: with counts, and without warnings."""
    cost = table.cost(by.score)
    if len(table) and not np.isfinite(cost).any():
        raise RSRError(
            f"None of the {len(table)} rows has a finite score in {by.score!r}: there is nothing to choose from. "
            f"{ERROR!r} holds the reasons."
        )
    group = table.problem if by.group_column else np.zeros(len(table), dtype=np.int64)
    eligible, why = _eligible(table, by, cost, group)
    cost = np.where(eligible, cost, np.nan)
    threshold = None if by.score_threshold is None else by.score_threshold * by.sign
    rows = choose_rows(cost, table.tokens, group, by.keep_per_group, by.keep_fraction, threshold)
    if by.max_share_per_teacher is not None and len(rows):
        cap = int(by.max_share_per_teacher * len(rows) + 1e-9)
        if np.bincount(table.teacher[rows]).max() > cap:
            rows = _capped(table, cost, group, rows, cap)
    margins = _margins(cost, group, rows) if by.group_column and by.max_share_per_teacher is None else None
    return Selection(np.sort(rows), len(table), **why, margins=margins)


def correctness(table: ScoredTable, by: Criteria, chosen: np.ndarray) -> dict | None:
    """
    Share of correct trajectories (of those where it is known) before and after a choice, whose rows are `chosen`; and
    what as many of each group would have: at `random` (the expected share), at random of those that are
    `long_enough` (`None` where all are), and by lowest `surprisal`. `None` where correctness isn't known.
    """
    if table.correct is None or np.isnan(table.correct[chosen]).all():
        return None
    group = table.problem if by.group_column else np.zeros(len(table), dtype=np.int64)
    wanted = np.bincount(group[chosen], minlength=int(group.max()) + 1)
    has_score, is_long = np.isfinite(table.cost(by.score)), long_enough(table.tokens, by.min_tokens or None)
    known = ~np.isnan(table.correct) & has_score

    def at_random(able: np.ndarray) -> float | None:
        size, right = (np.bincount(group[able], x, len(wanted)) for x in (None, table.correct[able]))
        there = size > 0
        weight = wanted[there].sum()
        return float((wanted[there] * right[there] / size[there]).sum() / weight) if weight else None

    def mean(rows: np.ndarray) -> float | None:
        values = table.correct[rows]
        return None if np.isnan(values).all() else float(np.nanmean(values))

    able = long_enough(table.tokens, by.min_tokens)
    likely = choose_rows(np.where(able, table.surprisal, np.nan), table.tokens, group, wanted)
    return {
        "before": mean(has_score),
        "chosen": mean(chosen),
        "random": at_random(known),
        "random_long": None if is_long[known].all() else at_random(known & is_long),
        "surprisal": mean(likely) if len(likely) else None,
    }


def balance(chosen: np.ndarray, correct: np.ndarray, problem: np.ndarray) -> float:
    """
    B-STaR's balance score of a choice (arXiv:2412.17256), in [0, 1], high: the mean over problems of
    min(c / 8, 1) * c / n, where n of a problem's trajectories are chosen and c of them are correct. The first factor
    asks for many correct ones per problem, the second for few wrong ones. With n chosen it is at most n / 8.

    Theirs counts each distinct text once, ours each row. They add a reference solution to every problem; with us a
    problem of which nothing is chosen counts 0.

    Args:
        chosen (bool array of shape `(n,)`): Which rows of the pool are chosen.
        correct (float array of shape `(n,)`): 1, 0, or NaN where unknown: such rows don't count.
        problem (int array of shape `(n,)`): Which problem each answers.

    Returns:
        `float`: NaN where correctness isn't known of any chosen row.
    """
    counted = (np.ones_like(chosen), chosen, chosen & ~np.isnan(correct), chosen & (correct == 1))
    there, chosen, known, right = (np.bincount(problem[rows], minlength=problem.max() + 1) for rows in counted)
    of_problem = np.minimum(right / ENOUGH_CORRECT, 1) * right / np.maximum(known, 1)
    counts = (there > 0) & ((known > 0) | (chosen == 0))
    return float(of_problem[counts].mean()) if known.any() else np.nan


def _margins(cost: np.ndarray, group: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    left = np.setdiff1d(np.flatnonzero(np.isfinite(cost)), chosen)
    worst, best = np.full((2, int(group.max(initial=-1)) + 1), np.nan)
    np.fmax.at(worst, group[chosen], cost[chosen])
    np.fmin.at(best, group[left], cost[left])
    both = np.isfinite(worst) & np.isfinite(best) & (worst != 0)
    return (best[both] - worst[both]) / np.abs(worst[both])


def _capped(table: ScoredTable, cost: np.ndarray, group: np.ndarray, rows: np.ndarray, cap: int) -> np.ndarray:
    """As many rows of each group as `rows` has, of no teacher more than `cap`, with the least total cost."""
    able = choose_rows(cost, table.tokens, threshold=np.inf)  # all that can be chosen, those that win ties first
    able = able[np.argsort(group[able], kind="stable")]
    present, number = np.unique(group[able], return_inverse=True)
    wanted = np.bincount(group[rows], minlength=present[-1] + 1)[present]
    return able[least_total(number, table.teacher[able], cost[able], wanted, cap)]


def _eligible(table: ScoredTable, by: Criteria, cost: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, dict]:
    """Which rows can be chosen at all, and what a [`Selection`] says of the others."""
    names, relaxed = table.problems if by.group_column else [None], np.zeros(0, dtype=np.int64)

    def groups_of(rows: np.ndarray) -> np.ndarray:
        return np.bincount(group[rows], minlength=len(names)) > 0

    # Why a row can't be chosen, what no row of a group is then, and which rows are fine.
    has_score, is_long = np.isfinite(cost), long_enough(table.tokens, by.min_tokens)
    least = least_tokens(by.min_tokens)
    filters = [("no finite score", "", has_score)]
    if (by.min_tokens or by.max_tokens) and len(table) and not np.isfinite(table.tokens).any():
        raise RSRError(f"min_tokens and max_tokens need the column {NUM_TOKENS!r}, which scoring adds.")
    if (short := int((has_score & ~is_long).sum())) and not (has_score & is_long).any():
        raise RSRError(all_short(short, least))
    filters.append((f"fewer than {least} scored tokens", f" of {least} or more scored tokens", is_long))
    if (most := by.max_tokens) is not None:
        what = f" within {most} scored tokens"
        filters.append((f"not{what}", what, table.tokens <= most))
    if by.require is not None:
        met, what = table.correct == 1, f" for which {by.require!r} is true"
        if by.when_none_qualifies != "drop":
            able = np.logical_and.reduce([fine for _, _, fine in filters])
            relaxed = np.flatnonzero(groups_of(able) & ~groups_of(able & met))
        if len(relaxed) and by.when_none_qualifies == "error":
            raise RSRError(
                f"{len(relaxed)} of {len(names)} groups in {by.group_column!r} have no scored trajectory{what}: "
                f"{examples([names[i] for i in relaxed])}."
            )
        filters.append((f"{by.require!r} not true", what, met | np.isin(group, relaxed)))

    eligible, left_out, empty_groups = np.ones(len(cost), dtype=bool), {}, {}
    for reason, what, fine in filters:
        before, eligible = eligible, eligible & fine
        if lost := int(before.sum() - eligible.sum()):
            left_out[reason] = lost
        emptied = np.flatnonzero(groups_of(before) & ~groups_of(eligible))
        if by.group_column and len(emptied):
            empty_groups[f"have no scored trajectory{what}"] = [names[i] for i in emptied]
    counts = {"num_groups": len(names) if by.group_column else None, "left_out": left_out, "short": short}
    return eligible, counts | {"empty_groups": empty_groups, "relaxed_groups": [names[i] for i in relaxed]}
