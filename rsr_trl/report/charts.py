"""Charts as SVG inside the page: matplotlib draws, the page's style sheet gives the colours, light or dark.

While drawing, a colour is a stand-in that becomes a CSS variable afterwards. Series differ in marker as well as in
colour. Text of the dataset is never parsed as mathematics, and matplotlib escapes it.
"""

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import FixedLocator, NullLocator
from matplotlib.transforms import Bbox


# Inches. The page shows and scales the one that fits its width: on a phone the text of the broad one is too small.
WIDTHS = {"broad": 5.6, "narrow": 3.8}
MAX_DOTS = 2000  # of a scatter plot
INK, MUTED, GRID, PAPER, OTHERS = "#010101", "#010102", "#010103", "#010104", "#010105"
SERIES = tuple(f"#0102{i:02x}" for i in range(7))
MARKERS = "osD^vPX<>ph*"
MAX_SERIES = len(MARKERS)  # with more, the last mark is that of all others

_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", PAPER: "paper", OTHERS: "muted"}
_VARIABLES |= {colour: f"c{i}" for i, colour in enumerate(SERIES)}
_STYLE = {
    "svg.fonttype": "none",  # the page's own font, and text that can be searched
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
}


@dataclass(frozen=True)
class Chart:
    """
    A chart to put on the page.

    Args:
        svg (`str`): Safe as it is: only text in it comes from outside, and it is escaped.
    """

    svg: str


@dataclass(frozen=True)
class Key:
    """
    An entry of a legend.

    Args:
        series (`int`): Number of the series, by which the page finds its marks.
        name (`object`): What it stands for.
        svg (`str`): Its mark.
    """

    series: int
    name: object
    svg: str


def draw(name: str, alt: str, height: float, plot: Callable[[Axes], None]) -> Chart:
    """
    Draw a chart, once for each of `WIDTHS`.

    Args:
        name (`str`): Unique on the page; keeps the ids of its parts apart from those of other charts.
        alt (`str`): What it shows, for people who don't see it.
        height (`float`): In inches.
        plot (`Callable`): Draws on the axes.
    """
    drawings = []
    for kind, width in WIDTHS.items():
        buffer = io.StringIO()
        with rc_context(_STYLE | {"svg.hashsalt": f"{name} {kind}"}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the reader's browser has its own
            figure = Figure(figsize=(width, height), layout="constrained")
            axes = figure.add_subplot()
            plot(axes)
            _make_room(axes)
            FigureCanvasSVG(figure).print_svg(buffer)  # as `savefig`, which first draws all of it for nothing
        drawings.append(_inline(buffer.getvalue(), kind, alt))
    return Chart("".join(drawings))


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
    figure.set_layout_engine("none")  # all is in its place, and isn't looked for once more


def _inline(svg: str, kind: str, alt: str) -> str:
    """The `<svg>` element alone, in the page's colours and without ids that another chart has too."""
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Its style sheet would hold for the whole page.
    svg = re.sub(r"<defs>\s*<style type=\"text/css\">.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    # Inside of tags alone: what text says stays as it is.
    svg = re.sub(r"<[^>]+>", _page_tag, svg)
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)[0]
    return f'<svg class="{kind}" {box} role="img" aria-label="{escape(alt)}">{body}'


def _page_tag(match: re.Match) -> str:
    tag = re.sub(r"#010[12]0[0-9a-f]", lambda colour: f"var(--{_VARIABLES[colour[0]]})", match[0])
    tag = re.sub(r'^<g id="series-(\d+)"', r'<g data-series="\1"', tag)
    tag = re.sub(r'^<g id="[^"]*"', "<g", tag)
    return tag.replace("xlink:href", "href")


def series(number: int) -> int:
    """The series under which something is drawn that is the `number`-th of many."""
    return min(number, MAX_SERIES - 1)


def mark(number: int, of: int) -> dict[str, str]:
    """Colour and marker of the `number`-th of `of` series, as keyword arguments of matplotlib."""
    if of > MAX_SERIES and number >= MAX_SERIES - 1:
        return {"color": OTHERS, "marker": "."}
    return {"color": SERIES[number % len(SERIES)], "marker": MARKERS[number]}


def keys(names: list) -> list[Key]:
    """The legend of series called `names`; of too many, the last entry is for the rest."""
    shown = list(names[:MAX_SERIES])
    if len(names) > MAX_SERIES:
        shown[-1] = f"{len(names) - MAX_SERIES + 1:,} others"
    return [Key(i, name, mark_svg(i, len(names))) for i, name in enumerate(shown)]


def mark_svg(number: int, of: int) -> str:
    """The mark of a series as a picture beside text."""
    look = mark(number, of)
    shape = MarkerStyle(look["marker"])
    polygon = shape.get_path().transformed(shape.get_transform()).to_polygons()[0]
    points = " ".join(f"{8 + 9 * x:.1f},{8 - 9 * y:.1f}" for x, y in polygon)
    colour = _VARIABLES[look["color"]]
    shape = f'<polygon points="{points}" fill="var(--{colour})"/>'
    return f'<svg class="mark" viewBox="0 0 16 16" aria-hidden="true">{shape}</svg>'


def sample(rows: np.ndarray, limit: int = MAX_DOTS) -> np.ndarray:
    """At most `limit` of the rows, in their order; the same ones every time."""
    if len(rows) <= limit:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, limit, replace=False))


def plain_ticks(axis: Axis, low: float, high: float) -> None:
    """Ticks of a logarithmic axis as plain numbers, few enough to stand beside each other."""
    steps = (1,) if high / low > 1e4 else (1, 3) if high / low > 100 else (1, 2, 5)
    if high / low < 10:
        steps = (1, 1.5, 2, 3, 4, 5, 6, 8)
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}")


def few_ticks(axes: Axes) -> None:
    """Ticks of a linear x axis so few that long numbers stand beside each other."""
    axes.locator_params(axis="x", nbins=5)


def log_limits(values: np.ndarray, margin: float = 1.15) -> tuple[float, float]:
    """Limits of a logarithmic axis around positive values."""
    return float(values.min()) / margin, float(values.max()) * margin
