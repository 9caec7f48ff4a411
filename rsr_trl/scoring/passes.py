"""What the scores beside RSR need beyond its pass: steps, hashes, and passes of their own with less context.

A pass with less context scores examples derived from those of the first pass. This file knows tokens and the student,
and no dataset.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from rsr_trl.rsr import RSRError
from rsr_trl.scoring.batches import WINDOW_TOKENS
from rsr_trl.scoring.scores import LOCAL_STEPS, SCORES, ScoredTokens, check_scores, column_functions, content_of
from rsr_trl.scoring.settings import Engine
from rsr_trl.scoring.student import Student
from rsr_trl.scoring.tokens import TokenizedExample


class OtherScores:
    """
    The scores that a scorer adds beside RSR, by their names as [`~rsr_trl.scoring.scores.check_scores`] takes them.

    Attributes:
        names (tuple of `str`): Each once, in the order of [`~rsr_trl.scoring.scores.SCORES`].
        functions (`dict`): The columns that they add, and what computes each from [`ScoredTokens`].
        needs (set of `str`): What they need beside ranks and surprisals ([`~rsr_trl.scoring.scores.Score`]).
    """

    def __init__(self, names: Iterable[str] | str | None):
        self.names = check_scores(names)
        self.functions = column_functions(self.names)
        self.needs = {need for name in self.names for need in SCORES[name].needs}

    def check_engine(self, engine: Engine) -> None:
        """Raise `RSRError` for scores that need more than ranks and log-probabilities."""
        if missing := [name for name in self.names if "moments" in SCORES[name].needs]:
            raise RSRError(
                f"The scores {missing} need the student's whole distribution at each place, which {engine!r} doesn't "
                "return. Leave them out."
            )

    def scored_tokens(
        self,
        examples: Sequence[TokenizedExample],
        tokens: ScoredTokens,
        r_max: float,
        student: Student,
        bos_token_id: int | None,
        first_row: int = 0,
    ) -> ScoredTokens:
        """
        What the scores are computed from: `tokens`, as the pass of RSR gave them for `examples`, with all else that
        the scores need. Other passes are the student's; messages count rows from `first_row`.
        """
        more = {}
        if "steps" in self.needs:
            more["step_starts"] = _joined([e.step_starts[e.scored] for e in examples if e.error is None], bool)
        if "content" in self.needs:
            more["content"] = np.array([content_of(e) for e in examples], dtype=np.uint64)
        if "alone" in self.needs:
            more["surprisals_alone"] = surprisals_alone(student, examples, bos_token_id, first_row)
        if "local" in self.needs:
            more["surprisals_local"] = surprisals_local(student, examples, LOCAL_STEPS, first_row)
        return replace(tokens, r_max=r_max, **more)


def _joined(parts: Sequence[np.ndarray], dtype: type = np.float64) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *parts])


def surprisals_alone(
    student: Student, examples: Sequence[TokenizedExample], bos_token_id: int | None, first_row: int = 0
) -> np.ndarray:
    """
    Surprisals of all scored tokens, float64 of shape `(N,)`, without what stands before the first of their example but
    a beginning-of-sequence token. NaN for a token that nothing stands before, and for all tokens of an example of
    which no more than one token is left out.
    """
    tokens = student.score([_without_prompt(example, bos_token_id) for example in examples], first_row=first_row)
    # Of each example's scored tokens the last ones are scored again.
    counts = [int(example.scored.sum()) for example in examples]
    again = [np.arange(count) >= count - left for count, left in zip(counts, tokens.num_tokens, strict=True)]
    surprisals = np.full(sum(counts), np.nan)
    surprisals[_joined(again, bool)] = tokens.surprisals
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
    # Every step becomes an example with the prompt in front: many more tokens than there were, so a few at a time. The
    # steps in their order have all scored tokens in their order.
    surprisals, waiting, rows, tokens = [], [], [], 0
    for row, example in enumerate(examples, start=first_row):
        steps = list(_local_steps(example, num_steps))
        waiting += steps
        rows += [row for _ in steps]
        tokens += sum(len(step.input_ids) for step in steps)
        if waiting and (tokens >= WINDOW_TOKENS or row == first_row + len(examples) - 1):
            try:
                surprisals.append(student.score(waiting).surprisals)
            except FloatingPointError as error:
                where = f"rows {rows[0]} to {rows[-1]}"
                raise FloatingPointError(f"The student gives NaN or infinite logits on steps of {where}.") from error
            waiting, rows, tokens = [], [], 0
    return _joined(surprisals)


def _local_steps(example: TokenizedExample, num_steps: int) -> Iterator[TokenizedExample]:
    """One example per step, in order: all before the turn, up to `num_steps` steps of it, and the step, scored."""
    for begin, end in example.runs.tolist():
        starts = begin + np.flatnonzero(example.step_starts[begin:end])
        for i, (start, stop) in enumerate(zip(starts, np.append(starts[1:], end), strict=True)):
            near = example.input_ids[starts[max(0, i - num_steps)] : stop]
            ids = np.concatenate([example.input_ids[:begin], near])
            yield TokenizedExample(ids, np.arange(len(ids)) >= len(ids) - (stop - start))
