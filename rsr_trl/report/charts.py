"""Charts as SVG inside the page: matplotlib draws, the page's style sheet gives the colours, light or dark.

While drawing, a colour is a stand-in that becomes a CSS variable afterwards. Series differ in marker as well as in
colour. Text of the dataset is never parsed as mathematics, and matplotlib escapes it.
"""

import io
import re
import warnings
from collections.abc import Callable
from html import escape
from typing import Literal

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import FixedLocator, NullLocator
from matplotlib.transforms import Bbox


# Inches. The page scales a chart to the width there is: its text of 10 points is 12 pixels or more on a phone, and
# about that of the page on a screen (see `svg.chart` in page.css).
WIDTH = 3.95
MAX_DOTS = 2000  # of a scatter plot
FEW_TICKS = 5  # of a linear x axis: long numbers have room beside each other
INK, MUTED, GRID, OTHERS = "#010101", "#010102", "#010103", "#010104"
SERIES = tuple(f"#0102{i:02x}" for i in range(7))
MARKERS = "osD^vPX<>ph*"
MAX_SERIES = len(MARKERS)  # with more, the last mark is that of all others
RATIO_AXIS = "← more suitable  ·  RSR  ·  less suitable →"
RATIO_UP = "← more suitable  ·  RSR"

_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", OTHERS: "muted"}
_VARIABLES |= {colour: f"c{i}" for i, colour in enumerate(SERIES)}
_STYLE = {
    "svg.fonttype": "none",  # the page's own font, and text that can be searched
    "font.family": "sans-serif",
    "font.size": 10,
    "grid.color": GRID,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), MUTED),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor"), "none"),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    **dict.fromkeys(("text.parse_math", "axes.spines.top", "axes.spines.right", "axes.formatter.useoffset"), False),
}


def draw(name: str, alt: str, height: float, plot: Callable[[Axes], None]) -> Markup:
    """
    Draw a chart, `height` inches high, as an `<svg>` that is safe as it is: all text in it is escaped. Its `name` is
    unique on the page and keeps the ids of its parts apart from those of other charts; `alt` says what it shows.
    """
    buffer = io.StringIO()
    with rc_context(_STYLE | {"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the reader's browser has its own
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        plot(axes)
        _make_room(axes)
        FigureCanvasSVG(figure).print_svg(buffer)  # as `savefig`, which first draws all of it for nothing
    return Markup(_inline(buffer.getvalue(), alt))


def _make_room(axes: Axes) -> None:
    """Nothing is cut off or lies over something else, however narrow the drawing and long the names."""
    figure, label = axes.figure, axes.xaxis.label
    figure.get_layout_engine().execute(figure)
    if label.get_window_extent().x1 > figure.bbox.x1:
        axes.set_xlabel(label.get_text(), loc="right")  # so it begins under the names
    kept: list[Bbox] = []
    for note in list(axes.texts):
        box = note.get_window_extent().padded(1)
        if any(box.overlaps(other) for other in kept):
            note.remove()
        else:
            kept.append(box)
    figure.set_layout_engine("none")  # everything has its place, which needn't be computed again


def _inline(svg: str, alt: str) -> str:
    """The `<svg>` element alone, in the page's colours and without ids that another chart has too."""
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Its style sheet would hold for the whole page.
    svg = re.sub(r"<defs>\s*<style type=\"text/css\">.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    # Inside of tags alone: what text says stays as it is.
    svg = re.sub(r"<[^>]+>", _page_tag, svg)
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)[0]
    return f'<svg class="chart" {box} role="img" aria-label="{escape(alt)}">{body}'


def _page_tag(match: re.Match) -> str:
    tag = re.sub(r"#010[12]0[0-9a-f]", lambda colour: f"var(--{_VARIABLES[colour[0]]})", match[0])
    tag = re.sub(r'^<g id="series-(\d+)"', r'<g data-series="\1"', tag)
    tag = re.sub(r'^<g id="[^"]*"', "<g", tag)
    return tag.replace("xlink:href", "href")


def mark(number: int, of: int) -> dict[str, str]:
    """Colour and marker of the `number`-th of `of` series, as keyword arguments of matplotlib."""
    if of > MAX_SERIES and number >= MAX_SERIES - 1:
        return {"color": OTHERS, "marker": "."}
    return {"color": SERIES[number % len(SERIES)], "marker": MARKERS[number]}


def mark_svg(number: int, of: int) -> Markup:
    """The mark of a series as a picture beside text."""
    look = mark(number, of)
    shape = MarkerStyle(look["marker"])
    polygon = shape.get_path().transformed(shape.get_transform()).to_polygons()[0]
    points = " ".join(f"{8 + 9 * x:.1f},{8 - 9 * y:.1f}" for x, y in polygon)
    shape = f'<polygon points="{points}" fill="var(--{_VARIABLES[look["color"]]})"/>'
    return Markup(f'<svg class="mark" viewBox="0 0 16 16" aria-hidden="true">{shape}</svg>')


def legend(names: list) -> list[dict]:
    """`series`, `name` and `mark` of the series called `names`; of too many, the last entry is for the rest."""
    shown = list(names[:MAX_SERIES])
    if len(names) > MAX_SERIES:
        shown[-1] = f"{len(names) - MAX_SERIES + 1:,} others"
    return [{"series": i, "name": name, "mark": mark_svg(i, len(names))} for i, name in enumerate(shown)]


def each_series(teacher: np.ndarray, of: int) -> list[np.ndarray]:
    """Which rows belong to each series of the legend of `of` teachers: bool arrays."""
    number = np.minimum(teacher, MAX_SERIES - 1)
    return [number == i for i in range(min(of, MAX_SERIES))]


def sample(rows: np.ndarray, limit: int = MAX_DOTS) -> np.ndarray:
    """At most `limit` of the rows, in their order; the same ones every time."""
    if len(rows) <= limit:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, limit, replace=False))


def name_lines(axes: Axes, names: list[str]) -> None:
    """The y axis as one line per name, the first on top, and an x axis so few ticks that long numbers fit."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.locator_params(axis="x", nbins=FEW_TICKS)


def log_axis(axes: Axes, which: Literal["x", "y"], values: np.ndarray, margin: float = 1.15) -> tuple[float, float]:
    """A logarithmic axis around positive values, with plain numbers at a few ticks; returns its limits."""
    low, high = float(values.min()) / margin, float(values.max()) * margin
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    axis = axes.xaxis if which == "x" else axes.yaxis
    steps = (1,) if high / low > 1e4 else (1, 3) if high / low > 100 else (1, 2, 5)
    if high / low < 10:
        steps = (1, 1.5, 2, 3, 4, 5, 6, 8)
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    return low, high


def key_above(axes: Axes, columns: int = 2) -> None:
    """Names of the lines, above the chart."""
    axes.figure.legend(loc="outside upper center", ncols=columns, frameon=False)
