"""Where sentences and steps of a trajectory end: text in, character spans out. It knows no tokenizer and no model."""

import re


# A run of closing punctuation with quotes and brackets after it, or of line ends. Nothing here backtracks: the text
# may be a megabyte of dots.
_ENDS = re.compile(r"""(?P<stop>[.!?…؟۔।]+)["'”’)\]}*_`]*|[。！？]+[”’」』）]*|\n(?:[^\S\n]*\n)*""")
_LINE_ENDS = re.compile(r"\n(?:[^\S\n]*\n)*")
_NOT_SPACE = re.compile(r"\S")
_LINE_END_AHEAD = re.compile(r"[^\S\n]*\n")
_ABBREVIATION = re.compile(
    r"(?<!\w)(?:(?:[A-Za-z]\.)+[A-Za-z]|cf|vs|approx|resp|Mr|Mrs|Ms|Dr|Prof|St|Fig|Figs|Eq|Eqs|Sec|Ch|Thm|al)$"
)
_LONGEST_ABBREVIATION = 12
_ITEM_NUMBER = re.compile(r"[\s(*#]*(?:\d+|[A-Za-z])$")  # "1." and "a." at the beginning of an item
_LONGEST_ITEM_NUMBER = 8


def split_sentences(text: str) -> list[tuple[int, int]]:
    """
    Split text into sentences.

    A sentence ends at a line end, at `.`, `!`, `?` with whitespace after it, and at `。`, `！`, `？`. It doesn't end
    in a number (3.14), after an abbreviation ("e.g.", "Dr.") or after the number of an item ("1."). Line ends belong
    to the sentence before them and spaces to the one after them, as most tokenizers draw the border too.

    Returns:
        `list[tuple[int, int]]`: Start and stop of each sentence, in characters. The spans are consecutive, none is
        empty, and together they cover the text.

    ```python
    >>> split_sentences("So x = 3.5. Check it: e.g. at 0.\\nDone.")
    [(0, 11), (11, 33), (33, 38)]
    ```
    """
    spans, start = [], 0
    for match in _ENDS.finditer(text):
        if _ends_sentence(text, start, match):
            spans.append((start, match.end()))
            start = match.end()
    return _with_rest(spans, start, text)


def _with_rest(spans: list[tuple[int, int]], start: int, text: str) -> list[tuple[int, int]]:
    """The spans and what is left of the text: a span of its own, or, if it is white space, part of the last one."""
    if start == len(text):
        return spans
    if spans and text[start:].isspace():
        *spans, (start, _) = spans
    return [*spans, (start, len(text))]


def _ends_sentence(text: str, start: int, match: re.Match) -> bool:
    end = match.end()
    if match[0][0] == "\n":
        return _NOT_SPACE.search(text, start, match.start()) is not None
    if match["stop"] is None:
        return True
    if end == len(text) or not text[end].isspace() or _LINE_END_AHEAD.match(text, end):
        return False  # the end of the line ends the sentence
    if match["stop"] != ".":
        return True
    dot = match.start()
    if _ABBREVIATION.search(text[max(start, dot - _LONGEST_ABBREVIATION) : dot]):
        return False
    return dot - start > _LONGEST_ITEM_NUMBER or not _ITEM_NUMBER.match(text[start:dot])


def split_steps(text: str) -> list[tuple[int, int]]:
    """
    Split a response into reasoning steps: its lines (blank lines only separate), or, where all is on one line, its
    sentences. Spans are as those of [`split_sentences`]: line ends belong to the step before them.

    ```python
    >>> split_steps("First 2+3=5.\\n\\nThen 5*4=20. Done.")
    [(0, 14), (14, 32)]
    >>> split_steps("First 2+3=5. Then 5*4=20.")
    [(0, 12), (12, 25)]
    ```
    """
    spans, start = [], 0
    for match in _LINE_ENDS.finditer(text):
        if match.start() > start and not text[start : match.start()].isspace():
            spans.append((start, match.end()))
            start = match.end()
    spans = _with_rest(spans, start, text)
    return spans if len(spans) > 1 else split_sentences(text)
