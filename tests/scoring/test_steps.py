import random

import pytest

from rsr_trl.scoring.steps import split_sentences


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
