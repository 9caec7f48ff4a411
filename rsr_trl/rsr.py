"""The paper: the Rank-Surprisal Ratio as equations, and the names of the columns that hold it.

Equation numbers are those of "Which Reasoning Trajectories Teach Students to Reason Better? A Simple Metric of
Informative Alignment" (arXiv:2601.14249). This file knows no model, no tokenizer and no dataset.

Every ratio here has the paper's direction: **lower suits the student better**.

Ranks are 1-based (1 = the student's most likely token) and are passed **unclipped**; `r_max` is applied here, so that
stored ranks can be clipped again at another value. Surprisals are in nats. Sums run in float64.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Real

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike


class RSRError(ValueError):
    """A message for people: what was found and what to do. The command line prints it alone, without a traceback."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about a `word` that isn't `known`: what was probably meant, if anything."""
    near = [name for name in known if len(word) > 2 and name.startswith(word)]
    near = near or get_close_matches(word, known, n=1)
    return f" Did you mean {near[0]}?" if near else ""


# Of the paper whose equations these are, as BibTeX: what the README, cards and reports say.
CITATION = """\
@inproceedings{yang-etal-2026-reasoning,
  title     = {Which Reasoning Trajectories Teach Students to Reason Better? {A} Simple Metric of Informative
               Alignment},
  author    = {Yang, Yuming and Lai, Mingyoung and Zhao, Wanxu and Fan, Xiaoran and Xi, Zhiheng and Wu, Mingqi and
               Huang, Chiyue and Zhao, Jun and Lv, Haijun and Tong, Jian and Zhou, Yunhua and Zou, Yicheng and
               Guo, Qipeng and Gui, Tao and Zhang, Qi and Huang, Xuanjing},
  booktitle = {Proceedings of the 64th Annual Meeting of the Association for Computational Linguistics},
  pages     = {42123--42150},
  year      = {2026},
  url       = {https://aclanthology.org/2026.acl-long.1950/},
}"""
DIRECTION = "lower = more suitable"  # of every RSR; said wherever one is shown
R_MAX = 100  # the paper's clipping threshold
NOISY_BELOW = 32  # scored tokens: the ratio of an answer in a sentence or two is decided by a word or two
# Said wherever such trajectories are left out. The paper's authors agree: UmeanNever/RankSurprisalRatio, issue 2.
TOO_SHORT = "RSR isn't made for bare answers: a word or two decides the ratio"
FILTERED_SHARE = 0.3  # the paper's share of highest-surprisal tokens in the filtered average

# Columns that scoring adds: the contract between scoring and its readers. A trajectory with nothing to score has null
# in the float columns, 0 in `rsr_num_tokens` and its reason in `rsr_error`.
RSR = "rsr"  # Eq. 7; lower suits the student better
MEAN_CLIPPED_RANK = "rsr_mean_clipped_rank"
MEAN_SURPRISAL = "rsr_mean_surprisal"  # nats
NUM_TOKENS = "rsr_num_tokens"  # tokens that were scored
TRUNCATED = "rsr_truncated"
ERROR = "rsr_error"  # null when fine
STUDENT = "rsr_student"  # fingerprint of weights, tokenizer, template and settings
CONTENT = "rsr_content"  # hash of the trajectory's token ids, and of which are scored
STEP_SHARE = "rsr_step_share"  # share of the tokens that begin a reasoning step; only with the score casl
TOKEN_IDS = "rsr_token_ids"
TOKEN_RANKS = "rsr_token_ranks"  # not clipped
TOKEN_SURPRISALS = "rsr_token_surprisals"  # nats
TOKEN_TOP1 = "rsr_token_top1"  # the student's own most likely token there

SCORE_PREFIX = "score_"  # of the columns of other scores, which RSRScorer(scores=...) adds

SCORE_COLUMNS = {
    RSR: pa.float64(),
    MEAN_CLIPPED_RANK: pa.float64(),
    MEAN_SURPRISAL: pa.float64(),
    NUM_TOKENS: pa.int64(),
    TRUNCATED: pa.bool_(),
    ERROR: pa.string(),
    STUDENT: pa.string(),
    CONTENT: pa.string(),
}
TOKEN_COLUMNS = {
    TOKEN_IDS: pa.list_(pa.int32()),
    TOKEN_RANKS: pa.list_(pa.int32()),
    TOKEN_SURPRISALS: pa.list_(pa.float32()),
    TOKEN_TOP1: pa.list_(pa.int32()),
}


def score_schema(token_stats: bool = False, others: Iterable[str] = ()) -> dict[str, pa.DataType]:
    """Columns that a scoring pass adds, in order, with their Arrow types. `others` names columns of other scores."""
    schema = SCORE_COLUMNS | dict.fromkeys(others, pa.float64())
    return schema | TOKEN_COLUMNS if token_stats else schema


def reason_of(error: str) -> str:
    """The part of an `rsr_error` that rows share: what is in brackets is of one row, its lengths, its words."""
    return error.split(" (")[0]


def share_count(share: float, count: ArrayLike) -> np.ndarray:
    """How many of `count` a share is, rounded up; the tolerance keeps 0.07 * 100 = 7.000000000000001 from being 8."""
    return np.ceil(share * np.asarray(count) - 1e-9).astype(np.int64)


def _token_arrays(ranks: ArrayLike, surprisals: ArrayLike, r_max: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Check one or many trajectories' tokens and return clipped ranks and surprisals as float64."""
    ranks, surprisals = np.asarray(ranks, dtype=np.float64), np.asarray(surprisals, dtype=np.float64)
    if ranks.shape != surprisals.shape or ranks.ndim != 1:
        raise RSRError(
            f"ranks and surprisals must be 1-D arrays of one length, got shapes {ranks.shape} and {surprisals.shape}."
        )
    if not np.isfinite(ranks).all() or not np.isfinite(surprisals).all():
        raise RSRError("ranks and surprisals must be finite, got NaN or infinity: the student's logits are broken.")
    if (ranks < 1).any():
        raise RSRError(f"ranks are 1-based, got a rank of {ranks.min():g}.")
    if (surprisals < 0).any():
        raise RSRError(f"surprisals are -ln p >= 0, got {surprisals.min():g}.")
    if r_max is not None:
        ranks = np.minimum(ranks, check_r_max(r_max))
    return ranks, surprisals


def check_r_max(r_max: float) -> float:
    """Return `r_max` if ranks can be clipped at it, else raise `ValueError`."""
    if not isinstance(r_max, Real) or not r_max >= 1:
        raise RSRError(f"r_max must be at least 1 (ranks are 1-based), got {r_max!r}.")
    return r_max


def _divide(numerator: ArrayLike, denominator: ArrayLike) -> np.ndarray:
    """Quotient with x / 0 = inf: text that the student predicts with certainty has nothing left to teach."""
    with np.errstate(divide="ignore"):
        return np.divide(numerator, denominator)


def token_rsr(ranks: ArrayLike, surprisals: ArrayLike, r_max: float | None = None) -> np.ndarray:
    """
    Token-level ratio, Eq. 4: `rank_k / surprisal_k`. Unstable where the surprisal is near 0, and therefore not
    averaged plainly: see [`trajectory_rsr`].

    Args:
        ranks (array of shape `(K,)`): 1-based rank of each token (Eq. 2).
        surprisals (array of shape `(K,)`): Surprisal of each token in nats (Eq. 1).
        r_max (`float`, *optional*): Clip ranks at this value first. The equation itself doesn't clip.

    Returns:
        float64 array of shape `(K,)`; `inf` where the surprisal is 0.
    """
    return _divide(*_token_arrays(ranks, surprisals, r_max))


def filtered_token_rsr(
    ranks: ArrayLike, surprisals: ArrayLike, share: float = FILTERED_SHARE, r_max: float | None = R_MAX
) -> float:
    """
    Filtered average of token ratios, Eq. 5: the mean of Eq. 4 over the `share` of tokens with the highest surprisal
    (`ceil(share * K)` of them; ties go to the earlier token).

    Args:
        ranks (array of shape `(K,)`): 1-based rank of each token.
        surprisals (array of shape `(K,)`): Surprisal of each token in nats.
        share (`float`, *optional*, defaults to `0.3`): Share of tokens to keep, in (0, 1].
        r_max (`float`, *optional*, defaults to `100`): Clip ranks at this value first; `None` doesn't clip.

    Returns:
        `float`: the average; `nan` for a trajectory without tokens.
    """
    if not 0 < share <= 1:
        raise RSRError(f"share must be in (0, 1], got {share}.")
    ranks, surprisals = _token_arrays(ranks, surprisals, r_max)
    if ranks.size == 0:
        return float("nan")
    kept = np.argsort(-surprisals, kind="stable")[: share_count(share, ranks.size)]
    return float(_divide(ranks[kept], surprisals[kept]).mean())


def trajectory_means(
    ranks: ArrayLike, surprisals: ArrayLike, num_tokens: ArrayLike, r_max: float | None = R_MAX
) -> tuple[np.ndarray, np.ndarray]:
    """
    Mean clipped rank and mean surprisal of many trajectories at once: the two parts of Eq. 7 and Eq. 9.

    Args:
        ranks (array of shape `(sum(num_tokens),)`): Ranks of all tokens, trajectory after trajectory.
        surprisals (array of shape `(sum(num_tokens),)`): Surprisals in nats, in the same order.
        num_tokens (integer array of shape `(n,)`): Tokens of each trajectory; 0 is allowed.
        r_max (`float`, *optional*, defaults to `100`): Clip ranks at this value; `None` doesn't clip.

    Returns:
        Two float64 arrays of shape `(n,)`, `nan` for trajectories without tokens.
    """
    ranks, surprisals = _token_arrays(ranks, surprisals, r_max)
    num_tokens = np.asarray(num_tokens)
    if num_tokens.size and (num_tokens.min() < 0 or num_tokens.dtype.kind not in "iu"):
        raise RSRError("num_tokens must be whole numbers, 0 or more.")
    if num_tokens.sum() != ranks.size:
        raise RSRError(f"num_tokens add up to {num_tokens.sum()}, but there are {ranks.size} ranks.")
    means = np.full((2, num_tokens.size), np.nan)
    # reduceat can't express an empty segment, so only trajectories with tokens take part.
    filled = num_tokens > 0
    if filled.any():
        starts = np.concatenate([[0], np.cumsum(num_tokens[filled])[:-1]])
        for row, values in enumerate((ranks, surprisals)):
            means[row, filled] = np.add.reduceat(values, starts) / num_tokens[filled]
    return means[0], means[1]


def rsr_from_means(mean_clipped_rank: ArrayLike, mean_surprisal: ArrayLike) -> np.ndarray:
    """
    Trajectory RSR from its two parts, Eq. 7: a quotient of sums over the same tokens is a quotient of their means.

    Args:
        mean_clipped_rank (array of shape `(n,)`): As [`trajectory_means`] returns it.
        mean_surprisal (array of shape `(n,)`): In nats.

    Returns:
        float64 array of shape `(n,)`: `nan` stays `nan`; `inf` where the surprisal is 0.
    """
    return _divide(np.asarray(mean_clipped_rank, np.float64), np.asarray(mean_surprisal, np.float64))


def trajectory_rsr(ranks: ArrayLike, surprisals: ArrayLike, r_max: float | None = R_MAX) -> float:
    """
    RSR of one trajectory, Eq. 7: `sum_k min(rank_k, r_max) / sum_k surprisal_k`, which is the surprisal-weighted mean
    of the token ratios. Lower suits the student better.

    Args:
        ranks (array of shape `(K,)`): 1-based rank of each token, unclipped.
        surprisals (array of shape `(K,)`): Surprisal of each token in nats.
        r_max (`float`, *optional*, defaults to `100`): Clip ranks at this value; `None` doesn't clip.

    Returns:
        `float`: the ratio; `nan` for a trajectory without tokens, `inf` if every surprisal is 0.

    Example:

    ```python
    >>> trajectory_rsr([1, 4, 300], [0.5, 1.5, 8.0])
    10.5
    ```
    """
    means = trajectory_means(ranks, surprisals, [np.size(ranks)], r_max)
    return float(rsr_from_means(*means)[0])


def dataset_rsr(mean_clipped_rank: ArrayLike, mean_surprisal: ArrayLike) -> float:
    """
    RSR of a set of trajectories (of a teacher), Eq. 9: `sum_j mean_clipped_rank_j / sum_j mean_surprisal_j`. Every
    trajectory weighs the same, whatever its length. It is neither the mean of the trajectories' RSR nor pooled over
    tokens. Lower suits the student better.

    Args:
        mean_clipped_rank (array of shape `(n,)`): Mean clipped rank of each trajectory.
        mean_surprisal (array of shape `(n,)`): Mean surprisal of each trajectory in nats.

    Returns:
        `float`: the ratio; `nan` if no trajectory has tokens. Trajectories that are `nan` (nothing scored) are left
        out.
    """
    rank, surprisal = np.asarray(mean_clipped_rank, np.float64), np.asarray(mean_surprisal, np.float64)
    if rank.shape != surprisal.shape or rank.ndim != 1:
        raise RSRError(f"Both means must be 1-D arrays of one length, got shapes {rank.shape} and {surprisal.shape}.")
    scored = ~(np.isnan(rank) | np.isnan(surprisal))
    if not scored.any():
        return float("nan")
    return float(_divide(rank[scored].sum(), surprisal[scored].sum()))
