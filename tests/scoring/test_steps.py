import random

import pytest

from rsr_trl.scoring.steps import split_sentences, split_steps


def cut(text: str) -> list[str]:
    return [text[start:stop] for start, stop in split_sentences(text)]


@pytest.mark.parametrize(
    "sentences",
    [
        [],
        ["One."],
        ["no end at all"],
        ["One.", " Two!", " Three?", " Four"],
        ["Wait... "],
        ["Wait...", " Really?!", " Yes…", " So."],
        ['He said "stop."', " (I did.)", " **Bold.**", " Then."],
        ["Pi is 3.14, not 3.", " So 2.5e-3 it is."],
        ["Take e.g. this, i.e. that vs. these, cf. Eq. 5 of Dr. Who.", " Done."],
        ["It was 5 a.m. then."],
        ["1. First of all.\n", "2. Then. \n", "  a. Inner.\n", "(3. odd."],
        ["x = 3.", " y = 4."],
        ["Line one\n", "line two\n\n\n", "  indented\n", "\tlast"],
        ["One.\r\n", "Two.\r\n\r\n", "Three"],
        ["\n\n  One.", " Two.\n  "],
        ["她有3.5个苹果。", "真的吗？", "是的！", "好"],
        ["他说：“走。”", "然后走了。"],
        ["كم؟", " ثلاثة.", " نعم"],
        ["See example.com/a.b?c=1 there.", " Ok"],
        [" \n\t "],
    ],
)
def test_sentences(sentences):
    assert cut("".join(sentences)) == sentences


def test_spans_are_consecutive_not_empty_and_cover_the_text():
    rng = random.Random(0)
    for _ in range(2_000):
        text = "".join(rng.choices(["a", "1", ".", "!", "。", " ", "\n", '"', ")", "e.g.", "\u2028", "🙂"], k=12))
        borders = [0]
        for start, stop in split_sentences(text):
            assert start == borders[-1] and stop > start
            borders.append(stop)
        assert borders[-1] == len(text)
        if text.strip():
            assert all(sentence.strip() for sentence in cut(text))


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


def test_steps_cover_any_text():
    source = random.Random(0)
    for _ in range(300):
        text = "".join(source.choices("ab. \n\t?\r", k=source.randrange(40)))
        spans = split_steps(text)
        assert "".join(text[start:stop] for start, stop in spans) == text
        assert all(start < stop for start, stop in spans)
        assert sum(bool(text[start:stop].strip()) for start, stop in spans) >= len(spans) - 1
        if len([line for line in text.split("\n") if line.strip()]) > 1:
            assert len(spans) == len([line for line in text.split("\n") if line.strip()])
