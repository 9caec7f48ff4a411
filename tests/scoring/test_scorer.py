"""RSRScorer on real text against the definition, with the scored places found in another way than the package's."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from rsr_trl import RSRScorer
from rsr_trl.rsr import trajectory_rsr
from rsr_trl.scoring import lm_head
from tests.scoring.truth import Truth, in_float64, truth_of


Row = dict[str, object]
# Random students of a real vocabulary: 150,000 logits lie within a few units, so many are neighbours by rounding.
CROWDED = {"rounding": 1e-5, "decided": 0.3}


def places_of_completion(tokenizer: PreTrainedTokenizerBase, row: Row) -> tuple[list[int], list[int]]:
    """Plain prompt and completion: what follows the prompt's own tokens, but for the end-of-sequence token."""
    prompt, ids = (tokenizer(text)["input_ids"] for text in (row["prompt"], row["prompt"] + row["completion"]))
    assert ids[: len(prompt)] == prompt
    return [*ids, tokenizer.eos_token_id], list(range(len(prompt), len(ids)))


def places_of_turns(tokenizer: PreTrainedTokenizerBase, row: Row, **template) -> tuple[list[int], list[int]]:
    """ChatML by its ids: whatever stands between an assistant header and the next end-of-turn token."""
    messages = row["messages"] if "messages" in row else row["prompt"] + row["completion"]
    ids = tokenizer.apply_chat_template(messages, return_dict=True, **template)["input_ids"]
    header = tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    end, places, inside = tokenizer.convert_tokens_to_ids("<|im_end|>"), [], False
    for i, token in enumerate(ids):
        inside = (inside and token != end) or ids[i - len(header) : i] == header
        if inside:
            places.append(i)
    return ids, places


def turns(*rows: Row) -> list[dict[str, str]]:
    roles = (("user", "prompt"), ("assistant", "completion"))
    return [{"role": role, "content": row[key]} for row in rows for role, key in roles]


def truths(model: torch.nn.Module, tokenized: list[tuple[list[int], list[int]]], max_length: int = 10**9):
    model64 = in_float64(model)
    for ids, places in tokenized:
        yield truth_of(model64, ids[:max_length], [place for place in places if place < max_length])


def assert_true(dataset: Dataset, expected: list[Truth], rounding: float = 5e-5, decided: float = 0.9) -> None:
    """All columns of a dataset that was scored with `token_stats=True` are what the definition says."""
    for row, truth in zip(dataset, expected, strict=True):
        assert row["rsr_error"] is None
        assert row["rsr_token_ids"] == truth.targets.tolist()
        truth.assert_ranks(row["rsr_token_ranks"], rounding, decided)
        truth.assert_top1(row["rsr_token_top1"], rounding)
        np.testing.assert_allclose(row["rsr_token_surprisals"], truth.surprisals, rtol=1e-4, atol=2e-5)
        assert row["rsr_num_tokens"] == len(truth.targets)
        assert row["rsr_mean_surprisal"] == pytest.approx(truth.surprisals.mean(), rel=1e-5)
        assert row["rsr_mean_clipped_rank"] == pytest.approx(np.minimum(truth.ranks, 100).mean(), rel=1e-5)
        assert row["rsr"] == pytest.approx(truth.rsr(), rel=1e-5)
        assert row["rsr"] == pytest.approx(row["rsr_mean_clipped_rank"] / row["rsr_mean_surprisal"])


def random_student(make, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> torch.nn.Module:
    return make(vocab_size, hidden_size=16, intermediate_size=32, initializer_range=0.2, max_position_embeddings=4096)


class TestRealText:
    @pytest.mark.parametrize("chat", [False, True])
    def test_gsm8k_with_a_real_student(self, gsm8k_rows, scorer, chat):
        rows, places_of = gsm8k_rows[::300], places_of_completion
        if chat:
            rows = [{"messages": turns(gsm8k_rows[i], gsm8k_rows[i + 13])} for i in range(0, 2000, 500)]
            places_of = places_of_turns
        scored = scorer.score(Dataset.from_list(rows))
        tokenized = [places_of(scorer.processing_class, row) for row in rows]
        assert_true(scored, list(truths(scorer.student.model, tokenized)))
        assert chat or 2 < np.mean(scored["rsr"]) < 15  # a language model's, not those of noise

    def test_plain_text_cut_at_the_students_positions(self, math500_rows, stories260k):
        scorer = RSRScorer(stories260k, token_stats=True)
        assert scorer.max_length == 512
        rows = [{"text": row["completion"][:2000]} for row in math500_rows[::150]]
        scored = scorer.score(Dataset.from_list(rows))
        # A row begins with <s>, which isn't scored.
        whole = [scorer.processing_class(row["text"])["input_ids"] for row in rows]
        tokenized = [(ids, list(range(1, len(ids)))) for ids in whole]
        assert_true(scored, list(truths(scorer.student.model, tokenized, max_length=512)))
        assert scored["rsr_truncated"] == [len(ids) + 1 > 512 for ids in whole]
        assert 0 < sum(scored["rsr_truncated"])

    def test_math500_chat_with_qwen3s_vocabulary(self, math500_rows, gsm8k_rows, qwen3_tokenizer, tiny_student):
        model = random_student(tiny_student, qwen3_tokenizer, 151_936)
        short = min(math500_rows, key=lambda row: len(row["completion"]))
        rows = [{"messages": turns(short)}, {"messages": turns(gsm8k_rows[3], gsm8k_rows[700])}]
        scored = RSRScorer(model, qwen3_tokenizer, token_stats=True).score(Dataset.from_list(rows))
        tokenized = [places_of_turns(qwen3_tokenizer, row) for row in rows]
        assert_true(scored, list(truths(model, tokenized)), **CROWDED)

    def test_airline_with_tools(self, airline_rows, airline_tools, qwen3_tokenizer, tiny_student):
        model = random_student(tiny_student, qwen3_tokenizer, 151_936)
        tools = airline_tools[:2]
        rows = [{"messages": row["messages"][:5], "tools": tools} for row in (airline_rows[0], airline_rows[4])]
        tokenized = [places_of_turns(qwen3_tokenizer, row, tools=tools) for row in rows]
        limit = max(len(ids) for ids, _ in tokenized) - 3  # the longer one ends inside its last turn
        scorer = RSRScorer(model, qwen3_tokenizer, token_stats=True, max_length=limit)
        scored = [scorer(row) for row in rows]
        assert_true(scored, list(truths(model, tokenized, max_length=limit)), **CROWDED)
        assert sorted(row["rsr_truncated"] for row in scored) == [False, True]

    def test_gpt2_without_pad_token(self, gsm8k_rows, gpt2_tokenizer):
        assert gpt2_tokenizer.pad_token is None
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, initializer_range=0.2)).eval()
        rows = gsm8k_rows[::700]
        scorer = RSRScorer(model, gpt2_tokenizer, token_stats=True)
        scorer.student.layout = "padded"
        tokenized = [places_of_completion(gpt2_tokenizer, row) for row in rows]
        assert_true(scorer.score(Dataset.from_list(rows)), list(truths(model, tokenized)), **CROWDED)


@pytest.fixture(scope="module")
def rows(gsm8k_rows) -> list[Row]:
    return [{"id": i, "prompt": turns(r)[:1], "completion": turns(r)[1:]} for i, r in enumerate(gsm8k_rows[:30:3])]


@pytest.fixture(scope="module")
def expected(rows, gsm8k_student) -> list[Truth]:
    model = AutoModelForCausalLM.from_pretrained(gsm8k_student, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gsm8k_student)
    return list(truths(model, [places_of_turns(tokenizer, row) for row in rows]))


@pytest.fixture
def scorer(gsm8k_student) -> RSRScorer:
    return RSRScorer(gsm8k_student, dtype="float32", token_stats=True)


class TestSameNumberEverywhere:
    """Whatever goes together through the student, and however, one row's score changes by rounding only."""

    @pytest.mark.parametrize(
        ("layout", "max_batch_tokens"), [("equal", 1), ("equal", 700), ("padded", 700), ("padded", 100_000)]
    )
    def test_batch_size(self, rows, expected, gsm8k_student, layout, max_batch_tokens):
        scorer = RSRScorer(gsm8k_student, dtype="float32", token_stats=True, max_batch_tokens=max_batch_tokens)
        scorer.student.layout = layout
        assert_true(scorer.score(Dataset.from_list(rows)), expected)

    def test_order(self, rows, expected, scorer):
        order = np.random.default_rng(0).permutation(len(rows))
        scored = scorer.score(Dataset.from_list(rows).select(order))
        assert scored["id"] == order.tolist()
        assert_true(scored, [expected[i] for i in order])

    def test_padding_side_and_token(self, rows, expected, scorer):
        scorer.processing_class.padding_side = scorer.processing_class.truncation_side = "left"
        scorer.processing_class.pad_token = scorer.processing_class.eos_token
        scorer.student.layout = "padded"
        assert_true(scorer.score(Dataset.from_list(rows)), expected)

    def test_tile(self, rows, expected, scorer, monkeypatch):
        monkeypatch.setitem(lm_head.TILE, "cpu", (37, 101))
        assert_true(scorer.score(Dataset.from_list(rows)), expected)

    def test_attention_implementation(self, rows, expected, gsm8k_student):
        scorer = RSRScorer(gsm8k_student, dtype="float32", token_stats=True, attn_implementation="eager")
        assert scorer.student.model.config._attn_implementation == "eager"
        assert_true(scorer.score(Dataset.from_list(rows)), expected)

    def test_same_run_same_bits(self, rows, scorer, gsm8k_student):
        again = RSRScorer(gsm8k_student, dtype="float32", token_stats=True)
        dataset = Dataset.from_list(rows)
        assert scorer.score(dataset).to_dict() == again.score(dataset).to_dict()

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_reduced_precision_within_two_percent(self, rows, expected, gsm8k_student, dtype):
        scored = RSRScorer(gsm8k_student, dtype=dtype).score(Dataset.from_list(rows))
        np.testing.assert_allclose(scored["rsr"], [truth.rsr() for truth in expected], rtol=0.02)

    def test_a_models_own_rounded_logits(self, rows, gsm8k_student):
        """As the paper's code has them: bf16 logits tie, which makes ranks optimistic."""
        exact, rounded = (
            RSRScorer(gsm8k_student, dtype="bfloat16", logits_dtype=dtype).score(Dataset.from_list(rows))
            for dtype in ("float32", "model")
        )
        assert np.mean(rounded["rsr_mean_clipped_rank"]) < np.mean(exact["rsr_mean_clipped_rank"])
        np.testing.assert_allclose(rounded["rsr"], exact["rsr"], rtol=0.05)

    def test_stored_ranks_give_the_score_of_any_r_max(self, rows, scorer, gsm8k_student):
        with_tokens = scorer.score(Dataset.from_list(rows))
        for r_max in (10, 500):
            direct = RSRScorer(gsm8k_student, dtype="float32", r_max=r_max).score(Dataset.from_list(rows))
            stored = [trajectory_rsr(r["rsr_token_ranks"], r["rsr_token_surprisals"], r_max) for r in with_tokens]
            np.testing.assert_allclose(stored, direct["rsr"], rtol=1e-12)
