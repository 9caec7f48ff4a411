import json
import math

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rsr_trl.data import dataset_card
from rsr_trl.demo import STUDENT_PATH
from rsr_trl.report.tokens import FRAGMENT, Token, level_names, load_tokenizer, read_tokens, sentences
from rsr_trl.rsr import (
    TOKEN_COLUMNS,
    TOKEN_IDS,
    TOKEN_RANKS,
    TOKEN_SURPRISALS,
    TOKEN_TOP1,
    RSRError,
    trajectory_rsr,
)


TEXT = (
    "So 3.14 is π, e.g. here.\n\n1. Family: 👨‍👩‍👧‍👦 🏳️‍🌈 𝒳! 汉字鳥難しい漢字。مرحبا بالعالم؟ نعم.\tTab"
    "\x1b[31m [bold]x[/] \u202e <script> 鱻龘"
)
TOKENIZERS = ["tokenizers/qwen3", "tokenizers/gpt2", "tokenizers/mistral-v3", "models/gsm8k_6m", "models/stories260K"]


@pytest.fixture(scope="module")
def demo_tokenizer():
    return AutoTokenizer.from_pretrained(str(STUDENT_PATH))


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request, shared):
    return AutoTokenizer.from_pretrained(str(shared / request.param))


def row_of(ids: list[int], top1: list[int] | None = None) -> dict:
    numbers = range(1, len(ids) + 1)
    row = {TOKEN_IDS: ids, TOKEN_RANKS: [*numbers], TOKEN_SURPRISALS: [n / 4 for n in numbers]}
    return row if top1 is None else {**row, TOKEN_TOP1: top1}


def texts_of(text: str, tokenizer) -> list[str]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    return [token.text for token in read_tokens(row_of(ids), tokenizer)]


def character_borders(text: str, tokenizer) -> list[str] | None:
    """The truth: the text cut where the tokenizer's own character offsets say that tokens begin and end."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [text[start:stop] for start, stop in offsets]


def test_texts_of_all_tokens_make_the_text(tokenizer):
    texts = texts_of(TEXT, tokenizer)
    # SentencePiece puts a space before the text; it is a part of the first token, and is kept.
    assert "".join(texts).removeprefix(" ") == TEXT
    assert len(texts) == len(tokenizer.encode(TEXT, add_special_tokens=False))


def test_each_token_has_its_own_text(tokenizer):
    text = "The answer is 42,  not\n\n\tother: naïve café"
    texts, truth = texts_of(text, tokenizer), character_borders(text, tokenizer)
    for own, expected in zip(texts, truth, strict=True):
        if own.isascii() and own.strip():
            assert own.strip() == expected.strip()
    assert any(own.startswith(" ") and own.strip() for own in texts)


def test_a_character_over_several_tokens_belongs_to_the_last(tokenizer):
    for character in "鱻𝒳龘":
        text = f"x{character}y"
        tokens = read_tokens(row_of(tokenizer.encode(text, add_special_tokens=False)), tokenizer)
        place = next(i for i, token in enumerate(tokens) if character in token.text)
        assert "".join(token.text for token in tokens[: place + 1]).strip() == text[:-1]
        assert tokens[place - 1].text == "" and tokens[place - 1].shown == FRAGMENT
        assert all(token.shown for token in tokens)


def test_bytes_that_are_no_character(demo_tokenizer):
    """Cut in the middle of a character, as a truncated row is; the tokens around it are as they were."""
    ids = demo_tokenizer.encode("a鱻", add_special_tokens=False)
    after = demo_tokenizer.encode(" b", add_special_tokens=False)
    texts = [token.text for token in read_tokens(row_of([*ids[:-1], *after]), demo_tokenizer)]
    assert texts[0] == "a" and "".join(texts[len(ids) - 1 :]) == " b"
    assert set("".join(texts[1 : len(ids) - 1])) == {FRAGMENT}


def test_tokens_that_end_one_character_and_begin_another():
    """Two characters of three bytes each in three tokens, cut as no tokenizer of ours cuts: 1 | 3 | 2."""
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("鱻龘")[0][0]
    model = Tokenizer(models.BPE({"a": 0, spelled[0]: 1, spelled[1:4]: 2, spelled[4:]: 3}, []))
    model.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model)
    assert [token.text for token in read_tokens(row_of([0, 1, 2, 3]), tokenizer)] == ["a", "", "鱻", "龘"]


def test_statistics_stand_beside_their_text(demo_tokenizer):
    ids = demo_tokenizer.encode("So 7 + 5 = 12.", add_special_tokens=False)
    tokens = read_tokens(row_of(ids, top1=ids[::-1]), demo_tokenizer)
    assert [token.rank for token in tokens] == list(range(1, len(ids) + 1))
    assert tokens[3].surprisal == 1.0 and tokens[3].probability == pytest.approx(math.exp(-1))
    assert [token.top1 for token in tokens] == [token.text for token in tokens][::-1]
    assert all(token.top1 is None for token in read_tokens(row_of(ids), demo_tokenizer))


def test_rows_as_other_libraries_give_them(demo_tokenizer):
    ids = demo_tokenizer.encode("So 7 + 5 = 12.", add_special_tokens=False)
    arrays = {name: np.array(values) for name, values in row_of(ids).items()}
    assert read_tokens(arrays, demo_tokenizer) == read_tokens(row_of(ids), demo_tokenizer)
    json.dumps([vars(token) for token in read_tokens(arrays, demo_tokenizer)])


def test_special_tokens_are_shown(demo_tokenizer):
    assert texts_of("a<|im_end|>", demo_tokenizer) == ["a", "<|im_end|>"]


def test_row_without_score(demo_tokenizer):
    for nothing in ([], None):
        row = dict.fromkeys(TOKEN_COLUMNS, nothing)
        assert read_tokens(row, demo_tokenizer) == []
    assert sentences([], r_max=100) == []


def test_missing_columns_say_what_to_do(demo_tokenizer):
    with pytest.raises(ValueError, match="rsr_token_ids.*`rsr score --token_stats`"):
        read_tokens({"rsr": 1.0}, demo_tokenizer)


def test_columns_of_different_lengths(demo_tokenizer):
    with pytest.raises(ValueError, match="2 ids, 1 ranks, 2 surprisals"):
        read_tokens({**row_of([5, 6]), TOKEN_RANKS: [1]}, demo_tokenizer)
    with pytest.raises(ValueError, match="1 of rsr_token_top1"):
        read_tokens(row_of([5, 6], top1=[5]), demo_tokenizer)


def test_ids_of_another_tokenizer(demo_tokenizer):
    with pytest.raises(ValueError, match="151000.*1,280.*--tokenizer"):
        read_tokens(row_of([5, 151000]), demo_tokenizer)
    with pytest.raises(ValueError, match="-100 is unknown"):
        read_tokens(row_of([5, -100]), demo_tokenizer)


def test_a_choice_beyond_the_vocabulary_is_no_error(demo_tokenizer):
    """Heads are often padded to a round number of columns."""
    assert read_tokens(row_of([5], top1=[1999]), demo_tokenizer)[0].top1 == "<id 1999>"


@pytest.mark.parametrize(
    "text, shown", [("", FRAGMENT), ("\u200d", "◌\u200d"), ("\u0301", "◌\u0301"), ("e\u0301", "e\u0301")]
)
def test_every_token_can_be_seen(text, shown):
    assert Token(text, 1, 0.5).shown == shown


def test_levels_have_names():
    assert level_names("surprisal") == ["0-0.1", "0.1-0.5", "0.5-1", "1-2", "2-4", "4 or more"]
    assert level_names("rank") == ["1", "2", "3-5", "6-20", "21-100", "101 or more"]
    assert [Token("a", rank, 0.0).level("rank") for rank in (1, 2, 5, 6, 100, 101, 9999)] == [0, 1, 2, 3, 4, 5, 5]


def test_sentences_cover_the_tokens_and_have_their_own_ratio(demo_tokenizer):
    text = "First 7 + 5 = 12. Then, e.g. 鱻!\nSo 3.5 each.\n\nDone"
    ids = demo_tokenizer.encode(text, add_special_tokens=False)
    tokens = read_tokens(row_of(ids), demo_tokenizer)
    found = sentences(tokens, r_max=9)
    cut = ["".join(token.text for token in tokens[one.start : one.stop]) for one in found]
    assert cut == ["First 7 + 5 = 12.", " Then, e.g. 鱻!\n", "So 3.5 each.\n\n", "Done"]
    for one in found:
        part = tokens[one.start : one.stop]
        ranks = [min(token.rank, 9) for token in part]
        assert one.rsr == pytest.approx(sum(ranks) / sum(token.surprisal for token in part), rel=1e-12)


def test_parts_of_a_character_go_with_it():
    tokens = [
        Token("A.", 1, 1.0),
        Token("", 2, 1.0),
        Token("鱻", 3, 1.0),
        Token("。", 4, 1.0),
        Token("", 5, 1.0),
        Token("龘", 6, 1.0),
    ]
    assert [(one.start, one.stop) for one in sentences(tokens, 100)] == [(0, 4), (4, 6)]


def test_a_token_over_a_border_belongs_to_where_it_begins():
    tokens = [Token("Ah", 1, 1.0), Token(". So", 2, 1.0), Token(". Yes. No. Or", 3, 2.0), Token(". So", 4, 0.0)]
    assert [(one.start, one.stop, one.rsr) for one in sentences(tokens, 100)] == [
        (0, 2, 1.5),
        (2, 3, 1.5),
        (3, 4, math.inf),
    ]


def test_a_sentence_ends_with_its_turn():
    tokens = [Token(text, 1, 1.0) for text in ("How", " are", " you", "\n", "I", " am.", " So", "\n\n", "3", ".5")]
    found = sentences(tokens, 100, turns=[0, 3, 8])
    assert [(one.start, one.stop, one.turn) for one in found] == [(0, 3, 1), (3, 6, 2), (6, 8, 2), (8, 10, 3)]


def test_one_sentence_has_the_ratio_of_the_trajectory(demo_tokenizer):
    ids = demo_tokenizer.encode("twelve and more", add_special_tokens=False)
    tokens = read_tokens(row_of(ids), demo_tokenizer)
    truth = trajectory_rsr([token.rank for token in tokens], [token.surprisal for token in tokens], r_max=3)
    assert [one.rsr for one in sentences(tokens, r_max=3)] == [pytest.approx(truth)]


@pytest.fixture
def scored_folder(tmp_path):
    def make(student: str) -> str:
        (tmp_path / "README.md").write_text(dataset_card("Scored.", facts={"student": student}), encoding="utf-8")
        return str(tmp_path)

    return make


def test_tokenizer_of_the_student_in_the_card(scored_folder):
    own, named = load_tokenizer(scored_folder(str(STUDENT_PATH))), load_tokenizer("anything", str(STUDENT_PATH))
    assert own.get_vocab() == named.get_vocab()


def test_tokenizer_that_nothing_names(tmp_path):
    for dataset in (str(tmp_path), str(tmp_path / "scored.parquet"), "me/scored"):
        with pytest.raises(RSRError, match="Which student.*--tokenizer"):
            load_tokenizer(dataset)


def test_tokenizer_that_is_not_there(scored_folder, tmp_path):
    with pytest.raises(RSRError, match="no folder.*/gone.*named in.*--tokenizer"):
        load_tokenizer(scored_folder("/gone/student"))
    with pytest.raises(RSRError, match="/nowhere.*--tokenizer"):
        load_tokenizer(str(tmp_path), "/nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RSRError, match="Can't load the tokenizer of.*--tokenizer"):
        load_tokenizer(str(tmp_path), str(tmp_path / "empty"))
