import pytest

from rsr_trl.report.format import name, number, percent, prose, ratio, share, visible


@pytest.mark.parametrize(
    "text, shown",
    [
        ("a\n\nb", "a⏎\n⏎\nb"),
        ("\tx\r\n", "⇥x␍⏎\n"),
        ("\x1b[31m\x07\x00\x7f", "␛[31m␇␀␡"),
        ("\x9b2J", "\\x9b2J"),
        ("a\u202eb\u2066\u200f\u061c", "a\\u202eb\\u2066\\u200f\\u061c"),
        ("\u200b\ufeff\u00ad\u2028", "\\u200b\\ufeff\\xad\\u2028"),
        ("\U000e0041", "\\U000e0041"),
        ("\ud800", "\\ud800"),
        ("👨‍👩 नमस्ते می‌خواهم é", "👨‍👩 नमस्ते می‌خواهم é"),
    ],
)
def test_visible(text, shown):
    assert visible(text) == shown


def test_names_are_one_line_that_hides_nothing_and_long_ones_are_shortened():
    names = {"Qwen3-8B": "Qwen3-8B", 7: "7", "a\n\tb": "a  b", "e\u202egnp.exe": "e\\u202egnp.exe"}
    assert [name(value) for value in names] == list(names.values())
    long = name("x" * 1_000_000 + "end")
    assert len(long) <= 60 and long.startswith("xx") and "…" in long and long.endswith("end")


def test_prose_keeps_its_lines_and_says_what_is_left_out():
    assert prose("one\ntwo", 100) == "one\ntwo"
    assert prose("abcdef\u2066", 3) == "abc… (4 more characters)"
    assert prose("\x1b[31m", 9) == "␛[31m"


NOTHING, INFINITE = (float("nan"), "–"), (float("inf"), "∞")


@pytest.mark.parametrize(
    "function, cases",
    [
        (number, [(None, "–"), NOTHING, INFINITE, (1234.567, "1,234.57"), (0.0, "0.00")]),
        (ratio, [NOTHING, INFINITE, (2.345, "2.35"), (805.19, "805"), (12_345.6, ">9,999")]),
        (percent, [(None, "–"), NOTHING, (0.0, "0%"), (0.001, "<1%"), (0.254, "25%"), (0.996, ">99%"), (1.0, "100%")]),
    ],
)
def test_numbers_stay_short_and_never_round_to_none_or_all(function, cases):
    assert [function(value) for value, _ in cases] == [text for _, text in cases]


def test_share():
    assert [share(0, 10), share(1, 2400), share(1200, 2400)] == ["0 (0%)", "1 (<1%)", "1,200 (50%)"]
