"""Find the most suitable teacher with as few forward passes as it takes: score in rounds, drop who is ruled out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from datasets import Dataset, concatenate_datasets
from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, tqdm

from rsr_trl.data import examples, read_table
from rsr_trl.rsr import ERROR, MEAN_CLIPPED_RANK, MEAN_SURPRISAL
from rsr_trl.scoring.scorer import RSRScorer
from rsr_trl.selection.contest import Contest
from rsr_trl.selection.sequential import MIN_PROBLEMS
from rsr_trl.selection.table import labels, numbers


@dataclass(frozen=True)
class TeacherRace:
    """
    What [`race_teachers`] found out. **Lower RSR = more suitable.**

    Args:
        certain (`bool`): Whether the question is settled at the stated certainty.
        goal (`str`): `"best"` or `"order"`.
        certainty (`float`): Stated certainty.
        table (`list[dict]`): One row a teacher, most suitable first: `teacher`; `status` (`"best"`, `"placed"`,
            `"possible"`, `"ruled out"` or `"no score"`); `rsr` over what was scored of it; `problems` and
            `trajectories` scored of it.
        num_problems (`int`): Problems used.
        num_problems_in_pool (`int`): Problems that all teachers have.
        num_trajectories (`int`): Trajectories scored, of all teachers.
        num_trajectories_in_pool (`int`): Trajectories of all teachers on those problems.
        scored (`Dataset`): The trajectories that were scored, with their scores.
    """

    certain: bool
    goal: str
    certainty: float
    table: list[dict]
    num_problems: int
    num_problems_in_pool: int
    num_trajectories: int
    num_trajectories_in_pool: int
    scored: Dataset

    @property
    def best(self):
        """The teacher with the lowest RSR of those not ruled out: settled if `certain`, else the best guess."""
        return self.table[0]["teacher"]

    def to_pandas(self) -> pd.DataFrame:
        """The table as a `DataFrame`."""
        return pd.DataFrame(self.table)

    def __str__(self) -> str:
        question = "the order" if self.goal == "order" else f"{self.best!r} is the most suitable"
        if self.certain:
            head = f"Settled at {self.certainty:.0%} certainty: {question}."
        else:
            open_ = [row["teacher"] for row in self.table if row["status"] == "possible"]
            head = f"Not settled at {self.certainty:.0%} certainty: {len(open_)} teachers can't be told apart yet."
        share = self.num_trajectories / self.num_trajectories_in_pool
        return "\n".join(
            [
                f"{head} RSR: lower = more suitable.",
                f"Scored {self.num_trajectories} of {self.num_trajectories_in_pool} trajectories ({share:.0%}), "
                f"{self.num_problems} of {self.num_problems_in_pool} problems.",
                self.to_pandas().to_string(index=False, float_format=lambda value: f"{value:.3f}"),
            ]
        )


def race_teachers(
    dataset: Dataset,
    scorer: RSRScorer | Callable[[Dataset], Dataset],
    teacher_column: str,
    problem_column: str,
    goal: Literal["best", "order"] = "best",
    certainty: float = 0.95,
    max_trajectories: int | None = None,
    problems_per_round: int = 5,
    seed: int = 0,
) -> TeacherRace:
    """
    Score matched problems round by round, and stop as soon as the most suitable teacher (or the whole order) is
    certain. **Lower RSR = more suitable.**

    Every round scores the same next problems for every teacher that is still open, in an order drawn from `seed`. A
    teacher is dropped as soon as it is ruled out (with `goal="order"`: placed). Looking after every round costs
    nothing: the evidence is anytime-valid (see `rsr_trl/selection/sequential.py`). With T teachers, each comparison
    may err with probability `(1 - certainty) / (T - 1)`. The most suitable teacher has T - 1 rivals that could rule it
    out wrongly; and a wrong order has at least one of the T - 1 neighbours of the true order the wrong way round. So
    the answer is wrong with probability `1 - certainty` at most.

    Args:
        dataset (`Dataset`): Trajectories, not scored yet, in any format that the scorer takes.
        scorer ([`RSRScorer`] or function): Student that scores, or a function that takes a [`~datasets.Dataset`] and
            returns it with the scores in the same order.
        teacher_column (`str`): Column that names the teacher.
        problem_column (`str`): Column that says which trajectories answer the same problem. Only problems that all
            teachers have are used.
        goal (`str`, *optional*, defaults to `"best"`): `"best"` or `"order"`.
        certainty (`float`, *optional*, defaults to `0.95`): Probability in (0, 1) with which the answer is right.
        max_trajectories (`int`, *optional*): Budget: stop before scoring more.
        problems_per_round (`int`, *optional*, defaults to `5`): Problems in a round; the first has 20 at least.
        seed (`int`, *optional*, defaults to `0`): Seed of the order of the problems.

    Returns:
        [`TeacherRace`]. If the pool or the budget ends first, `certain` is false and the table says who is possible.

    Raises:
        `ValueError`: a missing column, null teachers or problems, no problem that all teachers have, a budget smaller
            than the first round, no trajectory that the scorer could score.

    Example:

    ```python
    >>> race = race_teachers(dataset, RSRScorer("Qwen/Qwen3-0.6B"), "teacher", "problem_id")
    >>> print(race)
    ```
    """
    if goal not in ("best", "order"):
        raise ValueError(f"goal must be 'best' or 'order', got {goal!r}.")
    if not 0 < certainty < 1:
        raise ValueError(f"certainty must be in (0, 1), got {certainty}.")
    if problems_per_round < 1:
        raise ValueError(f"problems_per_round must be 1 or more, got {problems_per_round}.")
    score = scorer.score if isinstance(scorer, RSRScorer) else scorer
    pool = _Pool.read(dataset, teacher_column, problem_column, seed)
    if len(pool.names) == 1:
        raise ValueError(f"There is one teacher only, {pool.names[0]!r}: nothing to choose between.")
    contest = Contest(len(pool.names), goal, certainty)
    scored, start = [], 0
    show = tqdm(total=pool.num_problems, desc="Scoring", unit=" problems")
    bars = not are_progress_bars_disabled()
    disable_progress_bars()  # the scorer's own: one in every round would bury this one
    try:
        while contest.open.sum() > 1 and start < pool.num_problems:
            step = problems_per_round if start else max(MIN_PROBLEMS, problems_per_round)
            stop = min(start + step, pool.num_problems)
            rows = pool.rows(start, stop, contest.open)
            budget = max_trajectories is not None and sum(map(len, scored)) + len(rows) > max_trajectories
            if budget and not scored:
                raise ValueError(
                    f"max_trajectories={max_trajectories} is less than the first round, {len(rows)} trajectories: "
                    f"{stop} problems of {len(pool.names)} teachers."
                )
            if budget:
                break
            scored.append(score(dataset.select(rows)))
            contest.add(*pool.sums(rows, scored[-1], start, stop))
            start = stop
            show.update(stop - show.n)
            show.set_postfix_str(f"{int(contest.open.sum())} teachers open")
    finally:
        show.close()
        if bars:
            enable_progress_bars()
    return TeacherRace(
        certain=bool(contest.open.sum() <= 1),
        goal=goal,
        certainty=certainty,
        table=_table(pool, contest, scored, teacher_column),
        num_problems=start,
        num_problems_in_pool=pool.num_problems,
        num_trajectories=sum(map(len, scored)),
        num_trajectories_in_pool=int((pool.place >= 0).sum()),
        scored=concatenate_datasets(scored),
    )


@dataclass
class _Pool:
    """Rows of the problems that all teachers have, with the problems in the order in which they will be scored."""

    names: list
    teacher: np.ndarray  # of each row
    place: np.ndarray  # of each row: place of its problem in that order, -1 outside the pool
    num_problems: int

    @classmethod
    def read(cls, dataset: Dataset, teacher_column: str, problem_column: str, seed: int) -> "_Pool":
        table = read_table(dataset, [teacher_column, problem_column])
        teacher, names = labels(table, teacher_column)
        problem, problem_names = labels(table, problem_column)
        pairs = np.unique(problem * len(names) + teacher)
        has = np.bincount(pairs // max(1, len(names)), minlength=len(problem_names))
        shared = np.flatnonzero(has == len(names))
        if not len(shared):
            fewest = np.argsort(np.bincount(pairs % max(1, len(names)), minlength=len(names)), kind="stable")
            raise ValueError(
                f"No problem has a trajectory of all {len(names)} teachers, so they can't be compared on equal terms. "
                f"Teachers with the fewest problems: {examples([names[t] for t in fewest])}."
            )
        place = np.full(len(problem_names), -1)
        place[np.random.default_rng(seed).permutation(shared)] = np.arange(len(shared))
        return cls(names, teacher, place[problem], len(shared))

    def rows(self, start: int, stop: int, who: np.ndarray) -> np.ndarray:
        """Rows of problems `start` to `stop` of the teachers in `who` (boolean)."""
        return np.flatnonzero((self.place >= start) & (self.place < stop) & who[self.teacher])

    def sums(self, rows: np.ndarray, scored: Dataset, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Sums of mean ranks and of mean surprisals of those rows, by problem and teacher; `nan` where nothing is."""
        if not isinstance(scored, Dataset) or len(scored) != len(rows):
            found = f"{len(scored)} rows" if isinstance(scored, Dataset) else type(scored).__name__
            raise ValueError(f"The scorer got a Dataset of {len(rows)} rows and returned {found}.")
        table = read_table(scored, [MEAN_CLIPPED_RANK, MEAN_SURPRISAL])
        parts = [numbers(table, name) for name in (MEAN_CLIPPED_RANK, MEAN_SURPRISAL)]
        ok = np.isfinite(parts[0]) & np.isfinite(parts[1])
        shape = (stop - start, len(self.names))
        cell = ((self.place[rows] - start) * shape[1] + self.teacher[rows])[ok]
        size = shape[0] * shape[1]
        empty = np.bincount(cell, minlength=size) == 0
        ranks, surprisals = (
            np.where(empty, np.nan, np.bincount(cell, weights=part[ok], minlength=size)).reshape(shape)
            for part in parts
        )
        return ranks, surprisals


def _table(pool: _Pool, contest: Contest, scored: list[Dataset], teacher_column: str) -> list[dict]:
    if contest.unscored.all():
        raise ValueError(f"None of {sum(map(len, scored))} trajectories could be scored; {ERROR!r} says why.")
    trajectories = dict.fromkeys(pool.names, 0)
    for part in scored:
        codes, names = labels(read_table(part, [teacher_column]), teacher_column)
        for name, number in zip(names, np.bincount(codes), strict=True):
            trajectories[name] += int(number)
    certain = contest.open.sum() <= 1
    winner, loser = ("best", "ruled out") if contest.goal == "best" else ("placed", "placed")
    status = np.where(contest.open, winner if certain else "possible", loser)
    status = np.where(contest.unscored, "no score", status)
    ratio, problems = contest.ratio, np.isfinite(contest.ranks).sum(axis=0)
    return [
        {
            "teacher": pool.names[t],
            "status": str(status[t]),
            "rsr": None if np.isnan(ratio[t]) else float(ratio[t]),
            "problems": int(problems[t]),
            "trajectories": trajectories[pool.names[t]],
        }
        for t in contest.ranking
    ]
