"""Find the most suitable teacher with as few forward passes as it takes: score in rounds, drop who is ruled out.

The evidence that one teacher suits better than another is valid however often one looks. For teachers a and b on
matched problems, `D = ln(RSR_b / RSR_a)` behaves like the mean of
`y_i = (r_bi / mean r_b - s_bi / mean s_b) - (r_ai / mean r_a - s_ai / mean s_a)` (delta method), r and s being a
problem's sums of mean ranks and of mean surprisals. The test is the sequential t-test of Lai (1976, Annals of
Statistics 4) as an e-process (Wang & Ramdas, arXiv:2310.03722): the likelihood ratio of `t = sqrt(n) D / sd(y)` under
an effect `D / sd` drawn from the positive half of N(0, g) against no effect. By Ville's inequality it ever reaches
`1 / error` with probability `error` at most while D <= 0. That is exact for Gaussian y and asymptotic otherwise
(Waudby-Smith et al., Annals of Statistics 52, 2024). Skewed ranks would make a teacher look too good early on, hence
three safeguards. No decision before `MIN_PROBLEMS` problems. t is lowered by the skewness correction of Hall (1992,
JRSS-B 54) wherever that lowers it. And bad trajectories too rare to have been seen are allowed for: n scored ones show
none with probability `error` though a share of `ln(1 / error) / n` of all are bad. So a must still be better after
`ln(1 / error)` more trajectories with a mean rank of `worst_rank`; the evidence is at most the number of them that
closes the gap. Without this, rivals of which 1-3% are bad (mean rank 12 to 50) ruled out the best of two teachers
wrongly in 11-60% of simulated pools at a stated 5%, of six in 18-96%. No rule can hold there without a bound on what
it hasn't seen.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from datasets import Dataset, concatenate_datasets
from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, tqdm
from scipy.special import stdtr

from rsr_trl.data import Columns, examples, find_columns, read_table
from rsr_trl.rsr import DIRECTION, ERROR, MEAN_CLIPPED_RANK, MEAN_SURPRISAL, RSRError
from rsr_trl.scoring.scorer import RSRScorer
from rsr_trl.selection.table import ScoredTable, numbers


MIN_PROBLEMS = 20
WORST_RANK = 50  # half of a trajectory's tokens beyond r_max = 100
EFFECT_VARIANCE = 0.1  # g: effects of 0.1 to 0.6 standard deviations per problem, as between the paper's teachers


@dataclass(frozen=True)
class TeacherRace:
    """
    What [`race_teachers`] found out. **Lower RSR = more suitable.**

    `table` has one row per teacher, most suitable first: `teacher`; `status` (`"best"`, `"placed"`, `"possible"`,
    `"ruled out"` or `"no score"`); and of what was scored of it `rsr`, `problems` and `trajectories`.
    """

    certain: bool  # whether the question is settled at the stated certainty
    goal: str
    certainty: float
    table: list[dict]
    num_problems: int  # used
    num_problems_in_pool: int  # that all teachers have
    num_trajectories: int  # scored, of all teachers
    num_trajectories_in_pool: int  # of all teachers on the problems that all have
    scored: Dataset  # the trajectories that were scored, with their scores

    @property
    def best(self):
        """The teacher with the lowest RSR of those not ruled out: settled if `certain`, else the best guess."""
        return self.table[0]["teacher"]

    def to_pandas(self) -> pd.DataFrame:
        """The table as a `DataFrame`."""
        return pd.DataFrame(self.table)

    def __str__(self) -> str:
        question = "the order" if self.goal == "order" else f"{self.best!r} is the most suitable"
        head = f"Settled at {self.certainty:.0%} certainty: {question}."
        if not self.certain:
            possible = sum(row["status"] == "possible" for row in self.table)
            head = f"Not settled at {self.certainty:.0%} certainty: {possible} teachers can't be separated yet."
        share = self.num_trajectories / self.num_trajectories_in_pool
        return (
            f"{head} RSR: {DIRECTION}.\n"
            f"Scored {self.num_trajectories} of {self.num_trajectories_in_pool} trajectories ({share:.0%}), "
            f"{self.num_problems} of {self.num_problems_in_pool} problems.\n"
            + self.to_pandas().to_string(index=False, float_format="{:.3f}".format)
        )


def race_teachers(
    dataset: Dataset,
    scorer: RSRScorer | Callable[[Dataset], Dataset],
    teacher_column: str | None = None,
    problem_column: str | None = None,
    goal: Literal["best", "order"] = "best",
    certainty: float = 0.95,
    max_trajectories: int | None = None,
    problems_per_round: int = 5,
    seed: int = 0,
    worst_rank: float = WORST_RANK,
) -> TeacherRace:
    """
    Score matched problems round by round, and stop as soon as the most suitable teacher (or the whole order) is
    certain. **Lower RSR = more suitable.**

    Every round scores the same next problems for every teacher that is still open, in an order drawn from `seed`. A
    teacher is dropped as soon as it is ruled out (with `goal="order"`: placed). The evidence is valid however often
    one looks (see `rsr_trl/selection/race.py`). With T teachers, each comparison may err with probability
    `(1 - certainty) / (T - 1)`. The most suitable teacher has T - 1 others that could rule it out wrongly; and a wrong
    order has at least one of the T - 1 neighbours of the true order the wrong way round. So the answer is wrong with
    probability `1 - certainty` at most: asymptotically, as many problems are scored, and in simulated pools also with
    few, clean or with up to 5% of bad trajectories of a mean rank up to `worst_rank`.

    Args:
        dataset (`Dataset`): Trajectories, not scored yet, in any format that the scorer takes.
        scorer ([`RSRScorer`] or function): Student that scores, or a function that takes a [`~datasets.Dataset`] and
            returns it with the scores in the same order.
        teacher_column, problem_column (`str`, *optional*): As in [`rank_teachers`], but both have to be there. Only
            problems that all teachers have are used.
        goal (`str`, *optional*, defaults to `"best"`): `"best"` or `"order"`.
        certainty (`float`, *optional*, defaults to `0.95`): Probability in (0, 1) with which the answer is right.
        max_trajectories (`int`, *optional*): Budget: stop before scoring more.
        problems_per_round (`int`, *optional*, defaults to `5`): Problems in a round; the first has 20 at least.
        seed (`int`, *optional*, defaults to `0`): Seed of the order of the problems.
        worst_rank (`float`, *optional*, defaults to `50`): Mean clipped rank of rare bad trajectories (garbage, say)
            that may not have been seen yet. Less takes fewer problems; 0 trusts that all kinds were seen.

    Returns:
        [`TeacherRace`]: if the pool or the budget ends first, not `certain`, and the table says who is possible.

    Raises:
        `RSRError`: a missing column, null teachers or problems, no problem that all teachers have, a budget smaller
            than the first round, no trajectory that the scorer could score.

    Example:

    ```python
    >>> race = race_teachers(dataset, RSRScorer("Qwen/Qwen3-0.6B"))  # columns teacher, problem_id
    >>> print(race)
    ```
    """
    if goal not in ("best", "order"):
        raise RSRError(f"goal must be 'best' or 'order', got {goal!r}.")
    if not 0 < certainty < 1:
        raise RSRError(f"certainty must be in (0, 1), got {certainty}.")
    if not worst_rank >= 0:
        raise RSRError(f"worst_rank must be 0 or more, got {worst_rank}.")
    if problems_per_round < 1:
        raise RSRError(f"problems_per_round must be 1 or more, got {problems_per_round}.")
    score = scorer.score if isinstance(scorer, RSRScorer) else scorer
    columns = find_columns(dataset, Columns(teacher_column, problem_column, "none"), needed=["teacher", "problem"])
    pool = ScoredTable.read(dataset, columns, scores=(), optional=True)
    place = _places(pool, seed)
    num_problems, num_teachers = int(place.max(initial=-1)) + 1, len(pool.teachers)
    if num_teachers == 1:
        raise RSRError(f"There is only one teacher, {pool.teachers[0]!r}: nothing to choose between.")
    rule, scored = Elimination(num_teachers, goal, certainty, worst_rank), []
    used, start = np.zeros(0, dtype=np.int64), 0
    with _progress(num_problems) as show:
        while rule.open.sum() > 1 and start < num_problems:
            step = problems_per_round if start else max(MIN_PROBLEMS, problems_per_round)
            stop = min(start + step, num_problems)
            rows = np.flatnonzero((place >= start) & (place < stop) & rule.open[pool.teacher])
            if max_trajectories is not None and len(used) + len(rows) > max_trajectories:
                if start:
                    break
                raise RSRError(
                    f"max_trajectories={max_trajectories} is less than the first round, {len(rows)} trajectories: "
                    f"{stop} problems of {num_teachers} teachers."
                )
            scored.append(score(dataset.select(rows)))
            rule.add(*_sums(scored[-1], place[rows] - start, pool.teacher[rows], (stop - start, num_teachers)))
            start, used = stop, np.append(used, rows)
            show.update(stop - show.n)
            show.set_postfix_str(f"{int(rule.open.sum())} teachers open")
    counts = start, num_problems, len(used), int((place >= 0).sum())
    certain, table = bool(rule.open.sum() <= 1), _table(pool, rule, used)
    return TeacherRace(certain, goal, certainty, table, *counts, concatenate_datasets(scored))


def _places(pool: ScoredTable, seed: int) -> np.ndarray:
    """Of each row, the place of its problem in the order of scoring; -1 where not all teachers have the problem."""
    shared = np.flatnonzero(pool.shared_problems())
    if not len(shared):
        fewest = np.argsort(pool.problems_per_teacher(), kind="stable")
        raise RSRError(
            f"No problem has a trajectory of all {len(pool.teachers)} teachers, so they can't be compared on equal "
            f"terms. Teachers with the fewest problems: {examples([pool.teachers[t] for t in fewest])}. Leave those "
            "teachers out, or score all trajectories and compare them unmatched."
        )
    place = np.full(len(pool.problems), -1)
    place[np.random.default_rng(seed).permutation(shared)] = np.arange(len(shared))
    return place[pool.problem]


def _sums(scored: Dataset, problem: np.ndarray, teacher: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Sums of mean ranks and of mean surprisals by problem and teacher; `nan` where there is no score."""
    if not isinstance(scored, Dataset) or len(scored) != len(problem):
        returned = f"{len(scored)} rows" if isinstance(scored, Dataset) else type(scored).__name__
        raise RSRError(f"The scorer got a Dataset of {len(problem)} rows and returned {returned}.")
    table = read_table(scored, [MEAN_CLIPPED_RANK, MEAN_SURPRISAL])
    parts = np.stack([numbers(table, name) for name in table.column_names])
    ok = np.isfinite(parts).all(axis=0)
    sums, where = np.full((2, *shape), np.nan), (problem[ok], teacher[ok])
    sums[:, *where] = 0.0
    for cells, part in zip(sums, parts, strict=True):
        np.add.at(cells, where, part[ok])
    return sums


def _table(pool: ScoredTable, rule: "Elimination", used: np.ndarray) -> list[dict]:
    if rule.unscored.all():
        raise RSRError(f"None of {len(used)} trajectories could be scored; {ERROR!r} says why.")
    certain = rule.open.sum() <= 1
    winner, loser = ("best", "ruled out") if rule.goal == "best" else ("placed", "placed")
    status = np.where(rule.open, winner if certain else "possible", loser)
    status = np.where(rule.unscored, "no score", status)
    ratio, problems = rule.ratio, np.isfinite(rule.ranks).sum(axis=0)
    trajectories = np.bincount(pool.teacher[used], minlength=len(pool.teachers))
    columns = {"teacher": pool.teachers, "status": status.tolist(), "rsr": np.where(np.isnan(ratio), None, ratio)}
    columns |= {"problems": problems.tolist(), "trajectories": trajectories.tolist()}
    return [{name: values[t] for name, values in columns.items()} for t in rule.ranking]


@contextmanager
def _progress(num_problems: int) -> Iterator[tqdm]:
    """One bar over all rounds, instead of the scorer's own in each."""
    bars = not are_progress_bars_disabled()
    with tqdm(total=num_problems, desc="Scoring", unit=" problems") as show:
        disable_progress_bars()
        try:
            yield show
        finally:
            if bars:
                enable_progress_bars()


class Elimination:
    """
    Which teachers are still open, given what was scored so far: the sequential rule by itself. With the goal `"best"`
    a teacher is closed when one that is open is better, with `"order"` when it is ordered with respect to all others.
    """

    def __init__(
        self, num_teachers: int, goal: Literal["best", "order"], certainty: float, worst_rank: float = WORST_RANK
    ) -> None:
        self.goal, self.worst_rank = goal, worst_rank
        self.threshold = np.log(max(1, num_teachers - 1) / (1 - certainty))
        self.ranks = self.surprisals = np.empty((0, num_teachers))
        self.open = np.ones(num_teachers, dtype=bool)
        self.unscored = np.zeros(num_teachers, dtype=bool)
        self._below = np.eye(num_teachers, dtype=bool) if goal == "order" else None

    def add(self, ranks: np.ndarray, surprisals: np.ndarray) -> None:
        """Close who is settled after a round: its sums of means, `(problems, teachers)`, `nan` without a score."""
        self.ranks = np.concatenate([self.ranks, ranks])
        self.surprisals = np.concatenate([self.surprisals, surprisals])
        self.unscored = np.isnan(self.ranks).all(axis=0)
        self.open &= ~self.unscored
        close = self._close_the_beaten if self.goal == "best" else self._close_the_placed
        close()

    @property
    def ratio(self) -> np.ndarray:
        """RSR of each teacher over what was scored of it; `nan` without a score."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.nansum(self.ranks, axis=0) / np.nansum(self.surprisals, axis=0)

    @property
    def ranking(self) -> np.ndarray:
        """Teachers, most suitable first: by what is settled, then by RSR; those without a score last."""
        settled = ~self.open
        if self.goal == "order":
            settled = np.zeros_like(self.open) if self.open.any() else self._below.sum(axis=0)  # how many are below
        return np.lexsort((self.ratio, settled, self.unscored))

    def _beats(self, better: np.ndarray, worse: np.ndarray) -> np.ndarray:
        """For pairs of teachers, whether the first is proven better."""
        a, b = ((self.ranks[:, who], self.surprisals[:, who]) for who in (better, worse))
        return log_evidence(a, b, self.worst_rank) >= self.threshold

    def _close_the_beaten(self) -> None:
        # Comparing with the leader alone suffices, and is linear in the number of teachers.
        left = np.flatnonzero(self.open)
        if len(left) > 1:
            leader = left[np.argmin(self.ratio[left])]
            self.open[left[self._beats(np.full(len(left), leader), left)]] = False

    def _close_the_placed(self) -> None:
        undecided = ~(self._below | self._below.T) & self.open & self.open[:, None]
        first, second = np.nonzero(undecided & (self.ratio[:, None] < self.ratio))
        settled = self._beats(first, second)
        self._below[first[settled], second[settled]] = True
        for middle in range(len(self.open)):  # who is below someone who is below a third is below the third
            self._below |= self._below[:, [middle]] & self._below[[middle], :]
        undecided = ~(self._below | self._below.T)
        undecided[:, self.unscored] = False
        self.open &= undecided.any(axis=1)


def log_evidence(
    better: tuple[np.ndarray, np.ndarray], worse: tuple[np.ndarray, np.ndarray], worst_rank: float = WORST_RANK
) -> np.ndarray:
    """
    Logarithm of the e-process for "the RSR of `better` is lower than that of `worse`", for many pairs at once, and at
    most the number of trajectories of `worst_rank` that would close the gap: float array of shape `(pairs,)`, `-inf`
    where there is no evidence, as below 20 common problems.

    `better` and `worse` are each sums of mean clipped ranks and of mean surprisals (nats) by problem: float arrays of
    shape `(problems, pairs)`, `nan` where a teacher has no score.
    """
    both = np.isfinite(np.stack([*better, *worse])).all(axis=0)
    count = both.sum(axis=0)
    parts = [np.where(both, part, 0.0) for part in (*better, *worse)]
    with np.errstate(divide="ignore", invalid="ignore"):
        means = [part.sum(axis=0) / count for part in parts]
        scaled = [part / mean for part, mean in zip(parts, means, strict=True)]
        difference = np.log(means[2] / means[3]) - np.log(means[0] / means[1])
        spread = (scaled[2] - scaled[3]) - (scaled[0] - scaled[1])
        deviation = np.sqrt((spread**2).sum(axis=0) / (count - 1))
        t = np.sqrt(count) * difference / deviation
        # Hall's monotone cubic transformation of a t statistic of skewed observations.
        a = (spread**3).sum(axis=0) / count / deviation**3 / np.sqrt(count)
        t = np.minimum(t, t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6)
        t = np.where(deviation < 1e-12, np.sign(difference) * (np.abs(difference) > 1e-12) * 1e6, t)
    usable = (count >= MIN_PROBLEMS) & (t > 0)
    log_e = np.full(len(count), -np.inf)
    log_e[usable] = log_e_value(t[usable], count[usable])
    if worst_rank > 0:
        ranks, surprisals, other_ranks, other_surprisals = (part[:, usable].sum(axis=0) for part in parts)
        unseen = (other_ranks / other_surprisals * surprisals - ranks) / worst_rank
        log_e[usable] = np.minimum(log_e[usable], unseen)
    return log_e


def log_e_value(t: np.ndarray, count: np.ndarray) -> np.ndarray:
    """
    Logarithm of the one-sided e-value of a t statistic of `count` observations, 2 or more: Bayes factor of an effect
    drawn from the positive half of `N(0, g)` against none, with the scale integrated out.
    """
    freedom, growth = count - 1, 1 + count * EFFECT_VARIANCE
    two_sided = -0.5 * np.log(growth) + 0.5 * count * (np.log1p(t**2 / freedom) - np.log1p(t**2 / (freedom * growth)))
    # Chance that the effect is positive given the data, over 1/2, its chance before.
    scale = np.sqrt(count * EFFECT_VARIANCE / growth * count / (freedom + t**2 / growth))
    positive = np.maximum(stdtr(count, t * scale), np.finfo(float).tiny)
    return two_sided + np.log(2 * positive)
