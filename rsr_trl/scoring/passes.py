"""What the scores beside RSR are computed from: the pass of RSR and, where a score needs it, one with less context.

A pass with less context scores examples derived from those of the first pass. This file knows tokens and the student,
and no dataset.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from rsr_trl.scoring.scores import LOCAL_STEPS, SCORES, ScoredTokens, check_scores, column_functions, content_hash
from rsr_trl.scoring.student import Student, TokenScores
from rsr_trl.scoring.tokens import TokenizedExample
from rsr_trl.scoring.windows import WINDOW_TOKENS


class OtherScores:
    """
    The scores that a scorer adds beside RSR.

    Args:
        names (iterable of `str` or `str`, *optional*): As [`~rsr_trl.scoring.scores.check_scores`] takes them.

    Attributes:
        names (tuple of `str`): Each once, in the order of [`~rsr_trl.scoring.scores.SCORES`].
        functions (`dict`): The columns that they add, and what computes each from [`ScoredTokens`].
        needs (set of `str`): What they need beside ranks and surprisals ([`~rsr_trl.scoring.scores.Score`]).
    """

    def __init__(self, names: Iterable[str] | str | None):
        self.names = check_scores(names)
        self.functions = column_functions(self.names)
        self.needs = {need for name in self.names for need in SCORES[name].needs}

    def scored_tokens(
        self,
        examples: Sequence[TokenizedExample],
        scores: Sequence[TokenScores | None],
        r_max: float,
        student: Student,
        bos_token_id: int | None,
        first_row: int = 0,
    ) -> ScoredTokens:
        """
        What the scores are computed from; where they need it, by another pass.

        Args:
            examples (sequence of [`TokenizedExample`]): All rows.
            scores (sequence of [`TokenScores`]): What the first pass gave for each row; `None` where it has an error.
            r_max (`float`): Ranks are clipped here.
            student ([`Student`]): Takes the other passes.
            bos_token_id (`int`, *optional*): Of the student's tokenizer.
            first_row (`int`, *optional*, defaults to `0`): What messages call the first row.
        """
        more = {}
        if "moments" in self.needs:
            more |= {name: joined(scores, name) for name in ("entropies", "sum_squares")}
        if "steps" in self.needs:
            starts = [e.step_starts[e.scored] for e in examples if e.error is None]
            more["step_starts"] = np.concatenate(starts or [np.zeros(0, dtype=bool)])
        if "content" in self.needs:
            more["content"] = np.array([content_hash(e.input_ids, e.scored) for e in examples], dtype=np.uint64)
        if "alone" in self.needs:
            more["surprisals_alone"] = surprisals_alone(student, examples, bos_token_id, first_row)
        if "local" in self.needs:
            more["surprisals_local"] = surprisals_local(student, examples, LOCAL_STEPS, first_row)
        return ScoredTokens(
            num_tokens=np.array([e.scored.sum() for e in examples], dtype=np.int64),
            ranks=joined(scores, "ranks"),
            surprisals=joined(scores, "surprisals"),
            r_max=r_max,
            **more,
        )


def joined(scores: Sequence[TokenScores | None], field: str) -> np.ndarray:
    """One field of all rows that have scores, row after row."""
    return np.concatenate([getattr(score, field) for score in scores if score is not None] or [np.zeros(0)])


def surprisals_alone(
    student: Student, examples: Sequence[TokenizedExample], bos_token_id: int | None, first_row: int = 0
) -> np.ndarray:
    """
    Surprisals of all scored tokens without what stands before the first of their example.

    Returns:
        float64 array of shape `(N,)`: NaN for tokens that nothing stands before, and for all tokens of an example if
        no more than one token is left out. The beginning-of-sequence token stays where an example begins with it.
    """
    ends = np.cumsum([e.scored.sum() for e in examples])
    surprisals = np.full(ends[-1], np.nan)
    alone = [_without_prompt(example, bos_token_id) for example in examples]
    if any(example.error is None for example in alone):
        for i, scores in student.score(alone, first_row=first_row):
            surprisals[ends[i] - len(scores.surprisals) : ends[i]] = scores.surprisals
    return surprisals


def _without_prompt(example: TokenizedExample, bos_token_id: int | None) -> TokenizedExample:
    if example.error is not None:
        return example
    first = int(np.argmax(example.scored))
    ids, scored = example.input_ids[first:], example.scored[first:].copy()
    if bos_token_id is not None and example.input_ids[0] == bos_token_id:
        ids, scored = np.concatenate([example.input_ids[:1], ids]), np.concatenate([[False], scored])
    scored[0] = False
    if first <= 1 or not scored.any():
        return TokenizedExample.failed("no prompt, or nothing that can be predicted without it")
    return TokenizedExample(ids, scored)


def surprisals_local(
    student: Student, examples: Sequence[TokenizedExample], num_steps: int, first_row: int = 0
) -> np.ndarray:
    """
    Surprisals of all scored tokens, float64 of shape `(N,)`, given what stands before their turn and at most
    `num_steps` steps of it. The examples need their `step_starts`.
    """
    surprisals = np.full(sum(int(e.scored.sum()) for e in examples), np.nan)
    # Every step becomes an example with the prompt in front: many more tokens than there were, so a few at a time.
    waiting, rows, starts, place, tokens = [], [], [], 0, 0
    for row, example in enumerate(examples, start=first_row):
        for step in _local_steps(example, num_steps):
            waiting.append(step)
            rows.append(row)
            starts.append(place)
            place += int(step.scored.sum())
            tokens += len(step.input_ids)
        if waiting and (tokens >= WINDOW_TOKENS or row == first_row + len(examples) - 1):
            try:
                for i, scores in student.score(waiting):
                    surprisals[starts[i] : starts[i] + len(scores.surprisals)] = scores.surprisals
            except FloatingPointError as error:
                where = f"rows {rows[0]} to {rows[-1]}"
                raise FloatingPointError(f"The student gives NaN or infinite logits on steps of {where}.") from error
            waiting, rows, starts, tokens = [], [], [], 0
    return surprisals


def _local_steps(example: TokenizedExample, num_steps: int) -> Iterator[TokenizedExample]:
    """One example per step, in order: all before the turn, up to `num_steps` steps of it, and the step, scored."""
    if example.error is not None:
        return
    for begin, end in example.runs.tolist():
        starts = begin + np.flatnonzero(example.step_starts[begin:end])
        for i, (start, stop) in enumerate(zip(starts, np.append(starts[1:], end), strict=True)):
            near = example.input_ids[starts[max(0, i - num_steps)] : stop]
            ids = np.concatenate([example.input_ids[:begin], near])
            yield TokenizedExample(ids, np.arange(len(ids)) >= len(ids) - (stop - start))
