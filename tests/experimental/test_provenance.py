"""Provenance by its definition in float64, of models with the same tokens and with others."""

import math

import numpy as np
import pytest
from datasets import Dataset

from rsr_trl import RSRScorer, select_trajectories
from rsr_trl.experimental.provenance import classify, score_provenance, table, trace
from rsr_trl.rsr import RSRError
from rsr_trl.scoring.tokens import ExampleTokenizer
from tests.scoring.truth import in_float64, truth_of


PROMPT = "Q:\n2+3?\nA:"
RESPONSES = [  # by sentences
    ["First we add: 2+3=5.", " Right.\n\n", "Then 5*4=20.\n", "- and again\n", "So it is\n", "20, or\n", "twenty."],
    ["We add them.", " It is 5.", " Done"],
    ["No end and no line"],
    [" Später: 你好。", "🧎‍♀️ knies\n\n", "Über 5 €\n", "🙂\n"],
    ["<think>\n", "Hm, 2+3.\n", "</think>\n\n", "It is 5."],
]
TEXTS = ["".join(sentences) for sentences in RESPONSES]
ASKED = {"role": "user", "content": "2+3?"}


@pytest.fixture
def scored(tiny_student, tiny_tokenizer):
    """
    `scored(rows, seed, **settings)`: with token statistics, but for surprisals that vary as those of trained models:
    drawn by the seed, or those of the random student itself for `None`.
    """

    def score(rows: list[dict], seed: int | None = 0, **settings) -> Dataset:
        scorer = RSRScorer(tiny_student(), tiny_tokenizer, token_stats=True, **settings)
        dataset, rng = scorer.score(Dataset.from_list(rows)), np.random.default_rng(seed)
        if seed is None:
            return dataset
        nats = [rng.exponential(1.0, len(ids)) * _scale(rng, len(ids)) for ids in dataset["rsr_token_ids"]]
        kind = dataset.features["rsr_token_surprisals"]
        return dataset.remove_columns("rsr_token_surprisals").add_column("rsr_token_surprisals", nats, feature=kind)

    return score


def _scale(rng: np.random.Generator, size: int) -> np.ndarray:
    """Some stretches are easy and some hard."""
    return np.repeat(rng.choice([0.05, 0.8, 3.0], size), 12)[:size]


@pytest.fixture
def rows() -> list[dict]:
    return [{"prompt": PROMPT, "completion": text} for text in TEXTS]


def geometric_means(sentences: list[str], nats: list[float]) -> list[float]:
    """p_M of each sentence: every byte is a token."""
    lengths = [len(one.encode()) for one in sentences]
    assert sum(lengths) == len(nats)
    parts = np.split(np.asarray(nats, np.float64), np.cumsum(lengths)[:-1])
    return [math.prod(math.exp(-x) for x in part) ** (1 / len(part)) for part in parts]


def before(s: float, t: float) -> str:
    return "teacher" if t - s > 0.1 else "student" if s - t > 0.1 else "common"


def after(s: float, t: float, d: float) -> str:
    if abs(s - t) <= 0.1 and abs(s - d) <= 0.1 and abs(t - d) <= 0.1:
        return "shared"
    return {"common": "boosted"}.get(before(s, t), before(s, t))


def test_classes_by_their_inequalities():
    p = np.random.default_rng(0).uniform(0, 0.5, (3, 500))
    assert classify(*p[:2]).tolist() == list(map(before, *p[:2]))
    assert classify(*p).tolist() == list(map(after, *p))
    assert set(classify(*p)) == {"teacher", "student", "boosted", "shared"}
    assert classify([0.25, 0.125, np.nan], [0.125, 0.25, 0.5]).tolist() == ["student", "teacher", ""]
    assert classify([0.5, 0.5], [0.5, 0.5], [np.nan, 0.1]).tolist() == ["", "boosted"]  # lower is boosted too


def test_equals_its_definition(rows, scored, tiny_tokenizer):
    student, teacher = scored(rows), scored(rows, seed=3)
    found = score_provenance(student, tiny_tokenizer, teacher)
    assert found.column_names[: len(student.column_names)] == student.column_names
    nats, kinds = "rsr_token_surprisals", set()
    for row, of_student, of_teacher, sentences in zip(found, student, teacher, RESPONSES, strict=True):
        p_s, p_t = (geometric_means(sentences, one[nats]) for one in (of_student, of_teacher))
        classes, said = list(map(before, p_s, p_t)), row["provenance_sentences"]
        assert [one["text"] for one in said] == sentences and [one["class"] for one in said] == classes
        assert [one["p_student"] for one in said] == pytest.approx(p_s, rel=1e-9)
        assert [one["p_teacher"] for one in said] == pytest.approx(p_t, rel=1e-9)
        assert row["score_provenance"] == classes.count("teacher")
        assert row["provenance_num_sentences"] == len(sentences)
        for name in ("teacher", "student", "common"):
            assert row[f"provenance_{name}_share"] == pytest.approx(classes.count(name) / len(classes))
        kinds |= set(classes)
    assert kinds == {"teacher", "student", "common"}


def test_after_training(rows, scored, tiny_tokenizer):
    models = [scored(rows, seed) for seed in (0, 5, 3)]  # before, after, teacher
    found = trace(*models, tiny_tokenizer)
    nats = [model["rsr_token_surprisals"] for model in models]
    p_s, p_d, p_t = (sum(map(geometric_means, RESPONSES, one), []) for one in nats)
    expected = list(map(after, p_s, p_t, p_d))
    assert [one["class"] for row in found["provenance_sentences"] for one in row] == expected
    assert "score_provenance" not in found.column_names
    first = expected[: len(RESPONSES[0])]
    assert found["provenance_shared_share"][0] == pytest.approx(first.count("shared") / len(first))
    summed = table(found)
    assert summed.sentences.to_dict() == {name: expected.count(name) for name in set(expected)}
    assert summed.share.sum() == pytest.approx(1) and len(summed) == 4
    of_boosted = [p for p, kind in zip(p_d, expected, strict=True) if kind == "boosted"]
    assert summed.p_trained["boosted"] == pytest.approx(np.mean(of_boosted))


def test_models_with_other_tokens_average_over_their_own(gsm8k_rows, gsm8k_student, stories260k):
    rows = [{"prompt": row["prompt"], "completion": row["completion"][:300].rstrip()} for row in gsm8k_rows[::300]]
    models = [RSRScorer(path, dtype="float32", token_stats=True) for path in (gsm8k_student, stories260k)]
    tokenizers = [model.processing_class for model in models]
    student, teacher = (model.score(Dataset.from_list(rows)) for model in models)
    for row in score_provenance(student, tokenizers[0], teacher, tokenizers[1]):
        said = row["provenance_sentences"]
        assert "".join(one["text"] for one in said).strip() == row["completion"].strip()
        ends = len(row["prompt"]) + np.cumsum([len(one["text"]) for one in said])
        ends += len(row["prompt"] + row["completion"]) - ends[-1]  # a first token may hold the prompt's last space
        for model, tokenizer, name in zip(models, tokenizers, ("p_student", "p_teacher"), strict=True):
            text = row["prompt"] + row["completion"] + tokenizer.eos_token
            encoded = tokenizer(text, return_offsets_mapping=True)
            (example,) = ExampleTokenizer(tokenizer)([row])
            places = np.flatnonzero(example.scored)
            nats = truth_of(in_float64(model.student.model), encoded["input_ids"], places).surprisals
            own = np.searchsorted(ends, [encoded["offset_mapping"][k][0] for k in places], side="right")
            for j, one in enumerate(said):
                assert one[name] == pytest.approx(np.exp(-nats[own == j].mean()), rel=1e-4), (one, name)


def test_a_turn_ends_a_sentence_and_what_the_teacher_has_not_read_is_unknown(scored, tiny_tokenizer):
    turns = ["It is 4", "No. 5", "Sure"]
    chat = [m for turn in turns for m in (ASKED, {"role": "assistant", "content": turn})]
    dataset = scored([{"messages": chat}])
    (row,) = score_provenance(dataset, tiny_tokenizer, scored([{"messages": chat}], seed=3))
    assert [one["text"] for one in row["provenance_sentences"]] == ["It is 4", "No.", " 5", "Sure"]
    num_tokens = len(ExampleTokenizer(tiny_tokenizer)([{"messages": chat}])[0].input_ids)
    shorter = scored(
        [{"messages": chat}], seed=3, max_length=num_tokens - 4
    )  # the end of the turn, and some of "Sure"
    (row,) = score_provenance(dataset, tiny_tokenizer, shorter)
    assert [bool(one["class"]) for one in row["provenance_sentences"]] == [True, True, True, False]
    assert row["provenance_num_sentences"] == 3
    (row,) = score_provenance(shorter, tiny_tokenizer, dataset)
    assert row["provenance_num_sentences"] == 4  # as far as the student has read them


def test_another_text_is_null_and_counted(scored, rows, tiny_tokenizer, gpt2_tokenizer, caplog):
    other = [rows[0], {**rows[1], "completion": "We add them. It is 6."}, {**rows[2], "completion": ""}, *rows[3:]]
    found = score_provenance(scored(rows), tiny_tokenizer, scored(other))
    assert [value is None for value in found["score_provenance"]] == [False, True, True, False, False]
    assert found["provenance_sentences"][1] is None
    assert "2 of 5 rows have no provenance" in caplog.text
    caplog.clear()
    found = score_provenance(scored(rows), gpt2_tokenizer, scored(rows))  # its ids are letters to this one
    assert set(found["score_provenance"]) == {None} and "5 of 5 rows" in caplog.text
    caplog.clear()
    unscored = [*rows[:2], {**rows[2], "completion": ""}]
    assert score_provenance(scored(unscored), tiny_tokenizer, scored(unscored))["score_provenance"][2] is None
    assert not [said for said in caplog.messages if "provenance" in said]


def test_a_cut_within_a_character(scored, rows, tiny_tokenizer):
    for max_length in range(30, 50):
        dataset = scored(rows[3:4], max_length=max_length)
        (row,) = score_provenance(dataset, tiny_tokenizer, scored(rows[3:4], seed=3, max_length=max_length))
        assert TEXTS[3].startswith("".join(one["text"] for one in row["provenance_sentences"]))


def test_what_does_not_belong_together(scored, rows, tiny_tokenizer):
    dataset, plain = scored(rows), Dataset.from_list(rows)
    for message, *args in (
        (r"no column 'logprob'; its columns", dataset, tiny_tokenizer, "logprob"),
        (r"student's dataset: There is no column 'rsr_token_ids'.*token_stats=True", plain, tiny_tokenizer, dataset),
        (r"teacher's dataset: There is no column 'rsr_token_ids'", dataset, tiny_tokenizer, plain),
        (r"teacher's dataset has 4 rows instead of 5", dataset, tiny_tokenizer, dataset.select(range(4))),
    ):
        with pytest.raises(RSRError, match=message):
            score_provenance(*args)
    with pytest.raises(RSRError, match="already has the column"):
        score_provenance(score_provenance(dataset, tiny_tokenizer, dataset), tiny_tokenizer, dataset)


def test_the_largest_number_is_chosen(scored, rows, tiny_tokenizer):
    dataset = score_provenance(scored(rows), tiny_tokenizer, scored(rows, seed=3))
    values = dataset["score_provenance"][:]
    (best,) = select_trajectories(dataset, score="provenance", keep_fraction=0.1, min_tokens=0)["score_provenance"]
    assert best == max(values) > min(values)
