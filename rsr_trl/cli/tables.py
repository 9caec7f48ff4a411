"""How a command speaks at its end: tables, the next command, and JSON. What is said is the business of each command.

People read it on standard error, programs read JSON on standard output: a pipe gets data and nothing else. Every
command imports this file, also for its help, so it imports nothing heavy.
"""

import json
import shlex
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rsr_trl.report.format import name


MAX_ROWS = 20  # lines of a table in the terminal; JSON has them all
MIN_TEXT = 16  # characters that names get, however narrow the terminal is


@dataclass(frozen=True)
class Column:
    """
    One column of a table.

    Args:
        heading (`str`): Its head.
        value (`str` or function): Key of a row, or a function of the row; the result is a cell, `Text` if styled.
        shown (`bool`, *optional*, defaults to `True`): Whether it says something in this table.
        justify (`str`, *optional*, defaults to `"right"`): `"left"` for text. The first column is text anyway.
        optional (`bool`, *optional*, defaults to `False`): Whether it may go where the terminal is too narrow.
    """

    heading: str
    value: str | Callable[[Any], object]
    shown: bool = True
    justify: str = "right"
    optional: bool = False

    def cell(self, row: Any) -> Text:
        value = self.value(row) if callable(self.value) else row[self.value]
        # As Text: a teacher called "[red]" is a name, not markup.
        return value if isinstance(value, Text) else Text(name(value, limit=200))


def print_table(
    out: Console, rows: Sequence, columns: Sequence[Column], limit: int | None = MAX_ROWS, things: str = "row"
) -> None:
    """
    Print a table that fits the terminal: optional columns go first, the last one before the others, then names are
    wrapped. What isn't shown is said below it.

    Args:
        out (`Console`): Where to.
        rows (sequence): What [`Column.value`] takes.
        columns (sequence of [`Column`]): The first one names the row.
        limit (`int`, *optional*, defaults to `20`): Rows to print at most.
        things (`str`, *optional*, defaults to `"row"`): What a row is, in the singular.
    """
    shown, dropped = [column for column in columns if column.shown], []
    cells = {id(column): [column.cell(row) for row in rows[:limit]] for column in shown}

    def width(column: Column) -> int:
        return max(cell_len(text) for cell in (column.heading, *cells[id(column)]) for text in str(cell).split("\n"))

    def room() -> int:
        """What is left for the first column: columns have three spaces between them, the table one at each end."""
        return out.width - 2 - sum(width(column) + 3 for column in shown[1:])

    while room() < width(shown[0]) and (optional := [column for column in shown if column.optional]):
        shown.remove(optional[-1])
        dropped.insert(0, optional[-1].heading)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in shown:
        is_first = column is shown[0]
        table.add_column(column.heading, justify="left" if is_first else column.justify, no_wrap=True)
        if is_first and room() < width(column):
            cells[id(column)] = [_wrapped(cell, max(room(), MIN_TEXT)) for cell in cells[id(column)]]
    for row in zip(*(cells[id(column)] for column in shown), strict=True):
        table.add_row(*row)
    out.print(table)
    if limit is not None and (rest := len(rows) - limit) > 0:
        from rsr_trl.data import counted

        out.print(f"... and {counted(rest, f'more {things}')}; --json lists them all.")
    if dropped:
        out.print(Text(f"--json has more columns: {', '.join(dropped)}."))


def _wrapped(cell: Text, width: int) -> Text:
    """A name over several lines, broken at spaces and hyphens where it has any."""
    return Text("\n".join(textwrap.wrap(cell.plain, width)), cell.style)


def console() -> Console:
    """Where people are told things."""
    return Console(stderr=True, highlight=False)


def print_next(out: Console, *words: str, label: str = "Next") -> None:
    """The command to type next, on one line whatever the width, so that it can be copied."""
    out.print(Text.assemble((f"{label}: ", "bold"), shlex.join(words)), soft_wrap=True)


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
    from rsr_trl.data import READERS

    path = Path(name)
    stem = path.stem if path.suffix.lower() in READERS else path.name
    return str((path.parent if path.exists() else Path()) / f"{stem}-{ending}")


def print_json(result: Mapping) -> None:
    """The machine's summary: one object on standard output."""
    print(json.dumps(result, ensure_ascii=False, allow_nan=False))


def without_bars() -> None:
    """Switch the progress bars of the libraries off, for output that a program reads."""
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
