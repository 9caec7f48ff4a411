"""How far scores agree with each other and with what is right: rank statistics, over all rows or within problems.

Arrays in, arrays out: nothing here knows a column or a dataset. Scores come as costs: **lower = more suitable**.
"""

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from scipy.stats import rankdata, t


def rank_correlation(values: np.ndarray, group: np.ndarray | None = None) -> np.ndarray:
    """
    Spearman's rank correlation between every two columns.

    With `group`, rows are ranked within their group alone, as a share of its size, so that what differs from group to
    group (how hard a problem is) plays no part and every row weighs about the same. Ties have their average rank.

    Args:
        values (float array of shape `(n, k)`): Finite.
        group (int array of shape `(n,)`, *optional*): Group of each row.

    Returns:
        float array of shape `(k, k)`; `nan` where a column doesn't vary (within any group).
    """
    frame = pd.DataFrame(values)
    if group is None:
        ranks, size = frame.rank(pct=True).to_numpy(), np.full(len(frame), len(frame))
    else:
        ranks = frame.groupby(group).rank(pct=True).to_numpy()
        size = np.bincount(group)[group]
    ranks = ranks - ((size + 1) / (2 * size))[:, None]
    products = ranks.T @ ranks
    spread = np.diag(products)
    # What doesn't vary differs from 0 by rounding only.
    spread = np.sqrt(np.where(spread > 1e-12 * len(frame), spread, np.nan))
    return np.round(products / np.outer(spread, spread), 12)  # so that 1 is 1


def correct_first(
    cost: np.ndarray, correct: np.ndarray, group: np.ndarray | None = None, confidence: float = 0.95
) -> tuple[float, float, float, int]:
    """
    How often a correct trajectory is rated more suitable than an incorrect one: the area under the ROC curve, a tie
    counting half. With `group`, pairs are of one group (of the same problem), and all such pairs weigh the same.

    The interval is symmetric on the logit. Its standard error is that of DeLong, DeLong & Clarke-Pearson (1988)
    without groups, and that of a ratio of sums over groups with them, as groups and not rows were drawn independently.
    Where all pairs go one way, it ends at what n groups (or rows of the rarer kind) still allow, tail ** (1 / n), as
    the exact binomial interval does.

    Args:
        cost (float array of shape `(n,)`): Finite; lower = more suitable.
        correct (boolean array of shape `(n,)`): Whether each row is correct.
        group (int array of shape `(n,)`, *optional*): Group of each row.
        confidence (`float`, *optional*, defaults to `0.95`): Level of the interval.

    Returns:
        The share of pairs (`nan` if there is no pair); the ends of its interval (`nan` where there is too little for
        one); and how many groups have both kinds (1 without groups).
    """
    group = np.zeros(len(cost), dtype=np.int64) if (ungrouped := group is None) else group
    width = int(group.max(initial=0)) + 1
    num_correct = np.bincount(group[correct], minlength=width)
    num_pairs = num_correct * np.bincount(group[~correct], minlength=width)
    if not num_pairs.any():
        return np.nan, np.nan, np.nan, 0
    # Of all that a correct row leaves behind, the correct ones among themselves make n(n+1)/2 (Mann-Whitney).
    place = pd.Series(-cost).groupby(group).rank().to_numpy()
    won = np.bincount(group[correct], weights=place[correct], minlength=width) - num_correct * (num_correct + 1) / 2
    share = won.sum() / num_pairs.sum()
    num_groups = int((num_pairs > 0).sum())
    if ungrouped:
        error, freedom = _delong(cost, correct)
    else:
        error, freedom = _error_of_ratio(won[num_pairs > 0], num_pairs[num_pairs > 0], share)
    if share in (0, 1):
        allowed = ((1 - confidence) / 2) ** (1 / (freedom + 1))
        return float(share), *((0.0, 1 - allowed) if share == 0 else (allowed, 1.0)), num_groups
    if freedom < 1 or not error > 1e-12:
        return float(share), np.nan, np.nan, num_groups
    half = t.ppf((1 + confidence) / 2, freedom) * error / (share * (1 - share))
    low, high = expit(logit(share) + np.array([-half, half]))
    return float(share), float(low), float(high), num_groups


def _delong(cost: np.ndarray, correct: np.ndarray) -> tuple[float, int]:
    counts = correct.sum(), (~correct).sum()
    if min(counts) < 2:
        return np.nan, 0  # a variance needs two of each
    place, variance = rankdata(-cost), 0.0
    for mine, other in ((correct, counts[1]), (~correct, counts[0])):
        beaten = (place[mine] - rankdata(-cost[mine])) / other  # share of the other kind that each row is ahead of
        variance += beaten.var(ddof=1) / mine.sum()
    return float(np.sqrt(variance)), int(min(counts)) - 1


def _error_of_ratio(won: np.ndarray, num_pairs: np.ndarray, share: float) -> tuple[float, int]:
    freedom = len(won) - 1
    if freedom < 1:
        return np.nan, 0
    residual = won - share * num_pairs
    return float(np.sqrt((residual**2).sum() * len(won) / freedom) / num_pairs.sum()), freedom


def chance_overlap(chosen: np.ndarray, group: np.ndarray | None = None) -> float:
    """
    Share of a choice that another one, of as many rows of each group but made at random, would have in common with it.

    Args:
        chosen (boolean array of shape `(n,)`): The choice.
        group (int array of shape `(n,)`, *optional*): Group of each row, if rows were chosen group by group.
    """
    group = np.zeros(len(chosen), dtype=np.int64) if group is None else group
    kept, size = np.bincount(group[chosen], minlength=int(group.max()) + 1), np.bincount(group)
    return float((kept[size > 0] ** 2 / size[size > 0]).sum() / kept.sum())
