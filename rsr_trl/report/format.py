"""How numbers, names and texts are written, on the page and in the terminal. This file knows no dataset."""

import math
import unicodedata
from pathlib import Path


NAME_LENGTH = 60  # characters of a name on the page
LABEL_LENGTH = 26  # and of one in a chart


def visible(text: str) -> str:
    """
    Text in which nothing is hidden and nothing acts: a line end is `⏎` and the line end itself, a tab `⇥`, other
    control characters (escape sequences begin with one) their pictures such as `␛`, and marks that would reorder or
    hide text (bidi controls, zero-width spaces) their codes such as `\\u202e`.
    """
    return "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
    if character == "\n":
        return "⏎\n"
    if character == "\t":
        return "⇥"
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    # Joiners (U+200C, U+200D) stay: words of many scripts and many emoji aren't themselves without them.
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and code not in (0x200C, 0x200D)
    return character.encode("unicode_escape").decode() if hidden else character


def name(value: object, limit: int = NAME_LENGTH) -> str:
    """A name from the dataset on one line: nothing in it hides or reorders text, and its middle goes if it is long."""
    text = str(value)
    if len(text) > limit:
        text = f"{text[: limit * 2 // 3]}…{text[len(text) - limit // 3 + 1 :]}"
    return "".join(visible(" " if character.isspace() else character) for character in text)


def label(value: object) -> str:
    """A name in a chart."""
    return name(value, LABEL_LENGTH)


def prose(text: str, limit: int) -> str:
    """The beginning of a long text, with its lines."""
    cut = text[:limit]
    shown = "\n".join(visible(line) for line in cut.split("\n"))
    return shown if len(text) <= limit else f"{shown}… ({len(text) - limit:,} more characters)"


def number(value: float | None, digits: int = 2) -> str:
    if value is None or math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:,.{digits}f}"


def ratio(value: float) -> str:
    """An RSR in a narrow place: of a few foreseen words it may be any number."""
    return number(value, 2 if value < 100 else 0) if not 10_000 <= value < math.inf else ">9,999"


def percent(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    if 0 < value < 0.005:
        return "<1%"
    return ">99%" if 0.995 <= value < 1 else f"{value:.0%}"


def correct_text(facts: dict) -> str:
    """What `selection.choose.correctness` found, in a sentence or two."""
    text = f"{percent(facts['chosen'])} of the chosen, {percent(facts['before'])} before. Chosen at random: "
    text += percent(facts["random"])
    if facts["random_long"] is not None:
        text += f", without the short ones {percent(facts['random_long'])}"
    text += f"; by lowest surprisal: {percent(facts['surprisal'])}." if facts["surprisal"] is not None else "."
    return text


def share(part: int, whole: int) -> str:
    """A count and what share it is: `3 (50%)`."""
    return f"{part:,} ({percent(part / whole if whole else 0.0)})"


def short_name(student: str) -> str:
    """What a student is called where there is little room: the path of a GGUF file without its folder."""
    return Path(student).name if student.endswith(".gguf") else student
