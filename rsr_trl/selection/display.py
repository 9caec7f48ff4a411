"""How results look in a notebook: a heading, a table and sentences, in which all that comes from a dataset is text."""

from collections.abc import Iterable
from html import escape

import pandas as pd


def as_html(heading: str, table: pd.DataFrame, sentences: Iterable[str] = ()) -> str:
    """What `_repr_html_` returns, of cells that are formatted already."""
    below = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    return f"<p><b>{escape(heading)}</b></p>{table.to_html(index=False, border=0, escape=True)}{below}"


def shown(value: float | None, how: str) -> str:
    """A number as `how` formats it; `–` where there is none."""
    return "–" if value is None else format(value, how)
