"""The teacher's own log-probabilities, as servers return them with a completion, in sum over the steps of a response.

Their tokens are found in the response by text. This file knows no tokenizer, no model and no dataset.
"""

import codecs
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


EXPECTED = (
    "Expected is what the chat completions API of OpenAI, vLLM and SGLang returns as `logprobs`: {'content': "
    "[{'token': str, 'logprob': float, 'bytes': [int] or null}, ...]}, or that list alone; for conversations with "
    "several scored turns a list of them, one a turn; null where there are none."
)
ROUNDING = 1e-3  # nats by which a server may round above a probability of 1

_LOST = "\N{REPLACEMENT CHARACTER}"
_SPACES = np.array([code for code in range(0x3001) if chr(code).isspace()], dtype=np.uint32)
_THINK_TAG = re.compile(r"</?think>\s*")
_END_OF_TURN = re.compile(r"(?:[<\[]\S*[>\[\]])?")  # </s>, <|im_end|>, [EOS], [e~[; some servers leave it empty
_END_OR_SPACE = re.compile(r"\s*(?:[<\[]\S*[>\[\]])?\s*")


@dataclass(frozen=True)
class Generation:
    """
    What a server says of one completion of `n` tokens.

    Args:
        text (`str`): The tokens, joined.
        edges (int array of shape `(n + 1,)`): Where in the text each token begins, and where the last one ends.
        leads_on (bool array of shape `(n,)`): Whether a token holds part of the character behind it.
        surprisals (float64 array of shape `(n,)`): -ln p, in nats.
    """

    text: str
    edges: np.ndarray
    leads_on: np.ndarray
    surprisals: np.ndarray

    @property
    def lengths(self) -> list[int]:
        """
        How many tokens may be the response's own: all, those before the end-of-turn token, before all that look like
        one (the response's last token may: `</tool_call>`), or before space too.
        """
        counts = [len(self.surprisals)]
        for ending, most in ((_END_OF_TURN, 1), (_END_OF_TURN, None), (_END_OR_SPACE, None)):
            count, markers = counts[0], 0
            while count and ending.fullmatch(self.text, self.edges[count - 1], self.edges[count]):
                markers += int(self.edges[count] > self.edges[count - 1])
                if most is not None and markers > most:
                    break
                count -= 1
            counts.append(count)
        return sorted(set(counts), reverse=True)


def read_generations(value: object) -> list[Generation | None]:
    """
    One value of the column, as completions: one, or one a turn; `None` where there are no log-probabilities.

    Raises:
        ValueError: if it isn't in the servers' format; the message says where.
    """
    if isinstance(value, list) and (
        any(isinstance(part, list) or _is_object(part) for part in value) or value.count(None) == len(value) > 0
    ):
        return [_read_turn(part, f"turn {i}, ") for i, part in enumerate(value)]
    return [_read_turn(value, "")]


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping) and "content" in value


def _read_turn(value: object, where: str) -> Generation | None:
    tokens = value["content"] if _is_object(value) else value
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
    edges = np.cumsum([0, *map(len, pieces)])
    text = "".join(pieces)
    return Generation(text, edges, np.array(leads_on, dtype=bool), np.array(surprisals, dtype=np.float64))


def _read_token(token: object) -> tuple[bytes, float]:
    if not isinstance(token, Mapping):
        raise ValueError(f"is {_kind(token)} instead of a token with a logprob")
    text, raw, logprob = token.get("token"), token.get("bytes"), token.get("logprob")
    if not isinstance(logprob, (int, float)):
        raise ValueError(f"has {_kind(logprob)} as its logprob instead of a number")
    if math.isnan(logprob) or logprob > ROUNDING:
        raise ValueError(f"has the logprob {logprob}, which is no log-probability")
    if raw is None or raw == []:
        if not isinstance(text, str):
            raise ValueError(f"has {_kind(text)} as its text (`token`) instead of a string")
        return text.encode("utf-8", "surrogatepass"), logprob
    try:
        return bytes(raw if isinstance(raw, list) else [raw]), logprob
    except (TypeError, ValueError):
        raise ValueError("has `bytes` that are not a list of numbers from 0 to 255") from None


def surprisals_of_steps(
    generations: Sequence[Generation | None],
    text: str,
    responses: Sequence[tuple[int, int]],
    starts: np.ndarray,
    stop: int,
) -> np.ndarray | None:
    """
    The teacher's surprisal of each step of a trajectory, in sum.

    Steps are those that the student's tokens make: the two are compared on the same text. A generation may have an
    end-of-turn token behind its response, and it may differ from it in white space and in `<think>` and `</think>`,
    which servers and chat templates strip and add; steps that hold such a tag are left out then. A token belongs to
    the step in which it ends.

    Args:
        generations (sequence of [`Generation`]): One a response.
        text (`str`): The trajectory.
        responses (sequence of `tuple[int, int]`): Start and stop of each response in the text.
        starts (int array of shape `(S,)`): Where in the text each step begins. Tokens before the first of a response
            don't count.
        stop (`int`): Where in the text the last step ends.

    Returns:
        float64 array of shape `(S,)`, in nats: NaN for steps that are left out or in which no token ends. `None` if
        a generation is missing or of another text.
    """
    if len(generations) != len(responses):
        return None
    found, done = [], 0
    for generation, (begin, end) in zip(generations, responses, strict=True):
        own = starts[done:][starts[done:] < end] - begin
        if not own.size:  # the student's length limit cuts this response off
            continue
        if generation is None:
            return None
        sums = _of_response(generation, text[begin:end], np.maximum(own, 0), min(stop, end) - begin)
        if sums is None:
            return None
        found.append(sums)
        done += len(own)
    return np.concatenate(found)


def _of_response(generation: Generation, response: str, starts: np.ndarray, stop: int) -> np.ndarray | None:
    for kept in (_everything, _without_space, _without_space_and_tags):
        said, place_said = _reduced(response, kept)
        for count in generation.lengths:
            edges = generation.edges[: count + 1]
            text = generation.text[: edges[-1]]
            heard, place_heard = _reduced(text, kept)
            places = _places(heard, said)
            if places is None:
                continue
            first = places[place_heard[edges[:-1]]]
            ends = np.minimum(place_heard[edges[1:]] + generation.leads_on[:count], len(heard))
            last = np.where(ends > 0, places[ends - 1], -1)
            steps = np.searchsorted(place_said[starts], last, side="right") - 1
            counts = (steps >= 0) & (first < place_said[stop])
            if kept is _without_space_and_tags:
                counts &= ~_holds_tag(text, edges) | (place_heard[edges[1:]] > place_heard[edges[:-1]])
            found = np.bincount(steps[counts], generation.surprisals[:count][counts], minlength=len(starts))
            found = found.astype(np.float64)  # numpy counts in integers where there is nothing to add up
            found[np.bincount(steps[counts], minlength=len(starts)) == 0] = np.nan
            if kept is _without_space_and_tags:
                found[_holds_tag(response, np.append(starts, stop))] = np.nan
            return found
    return None


def _everything(text: str) -> np.ndarray:
    return np.ones(len(text), dtype=bool)


def _without_space(text: str) -> np.ndarray:
    return ~np.isin(_codes(text), _SPACES)


def _without_space_and_tags(text: str) -> np.ndarray:
    return _without_space(text) & ~_in_tags(text)


def _in_tags(text: str) -> np.ndarray:
    """Which characters belong to a think tag: bool of shape `(len(text),)`."""
    inside = np.zeros(len(text), dtype=bool)
    for tag in _THINK_TAG.finditer(text):
        inside[tag.start() : tag.end()] = True
    return inside


def _holds_tag(text: str, edges: np.ndarray) -> np.ndarray:
    """Which of the parts between the `edges` of a text hold a think tag or a part of one."""
    return np.diff(_counts_before(_in_tags(text))[edges]) > 0


def _reduced(text: str, kept: Callable[[str], np.ndarray]) -> tuple[str, np.ndarray]:
    """The characters that are `kept`; and how many of them stand before each place in the text, its end included."""
    which = kept(text)
    return _codes(text)[which].tobytes().decode("utf-32-le", "surrogatepass"), _counts_before(which)


def _counts_before(which: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(which)])


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _places(heard: str, said: str) -> np.ndarray | None:
    """
    Where in `said` each character of `heard` stands, and where its end: `None` if the two are different texts.

    Some servers write a replacement character for each token of a character that takes several: a run of them may
    stand for any characters outside of ASCII, of up to four bytes each.
    """
    if heard == said:
        return np.arange(len(heard) + 1)
    text, *others = re.split(f"({_LOST}+)", heard)
    if not others or not said.startswith(text):
        return None
    places, at = [np.arange(len(text))], len(text)
    for i, (run, text) in enumerate(zip(others[::2], others[1::2], strict=True)):
        widths = range(-(-len(run) // 4), len(run) + 1)
        if 2 * i + 2 == len(others):  # what is left is the end
            widths = [width for width in widths if at + width + len(text) == len(said)]
        fitting = (w for w in widths if said.startswith(text, at + w) and not _any_ascii(said[at : at + w]))
        width = next(fitting, None)
        if width is None:
            return None
        places += [at + np.arange(len(run)) * width // len(run), at + width + np.arange(len(text))]
        at += width + len(text)
    return np.concatenate([*places, [at]])


def _any_ascii(text: str) -> bool:
    return any(character.isascii() for character in text)


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
