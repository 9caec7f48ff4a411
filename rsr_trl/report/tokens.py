"""The scored tokens of one row as text with rank and surprisal, its sentences with an RSR each, and the colour scale.

For whatever draws a trajectory, the page or the terminal. This file knows no layout.
"""

import math
import unicodedata
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from rsr_trl.data import card_facts, is_written_as_path, scoring_settings
from rsr_trl.report.format import visible
from rsr_trl.rsr import TOKEN_IDS, TOKEN_RANKS, TOKEN_SURPRISALS, TOKEN_TOP1, RSRError, trajectory_rsr
from rsr_trl.scoring.loading import find_tokenizer, with_chat_template
from rsr_trl.scoring.steps import split_sentences


TOKEN_STATISTICS = (TOKEN_IDS, TOKEN_RANKS, TOKEN_SURPRISALS)
FRAGMENT = "\N{REPLACEMENT CHARACTER}"
MAX_CHARACTER_TOKENS = 8  # a character has up to 4 bytes; a token may hold the end of one and the start of the next
LEVELS = {"surprisal": (0.0, 0.1, 0.5, 1.0, 2.0, 4.0), "rank": (1, 2, 3, 6, 21, 101)}  # where each colour begins


@dataclass(frozen=True)
class Token:
    """
    One scored token: its 1-based rank, not clipped, its surprisal in nats, and the student's own most likely token in
    its place, fit to be shown (`None` if it isn't stored).

    `text` is what it adds to the trajectory: the texts of all tokens joined are the scored text. Of a character whose
    bytes are spread over several tokens, the last of them has the character and the others are empty. To draw a token,
    take [`Token.shown`].
    """

    text: str
    rank: int
    surprisal: float
    top1: str | None = None

    @property
    def probability(self) -> float:
        return math.exp(-self.surprisal)

    @property
    def shown(self) -> str:
        """Its text as something that can be seen: see [`~rsr_trl.report.format.visible`]; U+FFFD for a part only."""
        return _shown(self.text)

    def level(self, by: Literal["surprisal", "rank"]) -> int:
        """Its colour, from 0 (foreseen) to 5."""
        return bisect_right(LEVELS[by], getattr(self, by)) - 1


@dataclass(frozen=True)
class Sentence:
    """
    A sentence of a trajectory: the tokens `[start, stop)`, their RSR (Eq. 7; `inf` if the student foresaw every token
    with certainty), and the assistant's scored turn that it is in, counted from 1.
    """

    start: int
    stop: int
    rsr: float
    turn: int = 1


def level_names(by: Literal["surprisal", "rank"]) -> list[str]:
    """What each colour stands for."""
    begins, last = LEVELS[by], 1 if by == "rank" else 0  # whole numbers end before the next level begins
    spans = [(low, high - last) for low, high in pairwise(begins)]
    names = [f"{low:g}" if low == high else f"{low:g}-{high:g}" for low, high in spans]
    return [*names, f"{begins[-1]:g} or more"]


def _shown(token_text: str) -> str:
    text = visible(token_text) or FRAGMENT
    # An accent or a joiner alone has no width: the dotted circle is the usual place to put one.
    is_mark = all(unicodedata.category(character) in ("Mn", "Me", "Cf") for character in text)
    return f"\N{DOTTED CIRCLE}{text}" if is_mark else text


def check_token_columns(column_names: Iterable[str]) -> None:
    """Raise `RSRError` unless these columns hold the statistics of tokens."""
    if missing := [name for name in TOKEN_STATISTICS if name not in column_names]:
        raise RSRError(
            f"There is no column {missing[0]!r}, so tokens can't be shown. Score the dataset with "
            "`rsr score --token_stats`, or RSRScorer(..., token_stats=True)."
        )


def read_tokens(row: Mapping, tokenizer: PreTrainedTokenizerBase) -> list[Token]:
    """
    Read the scored tokens of one row with the student's tokenizer; none for a row that has no score.

    Several assistant turns follow each other without what stood between them, which isn't scored;
    [`~rsr_trl.report.rows.TurnFinder`] finds where they begin. Raises `RSRError` if the columns are missing or
    disagree, or if ids aren't this tokenizer's.
    """
    check_token_columns(row)
    ids, ranks, surprisals = ([] if row[name] is None else list(row[name]) for name in TOKEN_STATISTICS)
    top1 = row.get(TOKEN_TOP1)
    top1 = None if top1 is None else list(top1)
    if len({len(values) for values in (ids, ranks, surprisals, ids if top1 is None else top1)}) > 1:
        raise RSRError(
            f"The token columns of a row have different lengths: {len(ids)} ids, {len(ranks)} ranks, "
            f"{len(surprisals)} surprisals{'' if top1 is None else f', {len(top1)} of {TOKEN_TOP1}'}."
        )
    decode = _Decoder(tokenizer, {*ids, *(top1 or [])})
    if unknown := [i for i in ids if i not in decode.alone]:
        raise RSRError(
            f"Token id {unknown[0]} is unknown to the tokenizer, which has {len(tokenizer):,}. Pass the tokenizer of "
            "the student that scored the dataset (--tokenizer)."
        )
    # Where a student's head is wider than its vocabulary, its own choice may be no token at all.
    own = [None] * len(ids) if top1 is None else [_shown(decode.alone.get(i, f"<id {i}>")) for i in top1]
    return [
        Token(text, int(rank), float(surprisal), top)
        for text, rank, surprisal, top in zip(decode.texts(ids), ranks, surprisals, own, strict=True)
    ]


class _Decoder:
    """Text of single tokens as it stands in the middle of a text, whatever the kind of tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ids: Collection[int]):
        self._tokenizer = tokenizer
        # SentencePiece tokenizers drop the space before the first token. So there is always another one before it.
        self._context = tokenizer.encode("a", add_special_tokens=False)
        self._before = self._decode([self._context])[0]
        known = [i for i in ids if i >= 0 and tokenizer.convert_ids_to_tokens(int(i)) is not None]
        self.alone: dict[int, str] = dict(zip(known, self._in_context([[i] for i in known]), strict=True))

    def texts(self, ids: Sequence[int]) -> list[str]:
        """Text of each token of a sequence."""
        texts, place = [], 0
        while place < len(ids):
            group = [self.alone[ids[place]]]
            if FRAGMENT in group[0]:
                group = self._character(ids[place : place + MAX_CHARACTER_TOKENS]) or group
            texts += group
            place += len(group)
        return texts

    def _character(self, ids: Sequence[int]) -> list[str] | None:
        """Texts of as many tokens as it takes until their bytes are whole characters; `None` if they never are."""
        growing = self._in_context([ids[: i + 1] for i in range(len(ids))])
        whole = next((i for i, text in enumerate(growing) if FRAGMENT not in text), None)
        if whole is None:
            return None
        # Bytes that can't be decoded yet show as fragments at the end.
        ends = [len(text.rstrip(FRAGMENT)) for text in growing[: whole + 1]]
        return [growing[whole][start:stop] for start, stop in pairwise([0, *ends])]

    def _in_context(self, sequences: list[Sequence[int]]) -> list[str]:
        return [
            text.removeprefix(self._before) for text in self._decode([[*self._context, *ids] for ids in sequences])
        ]

    def _decode(self, sequences: list[list[int]]) -> list[str]:
        decode = self._tokenizer.decode
        return [decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) for ids in sequences]


def rsr_of(tokens: Sequence[Token], r_max: float) -> float:
    """RSR of these tokens, Eq. 7."""
    return trajectory_rsr([token.rank for token in tokens], [token.surprisal for token in tokens], r_max)


def sentences(tokens: Sequence[Token], r_max: float, turns: Sequence[int] = (0,)) -> list[Sentence]:
    """
    Split a trajectory into sentences and give the RSR of each, with ranks clipped at `r_max`. `turns` are the first
    tokens of the assistant's turns, with which sentences end. A token over a border belongs to the sentence in which
    it begins.
    """
    return [
        Sentence(first + start, first + stop, rsr_of(tokens[first + start : first + stop], r_max), turn)
        for turn, (first, last) in enumerate(pairwise([*turns, len(tokens)]), start=1)
        for start, stop in pairwise(_borders(tokens[first:last]))
    ]


def _borders(tokens: Sequence[Token]) -> list[int]:
    """First token of each sentence, and the number of tokens."""
    # A token without text of its own begins where the character begins that it is a part of.
    begins = np.array([0, *accumulate(len(token.text) for token in tokens[:-1])])
    firsts = [start for start, _ in split_sentences("".join(token.text for token in tokens))]
    return sorted({0, *np.searchsorted(begins, firsts).tolist(), len(tokens)})


def load_tokenizer(dataset_name_or_path: str, name: str | None = None) -> PreTrainedTokenizerBase:
    """
    Load the tokenizer that the tokens of a scored dataset are read with: the one called `name` (a Hub id or folder),
    or that of the student which the dataset's card names. `RSRError` if neither is there.
    """
    source, template = name, None
    if name is None:
        source = card_facts(dataset_name_or_path).get("student")
        template = scoring_settings(dataset_name_or_path).get("chat_template_path")
    if source is None:
        raise RSRError(
            f"{dataset_name_or_path!r} doesn't say which student scored it: name the student's tokenizer with "
            "--tokenizer (a Hub id or folder)."
        )
    where = f"{source!r} (--tokenizer)" if name else f"the student {source!r}, named in {dataset_name_or_path!r}"
    if is_written_as_path(source) and not source.endswith(".gguf") and not Path(source).expanduser().exists():
        raise RSRError(f"There is no folder of {where}. Name the student's tokenizer with --tokenizer.")
    try:
        return with_chat_template(find_tokenizer(source), template)
    except (OSError, ValueError) as error:  # RSRError too: a GGUF file that has gone
        raise RSRError(
            f"Can't load the tokenizer of {where}: {error} Name one that can be loaded with --tokenizer."
        ) from error
