"""The scored tokens of one row as text with rank and surprisal, and its sentences with an RSR each.

For whoever draws a trajectory, in a terminal or on a page. This file knows no colours and no layout.
"""

import math
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rsr_trl.data import card_facts, is_written_as_path
from rsr_trl.report.format import visible
from rsr_trl.rsr import TOKEN_IDS, TOKEN_RANKS, TOKEN_SURPRISALS, TOKEN_TOP1, trajectory_rsr
from rsr_trl.scoring.steps import split_sentences


TOKEN_STATISTICS = (TOKEN_IDS, TOKEN_RANKS, TOKEN_SURPRISALS)
FRAGMENT = "\N{REPLACEMENT CHARACTER}"
MAX_CHARACTER_TOKENS = (
    8  # a character has up to four bytes, and a token may hold the end of one and the next one's start
)


@dataclass(frozen=True)
class Token:
    """
    One scored token. Its probability is `exp(-surprisal)`.

    Args:
        text (`str`):
            What it adds to the trajectory: the texts of all tokens joined are the scored text. Of a character whose
            bytes are spread over several tokens, the last of them has the character and the others are empty. To draw
            a token, take [`Token.shown`].
        rank (`int`): 1-based place among all tokens the student could have said here; not clipped.
        surprisal (`float`): In nats.
        top1 (`str`, *optional*): The student's own most likely token here, fit to be shown; `None` if not stored.
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
        """Its text as something that can be seen: see [`visible`]; U+FFFD if it holds only a part of a character."""
        return _shown(self.text)


@dataclass(frozen=True)
class Sentence:
    """
    A sentence of a trajectory: the tokens `[start, stop)` and their RSR (Eq. 7 over these tokens).

    Args:
        start (`int`): Its first token.
        stop (`int`): The token after its last.
        rsr (`float`): Lower suits the student better; `inf` if the student foresaw every token with certainty.
        turn (`int`, *optional*, defaults to 1): The assistant's scored turn that it is in, counted from 1.
    """

    start: int
    stop: int
    rsr: float
    turn: int = 1


def _shown(token_text: str) -> str:
    text = visible(token_text) or FRAGMENT
    # An accent or a joiner alone has no width: the dotted circle is the usual place to put one.
    is_mark = all(unicodedata.category(character) in ("Mn", "Me", "Cf") for character in text)
    return f"\N{DOTTED CIRCLE}{text}" if is_mark else text


def check_token_columns(column_names: Iterable[str]) -> None:
    """Raise `ValueError` unless these columns hold the statistics of tokens."""
    if missing := [name for name in TOKEN_STATISTICS if name not in column_names]:
        raise ValueError(
            f"There is no column {missing[0]!r}, so the tokens aren't known. Score the dataset with "
            "`rsr score --token_stats`, or RSRScorer(..., token_stats=True)."
        )


def read_tokens(row: Mapping, tokenizer: PreTrainedTokenizerBase) -> list[Token]:
    """
    Read the scored tokens of one row.

    Several assistant turns follow each other without what stood between them, which isn't scored;
    [`~rsr_trl.report.turns.TurnFinder`] finds where they begin.

    Args:
        row (`Mapping`): A row with the columns `rsr_token_ids`, `rsr_token_ranks`, `rsr_token_surprisals` and, if it
            is stored, `rsr_token_top1`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The student's.

    Returns:
        `list[Token]`: In the order of the trajectory; empty for a row that has no score.

    Raises:
        ValueError: if the columns are missing or disagree, or if ids aren't this tokenizer's.
    """
    check_token_columns(row)
    ids, ranks, surprisals = ([] if row[name] is None else list(row[name]) for name in TOKEN_STATISTICS)
    top1 = row.get(TOKEN_TOP1)
    top1 = None if top1 is None else list(top1)
    lengths = {len(values) for values in (ids, ranks, surprisals, ids if top1 is None else top1)}
    if len(lengths) > 1:
        raise ValueError(
            f"The token columns of a row have different lengths: {len(ids)} ids, {len(ranks)} ranks, "
            f"{len(surprisals)} surprisals{'' if top1 is None else f', {len(top1)} of {TOKEN_TOP1}'}."
        )
    decode = _Decoder(tokenizer, {*ids, *(top1 or [])})
    if unknown := [i for i in ids if i not in decode.alone]:
        raise ValueError(
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
        return [growing[whole][start:stop] for start, stop in zip([0, *ends], ends, strict=False)]

    def _in_context(self, sequences: list[Sequence[int]]) -> list[str]:
        return [
            text.removeprefix(self._before) for text in self._decode([[*self._context, *ids] for ids in sequences])
        ]

    def _decode(self, sequences: list[list[int]]) -> list[str]:
        decode = self._tokenizer.decode
        return [decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) for ids in sequences]


def sentences(tokens: Sequence[Token], r_max: float, turns: Sequence[int] = (0,)) -> list[Sentence]:
    """
    Split a trajectory into sentences and give the RSR of each.

    Args:
        tokens (`Sequence[Token]`): As [`read_tokens`] gives them.
        r_max (`float`): Ranks are clipped here.
        turns (`Sequence[int]`, *optional*, defaults to `(0,)`): First token of each turn of the assistant, as
            [`~rsr_trl.report.turns.TurnFinder`] finds them: a sentence ends with its turn.

    Returns:
        `list[Sentence]`: Consecutive, covering all tokens. A token over a border belongs to the sentence in which it
        begins.
    """
    found = []
    for turn, (first, last) in enumerate(zip(turns, [*turns[1:], len(tokens)], strict=True), start=1):
        for start, stop in zip(*_sentence_borders(tokens[first:last]), strict=True):
            part = tokens[first + start : first + stop]
            ratio = trajectory_rsr([token.rank for token in part], [token.surprisal for token in part], r_max)
            found.append(Sentence(first + start, first + stop, ratio, turn))
    return found


def _sentence_borders(tokens: Sequence[Token]) -> tuple[list[int], list[int]]:
    """First token of each sentence, and the token after its last."""
    # A token without text of its own begins where the character begins that it is a part of.
    begins = np.array([0, *accumulate(len(token.text) for token in tokens[:-1])])
    firsts = [start for start, _ in split_sentences("".join(token.text for token in tokens))]
    borders = sorted({0, *np.searchsorted(begins, firsts).tolist(), len(tokens)})
    return borders[:-1], borders[1:]


def student_of(dataset_name_or_path: str) -> str | None:
    """The student that a folder of `rsr score` or `rsr select` names in its card; `None` where nothing is said."""
    return card_facts(dataset_name_or_path).get("student")


def load_tokenizer(dataset_name_or_path: str, name: str | None = None) -> PreTrainedTokenizerBase:
    """
    Load the tokenizer that the tokens of a scored dataset are read with.

    Args:
        dataset_name_or_path (`str`): The scored dataset: if it is a folder of `rsr score`, its card names the student.
        name (`str`, *optional*): Hub id or folder of the tokenizer (`--tokenizer`); by default that student's.

    Raises:
        ValueError: if no name is given and the dataset doesn't tell the student, or if there is no tokenizer there.
    """
    source = name or student_of(dataset_name_or_path)
    if source is None:
        raise ValueError(
            f"Which student scored {dataset_name_or_path!r}? Nothing there says so: name its tokenizer with "
            "--tokenizer (a Hub id or folder)."
        )
    told = f"{source!r} (--tokenizer)" if name else f"the student {source!r}, named in {dataset_name_or_path!r}"
    if is_written_as_path(source) and not Path(source).expanduser().exists():
        raise ValueError(f"There is no folder of {told}. Name the student's tokenizer with --tokenizer.")
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Can't load the tokenizer of {told}: {error} Name one that can be loaded with --tokenizer."
        ) from error
