"""Which share of a trajectory's reasoning steps comes from the teacher rather than from the student.

After "Where Did This Sentence Come From?" (arXiv:2512.20908): compares the student's token statistics with those
of the teacher's model, or with the log-probabilities that a server returned when the teacher wrote. Runs no model.
"""

import codecs
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import compress
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import ArrayLike
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from rsr_trl.rsr import SCORE_PREFIX, TOKEN_IDS, TOKEN_SURPRISALS, RSRError
from rsr_trl.scoring.scorer import FORMAT_COLUMNS
from rsr_trl.scoring.tokens import ExampleTokenizer, TokenizedExample


logger = logging.getLogger(__name__)

COLUMN = SCORE_PREFIX + "provenance"
TEACHERS_OWN = 0.1  # nats per token by which the teacher has to be surer of a step than the student
ROUNDING = 1e-3  # nats by which a server may round above a probability of 1
EXPECTED = (
    "Expected is what the chat completions API of OpenAI, vLLM and SGLang returns as `logprobs`: {'content': "
    "[{'token': str, 'logprob': float, 'bytes': [int] or null}, ...]}, or that list alone; for conversations with "
    "several scored turns a list of them, one per turn; null where there are none."
)
_THINK_TAG = re.compile(r"</?think>\s*")
_END_OF_TURN = re.compile(r"(?:\s*[<\[][^\s<>]*[>\[\]]){0,2}\s*")  # </s>, <|im_end|>, [EOS], [e~[; only space
_LOST = re.compile("(\N{REPLACEMENT CHARACTER}+)")


def provenance(student: ArrayLike, teacher: ArrayLike, num_tokens: ArrayLike) -> float:
    """
    Share of the steps that come from the teacher: those to which it gives at least 0.1 nats per token more
    log-probability than the student does. High. After arXiv:2512.20908, which chooses data by what stems from the
    teacher; steps instead of sentences, the threshold and making a share of it are ours.

    Args:
        student, teacher (float arrays of shape `(S,)`): Surprisal of each step in nats, summed over its tokens. A step
            with a NaN is left out.
        num_tokens (int array of shape `(S,)`): The student's tokens in each step.

    Returns:
        `float`: NaN if no step is left.
    """
    gaps = (np.asarray(student, np.float64) - np.asarray(teacher, np.float64)) / np.asarray(num_tokens)
    known = ~np.isnan(gaps)
    return float(np.mean(gaps[known] >= TEACHERS_OWN)) if known.any() else math.nan


def score_provenance(
    dataset: Dataset,
    processing_class: PreTrainedTokenizerBase,
    teacher: Dataset | str,
    teacher_processing_class: PreTrainedTokenizerBase | None = None,
    **settings,
) -> Dataset:
    """
    Add the column `score_provenance` ([`provenance`]; the high end is chosen first) to a scored dataset.

    Only probabilities of whole steps ([`~rsr_trl.scoring.steps.split_steps`]) are compared, so the teacher may have
    another tokenizer. Null where `rsr` is; where the teacher's tokens fall into another number of steps (its template
    writes more text, or another length limit cuts); and where log-probabilities are missing or of another text.

    Args:
        dataset (`Dataset`): Scored by the student with `token_stats=True`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]): The student's tokenizer.
        teacher (`Dataset` or `str`): The same rows, scored by the teacher's model with `token_stats=True`; or the
            column of `dataset` with a server's `choice.logprobs` (or its `content`; a list of them for several turns).
        teacher_processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*): Tokenizer of the teacher's
            model; the student's by default.
        settings: `assistant_only_loss` and `dataset_text_field`, as the rows were scored.

    Raises:
        RSRError: for missing columns, another number of rows, token ids of another tokenizer, or log-probabilities
            that aren't in the servers' format.
    """
    if COLUMN in dataset.column_names:
        raise RSRError(f"The dataset already has the column {COLUMN}. Remove it first.")
    rows = _scored_rows(dataset, dataset, ExampleTokenizer(processing_class, with_steps=True, **settings), "student")
    if isinstance(teacher, str):
        if teacher not in dataset.column_names:
            raise RSRError(f"The dataset has no column {teacher!r}. Its columns are {dataset.column_names}.")
        values = dataset.with_format(None).select_columns(teacher)
        pairs = (
            (row, row and _sums_by_server(row, said[teacher], f"Row {i}, column {teacher!r}", processing_class))
            for i, (row, said) in enumerate(zip(rows, values, strict=True))
        )
    else:
        tokenize = ExampleTokenizer(teacher_processing_class or processing_class, with_steps=True, **settings)
        others = _scored_rows(teacher, dataset, tokenize, "teacher")
        pairs = ((row, other and other.sums) for row, other in zip(rows, others, strict=True))
    shares = [_share(row, sums) for row, sums in pairs]
    if unknown := sum(share is not None and math.isnan(share) for share in shares):
        logger.warning(
            f"{unknown} of {len(dataset)} rows have no {COLUMN}: what the teacher says of them is missing, of another "
            "text or in other steps."
        )
    return dataset.add_column(COLUMN, pa.array(shares, pa.float64(), from_pandas=True))


class _Row(NamedTuple):
    example: TokenizedExample  # the whole row, whatever the length limit of the scoring
    surprisals: np.ndarray  # of its scored tokens, as many as were scored
    starts: np.ndarray  # which of these begin a step: ints of shape `(S,)`

    @property
    def sums(self) -> np.ndarray:
        """Surprisal of each step, summed: `(S,)`."""
        return np.add.reduceat(self.surprisals, self.starts)


def _scored_rows(scored: Dataset, texts: Dataset, tokenize: ExampleTokenizer, whose: str) -> Iterator[_Row | None]:
    """The rows one by one, `None` for those without a score."""
    if missing := {TOKEN_IDS, TOKEN_SURPRISALS} - set(scored.column_names):
        raise RSRError(f"The {whose}'s dataset has no {min(missing)}. Score it with RSRScorer(..., token_stats=True).")
    if len(scored) != len(texts):
        raise RSRError(f"The {whose}'s dataset has {len(scored)} rows instead of {len(texts)}: score the same rows.")
    wanted = (*FORMAT_COLUMNS, tokenize.dataset_text_field)
    texts = texts.with_format(None).select_columns([name for name in texts.column_names if name in wanted])
    stats = scored.with_format("numpy", [TOKEN_IDS, TOKEN_SURPRISALS])
    for i, (text, of_tokens) in enumerate(zip(texts, stats, strict=True)):
        (example,), ids = tokenize([text]), of_tokens[TOKEN_IDS]
        if not np.array_equal(example.input_ids[example.scored][: len(ids)], ids):
            raise RSRError(
                f"Row {i}: its {TOKEN_IDS} aren't those of the {whose}'s tokenizer. Pass the tokenizer and settings "
                "with which it was scored."
            )
        if len(ids):
            starts = np.flatnonzero(example.step_starts[example.scored][: len(ids)])
            yield _Row(example, np.asarray(of_tokens[TOKEN_SURPRISALS], np.float64), starts)
        else:
            yield None


def _share(row: _Row | None, teacher: np.ndarray | None) -> float | None:
    """Provenance of a row: `None` if it isn't scored, NaN if the teacher's steps aren't known or others."""
    if row is None:
        return None
    if teacher is None or len(teacher) != len(row.starts):
        return math.nan
    return provenance(row.sums, teacher, np.diff(row.starts, append=len(row.surprisals)))


# ------------------------------------------------------------------------------------- a server's log-probabilities


def _sums_by_server(row: _Row, value: object, where: str, tokenizer: PreTrainedTokenizerBase) -> np.ndarray | None:
    """The teacher's sums from a server's log-probabilities; `None` if they are missing or of another text."""
    try:
        turns = read_logprobs(value)
    except ValueError as error:
        advice = f"Fix the row, or set its value to null: it gets no {COLUMN} then."
        raise RSRError(f"{where}: {error}. {EXPECTED} {advice}") from None
    example, left, sums = row.example, len(row.surprisals), []
    if len(turns) != len(example.runs):
        return None
    for said, (begin, end) in zip(turns, example.runs.tolist(), strict=True):
        stop = min(end, begin + left)  # where the student's length limit cuts
        left -= stop - begin
        if stop == begin:
            break
        if begin == 1 and example.input_ids[0] not in tokenizer.all_special_ids:
            begin = 0  # nothing predicts the first token of a row, but it's text
        stream, backend = DecodeStream(skip_special_tokens=False), tokenizer.backend_tokenizer
        pieces = [stream.step(backend, token) or "" for token in example.input_ids[begin:end].tolist()]
        edges, starts = _count(map(len, pieces)), np.flatnonzero(example.step_starts[begin:stop])
        indents = [0, *(len(pieces[k]) - len(pieces[k].lstrip()) for k in starts[1:])]
        seen = min(edges[stop - begin] + (not pieces[stop - begin - 1]), edges[-1])  # with a character that is cut
        sums.append(said and step_sums(said, "".join(pieces), edges[starts] + indents, seen))
    return None if any(part is None for part in sums) else np.concatenate(sums)


class Said(NamedTuple):
    """What a server returned for one response: its tokens as text, and their surprisals in nats."""

    text: str
    edges: np.ndarray  # where in the text each token begins, and where the last one ends: (n + 1,)
    leads_on: np.ndarray  # whether a token holds a part of the character after it: (n,)
    surprisals: np.ndarray


def read_logprobs(value: object) -> list[Said | None]:
    """What a server returned: one response, or one per turn; `None` where there is none. `ValueError` says why."""

    def is_turn(part: object) -> bool:
        return isinstance(part, list) or (isinstance(part, Mapping) and "content" in part)

    if isinstance(value, list) and value and (any(map(is_turn, value)) or value.count(None) == len(value)):
        return [_read_turn(part, f"turn {i}, ") for i, part in enumerate(value)]
    return [_read_turn(value, "")]


def _read_turn(value: object, where: str) -> Said | None:
    tokens = value["content"] if isinstance(value, Mapping) and "content" in value else value
    if tokens is None:
        return None
    if not isinstance(tokens, list):
        raise ValueError(f"{where}{_kind(tokens)} instead of a list of tokens")
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces, leads_on, surprisals = [], [], []
    for i, token in enumerate(tokens):
        try:
            raw, logprob = _read_token(token)
        except ValueError as error:
            raise ValueError(f"{where}token {i} {error}") from None
        pieces.append(decoder.decode(raw))
        leads_on.append(bool(decoder.getstate()[0]) or not raw)  # vLLM leaves the first tokens of a character empty
        surprisals.append(-logprob)
    edges = _count(map(len, pieces))
    return Said("".join(pieces), edges, np.array(leads_on, dtype=bool), np.array(surprisals, dtype=np.float64))


def _read_token(token: object) -> tuple[bytes, float]:
    if not isinstance(token, Mapping):
        raise ValueError(f"is {_kind(token)} instead of a token with a logprob")
    text, raw, logprob = token.get("token"), token.get("bytes"), token.get("logprob")
    if not isinstance(logprob, (int, float)):
        raise ValueError(f"has {_kind(logprob)} as its logprob instead of a number")
    if not logprob <= ROUNDING:
        raise ValueError(f"has the logprob {logprob}, which is no log-probability")
    if raw:
        try:
            return bytes(raw if isinstance(raw, list) else [raw]), logprob
        except (TypeError, ValueError):
            raise ValueError("has `bytes` that are not a list of numbers from 0 to 255") from None
    if not isinstance(text, str):
        raise ValueError(f"has {_kind(text)} as its text (`token`) instead of a string")
    return text.encode("utf-8", "surrogatepass"), logprob


def step_sums(said: Said, response: str, starts: np.ndarray, stop: int) -> np.ndarray | None:
    """
    The teacher's surprisal of each step of a response, summed: float64 of shape `(S,)`. NaN for steps in which no
    token ends; `None` if the server's text is another.

    Steps begin at the characters `starts`, shape `(S,)`, and the last one ends at `stop`; a token belongs to the step
    in which it ends. The server's text may have an end-of-turn token after the response, and differ from it in white
    space and in `<think>` and `</think>`, which servers and chat templates strip and add; steps that hold such a tag
    are NaN then.
    """
    for with_space, with_tags in ((True, True), (False, True), (False, False)):
        written, in_written = _reduced(response, with_space, with_tags)
        spoken, in_spoken = _reduced(said.text, with_space, with_tags)
        places = _places(spoken, written)
        if places is not None:
            break
    else:
        return None
    first, end = in_spoken[said.edges[:-1]], np.minimum(in_spoken[said.edges[1:]] + said.leads_on, len(places))
    own = first < len(places)
    if not with_tags:
        own &= (np.diff(_count(_in_tags(said.text))[said.edges]) == 0) | (np.diff(in_spoken[said.edges]) > 0)
    first, end, surprisals = first[own], end[own], said.surprisals[own]
    steps = np.searchsorted(in_written[starts], np.where(end > 0, places[end - 1], -1), side="right") - 1
    inside = (steps >= 0) & (places[first] < in_written[stop])
    sums = np.bincount(steps[inside], surprisals[inside], minlength=len(starts)).astype(np.float64)
    unknown = np.bincount(steps[inside], minlength=len(starts)) == 0
    if not with_tags:
        unknown |= np.diff(_count(_in_tags(response))[np.append(starts, stop)]) > 0
    return np.where(unknown, np.nan, sums)


def _reduced(text: str, with_space: bool, with_tags: bool) -> tuple[str, np.ndarray]:
    """The characters that count; and how many of them stand before each place in the text, its end included."""
    kept = np.array([with_space or not letter.isspace() for letter in text], dtype=bool)
    kept &= with_tags | ~_in_tags(text)
    return "".join(compress(text, kept)), _count(kept)


def _count(numbers: Iterable[int]) -> np.ndarray:
    return np.cumsum([0, *numbers])


def _in_tags(text: str) -> np.ndarray:
    """Which characters belong to a think tag: bool of shape `(len(text),)`."""
    inside = np.zeros(len(text), dtype=bool)
    for tag in _THINK_TAG.finditer(text):
        inside[tag.start() : tag.end()] = True
    return inside


def _places(spoken: str, written: str) -> np.ndarray | None:
    """
    Where in `written` each character of `spoken` stands, without an end of turn; `None` if they differ.

    Some servers write a replacement character for each token of a character that takes several: a run of them may
    stand for any characters outside of ASCII, of up to four bytes each.
    """
    parts, places, at = _LOST.split(spoken), [], 0
    for i in range(0, len(parts), 2):  # a run, of no length at first, and the text after it
        run, text = len(parts[i - 1]) if i else 0, parts[i]
        for width in range(-(-run // 4), run + 1):
            if i + 1 == len(parts):  # the end
                own = len(written) - at - width
                fits = own >= 0 and text[:own] == written[at + width :] and _END_OF_TURN.fullmatch(text, own)
            else:
                own = len(text)
                fits = written.startswith(text, at + width)
            if fits and not any(map(str.isascii, written[at : at + width])):
                break
        else:
            return None
        places += [at + np.arange(run) * width // max(run, 1), at + width + np.arange(own)]
        at += width + own
    return np.concatenate(places)


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
