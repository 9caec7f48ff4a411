"""The scores of a trajectory: RSR, and others that the same pass of the student gives or that need another pass.

Each is a function of [`ScoredTokens`] and one line of [`SCORES`]. Notation: a trajectory has K scored tokens; token k
has the rank r_k (1-based) and the surprisal s_k = -ln p_k (nats); the student's prediction at its place has the
entropy H_k (nats) and the sum of squared probabilities Q_k. "Low" means that the lower value is chosen first. This
file knows no model and no dataset.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from xxhash import xxh3_64_intdigest

from rsr_trl.rsr import (
    MEAN_CLIPPED_RANK,
    MEAN_SURPRISAL,
    NUM_TOKENS,
    R_MAX,
    RSR,
    SCORE_PREFIX,
    STEP_SHARE,
    RSRError,
    did_you_mean,
    filtered_token_rsr,
    trajectory_means,
)


ACCEPTED_TOP, ACCEPTED_FROM = 20, 0.01  # rank and probability with which reverse speculative decoding accepts a token
GUESS_WORDS, GUESS_UNEVEN = (5, 20), 0.4  # what `guess_share` takes for "one of so many words, any of them"; nats
LOCAL_STEPS = 4  # steps before a step that `lalp` lets the student see


@dataclass(frozen=True)
class ScoredTokens:
    """
    The scored tokens of `n` trajectories as flat arrays, one trajectory after another, `N` tokens in all.

    Args:
        num_tokens (int array of shape `(n,)`): Scored tokens of each trajectory; 0 is allowed.
        ranks (array of shape `(N,)`): 1-based, unclipped.
        surprisals (array of shape `(N,)`): Nats.
        r_max (`float`, *optional*, defaults to `100`): Ranks are clipped here.
        token_ids, top1 (arrays of shape `(N,)`, *optional*): The tokens, and the student's most likely ones there.
        entropies, sum_squares (arrays of shape `(N,)`, *optional*): Of the student's prediction at each place.
        step_starts (bool array of shape `(N,)`, *optional*): Which tokens begin a reasoning step.
        content (uint64 array of shape `(n,)`, *optional*): [`content_hash`] of each trajectory.
        surprisals_alone (array of shape `(N,)`, *optional*): Surprisals without the prompt; NaN where the student
            can't predict without it.
        surprisals_local (array of shape `(N,)`, *optional*): Surprisals given only the prompt and the last 4 steps.
    """

    num_tokens: np.ndarray
    ranks: np.ndarray
    surprisals: np.ndarray
    r_max: float = R_MAX
    token_ids: np.ndarray | None = None
    top1: np.ndarray | None = None
    entropies: np.ndarray | None = None
    sum_squares: np.ndarray | None = None
    step_starts: np.ndarray | None = None
    content: np.ndarray | None = None
    surprisals_alone: np.ndarray | None = None
    surprisals_local: np.ndarray | None = None

    @cached_property
    def means_of_rsr(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean clipped rank and mean surprisal of each trajectory, as [`trajectory_means`] gives them."""
        return trajectory_means(self.ranks, self.surprisals, self.num_tokens, self.r_max)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum of per-token values `(N,)` over each trajectory: float64 of shape `(n,)`."""
        sums, filled = np.zeros(len(self.num_tokens)), self.num_tokens > 0
        if filled.any():  # reduceat can't express an empty segment
            starts = (np.cumsum(self.num_tokens) - self.num_tokens)[filled]
            sums[filled] = np.add.reduceat(np.asarray(values, np.float64), starts)
        return sums

    def means(self, values: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
        """Mean over each trajectory's tokens, or over those `where` is true: `(n,)`, NaN where there is none."""
        if where is None:
            return ratio(self.sums(values), self.num_tokens)
        return ratio(self.sums(np.where(where, values, 0.0)), self.sums(where))

    def step_means(self, values: np.ndarray) -> np.ndarray:
        """Mean over each trajectory's steps of the mean per-token value of a step: `(n,)`, NaN without a step."""
        starts, at_starts = np.flatnonzero(self.step_starts), np.zeros(len(self.step_starts))
        if starts.size:
            lengths = np.diff(starts, append=len(self.step_starts))
            at_starts[starts] = np.add.reduceat(np.asarray(values, np.float64), starts) / lengths
        return self.means(at_starts, where=self.step_starts)


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """Quotients, with x / 0 = inf as in RSR; 0 / 0 is NaN, which means undefined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(numerators, denominators)


def content_hash(input_ids: np.ndarray, scored: np.ndarray) -> int:
    """64-bit hash of a trajectory: its token ids, and which of them are scored."""
    return xxh3_64_intdigest(np.asarray(input_ids, np.int32).tobytes() + np.asarray(scored, np.bool_).tobytes())


def content_name(content: int) -> str:
    """A content hash as the column `rsr_content` holds it: 16 hexadecimal digits."""
    return f"{content:016x}"


# ------------------------------------------------------------------------------------------------ from the same pass


def rsr(tokens: ScoredTokens) -> np.ndarray:
    """Rank-Surprisal Ratio, sum_k min(r_k, r_max) / sum_k s_k. Low. arXiv:2601.14249, Eq. 7."""
    return ratio(*tokens.means_of_rsr)


def rsr_filtered(tokens: ScoredTokens) -> np.ndarray:
    """Mean of min(r_k, r_max) / s_k over the 30% of tokens with the highest s_k. Low. arXiv:2601.14249, Eq. 5."""
    borders = np.cumsum(tokens.num_tokens)[:-1]
    rows = zip(np.split(tokens.ranks, borders), np.split(tokens.surprisals, borders), strict=True)
    return np.array([filtered_token_rsr(*row, r_max=tokens.r_max) for row in rows], dtype=np.float64)


def surprisal(tokens: ScoredTokens) -> np.ndarray:
    """
    Mean surprisal, (1/K) sum_k s_k. Low: the most likely response first, as GRAPE chooses (arXiv:2502.04194). The
    "average surprisal" of arXiv:2601.14249.
    """
    return tokens.means_of_rsr[1]


def rank(tokens: ScoredTokens) -> np.ndarray:
    """Mean clipped rank, (1/K) sum_k min(r_k, r_max). Low. An ablation of arXiv:2601.14249."""
    return tokens.means_of_rsr[0]


def entropy(tokens: ScoredTokens) -> np.ndarray:
    """
    Mean entropy of the student's predictions, (1/K) sum_k H_k. Low: where the student is sure of what comes. The
    direction is ours, by analogy with surprisal, whose expectation it is.
    """
    return tokens.means(tokens.entropies)


def rank_entropy(tokens: ScoredTokens) -> np.ndarray:
    """RSR with entropy for surprisal, sum_k min(r_k, r_max) / sum_k H_k. Low. An ablation of arXiv:2601.14249."""
    return ratio(tokens.means_of_rsr[0], tokens.means(tokens.entropies))


def drop(tokens: ScoredTokens) -> np.ndarray:
    """
    Mean surprisal of the tokens that don't begin a reasoning step. Low. ASLEC-DROP, arXiv:2604.06834: few long steps
    have few of the unlikely first tokens, so plain surprisal prefers them.

    As in the authors' public code, but for the sign (they average log-probabilities), for the step (theirs ends at
    ". " and "? "; ours is [`split_steps`]), and for the tokens left out: one per step, as the paper says, where their
    script's default is two. Undefined (null) if every token begins a step; theirs is 0 there, the best there is.
    """
    return tokens.means(tokens.surprisals, where=~tokens.step_starts)


def step_share(tokens: ScoredTokens) -> np.ndarray:
    """Share of the tokens that begin a reasoning step, F of [`casl`]. A part, not a score."""
    return tokens.means(tokens.step_starts)


def casl(mean_surprisal: ArrayLike, drop: ArrayLike, step_share: ArrayLike) -> np.ndarray:
    """
    Mean surprisal corrected for the share of first tokens, M - gamma F. Low. ASLEC-CASL, arXiv:2604.06834: gamma is
    the coefficient of F in the least-squares fit, over the pool, of M on the mean surprisal of the other tokens, the
    mean surprisal of the first tokens, F, and a constant.

    As in the authors' public code, with the differences that [`drop`] names. A number of the pool, not of one
    trajectory: it is computed when a dataset is read, from columns of the pass, M in nats, [`drop`] and F
    ([`step_share`]), each of shape `(n,)` as the result is: float64, NaN where one is missing.
    """
    mean, other, share = (np.asarray(part, np.float64) for part in (mean_surprisal, drop, step_share))
    parts = np.stack([other, ratio(mean - (1 - share) * other, share), share], axis=1)
    known = np.isfinite(parts).all(axis=1) & np.isfinite(mean)
    corrected = np.full(mean.shape, np.nan)
    if known.any():
        centred = parts[known] - parts[known].mean(axis=0)
        fit = np.linalg.lstsq(centred, mean[known] - mean[known].mean(), rcond=None)[0]
        corrected[known] = mean[known] - fit[2] * share[known]
    return corrected


def rsd_share(tokens: ScoredTokens) -> np.ndarray:
    """
    Share of the tokens that aren't among the student's 20 most likely ones or to which it gives less than 1%. Low.
    Those are the tokens that "In Their Own Words" (reverse speculative decoding, arXiv:2509.22230) doesn't let the
    teacher write; making a score of their share is ours.
    """
    return tokens.means((tokens.ranks > ACCEPTED_TOP) | (tokens.surprisals > -np.log(ACCEPTED_FROM)))


def lark(tokens: ScoredTokens) -> np.ndarray:
    """
    Learnability rho, sum_k B_k / sum_k s_k with the Brier score B_k = 1 - 2 p_k + Q_k. High. LARK, arXiv:2605.30651.

    A quotient of means, as in the authors' public code; but Q_k runs over the whole vocabulary, where theirs takes
    the 50 most likely tokens and renormalises. They go on to compare the candidates of one problem, with the loss
    L_i = mean s_k of each: g_i = L_i / sum_j L_j * (2 rho_i - sum_j rho_j L_j / sum_j L_j), and weigh the best by it.
    This is rho alone, a number of one trajectory.
    """
    brier = 1 - 2 * np.exp(-np.asarray(tokens.surprisals, np.float64)) + tokens.sum_squares
    return ratio(tokens.means(brier), tokens.means_of_rsr[1])


def guess_share(tokens: ScoredTokens) -> np.ndarray:
    """
    Share of the tokens at which the student expects any of a few words alike: ln 5 < H_k < ln 20 and
    H_k + ln Q_k < 0.4 (entropy less collision entropy, which is 0 where the words are equally likely). Low. Ours:
    random digits stand at such places; reasoning has few, also where its mean rank and surprisal are those of guesses.
    """
    low, high = np.log(GUESS_WORDS)
    entropies, uneven = tokens.entropies, tokens.entropies + np.log(tokens.sum_squares)
    return tokens.means((entropies > low) & (entropies < high) & (uneven < GUESS_UNEVEN))


def length(tokens: ScoredTokens) -> np.ndarray:
    """
    Scored tokens, K. High: longest first. In the tables of arXiv:2601.14249 longer goes with better for all five
    students.
    """
    return np.where(tokens.num_tokens > 0, tokens.num_tokens, np.nan)


def random(tokens: ScoredTokens) -> np.ndarray:
    """
    Uniform in [0, 1), from a hash of the trajectory's own tokens ([`content_hash`]): the same in every order, batch
    and process; equal rows are equal. Low (it makes no difference). The control of every comparison.
    """
    return uniform(tokens.content)


def uniform(content: np.ndarray) -> np.ndarray:
    """Hashes, uint64, as numbers in [0, 1)."""
    return (content >> np.uint64(11)).astype(np.float64) / 2.0**53


# ------------------------------------------------------------------------------------------------ with another pass


def ifd(tokens: ScoredTokens) -> np.ndarray:
    """
    Instruction-following difficulty: mean surprisal given the prompt / mean surprisal without it. High: the prompt
    helps little. "From Quantity to Quality", arXiv:2308.12032, whose authors keep the highest below 1.

    Without the prompt the student sees the response alone (after the beginning-of-sequence token if the tokenizer
    writes one; without one the first token can't be predicted and counts in neither mean). Of a conversation, the
    prompt is all before the first scored token. Undefined (null) if that is no more than one token.
    """
    known = np.isfinite(tokens.surprisals_alone)
    given = tokens.means(tokens.surprisals, where=known)
    return ratio(given, tokens.means(tokens.surprisals_alone, where=known))


def lalp(tokens: ScoredTokens) -> np.ndarray:
    """
    Local average log-probability: for each step the mean of -s_k given only the prompt and the 4 steps before it;
    then the mean over steps. High (nats, at most 0). arXiv:2510.03988.

    The paper's steps are sentences; ours are those of [`split_steps`]. That the prompt stays in view, and that every
    step weighs the same, is how a public re-implementation reads the paper's Eq. 2. Of a conversation, the prompt of a
    turn is all before it.
    """
    return tokens.step_means(-tokens.surprisals_local)


# -------------------------------------------------------------------------------------------------------- the scores


@dataclass(frozen=True)
class Score:
    """
    One line of [`SCORES`].

    Args:
        prefer (`"low"` or `"high"`): Which end is chosen first.
        of (`Callable`, *optional*): [`ScoredTokens`] to values of shape `(n,)`. `None` where scoring doesn't compute
            it: `casl` needs the pool, and `provenance` is added by `rsr_trl.experimental.provenance`.
        needs (tuple of `str`, *optional*): Beside ranks and surprisals: `"moments"` (entropies, sums of squares),
            `"steps"`, `"content"`; `"alone"` and `"local"` (another pass each); `"teacher"`.
        stored (`str`, *optional*): Column of every scoring pass that holds it already.
        published (`str`, *optional*): What its source calls it, and where that is; nothing for a control.
        parts (`dict`, *optional*): Columns that scoring adds instead of `score_<name>`, and what computes each.
    """

    prefer: Literal["low", "high"]
    of: Callable[[ScoredTokens], np.ndarray] | None
    needs: tuple[str, ...] = ()
    stored: str | None = None
    published: str | None = None
    parts: dict[str, Callable[[ScoredTokens], np.ndarray]] | None = None

    @property
    def passes(self) -> bool:
        """Whether it needs another pass than that of RSR."""
        return bool({"alone", "local", "teacher"} & set(self.needs))


_RSR = "arXiv:2601.14249"  # the paper
SCORES: dict[str, Score] = {
    "rsr": Score("low", rsr, stored=RSR, published=f"Rank-Surprisal Ratio, {_RSR}, Eq. 7", parts={}),
    "rsr_filtered": Score("low", rsr_filtered, published=f"filtered token average, {_RSR}, Eq. 5"),
    "surprisal": Score("low", surprisal, stored=MEAN_SURPRISAL, published="GRAPE, arXiv:2502.04194"),
    "rank": Score("low", rank, stored=MEAN_CLIPPED_RANK, published=f"average rank, {_RSR}"),
    "entropy": Score("low", entropy, ("moments",)),
    "rank_entropy": Score("low", rank_entropy, ("moments",), published=f"an ablation of {_RSR}"),
    "drop": Score("low", drop, ("steps",), published="ASLEC-DROP, arXiv:2604.06834"),
    "casl": Score(
        "low",
        None,
        ("steps",),
        published="ASLEC-CASL, arXiv:2604.06834",
        parts={SCORE_PREFIX + "drop": drop, STEP_SHARE: step_share},
    ),
    "rsd_share": Score("low", rsd_share, published="after reverse speculative decoding, arXiv:2509.22230"),
    "guess_share": Score("low", guess_share, ("moments",)),
    "lark": Score("high", lark, ("moments",), published="LARK, arXiv:2605.30651"),
    "length": Score("high", length, stored=NUM_TOKENS, published=f"a baseline of {_RSR}"),
    "random": Score("low", random, ("content",)),
    "ifd": Score("high", ifd, ("alone",), published="IFD, arXiv:2308.12032"),
    "lalp": Score("high", lalp, ("steps", "local"), published="local average log-probability, arXiv:2510.03988"),
    "provenance": Score("high", None, ("teacher",), published="number of teacher sentences, arXiv:2512.20908"),
}
ONE_PASS = tuple(name for name, score in SCORES.items() if not score.passes)
STORED = {name: score.stored for name, score in SCORES.items() if score.stored}
CASL_PARTS = (MEAN_SURPRISAL, *SCORES["casl"].parts)  # columns from which `casl` is computed


def check_scores(names: Iterable[str] | str | None) -> tuple[str, ...]:
    """
    Names of [`SCORES`] that a scorer can add, each once and in their order there; `"all"` stands for every score
    available from the same pass. `RSRError` for a name that isn't there, or that a scorer doesn't compute.
    """
    asked = {names} if isinstance(names, str) else set(names or ())
    if unknown := sorted(asked - set(SCORES) - {"all"}):
        meant = did_you_mean(unknown[0], SCORES)
        raise RSRError(
            f"There is no score {unknown[0]!r}.{meant} Scores are {', '.join(SCORES)}; 'all' stands for every score "
            "available from the same pass."
        )
    if "provenance" in asked:
        raise RSRError(
            "'provenance' compares the student with a teacher and is computed after scoring: score with "
            "token_stats=True, then use rsr_trl.experimental.provenance.score_provenance (docs/neighbours.md)."
        )
    return tuple(name for name in SCORES if name in asked or ("all" in asked and name in ONE_PASS))


def column_functions(names: Iterable[str]) -> dict[str, Callable[[ScoredTokens], np.ndarray]]:
    """Columns that scoring adds for these scores, and what computes each. `rsr` is always there."""
    functions = {}
    for name in names:
        score = SCORES[name]
        functions |= {SCORE_PREFIX + name: score.of} if score.parts is None else score.parts
    return functions


ALL_COLUMNS = tuple(column_functions(SCORES))


# ------------------------------------------------------------------------------------------------ names and columns


def known_score(score: str) -> str | None:
    """The name in [`SCORES`] that `score` or `score_<name>` says; `None` for other columns."""
    name = score.removeprefix(SCORE_PREFIX)
    return name if name in SCORES else None


def direction_of(score: str, prefer: Literal["low", "high"] | None = None) -> Literal["low", "high"]:
    """
    Which end of a score is chosen: `prefer` if it is given, else the score's own. `RSRError` for a user's column
    without `prefer`, or a `prefer` that is neither.
    """
    if prefer not in ("low", "high", None):
        raise RSRError(f"prefer must be 'low' or 'high', got {prefer!r}. RSR: lower is more suitable.")
    name = known_score(score)
    if prefer is None and name is None:
        close = get_close_matches(score, SCORES, n=1)
        hint = f" Or did you mean the score {close[0]!r}?" if close else ""
        raise RSRError(
            f"Which end of the column {score!r} is the better one? Pass prefer='low' or prefer='high'.{hint} (Only "
            f"the scores {', '.join(SCORES)} have a direction of their own.)"
        )
    return SCORES[name].prefer if prefer is None else prefer


def check_name(score: str, column_names: Iterable[str]) -> None:
    """Raise `RSRError` where the name of a score is also that of another column of the dataset."""
    if score in SCORES and score != RSR and score in column_names:
        raise RSRError(
            f"score={score!r} may mean the score of that name or the dataset's own column {score!r}: pass "
            f"score={SCORE_PREFIX + score!r} for the score, or rename the column."
        )


def columns_of(score: str) -> tuple[str, ...]:
    """Columns that may hold the values of a score, the first that is there counting; none for `casl`."""
    name = known_score(score)
    if name in (None, "casl"):
        return (score,) if name is None else ()
    return (SCORE_PREFIX + name, STORED[name]) if name in STORED else (SCORE_PREFIX + name,)
