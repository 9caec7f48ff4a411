"""Known ways in which RSR misleads, as a scored pool shows them: each is named, counted, and comes with a remedy.

What is known is from the paper and its readers (arXiv:2601.14249). Guesses are looked for token by token, where the
score `guess_share` is there: their mean rank and surprisal are also those of much good reasoning. The figures beside
the thresholds are those of `python -m benchmarks.failure_modes` with SmolLM2-135M-Instruct (docs/scores.md).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from scipy.stats import binom

from rsr_trl.data import counted, examples
from rsr_trl.rsr import NOISY_BELOW, TOO_SHORT
from rsr_trl.selection.table import ScoredTable
from rsr_trl.selection.teachers import FEW_PROBLEMS


NOTABLE_SHARE = 0.1  # of the pool or of the choice: enough to bend what the student learns
MOST = 0.5  # of a teacher's trajectories: then it is the teacher's way, not an accident
COLLAPSE_SHARE = 0.5  # of the choice from one teacher; 45-77% in the paper, whose readers ask for a cap
COLLAPSE_LIFT = 1.5  # and this many times its share of the pool: else the pool was lopsided before
TRUNCATED_SHARE = 0.05  # the score of every twentieth row is that of a beginning: more than rounding in any ranking
GUESSED = 0.15  # guess share of a trajectory: at most 0.3% of 2,400 real ones are above; random digits and sums are
FOREIGN_RANK = 30  # mean clipped rank: a third of the tokens beyond r_max = 100. The paper's teachers have 1.4 to 5.6
ENOUGH = 20  # trajectories from which shares, correlations and overlaps aren't chance (R^2 over 0.5: 1 in 2,000)
BY_CHANCE = 0.01  # that one teacher has so many of the choice, by its share of the pool
MOSTLY_LENGTH = 0.5  # R^2: more is explained by length than by all else together
WRONG_FIRST = 0.45  # share of pairs in which the correct one is more suitable; nearer to 0.5 a filter changes little
SAME_CHOICE = 0.9  # of the choice: what the other tenth could change, no training run of usual size would show
NUM_EXAMPLES = 5  # rows and names given of each finding


@dataclass(frozen=True)
class Finding:
    """A known failure mode of RSR that a pool shows."""

    name: str  # what it is, in a few words: the same for every pool
    what: str  # what was found, with counts, in a sentence
    why: str  # it matters
    what_to_do: str  # with the options that do it
    rows: int  # trajectories concerned
    teachers: list = field(default_factory=list)  # concerned, if it is about some in particular
    example_rows: list[int] = field(default_factory=list)  # places in the dataset of a few of them, chosen ones first


def look_at_rows(rows: ScoredTable, chosen: np.ndarray) -> Iterator[Finding]:
    """
    Yield what is found in a pool, the gravest first; nothing if no known failure mode is there. `rows` are all with a
    finite RSR, `chosen` (bool array of shape `(rows,)`) those that RSR would choose.
    """
    of_rows = partial(_of_rows, rows, chosen)
    yield from of_rows(
        "short responses",
        rows.tokens < NOISY_BELOW,
        have=f"have fewer than {NOISY_BELOW} scored tokens",
        why=f"{TOO_SHORT}, and an answer without reasoning looks suitable by chance.",
        what_to_do="Leave them out, as `rsr select` does by default; `--min_tokens 0` lets them in.",
    )
    yield from of_rows(
        "near guessing",
        rows.guess_share > GUESSED,
        have=f"have 5 to 20 words about equally likely at over {GUESSED:.0%} of their tokens",
        why="Random digits look like that, and RSR may prefer them.",
        what_to_do="Read some (`rsr show --row`), and filter out guesses: `rsr select --require COLUMN`.",
    )
    foreign = rows.rank > FOREIGN_RANK
    if foreign[chosen].mean() > MOST:
        yield from of_rows(
            "foreign to the student",
            foreign,
            have=f"have a mean rank over {FOREIGN_RANK}",
            why="The student can hardly read such text: the ratio mostly depends on how many ranks are clipped.",
            what_to_do="Check that student, chat template (`rsr score --as_chat`) and data belong together.",
        )
    yield from _collapse(rows, chosen)
    yield from of_rows(
        "truncated trajectories",
        rows.truncated,
        TRUNCATED_SHARE,
        have="were truncated at the length limit",
        why="Their scores cover only the part before the cut, and training at this length stops before the answer.",
        what_to_do="Re-score with a larger `rsr score --max_length` if the student has the positions, or mark whole "
        "trajectories in a boolean column and name it in `rsr select --require`.",
    )
    if rows.problem is not None:
        yield from _of_problems(rows)


def look_at_scores(scores: list[dict], chance: float, num_rows: int) -> Iterator[Finding]:
    """
    Yield what the comparison with other scores, length and correctness shows of RSR: `scores` are those of a
    [`Comparison`], `chance` is its `chance_overlap`.
    """
    if num_rows < ENOUGH:
        return
    rsr, *others = scores
    high = rsr["correct_first_high"]
    if high is not None and high < 0.5 and rsr["correct_first"] < WRONG_FIRST:
        yield Finding(
            "prefers incorrect ones",
            what=f"Of a correct and an incorrect trajectory, RSR puts the correct one first in only "
            f"{rsr['correct_first']:.0%} of cases ({rsr['correct_first_low']:.0%} to {high:.0%}).",
            why="RSR knows nothing about correctness, and here it favours incorrect trajectories.",
            what_to_do="Choose among correct ones: `rsr select --require COLUMN` with the column of correctness.",
            rows=num_rows,
        )
    if (rsr["length_r2"] or 0) > MOSTLY_LENGTH:
        ends = "short" if rsr["length_correlation"] < 0 else "long"
        yield Finding(
            "mostly length",
            what=f"Length explains {rsr['length_r2']:.0%} of RSR's order (rank R²): {ends} trajectories come first.",
            why="Sorting by length would do nearly the same at no cost.",
            what_to_do="Test RSR against length with `rsr pilot`.",
            rows=num_rows,
        )
    same = [score for score in others if score["overlap"] > SAME_CHOICE] if chance < MOST else []
    if same:
        names = ", ".join(f"{score['name']} ({score['overlap']:.0%})" for score in same)
        yield Finding(
            "same choice",
            what=f"Other scores would choose nearly the same as RSR: {names}.",
            why="Training can't tell such choices apart.",
            what_to_do="Use the simplest of them, or test only one of them with `rsr pilot`.",
            rows=num_rows,
        )


def _of_rows(rows, chosen, name, concerned, enough=NOTABLE_SHARE, *, have, **texts) -> Iterator[Finding]:
    """A finding if more than `enough` of the pool or of the choice, or most of some teacher's rows, are concerned."""
    teachers = []
    if rows.teacher is not None:
        size, count = (np.bincount(x, minlength=len(rows.teachers)) for x in (rows.teacher, rows.teacher[concerned]))
        teachers = [rows.teachers[i] for i in np.flatnonzero((count > MOST * size) & (size >= ENOUGH))]
    of_all, of_chosen = concerned.mean(), concerned[chosen].mean()
    if max(of_all, of_chosen) > enough or teachers:
        some = 0 < len(teachers) < len(np.unique(rows.teacher))
        which = f"; most of what {examples(teachers, 3)} wrote" if some else ""
        ordered = np.concatenate([np.flatnonzero(concerned & chosen), np.flatnonzero(concerned & ~chosen)])
        yield Finding(
            name,
            what=f"{concerned.sum():,} trajectories ({of_all:.0%} of all, {of_chosen:.0%} of what RSR chooses{which}) "
            f"{have}.",
            rows=int(concerned.sum()),
            teachers=teachers,
            example_rows=rows.row[ordered[:NUM_EXAMPLES]].tolist(),
            **texts,
        )


def _collapse(rows: ScoredTable, chosen: np.ndarray) -> Iterator[Finding]:
    if rows.teacher is None or len(np.unique(rows.teacher)) < 3:
        return
    count = np.bincount(rows.teacher[chosen])
    most = int(count.argmax())
    share, before = count[most] / chosen.sum(), (rows.teacher == most).mean()
    by_chance = binom.sf(count[most] - 1, chosen.sum(), before)
    if chosen.sum() < ENOUGH or by_chance > BY_CHANCE:
        return
    if share > COLLAPSE_SHARE and share > COLLAPSE_LIFT * before:
        concerned = chosen & (rows.teacher == most)
        yield Finding(
            "one-teacher collapse",
            what=f"{rows.teachers[most]!r} wrote {share:.0%} of what RSR chooses, and {before:.0%} of the pool.",
            why="Choosing trajectories then means choosing a teacher, whose style is most of what the student sees.",
            what_to_do="Spread it with `rsr select --max_share_per_teacher 0.4`.",
            rows=int(concerned.sum()),
            teachers=[rows.teachers[most]],
            example_rows=rows.row[concerned][:NUM_EXAMPLES].tolist(),
        )


def _of_problems(rows: ScoredTable) -> Iterator[Finding]:
    """Too few problems to compare on, and problems with a single trajectory."""
    size = np.bincount(rows.problem)
    shared = num_problems = int((size > 0).sum())
    fewest, what = [], f"There {'is' if num_problems == 1 else 'are'} only {counted(num_problems, 'problem')}."
    if rows.teacher is not None:
        shared = int(rows.shared_problems().sum())
        if shared < num_problems:
            what = f"{shared:,} of {num_problems:,} problems have a scored trajectory of every teacher."
        has = rows.problems_per_teacher()
        fewest = [rows.teachers[i] for i in np.argsort(has, kind="stable") if 0 < has[i] < num_problems]
    if shared < FEW_PROBLEMS:
        less = f", or leave out the teachers with the fewest ({examples(fewest, 3)})" if fewest else ""
        yield Finding(
            "too few problems",
            what=what,
            why=f"On fewer than {FEW_PROBLEMS}, differences between teachers, and between scores, are mostly chance. "
            "The paper uses 200.",
            what_to_do=f"Score more problems{less}. `rsr teachers` shows the intervals.",
            rows=len(rows),
            teachers=fewest[:NUM_EXAMPLES],
        )
    alone = size[rows.problem] == 1
    if alone.sum() > MOST * num_problems:
        yield Finding(
            "nothing to choose from",
            what=f"{alone.sum():,} of {num_problems:,} problems have a single scored trajectory.",
            why="There, every score chooses the same.",
            what_to_do="Add trajectories of other teachers, or choose among all: `rsr select --keep_fraction`.",
            rows=int(alone.sum()),
            example_rows=rows.row[alone][:NUM_EXAMPLES].tolist(),
        )
