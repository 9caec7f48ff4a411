import numpy as np
import pytest

from rsr_trl.report.format import visible
from rsr_trl.report.page import MAX_ROWS
from rsr_trl.report.sections import reading
from rsr_trl.rsr import RSR, TOKEN_IDS, TOKEN_RANKS, TOKEN_SURPRISALS, TOKEN_TOP1, RSRError, trajectory_rsr
from tests.report.pages import token_columns


@pytest.fixture
def write_first(write, rows, tiny_tokenizer):
    """`write_first(text, **columns)` makes a page that shows a first row of this text, and returns it and the row."""

    def make(text: str, without: tuple = (), **columns):
        row = {**rows[0], "completion": text, "messages": None}
        row |= token_columns(tiny_tokenizer, text, np.random.default_rng(1)) | columns
        return write([row, *({**other, "messages": None} for other in rows[1:])], rows=[0], without=without), row

    return make


def test_every_token_has_its_numbers_and_the_students_choice(write, rows, tiny_tokenizer):
    order = sorted(range(18), key=lambda i: rows[i]["rsr"])
    expected = [order[0], order[8], order[17], order[4]]
    page = write(rows, rows=[order[4]])
    shown = page.tokens[: len(expected)]
    assert len(page.tokens) == len(expected) + 3  # and those of one problem
    for number, tokens in zip(expected, shown, strict=True):
        row = rows[number]
        assert "".join(text for text, _ in tokens) == row["completion"]
        assert [int(attrs["data-r"]) for _, attrs in tokens] == row[TOKEN_RANKS]
        surprisals = [float(attrs["data-s"]) for _, attrs in tokens]
        np.testing.assert_allclose(surprisals, row[TOKEN_SURPRISALS], atol=5.1e-4)
        for (_, attrs), rank, top1 in zip(tokens, row[TOKEN_RANKS], row[TOKEN_TOP1], strict=True):
            said = visible(tiny_tokenizer.decode([top1]))
            assert attrs.get("data-t", said) in (said, "\N{REPLACEMENT CHARACTER}")
            assert "data-t" not in attrs or rank > 1


def test_levels_begin_where_the_scale_says(write_first):
    surprisals, ranks = [0.0, 0.1, 0.5, 1.0, 2.0, 4.0], [1, 2, 3, 6, 21, 101]
    page, _ = write_first("abcdef", **{TOKEN_SURPRISALS: surprisals, TOKEN_RANKS: ranks})
    tokens = next(tokens for tokens in page.tokens if "".join(text for text, _ in tokens) == "abcdef")
    assert [attrs["class"] for _, attrs in tokens] == [f"a{i} b{i}" for i in range(6)]


def test_sentences_have_their_own_ratio_and_turns_a_border(write_first):
    page, row = write_first("We add. It is four.")
    first = len("We add.")  # of this tokenizer every byte is a token
    for part in (slice(0, first), slice(first, None)):
        ratio = trajectory_rsr(row[TOKEN_RANKS][part], row[TOKEN_SURPRISALS][part])
        assert f"{ratio:,.2f}" in page.text["reading"]
    assert "turn 2" not in page.words("reading")
    said = (("user", "2+2?"), ("assistant", "Sure"), ("user", "Go on."), ("assistant", "It is 4."))
    turns = [{"role": role, "content": text} for role, text in said]
    said = write_first("SureIt is 4.", ("prompt", "completion"), messages=turns)[0].words("reading")
    assert said.count("turn 2") == 1 and said.index("Sure") < said.index("turn 2") < said.index("It is 4.")
    assert "turn 1" not in said


def test_long_trajectories_are_cut_and_said(write, rows, monkeypatch):
    monkeypatch.setattr(reading, "MAX_TOKENS", 120)
    page = write(rows)
    assert sum(map(len, page.tokens[:3])) <= 80
    assert max(row["rsr_num_tokens"] for row in rows) > 26 and "The first 26 of" in page.words("reading")


def test_no_more_rows_than_there_is_room_for_and_top1_may_be_absent(write, rows):
    page = write(rows, rows=list(range(18)) * 3, without=[TOKEN_TOP1])
    assert len(page.tokens) == 18 + 3  # named several times is named once
    assert not any("data-t" in attrs for tokens in page.tokens for _, attrs in tokens)
    assert "would have said" not in page.words("reading")
    with pytest.raises(RSRError, match=f"room for {MAX_ROWS} rows, got 54"):
        write(rows * 3, rows=range(54))


def test_another_r_max_is_said(write, rows):
    rows[0] |= {TOKEN_RANKS: [1000] * len(rows[0][TOKEN_IDS]), RSR: 1.0}
    page = write(rows, rows=[4, 0])
    assert page.words("reading").count("uses a different r_max") == 1 and "a different r_max" not in page.words(
        "problem"
    )
