"""Surprisals in another context than the trajectory's own: without its prompt, with a short memory, or to a teacher.

Each is a pass of its own over examples derived from those of the first pass. It knows tokens and the student, and
neither datasets nor what the numbers are for.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from rsr_trl.scoring.student import Student
from rsr_trl.scoring.tokens import TokenizedExample
from rsr_trl.scoring.windows import WINDOW_TOKENS


def surprisals_alone(
    student: Student, examples: Sequence[TokenizedExample], bos_token_id: int | None, first_row: int = 0
) -> list[np.ndarray]:
    """
    Surprisals of each example's scored tokens without what stands before the first of them.

    Args:
        student ([`Student`]): Who predicts.
        examples (sequence of [`TokenizedExample`]): Those with an `error` get an empty array.
        bos_token_id (`int`, *optional*): Kept in front where the example begins with it.
        first_row (`int`, *optional*, defaults to `0`): What messages call the first example.

    Returns:
        list of float64 arrays of shape `(K,)`: NaN for tokens that nothing stands before, and for all tokens if no
        more than one token is left out.
    """
    found = [np.full(int(example.scored.sum()), np.nan) for example in examples]
    alone = [_without_prompt(example, bos_token_id) for example in examples]
    if any(example.error is None for example in alone):
        for i, scores in student.score(alone, first_row=first_row):
            found[i][len(found[i]) - len(scores.surprisals) :] = scores.surprisals
    return found


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
) -> list[np.ndarray]:
    """
    Surprisals of each example's scored tokens, given what stands before their turn and the last steps of it.

    Args:
        student ([`Student`]): Who predicts.
        examples (sequence of [`TokenizedExample`]): With `step_starts`. Those with an `error` get an empty array.
        num_steps (`int`): Steps before a step that stay in view.
        first_row (`int`, *optional*, defaults to `0`): What messages call the first example.

    Returns:
        list of float64 arrays of shape `(K,)`.
    """
    found = [np.full(int(example.scored.sum()), np.nan) for example in examples]
    # Every step becomes an example with the prompt in front: many more tokens than there were, so a few at a time.
    waiting, owners, tokens = [], [], 0

    def score() -> None:
        try:
            for i, scores in student.score(waiting):
                row, place = owners[i]
                found[row][place : place + len(scores.surprisals)] = scores.surprisals
        except FloatingPointError as error:
            rows = f"rows {first_row + owners[0][0]} to {first_row + owners[-1][0]}"
            raise FloatingPointError(f"The student gives NaN or infinite logits on steps of {rows}.") from error

    for row, example in enumerate(examples):
        place = 0
        for window in _local_windows(example, num_steps):
            waiting.append(window)
            owners.append((row, place))
            place += int(window.scored.sum())
            tokens += len(window.input_ids)
        if tokens >= WINDOW_TOKENS:
            score()
            waiting, owners, tokens = [], [], 0
    if waiting:
        score()
    return found


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
    if any(example.error is None for example in examples):
        for i, scores in teacher.score(examples, first_row=first_row):
            starts = np.flatnonzero(examples[i].step_starts[examples[i].scored])
            if len(starts) == len(found[i]):
                found[i][:] = np.add.reduceat(scores.surprisals.astype(np.float64), starts)
    return found
