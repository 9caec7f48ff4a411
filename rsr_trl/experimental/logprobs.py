"""Log-probabilities that a server returned when it wrote a response, matched with its text. Runs no model.

The chat completions API of OpenAI, vLLM and SGLang returns them on request (`logprobs=True`), so that a teacher which
can't be loaded can still be compared with the student.
"""

import codecs
import re
from collections.abc import Iterable, Mapping
from itertools import compress
from typing import NamedTuple

import numpy as np

from rsr_trl.rsr import RSRError


ROUNDING = 1e-3  # nats by which a server may round above a probability of 1
EXPECTED = (
    "Expected is what the chat completions API of OpenAI, vLLM and SGLang returns as `logprobs`: {'content': "
    "[{'token': str, 'logprob': float, 'bytes': [int] or null}, ...]}, or that list alone; for conversations with "
    "several scored turns a list of them, one per turn; null where there are none."
)
_THINK_TAG = re.compile(r"</?think>\s*")
_END_OF_TURN = re.compile(r"(?:\s*[<\[][^\s<>]*[>\[\]]){0,2}\s*")  # </s>, <|im_end|>, [EOS], [e~[; only space
_LOST = re.compile("(\N{REPLACEMENT CHARACTER}+)")


def places_and_surprisals(
    value: object, turns: list[str], cut: bool, where: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """
    Where in a response, whose turns are these texts, each of the server's tokens begins, and their surprisals in nats:
    arrays of shape `(n,)`. Tokens that aren't of the text are left out. `None` if the value is null, or of another
    text. `RSRError`, which begins with `where`, if it isn't in the servers' format.

    The server's text may have an end-of-turn token after the response, and differ from it in white space and in
    `<think>` and `</think>`, which servers and chat templates strip and add. A response that is `cut` may go on.
    """
    try:
        answers = read_logprobs(value)
    except ValueError as error:
        raise RSRError(f"{where}: {error}. {EXPECTED} Fix the row, or set its value to null.") from None
    if len(answers) != len(turns) and not cut:
        return None
    begins, surprisals, start = [], [], 0
    for i, (turn, answer) in enumerate(zip(turns, answers, strict=False)):
        found = answer and _begins(answer, turn, cut and i == len(turns) - 1)
        if found is None:
            return None
        begins.append(start + found[0])
        surprisals.append(answer.surprisals[found[1]])
        start += len(turn)
    return np.concatenate(begins), np.concatenate(surprisals)


class Answer(NamedTuple):
    """What a server returned for one response: its tokens as text, and their surprisals in nats."""

    text: str
    edges: np.ndarray  # where in the text each token begins, and where the last one ends: (n + 1,)
    surprisals: np.ndarray  # nats: (n,)


def read_logprobs(value: object) -> list[Answer | None]:
    """What a server returned: one response, or one per turn; `None` where there is none. `ValueError` says why."""

    def is_turn(part: object) -> bool:
        return isinstance(part, list) or (isinstance(part, Mapping) and "content" in part)

    if isinstance(value, list) and value and (any(map(is_turn, value)) or value.count(None) == len(value)):
        return [_read_turn(part, f"turn {i}, ") for i, part in enumerate(value)]
    return [_read_turn(value, "")]


def _read_turn(value: object, where: str) -> Answer | None:
    tokens = value["content"] if isinstance(value, Mapping) and "content" in value else value
    if tokens is None:
        return None
    if not isinstance(tokens, list):
        raise ValueError(f"{where}{_kind(tokens)} instead of a list of tokens")
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces, surprisals = [], []
    for i, token in enumerate(tokens):
        try:
            raw, logprob = _read_token(token)
        except ValueError as error:
            raise ValueError(f"{where}token {i} {error}") from None
        pieces.append(decoder.decode(raw))  # empty where a character has later tokens; vLLM leaves them empty itself
        surprisals.append(-logprob)
    return Answer("".join(pieces), _count(map(len, pieces)), np.array(surprisals, dtype=np.float64))


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


def _begins(answer: Answer, response: str, cut: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """Where the tokens begin that are of the response, and which these are: bool of shape `(n,)`."""
    for with_space, with_tags in ((True, True), (False, True), (False, False)):
        (spoken, tags), (written, _) = (_kept(text, with_space, with_tags) for text in (answer.text, response))
        texts = ("".join(compress(text, kept)) for text, kept in ((answer.text, spoken), (response, written)))
        if (places := _places(*texts, cut)) is not None:
            break
    else:
        return None
    first, last = _count(spoken)[answer.edges[:-1]], _count(spoken)[answer.edges[1:]]
    # Of tokens without a character that counts, line ends belong to what is before them, as in `split_sentences`, and
    # spaces to what comes; an empty one comes with a later one; a tag that only one side has is out.
    line_ends = (letter == "\n" for letter in answer.text)
    tagged, back = (np.diff(_count(of)[answer.edges]) > 0 for of in (tags, line_ends))
    nothing, back = first == last, back & (first == last)
    own = (first < len(places)) & (first >= back) & ~(nothing & tagged)
    return np.flatnonzero(written)[places[(first - back)[own]]], own


def _kept(text: str, with_space: bool, with_tags: bool) -> tuple[np.ndarray, np.ndarray]:
    """Which characters count, and which are of a tag that doesn't: bools of shape `(len(text),)`."""
    kept, tags = (np.zeros(len(text), dtype=bool) for _ in range(2))
    for tag in () if with_tags else _THINK_TAG.finditer(text):
        tags[tag.start() : tag.end()] = True
    kept[:] = [with_space or not letter.isspace() for letter in text]
    return kept & ~tags, tags


def _count(numbers: Iterable[int]) -> np.ndarray:
    return np.cumsum([0, *numbers])


def _places(spoken: str, written: str, cut: bool) -> np.ndarray | None:
    """
    Where in `written` each character of `spoken` stands, without an end of turn, or what is `cut`; `None` if they
    differ.

    Some servers write a replacement character for each token of a character that takes several: a run of them may
    stand for any characters outside of ASCII, of up to four bytes each.
    """
    parts, places, at = _LOST.split(spoken), [], 0
    for i in range(0, len(parts), 2):  # a run, of no length at first, and the text after it
        run, text = len(parts[i - 1]) if i else 0, parts[i]
        for width in range(-(-run // 4), run + 1):
            own = len(written) - at - width
            if ends := i + 1 == len(parts) or (cut and own <= len(text)):
                fits = own >= 0 and text[:own] == written[at + width :] and (cut or _END_OF_TURN.fullmatch(text, own))
            else:
                own, fits = len(text), written.startswith(text, at + width)
            if fits and not any(map(str.isascii, written[at : at + width])):
                break
        else:
            return None
        sizes = [len(letter.encode()) for letter in written[at : at + width]]
        inside = np.arange(run) * width // max(run, 1)  # roughly, where a token is of several bytes
        inside = np.repeat(np.arange(width), sizes) if sum(sizes) == run else inside
        places += [at + inside, at + width + np.arange(own)]
        at += width + own
        if ends:
            break
    return np.concatenate(places)


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
