"""The shortest beginning of a trajectory that suffices for the student, continued by the student itself.

P-ALIGN (arXiv:2601.10064; NEUIR/P-ALIGN). Of the sentences s_1..s_n of the teacher's reasoning:

    prefix        s_1..s_m with the smallest m that bisection over 1..n finds sufficient; all n where it finds none
    sufficient    the student, asked in its own chat without thinking, answers [ENOUGH] and not [NOT_ENOUGH]
    continuation  what the student writes when it is shown problem and prefix, without thinking too
    kept          prefix and continuation as the response, where the continuation's answer is right

Bisection finds the shortest one only if a longer prefix never suffices less, which nothing guarantees. Ours: the words
of both prompts, to the same effect as theirs; the verdict is the more likely one of the two, by its log-probability
(theirs samples a reply); sentences end as [`split_sentences`] says (theirs at ". "); the continuation is greedy
(theirs sampled); no tags stand around the prefix (theirs: <Begin_of_Draft> and <End_of_Draft>).
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from datasets import Dataset
from datasets.utils import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rsr_trl.experimental.generation import Lines, name_of
from rsr_trl.formats import check_no_images
from rsr_trl.pilot.held_out import generate, load_checker, prompt_ids
from rsr_trl.rsr import ERROR, MEAN_SURPRISAL, NUM_TOKENS, TRUNCATED, RSRError
from rsr_trl.scoring.architecture import num_positions
from rsr_trl.scoring.fingerprint import student_fingerprint, weights_fingerprint
from rsr_trl.scoring.rows import TokenBar
from rsr_trl.scoring.scorer import RSRScorer
from rsr_trl.scoring.steps import split_sentences


logger = logging.getLogger(__name__)

VERDICTS = ("[ENOUGH]", "[NOT_ENOUGH]")
SAME_VERDICTS = 20  # so many of one kind, and none of the other, aren't judgements
NO_THINKING = {"enable_thinking": False}
# The problem and the prefix stand last: what rows begin with alike is read once.
JUDGE = (
    "Below are a problem and the beginning of a solution. Does the beginning already contain the decisive ideas and "
    f"steps, so that only routine work is left until the answer? Answer {VERDICTS[0]} if it does, or {VERDICTS[1]} "
    "if a decisive step is still missing. Write nothing else.\n\n"
    "Problem:\n{question}\n\nBeginning of the solution:\n{prefix}"
)
CONTINUE = (
    "Solve the problem below. The draft holds the first part of the reasoning: go on where it ends, step by step, and "
    "put the final answer in \\boxed{{}}.\n\nProblem:\n{question}\n\nDraft:\n{prefix}"
)
COLUMNS = {
    "prefix": pa.string(),
    "prefix_sentences": pa.int64(),
    "prefix_share": pa.float64(),
    "prefix_sufficient": pa.bool_(),
}


def verdict_margins(scorer: RSRScorer, questions: Sequence[str], prefixes: Sequence[str], bar=None) -> np.ndarray:
    """
    ln p([ENOUGH]) - ln p([NOT_ENOUGH]) in nats, float64 of shape `(n,)`: above 0 the prefix is sufficient. NaN where
    the scorer can't read a verdict to its end, as beyond its `max_length`.
    """
    rows = [
        {
            "prompt": _user(JUDGE.format(question=question, prefix=prefix)),
            "completion": [{"role": "assistant", "content": verdict}],
            "chat_template_kwargs": NO_THINKING,
        }
        for question, prefix in zip(questions, prefixes, strict=True)
        for verdict in VERDICTS
    ]
    table = scorer.score_rows(Dataset.from_list(rows), bar or TokenBar(None, disable=True))
    read = np.array(table[ERROR].is_null()) & ~np.array(table[TRUNCATED])
    log_probs = np.where(read, -np.array(table[MEAN_SURPRISAL]) * np.array(table[NUM_TOKENS]), np.nan)
    return log_probs[0::2] - log_probs[1::2]


def find_prefixes(dataset: Dataset, scorer: RSRScorer) -> Dataset:
    """
    Add `prefix`, `prefix_sentences`, `prefix_share` (of the sentences) and `prefix_sufficient` (false: none was found,
    and the prefix is all the reasoning) to rows of `prompt` and `completion`. Every halving is one scoring pass over
    all rows. Null where there is no reasoning or no verdict; a warning counts those.
    """
    if scorer.processing_class.chat_template is None:
        raise RSRError("P-ALIGN asks the student in its chat: its tokenizer needs a chat template.")
    if taken := sorted(COLUMNS.keys() & set(dataset.column_names)):
        raise RSRError(f"The dataset already has {taken}. Remove or rename them.")
    _check_columns(dataset, "prompt", "completion")
    check_no_images(dataset, "P-ALIGN")
    texts = [_texts(i, row) for i, row in enumerate(dataset.with_format(None))]
    stops = [[0, *(stop for _, stop in split_sentences(reasoning))] for _, reasoning in texts]
    low, high = np.ones(len(texts), int), np.array([len(ends) - 1 for ends in stops])
    total, best, unread, said = high.copy(), np.zeros_like(high), high == 0, []
    with TokenBar(None) as bar:
        while (rows := np.flatnonzero((low <= high) & ~unread)).size:
            middle = (low + high)[rows] // 2
            prefixes = [texts[i][1][: stops[i][m]].rstrip() for i, m in zip(rows, middle, strict=True)]
            margins = verdict_margins(scorer, [texts[i][0] for i in rows], prefixes, bar)
            said += (margins[~np.isnan(margins)] > 0).tolist()
            unread[rows] = np.isnan(margins)
            best[rows] = np.where(margins > 0, middle, best[rows])
            high[rows] = np.where(margins > 0, middle - 1, high[rows])
            low[rows] = np.where(margins > 0, low[rows], middle + 1)
    kept = np.where(best > 0, best, total)
    prefix = [reasoning[: ends[m]].rstrip() for (_, reasoning), ends, m in zip(texts, stops, kept, strict=True)]
    values = (prefix, kept, kept / np.maximum(total, 1), best > 0)
    for (name, kind), column in zip(COLUMNS.items(), values, strict=True):
        dataset = dataset.add_column(name, pa.array(column, kind, mask=unread))
    if unread.any():
        logger.warning(
            f"{unread.sum()} of {len(dataset)} rows have no prefix (first: row {unread.argmax()}): the response is "
            f"empty, or question and prefix are longer than max_length={scorer.max_length}."
        )
    if len(said) >= SAME_VERDICTS and len(set(said)) == 1:
        logger.warning(
            f"All {len(said)} verdicts are {VERDICTS[not said[0]]}: the student doesn't judge. Don't use its prefixes."
        )
    return dataset


def _check_columns(dataset: Dataset, *names: str) -> None:
    if missing := [name for name in names if name not in dataset.column_names]:
        raise RSRError(f"P-ALIGN needs the columns {missing}; the dataset has {dataset.column_names}.")


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _texts(i: int, row: dict) -> tuple[str, str]:
    """What is asked, and the reasoning of the response: what it thinks, or all of it where it doesn't think."""
    turns = []
    for column, role in (("prompt", "user"), ("completion", "assistant")):
        value = row[column]
        turn = [m for m in value if m["role"] == role] if isinstance(value, list) else [{"content": value}]
        if len(turn) != 1 or not isinstance(turn[0]["content"], str):
            raise RSRError(f"Row {i}: P-ALIGN needs one {role} turn of text in {column}, got {value!r:.200}.")
        turns += turn
    question, answer = turns
    thought = answer.get("reasoning_content") or answer["content"].partition("</think>")[0].removeprefix("<think>")
    return question["content"], thought.strip()


def continue_prefixes(
    dataset: Dataset,
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    output_file: str,
    answer_column: str,
    checker: str | Callable[[str, object], bool] = "math",
    max_new_tokens: int = 4096,
    batch_size: int = 8,
) -> Dataset:
    """
    Add `continuation`, the student's greedy one of each `prefix`, and `continuation_error`: why it isn't to be trained
    on, null where it is. Each batch is written to `output_file`, so the same call resumes. `checker` is a name of
    [`~rsr_trl.pilot.held_out.load_checker`] or a function of response and answer.
    """
    is_correct = load_checker(checker) if isinstance(checker, str) else checker
    _check_columns(dataset, "prompt", "completion", "prefix", answer_column)
    rows, positions = dataset.to_list(), num_positions(model.config)
    asked = [_user(CONTINUE.format(question=_texts(i, row)[0], prefix=row["prefix"])) for i, row in enumerate(rows)]
    ids = [prompt_ids(processing_class, prompt, None, NO_THINKING) for prompt in asked]
    student = student_fingerprint(weights_fingerprint(model), model.dtype, processing_class)
    lines = Lines(output_file, name_of(student, max_new_tokens), list(map(name_of, ids)))
    errors = {i: "no prefix" for i, row in enumerate(rows) if row["prefix"] is None}
    errors |= {
        i: f"fills the student's {positions} positions" for i, prompt in enumerate(ids) if len(prompt) >= positions
    }
    left = [i for i in range(len(rows)) if i not in errors and (i, 0) not in lines.found]
    left.sort(key=lambda i: -len(ids[i]))
    for start in tqdm(range(0, len(left), batch_size), desc="Continuing", unit=" batches"):
        batch = left[start : start + batch_size]
        written = generate(model, processing_class, [ids[i] for i in batch], max_new_tokens)
        for i, (text, cut) in zip(batch, written, strict=True):
            lines.add(i, 0, continuation=text, cut=cut)
    texts = [None if i in errors else lines.found[i, 0]["continuation"] for i in range(len(rows))]
    for i, text in enumerate(texts):
        if text is not None and lines.found[i, 0]["cut"]:
            errors[i] = f"no end within {max_new_tokens} tokens"
        elif text is not None and not is_correct(text, rows[i][answer_column]):
            errors[i] = "wrong answer"
    dataset = dataset.add_column("continuation", pa.array(texts, pa.string()))
    return dataset.add_column("continuation_error", pa.array(map(errors.get, range(len(rows))), pa.string()))


def aligned_rows(dataset: Dataset) -> Dataset:
    """The rows to train on: those without `continuation_error`, with prefix and continuation as `completion`."""

    def align(row: dict) -> dict:
        text = f"{row['prefix']}\n\n{row['continuation']}"
        chat = isinstance(row["prompt"], list)
        return {"completion": [{"role": "assistant", "content": text}] if chat else text}

    kept = dataset.filter(lambda row: row["continuation_error"] is None)
    return kept.map(align, remove_columns="completion")
