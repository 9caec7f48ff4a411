"""Surprisals in another context than the trajectory's own: without its prompt, with a short memory, or to a teacher.

Each is a pass of its own over examples derived from those of the first pass. It knows tokens and the student, and
neither datasets nor what the numbers are for.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from rsr_trl.scoring.batches import WINDOW_TOKENS
from rsr_trl.scoring.student import Student
from rsr_trl.scoring.tokens import TokenizedExample


def surprisals_alone(
    student: Student, examples: Sequence[TokenizedExample], bos_token_id: int | None, first_row: int = 0
) -> np.ndarray:
    """
    Surprisals of each example's scored tokens without what stands before the first of them.

    Args:
        student ([`Student`]): Who predicts.
        examples (sequence of [`TokenizedExample`]): Those with an `error` get an empty array.
        bos_token_id (`int`, *optional*): Kept in front where the example begins with it.
        first_row (`int`, *optional*, defaults to `0`): What messages call the first example.

    Returns:
        float64 array of shape `(N,)`, example after example: NaN for tokens that nothing stands before, and for all
        tokens if no more than one token is left out.
    """
    tokens = student.score([_without_prompt(example, bos_token_id) for example in examples], first_row=first_row)
    counts = [int(example.scored.sum()) for example in examples]
    # Of each example's scored tokens the last ones are scored again.
    again = [np.arange(count) >= count - left for count, left in zip(counts, tokens.num_tokens, strict=True)]
    surprisals = np.full(sum(counts), np.nan)
    surprisals[np.concatenate([np.zeros(0, bool), *again])] = tokens.surprisals
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
    Surprisals of each example's scored tokens, given what stands before their turn and the last steps of it.

    Args:
        student ([`Student`]): Who predicts.
        examples (sequence of [`TokenizedExample`]): With `step_starts`. Those with an `error` get an empty array.
        num_steps (`int`): Steps before a step that stay in view.
        first_row (`int`, *optional*, defaults to `0`): What messages call the first example.

    Returns:
        float64 array of shape `(N,)`, example after example.
    """
    # Every step becomes an example with the prompt in front: many more tokens than there were, so a few at a time. The
    # steps in their order have all scored tokens in their order.
    parts, waiting, rows, tokens = [np.zeros(0)], [], [], 0

    def score() -> None:
        try:
            parts.append(student.score(waiting).surprisals)
        except FloatingPointError as error:
            where = f"rows {rows[0]} to {rows[-1]}"
            raise FloatingPointError(f"The student gives NaN or infinite logits on steps of {where}.") from error
        waiting.clear()
        rows.clear()

    for row, example in enumerate(examples, start=first_row):
        for step in _local_windows(example, num_steps):
            waiting.append(step)
            rows.append(row)
            tokens += len(step.input_ids)
        if tokens >= WINDOW_TOKENS:
            score()
            tokens = 0
    if waiting:
        score()
    return np.concatenate(parts)


def _local_windows(example: TokenizedExample, num_steps: int) -> Iterator[TokenizedExample]:
    """One example a step, in order: all before the turn, up to `num_steps` steps of the turn, and the step, scored."""
    if example.error is not None:
        return
    edges = np.flatnonzero(np.diff(np.concatenate([[False], example.scored, [False]]).astype(np.int8)))
    for begin, end in edges.reshape(-1, 2).tolist():
        starts = begin + np.flatnonzero(example.step_starts[begin:end])
        for i, (start, stop) in enumerate(zip(starts, np.append(starts[1:], end), strict=True)):
            near = example.input_ids[starts[max(0, i - num_steps)] : stop]
            ids = np.concatenate([example.input_ids[:begin], near])
            yield TokenizedExample(ids, np.arange(len(ids)) >= len(ids) - (stop - start))


def teacher_steps(
    teacher: Student, examples: Sequence[TokenizedExample], counts: Sequence[int], first_row: int = 0
) -> list[np.ndarray]:
    """
    Surprisal of each step of each example to the teacher, in sum.

    Args:
        teacher ([`Student`]): The teacher, seen as a scorer of tokens.
        examples (sequence of [`TokenizedExample`]): The same rows in the teacher's tokens, with `step_starts`.
        counts (sequence of `int`): Steps of each row in the student's tokens, 0 where it has no score.
        first_row (`int`, *optional*, defaults to `0`): What messages call the first example.

    Returns:
        list of float64 arrays of shape `(count,)`: NaN where the teacher's tokens make another number of steps.
    """
    found = [np.full(count, np.nan) for count in counts]
    tokens = teacher.score(examples, first_row=first_row)
    for example, part, values in zip(examples, tokens.parts, found, strict=True):
        starts = np.flatnonzero(example.step_starts[example.scored]) if example.error is None else []
        if len(starts) and len(starts) == len(values):
            values[:] = np.add.reduceat(tokens.surprisals[part].astype(np.float64), starts)
    return found
