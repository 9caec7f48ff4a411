"""How a command speaks at its end: lines, tables, the next command, and JSON. What is said is each command's business.

People read it on standard error, programs read JSON on standard output: a pipe gets data and nothing else. Every
command imports this file, also for its help, so it imports nothing heavy.
"""

import json
import shlex
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rsr_trl.report.format import name, number, visible
from rsr_trl.rsr import NOISY_BELOW


DATASET_CARD = Path(__file__).parent / "templates" / "dataset_card.md"  # of `rsr score` and `rsr select`
MAX_ROWS = 20  # lines of a table in the terminal; JSON has them all
MIN_TEXT = 16  # characters that names get, however narrow the terminal is
in_options: Callable[[str], str] = str  # puts a message for Python in the words of the command that runs


@dataclass(frozen=True)
class Column:
    """One column of a table. The first one is text; numbers are formatted and `Text` is styled."""

    heading: str
    value: str | Callable[..., object]  # key of a row, or a function of the row
    shown: bool = True  # whether it says something in this table
    justify: str = "right"  # "left" for text
    optional: bool = False  # whether it may go where the terminal is too narrow
    digits: int = 2  # decimals of numbers that aren't whole

    def cell(self, row, as_name: bool) -> Text:
        value = self.value(row) if callable(self.value) else row[self.value]
        if isinstance(value, Text):
            return value
        if value is None or isinstance(value, float):
            return Text(number(value, self.digits))
        # As Text: a teacher called "[red]" is a name, not markup. And one called 2024 isn't a number.
        return Text(f"{value:,}" if isinstance(value, int) and not as_name else name(value, limit=200))


def print_table(
    out: Console, rows: Sequence, columns: Sequence[Column], limit: int | None = MAX_ROWS, things: str = "row"
) -> None:
    """
    Print a table that fits the terminal: where it is too wide, optional columns go, the last one first; then texts
    lose their ends, and headings and names are wrapped. What isn't shown, as rows (`things`) above `limit`, is said
    below it.
    """
    dropped, parts = (
        [],
        [
            (one, [Text(harmless(one.heading)), *(one.cell(row, as_name=one is columns[0]) for row in rows[:limit])])
            for one in columns
            if one.shown
        ],
    )
    while _room(out, parts) < 0 and (optional := [part for part in parts if part[0].optional]):
        parts.remove(optional[-1])
        dropped.insert(0, optional[-1][0].heading)
    for column, cells in parts[1:]:
        if (room := _room(out, parts)) < 0 and column.justify == "left":
            width = max(_width(*cells) + room, MIN_TEXT // 2)
            for cell in cells:
                cell.truncate(width, overflow="ellipsis")
    if _room(out, parts) < 0:
        parts = [(column, [_wrapped(head, _width(*cells), True), *cells]) for column, (head, *cells) in parts]
    if (room := _room(out, parts)) < 0:
        column, cells = parts[0]
        parts[0] = column, [_wrapped(cell, max(_width(*cells) + room, MIN_TEXT)) for cell in cells]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column, (head, *_) in parts:
        table.add_column(head, justify="left" if column is columns[0] else column.justify, no_wrap=True)
    for row in list(zip(*(cells for _, cells in parts), strict=True))[1:]:
        table.add_row(*row)
    out.print(table)
    if limit is not None and (rest := len(rows) - limit) > 0:
        from rsr_trl.data import counted

        out.print(f"... and {counted(rest, f'more {things}')}; --json lists them all.")
    if dropped:
        say(out, f"--json has more columns: {', '.join(dropped)}.")


def _width(*cells: Text) -> int:
    return max((cell_len(line) for cell in cells for line in cell.plain.split("\n")), default=0)


def _room(out: Console, parts: list[tuple[Column, list[Text]]]) -> int:
    """What the terminal has left: columns have three spaces between them, and the table one at each end."""
    return out.width - 2 - sum(_width(*cells) + 3 for _, cells in parts) + 3


def _wrapped(cell: Text, width: int, whole_words: bool = False) -> Text:
    """A text over several lines, broken at spaces and hyphens where it has any."""
    lines = textwrap.wrap(cell.plain, max(width, 1), break_long_words=not whole_words)
    return Text("\n".join(lines), cell.style)


def console() -> Console:
    """Where people read messages."""
    return Console(stderr=True, highlight=False)


def say(out: Console, text: str = "", bold: str = "", **how) -> None:
    """
    Print a line in which nothing is markup, with `bold` words (and the line ends before them) at its beginning. With a
    word in it that is longer than the terminal is wide, such as a path, the terminal itself wraps: it can be copied.
    """
    line = Text.assemble((harmless(bold), "bold"), harmless(text))
    long = any(cell_len(word) > out.width for word in line.plain.split())
    out.print(line, **({"soft_wrap": long} | how))


def harmless(text: str) -> str:
    """Lines in which no name from the dataset can move the cursor or reorder what is read."""
    return "\n".join(map(visible, text.split("\n")))


def say_notes(out: Console, notes: Sequence[str]) -> None:
    for note in notes:
        say(out, f"Note: {in_options(note)}")


def short_ones(which: str, what_to_do: str = "`rsr select` leaves them out (--min_tokens)") -> str:
    """The warning about trajectories that are too short for RSR."""
    return (
        f"Short: {which} fewer than {NOISY_BELOW} scored tokens. RSR is noisy on them, and answers without reasoning "
        f"can look suitable by chance: {what_to_do}."
    )


def print_next(out: Console, *words: str, label: str = "Next") -> None:
    """The command to type next, on one line whatever the width, so that it can be copied."""
    say(out, shlex.join(words), f"{label}: ", soft_wrap=True)


def given(arguments: object) -> list[str]:
    """The options of a dataclass that aren't at their defaults, as words of a command line."""
    words = []
    for option in fields(arguments):
        value = vars(arguments)[option.name]
        if value != option.default:
            words += [f"--{option.name}"] if value is True else [f"--{option.name}", str(value)]
    return words


def beside(name: str, ending: str) -> str:
    """A folder to propose for what is made from a dataset: beside it, or here if it isn't a file or folder."""
    from rsr_trl.formats import reader_of

    path = Path(name)
    stem = path.name
    while reader_of(stem) is not None:
        stem = Path(stem).stem
    return str((path.parent if path.exists() else Path()) / f"{stem}-{ending}")


def finish(
    as_json: bool, result: Mapping, show: Callable[[Console], None], next_words: Sequence[str] | None = None
) -> None:
    """The end of a command: one JSON object on standard output; or for people, and what to type next."""
    if as_json:
        return print(json.dumps(result, ensure_ascii=False, allow_nan=False))
    out = console()
    show(out)
    if next_words:
        print_next(out, *next_words)


def without_bars() -> None:
    """Switch the progress bars of the libraries off, for output that a program reads."""
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
