"""LARK's gains and weights of one problem's candidates (arXiv:2605.30651; authors' code: github.com/Tianrun-Yu/LARK).

Of the K candidates of a problem, candidate k has the loss L_k (mean surprisal, nats) and the learnability rho_k, which
is our score `lark` (mean Brier score over L_k). Its gain and its weight among the B best, best first, are

    g_k = L_k / sum_j L_j * (2 rho_k - sum_j rho_j L_j / sum_j L_j)
    q_k = (g_k - g_{B+1}) / sum_{j <= B} (g_j - g_{B+1})       0 beyond the B best

as in `score_lark.py` and `select_chi2.py`: the q of the highest mean gain within a chi-square distance of uniform.
With at most B candidates, g_{B+1} is the lowest gain of all, so that the last one gets 0; where all B are equal, each
gets 1/B. Ours: rho has the sum of squares over the whole vocabulary (theirs: the 50 most likely tokens), and a problem
without any scored candidate gets weight 0 (theirs: 1/K).
"""

import numpy as np
import pyarrow as pa
from datasets import Dataset

from rsr_trl.data import Columns, find_columns, read_table
from rsr_trl.rsr import MEAN_SURPRISAL, RSRError
from rsr_trl.selection.choose import choose_rows
from rsr_trl.selection.table import labels, numbers, read_score


GAIN, WEIGHT = "lark_gain", "lark_weight"  # columns


def gains(losses: np.ndarray, rho: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """
    g of each candidate, float64 of shape `(n,)`, from its loss in nats, its rho and the number of its problem. NaN
    where loss or rho isn't finite; such a candidate isn't in the sums of its problem.
    """
    known = np.isfinite(losses) & np.isfinite(rho)
    share, count = np.full(len(losses), np.nan), groups.max(initial=-1) + 1
    total = np.bincount(groups[known], weights=losses[known], minlength=count)
    share[known] = losses[known] / total[groups[known]]
    mean = np.bincount(groups[known], weights=(rho * share)[known], minlength=count)
    return share * (2 * rho - mean[groups])


def chi_square_weights(gain: np.ndarray, groups: np.ndarray, keep_per_group: int = 3) -> np.ndarray:
    """q of each candidate: float64 of shape `(n,)`, which sums to 1 over each problem that has a finite gain."""
    if not keep_per_group >= 1:
        raise RSRError(f"keep_per_group must be 1 or more, got {keep_per_group}.")
    weights, count = np.zeros(len(gain)), groups.max(initial=-1) + 1
    best = choose_rows(-gain, np.zeros(len(gain)), groups=groups, keep_per_group=keep_per_group)
    last = choose_rows(-gain, np.zeros(len(gain)), groups=groups, keep_per_group=keep_per_group + 1)
    floor = np.full(count, np.inf)
    np.minimum.at(floor, groups[last], gain[last])
    above = gain[best] - floor[groups[best]]
    total = np.bincount(groups[best], weights=above, minlength=count)[groups[best]]
    equal = 1 / np.bincount(groups[best], minlength=count)[groups[best]]
    weights[best] = np.where(total > 1e-12, above / np.where(total > 1e-12, total, 1), equal)
    return weights


def lark_weights(dataset: Dataset, group_column: str | None = None, keep_per_group: int = 3) -> Dataset:
    """
    Add the columns `lark_gain` (g) and `lark_weight` (q) to a dataset scored with `scores=["lark"]`.

    Rows of weight 0 don't train: filter them out, then train with `rsr_weight_column="lark_weight"`
    ([`~rsr_trl.experimental.weighting.WeightedRSRSFTTrainer`]). A row without a score has gain null and weight 0.

    Args:
        dataset (`Dataset`): With `score_lark` and `rsr_mean_surprisal`, all candidates of each problem in it.
        group_column (`str`, *optional*): Column that names the problem; by default a well-known one.
        keep_per_group (`int`, *optional*, defaults to `3`): B, the candidates of a problem that train.

    Raises:
        `RSRError`: no scores, scores of different students, or no column of problems.
    """
    problem = find_columns(dataset, Columns(problem=group_column), needed=("problem",)).problem
    groups, _ = labels(read_table(dataset, [problem]), problem)
    losses = numbers(read_table(dataset, [MEAN_SURPRISAL]), MEAN_SURPRISAL)
    gain = gains(losses, read_score(dataset, "lark"), groups)
    weights = chi_square_weights(gain, groups, keep_per_group)
    dataset = dataset.remove_columns([name for name in (GAIN, WEIGHT) if name in dataset.column_names])
    return dataset.add_column(GAIN, pa.array(gain, pa.float64(), from_pandas=True)).add_column(WEIGHT, weights)
