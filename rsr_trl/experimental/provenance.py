"""Which sentences of a trajectory come from the teacher, and which from the student. This file runs no model.

"Where Did This Sentence Come From?", arXiv:2512.20908; "divergence-aware sampling", arXiv:2601.09088: a model M gives
a sentence the geometric mean of its tokens' probabilities, p_M = exp(mean_i ln p_M(t_i)), over the model's own tokens.
It is the teacher's if p_T - p_S > 0.1, the student's if p_S - p_T > 0.1, else common; of a problem the trajectory with
the *most* teacher sentences is chosen. With p_D of the trained student, the first that holds counts: shared if no two
of the three differ by more than alpha, the teacher's, the student's, boosted.

Ours: sentences are those of [`split_sentences`] and end with a turn, and alpha is 0.1 too (we know of no published
splitter or alpha); a token belongs to the sentence in which it begins; a sentence that a model hasn't read whole, or
in which none of its tokens begins, has no class and isn't counted.
"""

import logging
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
from datasets import Dataset, Features, List, Value, concatenate_datasets
from numpy.typing import ArrayLike
from transformers import PreTrainedTokenizerBase

from rsr_trl.data import read_table
from rsr_trl.experimental.logprobs import places_and_surprisals
from rsr_trl.report.rows import TurnFinder, prompt_of, response_of
from rsr_trl.report.sections.provenance import NUM_SENTENCES, SENTENCES, by_class
from rsr_trl.report.tokens import FRAGMENT, check_token_columns, read_tokens
from rsr_trl.rsr import SCORE_PREFIX, TRUNCATED, RSRError
from rsr_trl.scoring.steps import split_sentences


logger = logging.getLogger(__name__)

COLUMN = SCORE_PREFIX + "provenance"
BEFORE, AFTER = ("teacher", "student", "common"), ("shared", "teacher", "student", "boosted")  # training
ALPHA = BETA = 0.1  # differences of probabilities


def classify(student: ArrayLike, teacher: ArrayLike, trained: ArrayLike | None = None) -> np.ndarray:
    """
    Where sentences come from, by their probabilities p_S, p_T and, after training, p_D: arrays of shape `(S,)`, as are
    the classes that it returns: of `BEFORE`, or with `trained` of `AFTER`; `""` where a probability is NaN.
    """
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    apart = np.ptp([student, teacher, student if trained is None else trained], axis=0)  # NaN where one is
    shared = (apart <= ALPHA) & (trained is not None)
    cases = [np.isnan(apart), shared, teacher - student > BETA, student - teacher > BETA]
    return np.select(cases, ["", "shared", "teacher", "student"], "common" if trained is None else "boosted")


def score_provenance(
    dataset: Dataset,
    processing_class: PreTrainedTokenizerBase,
    teacher: Dataset | str,
    teacher_processing_class: PreTrainedTokenizerBase | None = None,
) -> Dataset:
    """
    Add the number of teacher sentences, `score_provenance` (high), to a scored dataset; beside it, for the report,
    `provenance_num_sentences`, `provenance_teacher_share`, `..._student_share` and `..._common_share`, and
    `provenance_sentences` (`text`, `class`, `p_student`, `p_teacher` of each). Null where `rsr` is; also where the
    texts are others (of another tokenizer, say) or log-probabilities are missing, which a warning counts.

    Args:
        dataset (`Dataset`): Scored by the student with `token_stats=True`.
        processing_class, teacher_processing_class: Tokenizers of the student and of the teacher (by default the same).
        teacher (`Dataset` or `str`): The same rows, scored by the teacher's model with `token_stats=True`; or the
            column of `dataset` with what a server returned ([`~rsr_trl.experimental.logprobs.read_logprobs`]).

    `RSRError` for columns that are missing or there already, another number of rows, token ids that aren't in the
    tokenizer, or log-probabilities in another format.
    """
    if not isinstance(teacher, str):
        reader = _by_model(teacher, teacher_processing_class or processing_class, "teacher", len(dataset))
        return _with_columns(dataset, processing_class, "student", {"teacher": reader}, BEFORE)
    values = read_table(dataset, [teacher], "teacher")[teacher]

    def by_server(i: int, text: str, turns: list[str], cut: bool) -> _Read | None:
        found = places_and_surprisals(values[i].as_py(), turns, cut, f"Row {i}, column {teacher!r}")
        return found and _Read(text, *found)

    return _with_columns(dataset, processing_class, "student", {"teacher": by_server}, BEFORE)


def trace(
    before: Dataset,
    after: Dataset,
    teacher: Dataset,
    processing_class: PreTrainedTokenizerBase,
    teacher_processing_class: PreTrainedTokenizerBase | None = None,
) -> Dataset:
    """
    Where the sentences come from that a trained student writes. The same rows, its own responses to test problems, as
    the student before training, the one after it and the teacher scored them (`token_stats=True`); tokenizers as in
    [`score_provenance`]. Returns `after` with the columns that it adds but for the score, and the four classes
    ([`AFTER`], `provenance_shared_share` ..., `p_trained` of each sentence); [`table`] sums them up.
    """
    others = {"student": _by_model(before, processing_class, "student", len(after))}
    others["teacher"] = _by_model(teacher, teacher_processing_class or processing_class, "teacher", len(after))
    return _with_columns(after, processing_class, "trained", others, AFTER)


def table(dataset: Dataset) -> pd.DataFrame:
    """Of each class: its sentences, their share, and the mean probability that each model gives them."""
    return pd.DataFrame(by_class(dataset.with_format(None)[SENTENCES])).set_index("class")


class _Read(NamedTuple):
    """A response as a model read it: the text, where each token begins in it, and their surprisals (nats)."""

    text: str
    begins: np.ndarray
    surprisals: np.ndarray

    def probabilities(self, edges: np.ndarray) -> np.ndarray:
        """p_M of each sentence, shape `(S,)`; they begin and end at the characters `edges`, shape `(S + 1,)`."""
        own, size = np.searchsorted(edges, self.begins, side="right") - 1, len(edges) - 1
        inside = own < size
        count, total = (np.bincount(own[inside], x, size) for x in (None, self.surprisals[inside]))
        known = (count > 0) & (edges[1:] <= len(self.text))
        return np.where(known, np.exp(-total / np.maximum(count, 1)), np.nan)


def _read(row: dict, tokenizer: PreTrainedTokenizerBase) -> _Read:
    tokens = read_tokens(row, tokenizer)
    begins = np.cumsum([0, *(len(token.text) for token in tokens)])[:-1]
    text = "".join(token.text for token in tokens).rstrip(FRAGMENT)  # of a character that a length limit cut
    return _Read(text, begins, np.array([token.surprisal for token in tokens]))


def _rows(dataset: Dataset, whose: str) -> Dataset:
    try:
        check_token_columns(dataset.column_names)
    except RSRError as error:
        raise RSRError(f"The {whose}'s dataset: {error}") from None
    return dataset.with_format(None)


def _by_model(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, whose: str, size: int) -> Callable:
    if len(dataset) != size:
        raise RSRError(f"The {whose}'s dataset has {len(dataset)} rows instead of {size}: score the same rows.")
    rows = _rows(dataset, whose)

    def read(i: int, text: str, *_) -> _Read | None:
        other = _read(rows[i], tokenizer)
        # A first token may hold the space before it, which is the prompt's; a length limit may cut one text earlier.
        theirs, ours = other.text.lstrip(), text.lstrip()
        shift = len(theirs) - len(other.text) + len(text) - len(ours)
        found = _Read(text[: len(other.text) + shift], np.maximum(other.begins + shift, 0), other.surprisals)
        return found if theirs.startswith(ours) or ours.startswith(theirs) else None

    return read


def _with_columns(dataset: Dataset, tokenizer, own: str, others: dict, classes: tuple[str, ...]) -> Dataset:
    shares = {name: f"provenance_{name}_share" for name in classes}
    sentence = dict.fromkeys(("text", "class"), Value("string"))
    sentence |= {f"p_{model}": Value("float64") for model in (own, *others)}
    kinds = dict.fromkeys([COLUMN, *shares.values()] if classes == BEFORE else shares.values(), Value("float64"))
    kinds |= {NUM_SENTENCES: Value("int64"), SENTENCES: List(sentence)}
    if there := set(kinds) & set(dataset.column_names):
        raise RSRError(f"The dataset already has the column {min(there)}. Remove it first.")
    rows, turns, parts, unknown = _rows(dataset, own), TurnFinder(tokenizer), [], 0
    for start in range(0, max(len(rows), 1), 1000):  # sentences take less room as columns
        values = []
        for i in range(start, min(start + 1000, len(rows))):
            read = _read(row := rows[i], tokenizer)
            starts = read.begins[turns(row)].tolist() if read.text else []
            found = _sentences(i, read.text, starts, bool(row.get(TRUNCATED)), {own: read}, others)
            long = [one["text"].strip() for one in found if len(one["text"]) > 5]
            if long and (said := prompt_of(row) + response_of(row)) and not any(text in said for text in long):
                found = []  # the ids are another tokenizer's
            names = [one["class"] for one in found if one["class"]]
            value = {COLUMN: float(names.count("teacher")), NUM_SENTENCES: len(names), SENTENCES: found}
            value |= {column: names.count(name) / max(len(names), 1) for name, column in shares.items()}
            values.append(value if names else {})
            unknown += len(read.begins) > 0 and not names
        parts.append(Dataset.from_dict({name: [one.get(name) for one in values] for name in kinds}, Features(kinds)))
    if unknown:
        logger.warning(f"{unknown} of {len(rows)} rows have no provenance: other texts, or the teacher's are missing.")
    return concatenate_datasets([dataset, concatenate_datasets(parts)], axis=1).with_format(dataset.format["type"])


def _sentences(i: int, text: str, starts: list[int], cut: bool, reads: dict, others: dict) -> list[dict]:
    """Text, class and probabilities of each sentence of a row whose turns begin at `starts`; none if unknown."""
    turns = [text[start:stop] for start, stop in pairwise([*starts, len(text)])]
    reads |= {model: reader(i, text, turns, cut) for model, reader in others.items() if turns}
    if not turns or None in reads.values():
        return []
    spans = (start + stop for start, turn in zip(starts, turns, strict=True) for _, stop in split_sentences(turn))
    edges = np.array([0, *spans])
    p = {model: read.probabilities(edges) for model, read in reads.items()}
    found = [{"text": text[start:stop]} for start, stop in pairwise(edges.tolist())]
    for j, kind in enumerate(classify(p["student"], p["teacher"], p.get("trained")).tolist()):
        found[j] |= {"class": kind, **{f"p_{model}": float(values[j]) for model, values in p.items()}}
    return found
