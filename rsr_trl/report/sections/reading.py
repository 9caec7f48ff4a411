"""Reading trajectories: every token coloured by surprisal and by rank, and the RSR of each sentence."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rsr_trl.report.format import prose
from rsr_trl.report.pool import Material, Missing
from rsr_trl.report.rows import prompt_of
from rsr_trl.report.tokens import Token, read_tokens, sentences, visible
from rsr_trl.rsr import ERROR, RSR, TOKEN_IDS, TOKEN_RANKS, TOKEN_SURPRISALS, TOKEN_TOP1, trajectory_rsr


SURPRISAL_STEPS = (0.1, 0.5, 1.0, 2.0, 4.0)  # nats; a level begins at each
RANK_STEPS = (2, 3, 6, 21, 101)
MAX_TOKENS = 24_000  # on the whole page
MAX_ROWS = 40  # that can be asked for
PROMPT_LENGTH = 1500


@dataclass(frozen=True)
class ShownToken:
    """
    Args:
        text (`str`): As it is shown.
        rank (`int`): Its rank, not clipped.
        surprisal (`str`): In nats.
        top1 (`str`, *optional*): What the student would have said, if that is something else and was stored.
        a, b (`int`): Level of surprisal and of rank, from 0 to 5.
    """

    text: str
    rank: int
    surprisal: str
    top1: str | None
    a: int
    b: int


@dataclass(frozen=True)
class ShownSentence:
    """
    Args:
        rsr (`float`): Its RSR.
        share (`float`): Width of its bar: half is the RSR of the trajectory.
        tokens (`list[ShownToken]`): Its tokens.
        turn (`int`): The assistant's scored turn that it is in, counted from 1.
    """

    rsr: float
    share: float
    tokens: list[ShownToken]
    turn: int


@dataclass(frozen=True)
class Heatmap:
    """
    A trajectory token by token.

    Args:
        sentences (`list[ShownSentence]`): Its sentences, or as many as there is room for.
        num_tokens (`int`): Its scored tokens.
        more (`int`): Tokens that aren't shown.
        other_r_max (`bool`): Whether the stored RSR was made with another `r_max` than the sentences' here.
    """

    sentences: list[ShownSentence]
    num_tokens: int
    more: int
    other_r_max: bool


@dataclass(frozen=True)
class Trajectory:
    """
    Args:
        row (`int`): Its row.
        why (`str`): Why it is shown.
        teacher, problem (`object`): Whose it is; `None` where that isn't known.
        rsr, rank, surprisal (`float`): Its scores.
        chosen, truncated (`bool`): Whether selection keeps it; whether it was cut.
        correct (`float`): 1, 0, or NaN where unknown.
        prompt (`str`): What it answers.
        heatmap ([`Heatmap`]): Its tokens.
        error (`str`, *optional*): Why it has no score.
    """

    row: int
    why: str
    teacher: object
    problem: object
    rsr: float
    rank: float
    surprisal: float
    chosen: bool
    truncated: bool
    correct: float
    prompt: str
    heatmap: Heatmap
    error: str | None


@dataclass(frozen=True)
class Reading:
    """
    Args:
        trajectories (`list[Trajectory]`): The most suitable, the median, the least suitable, and what was asked for.
        has_top1 (`bool`): Whether the student's own choices are stored.
        r_max (`float`): Where ranks are clipped.
        surprisal_levels, rank_levels (`list[str]`): What the levels stand for.
    """

    trajectories: list[Trajectory]
    has_top1: bool
    r_max: float
    surprisal_levels: list[str]
    rank_levels: list[str]


def make(material: Material) -> Reading | Missing:
    if (missing := unreadable(material)) is not None:
        return missing
    pool = material.pool
    rows = _rows(material)
    limit = MAX_TOKENS * 2 // 3 // len(rows)  # the rest is for the trajectories of one problem
    features = pool.dataset.column_names
    return Reading(
        trajectories=[_trajectory(material, row, why, limit) for row, why in rows.items()],
        has_top1=TOKEN_TOP1 in features,
        r_max=material.r_max,
        surprisal_levels=["below 0.1", "0.1", "0.5", "1", "2", "4 and more"],
        rank_levels=["1", "2", "3–5", "6–20", "21–100", "above 100"],
    )


def unreadable(material: Material) -> Missing | None:
    """What tokens can't be read for."""
    needed = (TOKEN_IDS, TOKEN_RANKS, TOKEN_SURPRISALS)
    if any(name not in material.pool.dataset.column_names for name in needed):
        return Missing(
            "The dataset has no rank and surprisal of every token.",
            "Score it so that they are kept:",
            "rsr score --token_stats ...",
        )
    if material.tokenizer is None:
        return Missing(material.untold, "Then tokens can be read.", "rsr report --tokenizer STUDENT ...")
    return None


def _rows(material: Material) -> dict[int, str]:
    """Rows to show -> why, in the order in which they are shown."""
    ratio = material.pool.rsr
    order = np.argsort(np.where(material.pool.finite, ratio, np.inf), kind="stable")[: material.pool.finite.sum()]
    places = {0: "most suitable", (len(order) - 1) // 2: "median", len(order) - 1: "least suitable"}
    shown = dict.fromkeys(material.rows, "asked for")
    for place, why in places.items():
        row = int(order[place])
        shown[row] = f"{why}, asked for" if row in shown else why
    first = [int(order[place]) for place in places]
    return {row: shown[row] for row in [*first, *(row for row in shown if row not in first)]}


def _trajectory(material: Material, row: int, why: str, limit: int) -> Trajectory:
    pool, values = material.pool, material.pool.dataset.with_format(None)[row]
    return Trajectory(
        row=row,
        why=why,
        teacher=pool.teacher and values[pool.teacher.column],
        problem=pool.problem and values[pool.problem.column],
        rsr=float(pool.rsr[row]),
        rank=float(pool.rank[row]),
        surprisal=float(pool.surprisal[row]),
        chosen=bool(pool.chosen[row]),
        truncated=bool(pool.truncated[row]),
        correct=float("nan") if pool.correct is None else float(pool.correct[row]),
        prompt=prose(prompt_of(values), PROMPT_LENGTH),
        heatmap=heatmap(material, values, limit),
        error=values[ERROR],
    )


def heatmap(material: Material, values: Mapping, limit: int) -> Heatmap:
    """The first `limit` tokens of a row."""
    tokens = read_tokens(values, material.tokenizer)
    own = trajectory_rsr([t.rank for t in tokens], [t.surprisal for t in tokens], material.r_max)
    shown = []
    for sentence in sentences(tokens, material.r_max, material.turns(values)):
        if sentence.start >= limit:
            break
        share = min(1.0, sentence.rsr / own / 2) if np.isfinite(sentence.rsr) and own else 1.0
        part = tokens[sentence.start : min(sentence.stop, limit)]
        shown.append(ShownSentence(sentence.rsr, share, [_shown(token) for token in part], sentence.turn))
    stored = values[RSR]
    # Surprisals of tokens are stored in float32, so their sum differs a little.
    other = bool(tokens) and stored is not None and not np.isclose(own, stored, rtol=1e-3)
    return Heatmap(shown, len(tokens), max(0, len(tokens) - limit), other)


def _shown(token: Token) -> ShownToken:
    own = None if token.top1 is None or token.top1 == visible(token.text) else token.top1
    return ShownToken(
        text=token.shown,
        rank=token.rank,
        surprisal=f"{token.surprisal:.3f}",
        top1=None if token.rank == 1 else own,
        a=int(np.searchsorted(SURPRISAL_STEPS, token.surprisal, side="right")),
        b=int(np.searchsorted(RANK_STEPS, token.rank, side="right")),
    )
