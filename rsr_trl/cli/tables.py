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

from rsr_trl.report.format import name, number


DATASET_CARD = Path(__file__).parent / "templates" / "dataset_card.md"  # of `rsr score` and `rsr select`
MAX_ROWS = 20  # lines of a table in the terminal; JSON has them all
MIN_TEXT = 16  # characters that names get, however narrow the terminal is


@dataclass(frozen=True)
class Column:
    """
    One column of a table.

    Args:
        heading (`str`): Its head.
        value (`str` or function): Key of a row, or a function of the row. Numbers are formatted, `Text` is styled.
        shown (`bool`, *optional*, defaults to `True`): Whether it says something in this table.
        justify (`str`, *optional*, defaults to `"right"`): `"left"` for text. The first column is text anyway.
        optional (`bool`, *optional*, defaults to `False`): Whether it may go where the terminal is too narrow.
        digits (`int`, *optional*, defaults to `2`): Decimals of numbers that aren't whole.
    """

    heading: str
    value: str | Callable[[Any], object]
    shown: bool = True
    justify: str = "right"
    optional: bool = False
    digits: int = 2

    def cell(self, row: Any, as_name: bool) -> Text:
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
    Print a table that fits the terminal: where it is too wide, optional columns go, the last one first; then headings
    and names are wrapped. What isn't shown is said below it.

    Args:
        out (`Console`): Where to.
        rows (sequence): What [`Column.value`] takes.
        columns (sequence of [`Column`]): The first one names the row.
        limit (`int`, *optional*, defaults to `20`): Rows to print at most.
        things (`str`, *optional*, defaults to `"row"`): What a row is, in the singular.
    """
    dropped, parts = [], []
    for column in columns:
        if column.shown:
            cells = [column.cell(row, as_name=column is columns[0]) for row in rows[:limit]]
            parts.append((column, [Text(column.heading), *cells]))
    while _room(out, parts) < 0 and (optional := [part for part in parts if part[0].optional]):
        parts.remove(optional[-1])
        dropped.insert(0, optional[-1][0].heading)
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
        out.print(Text(f"--json has more columns: {', '.join(dropped)}."))


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
