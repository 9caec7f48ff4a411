import json
import math

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rsr_trl.data import dataset_card
from rsr_trl.demo import STUDENT_PATH
from rsr_trl.report.tokens import FRAGMENT, Token, level_names, load_tokenizer, read_tokens, sentences
from rsr_trl.rsr import TOKEN_COLUMNS, TOKEN_IDS, TOKEN_RANKS, TOKEN_SURPRISALS, TOKEN_TOP1, RSRError


TEXT = (
    "So 3.14 is π, e.g. here.\n\n1. Family: 👨‍👩‍👧‍👦 🏳️‍🌈 𝒳! 汉字鳥難しい漢字。مرحبا بالعالم؟ نعم.\tTab"
    "\x1b[31m [bold]x[/] \u202e <script> 鱻龘"
)
PLAIN = "The answer is 42,  not\n\n\tother: naïve café"
TOKENIZERS = ["tokenizers/qwen3", "tokenizers/gpt2", "tokenizers/mistral-v3", "models/gsm8k_6m", "models/stories260K"]


@pytest.fixture(scope="module")
def demo_tokenizer():
    return AutoTokenizer.from_pretrained(str(STUDENT_PATH))


def row_of(ids: list[int], top1: list[int] | None = None) -> dict:
    numbers = range(1, len(ids) + 1)
    row = {TOKEN_IDS: ids, TOKEN_RANKS: [*numbers], TOKEN_SURPRISALS: [n / 4 for n in numbers]}
    return row if top1 is None else {**row, TOKEN_TOP1: top1}


def tokens_of(text: str, tokenizer) -> list[Token]:
    return read_tokens(row_of(tokenizer.encode(text, add_special_tokens=False)), tokenizer)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_each_token_has_its_own_text_and_all_make_the_text(name, shared):
    tokenizer = AutoTokenizer.from_pretrained(str(shared / name))
    tokens = tokens_of(TEXT, tokenizer)
    # SentencePiece puts a space before the text; it is a part of the first token, and is kept.
    assert "".join(token.text for token in tokens).removeprefix(" ") == TEXT
    assert len(tokens) == len(tokenizer.encode(TEXT, add_special_tokens=False))
    # The truth: the text cut where the tokenizer's own character offsets say that tokens begin and end.
    texts = [token.text for token in tokens_of(PLAIN, tokenizer)]
    offsets = tokenizer(PLAIN, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    for own, (start, stop) in zip(texts, offsets, strict=True):
        assert own.strip() == PLAIN[start:stop].strip() or not (own.isascii() and own.strip())
    assert any(own.startswith(" ") and own.strip() for own in texts)
    for character in "鱻𝒳龘":  # of several tokens: it belongs to the last
        tokens = tokens_of(f"x{character}y", tokenizer)
        place = next(i for i, token in enumerate(tokens) if character in token.text)
        assert "".join(token.text for token in tokens[: place + 1]).strip() == f"x{character}"
        assert tokens[place - 1].text == "" and tokens[place - 1].shown == FRAGMENT
        assert all(token.shown for token in tokens)


def test_bytes_that_are_no_character(demo_tokenizer):
    """Cut in the middle of a character, as a truncated row is; the tokens around it are as they were."""
    ids, after = (demo_tokenizer.encode(text, add_special_tokens=False) for text in ("a鱻", " b"))
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
    ids = demo_tokenizer.encode("So 7 + 5 = 12.<|im_end|>", add_special_tokens=False)
    tokens = read_tokens(row_of(ids, top1=ids[::-1]), demo_tokenizer)
    assert tokens[-1].text == "<|im_end|>"
    assert [token.rank for token in tokens] == list(range(1, len(ids) + 1))
    assert tokens[3].surprisal == 1.0 and tokens[3].probability == pytest.approx(math.exp(-1))
    assert [token.top1 for token in tokens] == [token.text for token in tokens][::-1]
    # As other libraries give rows, without the student's own choice; that may be beyond the vocabulary.
    arrays = {name: np.array(values) for name, values in row_of(ids).items()}
    assert read_tokens(arrays, demo_tokenizer) == read_tokens(row_of(ids), demo_tokenizer)
    json.dumps([vars(token) for token in read_tokens(arrays, demo_tokenizer)])
    assert all(token.top1 is None for token in read_tokens(arrays, demo_tokenizer))
    assert read_tokens(row_of([5], top1=[1999]), demo_tokenizer)[0].top1 == "<id 1999>"
    for nothing in ([], None):
        assert read_tokens(dict.fromkeys(TOKEN_COLUMNS, nothing), demo_tokenizer) == []


@pytest.mark.parametrize(
    "row, message",
    [
        ({"rsr": 1.0}, "rsr_token_ids.*`rsr score --token_stats`"),
        ({**row_of([5, 6]), TOKEN_RANKS: [1]}, "2 ids, 1 ranks, 2 surprisals"),
        (row_of([5, 6], top1=[5]), "1 of rsr_token_top1"),
        (row_of([5, 151000]), "151000.*1,280.*--tokenizer"),
        (row_of([5, -100]), "-100 is unknown"),
    ],
)
def test_rows_that_cant_be_read_say_why(demo_tokenizer, row, message):
    with pytest.raises(RSRError, match=message):
        read_tokens(row, demo_tokenizer)


def test_every_token_can_be_seen_and_has_a_level():
    for text, shown in (("", FRAGMENT), ("\u200d", "◌\u200d"), ("\u0301", "◌\u0301"), ("e\u0301", "e\u0301")):
        assert Token(text, 1, 0.5).shown == shown
    assert level_names("surprisal") == ["0-0.1", "0.1-0.5", "0.5-1", "1-2", "2-4", "4 or more"]
    assert level_names("rank") == ["1", "2", "3-5", "6-20", "21-100", "101 or more"]
    assert [Token("a", rank, 0.0).level("rank") for rank in (1, 2, 5, 6, 100, 101, 9999)] == [0, 1, 2, 3, 4, 5, 5]


def test_sentences_cover_the_tokens_and_have_their_own_ratio(demo_tokenizer):
    tokens = tokens_of("First 7 + 5 = 12. Then, e.g. 鱻!\nSo 3.5 each.\n\nDone", demo_tokenizer)
    parts = sentences(tokens, r_max=9)
    cut = ["".join(token.text for token in tokens[one.start : one.stop]) for one in parts]
    assert cut == ["First 7 + 5 = 12.", " Then, e.g. 鱻!\n", "So 3.5 each.\n\n", "Done"]
    for one in parts:
        part = tokens[one.start : one.stop]
        ranks = [min(token.rank, 9) for token in part]
        assert one.rsr == pytest.approx(sum(ranks) / sum(token.surprisal for token in part), rel=1e-12)
    assert sentences([Token("Yes", 1, 0.0)], 100)[0].rsr == math.inf  # foreseen
    assert sentences([], r_max=100) == []


@pytest.mark.parametrize(
    "texts, turns, borders",
    [
        (["A.", "", "鱻", "。", "", "龘"], [0], [(0, 4, 1), (4, 6, 1)]),  # parts of a character go with it
        (["Ah", ". So", ". Yes. No. Or", ". So"], [0], [(0, 2, 1), (2, 3, 1), (3, 4, 1)]),  # where a token begins
        (
            ["How", " are", " you", "\n", "I", " am.", " So", "\n\n", "3", ".5"],  # a sentence ends with its turn
            [0, 3, 8],
            [(0, 3, 1), (3, 6, 2), (6, 8, 2), (8, 10, 3)],
        ),
    ],
)
def test_where_sentences_begin_and_end(texts, turns, borders):
    tokens = [Token(text, 1, 1.0) for text in texts]
    assert [(one.start, one.stop, one.turn) for one in sentences(tokens, 100, turns)] == borders


def test_the_tokenizer_is_that_of_the_card_or_the_one_named(tmp_path):
    def scored_by(student) -> str:
        (tmp_path / "README.md").write_text(dataset_card("Scored.", facts={"student": str(student)}), encoding="utf-8")
        return str(tmp_path)

    (tmp_path / "empty").mkdir()
    for dataset, name, message in (
        (str(tmp_path), None, "which student.*--tokenizer"),
        (str(tmp_path / "scored.parquet"), None, "which student.*--tokenizer"),
        ("me/scored", None, "which student.*--tokenizer"),
        (str(tmp_path), "/nowhere", "/nowhere.*--tokenizer"),
        (str(tmp_path), str(tmp_path / "empty"), "Can't load the tokenizer of.*--tokenizer"),
    ):
        with pytest.raises(RSRError, match=message):
            load_tokenizer(dataset, name)
    with pytest.raises(RSRError, match="no folder.*/gone.*named in.*--tokenizer"):
        load_tokenizer(scored_by("/gone/student"))
    own, named = load_tokenizer(scored_by(STUDENT_PATH)), load_tokenizer("anything", str(STUDENT_PATH))
    assert own.get_vocab() == named.get_vocab()
