import re

import numpy as np
import pytest

from rsr_trl.report.charts import MARKERS, MAX_SERIES, draw, legend, log_axis, mark, name_lines
from tests.report.pages import Page


AWKWARD = [
    r"$\frac{1}{2}$ <b>",
    "</svg><script>alert(1)</script>",
    "#010203 #010101",
    '<g id="series-1">',
    "a & b",
    "数学 🦊",
]


@pytest.mark.filterwarnings("error")
def test_text_stays_as_it_is_and_no_glyph_warns():
    page = Page(draw("awkward", 'an "alt" <text>', 3.0, lambda axes: name_lines(axes, AWKWARD)))
    assert [text for text in page.svg_text if text in AWKWARD] == AWKWARD
    assert page.tags[0] == ("svg", page.tags[0][1]) and page.tags[0][1]["aria-label"] == 'an "alt" <text>'
    assert {tag for tag, _ in page.tags} <= {"svg", "defs", "g", "path", "use", "text", "clippath", "rect", "style"}


def test_a_long_label_stays_inside_and_notes_apart():
    def plot(axes):
        axes.set_yticks([0], ["a name of a teacher that leaves no room"])
        axes.set_xlabel("a label of the axis that is longer than the axis")
        axes.set_ylim(0, 1)
        for y in (0.5, 0.52, 0.9):
            axes.annotate(f"note {y}", (0.5, y))
        seen.append(axes)

    seen = []
    page = Page(draw("crowded", "", 2.0, plot))
    label, box = seen[0].xaxis.label.get_window_extent(), seen[0].figure.bbox
    assert box.x0 <= label.x0 and label.x1 <= box.x1
    assert [text for text in page.svg_text if "note" in text] == ["note 0.5", "note 0.9"]


def test_colours_are_the_pages_own_and_no_two_series_look_alike():
    chart = draw("colours", "", 2.0, lambda axes: axes.plot([1, 2], [3, 4], label="x", **mark(1, 3)))
    assert "var(--c1)" in chart and "var(--ink)" in chart and "<style" not in chart and "<metadata" not in chart
    assert not re.search(r"#[0-9a-f]{6}\b", chart.replace("#ffffff", ""))
    looks = [tuple(mark(i, 40).values()) for i in range(40)]
    assert len(set(looks)) == MAX_SERIES and len({marker for _, marker in looks[: MAX_SERIES - 1]}) == MAX_SERIES - 1
    assert len(set(MARKERS)) == len(MARKERS)
    assert [one["name"] for one in legend([f"t{i}" for i in range(40)])][-2:] == ["t10", "29 others"]


@pytest.mark.parametrize("low, high", [(1, 2), (0.03, 0.2), (7, 900), (1, 1e6), (0.5, 40)])
def test_a_logarithmic_axis_has_a_few_plain_ticks(low, high):
    def plot(axes):
        log_axis(axes, "x", np.array([low, high]), margin=1)
        shown = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert 1 <= len(shown) <= 10

    assert "$" not in draw("ticks", "", 2.0, plot)


def test_long_numbers_have_room_beside_each_other():
    def plot(axes):
        axes.plot([4.1001, 4.1029], [0, 1])
        name_lines(axes, ["one", "two"])

    labels = [text for text in Page(draw("narrow", "", 2.0, plot)).svg_text if text.startswith("4.1")]
    assert 2 <= len(labels) <= 6 and len(set(labels)) == len(labels)
