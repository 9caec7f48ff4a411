import random

import pytest

from rsr_trl.scoring.steps import split_sentences, split_steps


def cut(text: str) -> list[str]:
    return [text[start:stop] for start, stop in split_sentences(text)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "One.",
        "no end at all",
        "One.| Two!| Three?| Four",
        "Wait... ",
        "Wait...| Really?!| Yes…| So.",
        'He said "stop."| (I did.)| **Bold.**| Then.',
        "Pi is 3.14, not 3.| So 2.5e-3 it is.",
        "Take e.g. this, i.e. that vs. these, cf. Eq. 5 of Dr. Who.| Done.",
        "It was 5 a.m. then.",
        "1. First of all.\n|2. Then. \n|  a. Inner.\n|(3. odd.",
        "x = 3.| y = 4.",
        "Line one\n|line two\n\n\n|  indented\n|\tlast",
        "One.\r\n|Two.\r\n\r\n|Three",
        "\n\n  One.| Two.\n  ",
        "她有3.5个苹果。|真的吗？|是的！|好",
        "他说：“走。”|然后走了。",
        "كم؟| ثلاثة.| نعم",
        "See example.com/a.b?c=1 there.| Ok",
        " \n\t ",
    ],
)
def test_sentences(text):
    sentences = text.split("|") if text else []
    assert cut("".join(sentences)) == sentences


@pytest.mark.parametrize("unit", [".", "?!", "\n", " \n", " ", "e.g. ", "1. ", ". ", '."', "。", "word "])
def test_a_megabyte_of_one_thing(unit):
    """It would take hours if a pattern backtracked over it or if every candidate read all before it."""
    text = (unit * 1_000_000)[:1_000_000]
    spans = split_sentences(text)
    assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])] and spans[-1][1] == len(text)


@pytest.mark.parametrize(
    "steps",
    [
        [],
        ["One line without an end"],
        ["One.", " Two!", " Three"],
        ["One. Two.\n", "Three. Four."],
        ["First\n\n", "  second, indented\n \t\n", "third\n\n\n"],
        ["\n\n  One\n", "two"],
        ["One.\r\n", "Two. Still two.\r\n\r\n", "Three"],
        ["Only.", " One line, with its end.\n"],
        [" \n\t "],
    ],
)
def test_steps_are_lines_or_else_sentences(steps):
    text = "".join(steps)
    assert [text[start:stop] for start, stop in split_steps(text)] == steps


@pytest.mark.parametrize("split", [split_sentences, split_steps])
def test_spans_are_consecutive_not_empty_and_cover_the_text(split):
    source = random.Random(0)
    units = ["a", "1", ".", "!", "?", "。", " ", "\n", "\t", "\r", '"', ")", "e.g.", "\u2028", "🙂"]
    for _ in range(2_000):
        text = "".join(source.choices(units, k=source.randrange(40)))
        spans = split(text)
        assert [start for start, _ in spans] == [0, *(stop for _, stop in spans)][: len(spans)]
        assert "".join(text[start:stop] for start, stop in spans) == text
        if text.strip():
            assert all(text[start:stop].strip() for start, stop in spans)
        lines = [line for line in text.split("\n") if line.strip()]
        if split is split_steps and len(lines) > 1:
            assert len(spans) == len(lines)
