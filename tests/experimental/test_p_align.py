"""P-ALIGN: the judge by all logits, bisection against a scan, continuations against a greedy loop."""

from collections import Counter
from math import ceil, log2

import numpy as np
import pytest
import torch
from datasets import Dataset

from rsr_trl import RSRScorer
from rsr_trl.experimental import p_align
from rsr_trl.experimental.p_align import (
    CONTINUE,
    JUDGE,
    VERDICTS,
    aligned_rows,
    continue_prefixes,
    find_prefixes,
    verdict_margins,
)
from rsr_trl.rsr import RSRError
from rsr_trl.scoring.rows import TokenBar
from tests.scoring.truth import in_float64, truth_of


SENTENCES = ["First 2+3=5. ", "Then 5*4=20.\n\n", "Is it? ", "Yes, e.g. by hand. ", "So 20."]


@pytest.fixture(params=["tiny", "qwen3"])
def scorer(request, tiny_student, tiny_tokenizer) -> RSRScorer:
    if request.param == "tiny":
        return RSRScorer(tiny_student(), tiny_tokenizer)
    return RSRScorer(tiny_student(151_936), request.getfixturevalue("qwen3_tokenizer"))


@pytest.fixture
def tiny_scorer(tiny_student, tiny_tokenizer) -> RSRScorer:
    return RSRScorer(tiny_student(), tiny_tokenizer)


def rows_of(*completions: str) -> Dataset:
    return Dataset.from_list([{"prompt": f"{i}+3?", "completion": text} for i, text in enumerate(completions)])


@pytest.fixture
def judge(monkeypatch):
    """`judge(enough)`: a judge of prefixes, by a function of their texts; returns the list of what it was asked."""

    def install(enough) -> list[list[str]]:
        asked = []

        def margins(scorer, questions, prefixes, bar=None) -> np.ndarray:
            asked.append(list(prefixes))
            return np.array([1.0 if enough(prefix) else -1.0 for prefix in prefixes])

        monkeypatch.setattr(p_align, "verdict_margins", margins)
        return asked

    return install


def test_margins_by_all_logits(scorer):
    questions, prefixes = ["2+3? " * 30] * 3 + ["Else?"], ["", "First 2+3=5.", "First 2+3=5. Then.", "No"]
    model64, tokenizer = in_float64(scorer.student.model), scorer.processing_class
    expected = []
    for question, prefix in zip(questions, prefixes, strict=True):
        chat = [{"role": "user", "content": JUDGE.format(question=question, prefix=prefix)}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        before, log_probs = len(tokenizer(text)["input_ids"]), []
        for verdict in VERDICTS:
            ids = tokenizer(text + verdict)["input_ids"]
            log_probs.append(-truth_of(model64, ids, range(before, len(ids))).surprisals.sum())
        expected.append(log_probs[0] - log_probs[1])
    bar = TokenBar(None, disable=True)
    np.testing.assert_allclose(verdict_margins(scorer, questions, prefixes, bar), expected, rtol=1e-4, atol=1e-4)
    assert bar.tokens_read < 0.6 * bar.tokens  # instruction, question and prefix are read once


def test_bisection_equals_a_scan_of_monotone_judges(judge, tiny_scorer):
    drawn = np.random.default_rng(0)
    rows = [[f"Row {i}.", *(f"Step {k}." for k in range(drawn.integers(0, 40)))] for i in range(60)]
    limits = [drawn.integers(0, len(row) + 3) for row in rows]  # in sentences: from the first on, up to never
    asked = judge(lambda prefix: prefix.count(".") >= limits[int(prefix.split(".")[0][4:])])
    found = find_prefixes(rows_of(*map(" ".join, rows)), tiny_scorer)
    for sentences, limit, row in zip(rows, limits, found, strict=True):
        scan = [m for m in range(1, len(sentences) + 1) if m >= limit]
        kept = scan[0] if scan else len(sentences)
        assert row["prefix"] == " ".join(sentences[:kept])
        assert (row["prefix_sentences"], row["prefix_sufficient"]) == (kept, bool(scan))
        assert row["prefix_share"] == kept / len(sentences)
    assert len(asked) <= ceil(log2(max(map(len, rows)) + 1))  # passes over all rows


def test_bisection_of_a_judge_that_is_not_monotone(judge, tiny_scorer):
    """As the authors' loop: the middle of 1..9, then of the half that it points to."""
    asked = judge(lambda prefix: prefix.count(".") in (2, 5))
    (row,) = find_prefixes(rows_of(" ".join(f"Step {k}." for k in range(9))), tiny_scorer)
    assert [len(prefix.split(".")) - 1 for (prefix,) in asked] == [5, 2, 1]
    assert row["prefix"] == "Step 0. Step 1."


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("".join(SENTENCES), "First 2+3=5. Then 5*4=20."),
        ("<think>" + "".join(SENTENCES) + "</think>It is 20.", "First 2+3=5. Then 5*4=20."),
        ([{"role": "assistant", "content": "".join(SENTENCES) + "\n</think>\n\n20"}], "First 2+3=5. Then 5*4=20."),
        ([{"role": "assistant", "content": "20", "reasoning_content": SENTENCES[0]}], "First 2+3=5."),
    ],
)
def test_what_is_cut(judge, tiny_scorer, completion, expected):
    judge(lambda prefix: "5*4=20." in prefix)
    (row,) = find_prefixes(rows_of(completion), tiny_scorer)
    assert row["prefix"] == expected
    assert row["prefix_sufficient"] == (expected != "First 2+3=5.")


def test_rows_without_a_verdict(tiny_student, tiny_tokenizer, caplog):
    scorer = RSRScorer(tiny_student(), tiny_tokenizer, max_length=len(JUDGE) + 100)
    found = find_prefixes(rows_of("Short.", "", "Long. " * 100, "A sentence. "), scorer)
    null = [row["prefix"] is None for row in found]
    assert null == [False, True, True, False]
    for row, is_null in zip(found, null, strict=True):
        assert {row[name] is None for name in p_align.COLUMNS} == {is_null}
    assert "2 of 4 rows have no prefix (first: row 1)" in caplog.text


def test_warns_of_a_student_that_does_not_judge(judge, tiny_scorer, caplog):
    judge(lambda prefix: True)
    find_prefixes(rows_of(*["One. Two. Three."] * 5), tiny_scorer)
    assert not caplog.records
    find_prefixes(rows_of(*["One. Two. Three."] * 10), tiny_scorer)
    assert "All 20 verdicts are [ENOUGH]" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": [{"role": "user", "content": "a"}] * 2}, "Row 0: P-ALIGN needs one user turn"),
        ({"completion": [{"role": "assistant", "content": None}]}, "Row 0: .* one assistant turn of text"),
        ({"prefix": "a"}, r"already has \['prefix'\]"),
        ({"template": None}, "needs a chat template"),
        ({"prompt": ...}, r"needs the columns \['prompt'\]"),
    ],
)
def test_refuses(tiny_scorer, change, message):
    row = {"prompt": "a", "completion": "b"}
    if "template" in change:
        tiny_scorer.processing_class.chat_template = change.pop("template")
    with pytest.raises(RSRError, match=message):
        row = {name: value for name, value in (row | change).items() if value is not ...}
        find_prefixes(Dataset.from_list([row]), tiny_scorer)


@torch.no_grad()
def test_continuations(tiny_student, tiny_tokenizer, tmp_path):
    model, length = tiny_student(), 12
    rows = [{"prompt": f"{i * 7}?", "prefix": "Draft " * i, "completion": "t", "gold": "5"} for i in range(8)]
    expected, free = [], []
    for row in rows:
        chat = [{"role": "user", "content": CONTINUE.format(question=row["prompt"], prefix=row["prefix"])}]
        ids = tiny_tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        for _ in range(length):
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
        free.append(ids[-length:])
    counts = Counter(token for written in free for token in set(written))
    end = min(counts, key=lambda token: (abs(counts[token] - len(rows) / 2), token))  # that of about half of the rows
    model.generation_config.eos_token_id = [2, end]
    for written in free:
        stop = written.index(end) if end in written else None
        expected.append((tiny_tokenizer.decode(written[:stop], skip_special_tokens=True), stop is not None))
    texts = sorted({text for text, ended in expected if ended})
    right, rows = texts[: len(texts) // 2], [*rows, {**rows[0], "prefix": None}]
    path, dataset = tmp_path / "c.jsonl", Dataset.from_list(rows)
    settings = {"answer_column": "gold", "checker": lambda text, answer: answer == "5" and text in right}
    found = continue_prefixes(dataset, model, tiny_tokenizer, path, max_new_tokens=length, batch_size=3, **settings)
    assert found["continuation"][:] == [*(text for text, _ in expected), None]
    cut = "no end within 12 tokens"
    reasons = [cut if not ended else None if text in right else "wrong answer" for text, ended in expected]
    assert found["continuation_error"][:] == [*reasons, "no prefix"] and {None, cut, "wrong answer"} == set(reasons)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    again = continue_prefixes(dataset, model, tiny_tokenizer, path, max_new_tokens=length, **settings)
    assert again.to_list() == found.to_list()


def test_rows_to_train_on():
    row = {"prefix": "Draft.", "continuation": "So 5.", "continuation_error": None}
    right = {"prompt": "?", "completion": "t", **row}
    plain = Dataset.from_list([right, right, {**right, "continuation_error": "wrong answer"}])
    assert aligned_rows(plain)["completion"][:] == ["Draft.\n\nSo 5."] * 2
    chat = {"prompt": [{"role": "user", "content": "?"}], "completion": [{"role": "assistant", "content": "t"}], **row}
    (aligned,) = aligned_rows(Dataset.from_list([chat]))
    assert aligned["completion"] == [{"role": "assistant", "content": "Draft.\n\nSo 5."}]
