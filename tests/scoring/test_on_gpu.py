"""What scoring promises, on a GPU: the same numbers as by definition, within its memory."""

import logging

import numpy as np
import pytest
import torch

from rsr_trl.scoring import prefixes
from rsr_trl.scoring.architecture import best_layout
from rsr_trl.scoring.lm_head import LMHead
from rsr_trl.scoring.student import Student
from tests.scoring.students import assert_true, build, examples_of
from tests.scoring.test_lm_head import KINDS, ROUNDING, make, truth
from tests.scoring.test_prefixes import pool


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here"),
]
GPU = "cuda"


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("tile", [None, (7, 13), (64, 128)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_head_equals_the_definition(dtype, kind, tile, compile):
    head, hidden, targets = make(70, dtype, **KINDS[kind])
    true = truth(head, hidden, targets)
    head.module.to(GPU)
    stats = head.score(hidden.to(GPU), targets.to(GPU), with_top1=True, with_moments=True, tile=tile, compile=compile)
    there = {name: None if value is None else value.cpu() for name, value in vars(stats).items()}
    stats = type(stats)(**there)
    true.assert_stats(stats, ROUNDING, decided=0.95)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("layout", ["equal", "padded", "best"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "opt", "mamba", "bloom"])
def test_students_equal_the_definition_in_every_layout(family, layout):
    model, examples = build(family), examples_of(lengths=(40, 40, 33, 20, 7, 5))
    student = Student(model.to(GPU), max_batch_tokens=100)
    if layout != "best":
        student.layout = layout
    tokens = student.score(examples)
    assert_true(model.cpu(), examples, tokens)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "deepseek_v3", "falcon_h1", "qwen3_next"])
def test_shared_prefixes_equal_the_definition(family, monkeypatch):
    monkeypatch.setitem(prefixes.PASS_TOKENS, "cuda", 0)
    model, examples, told = build(family), pool(), []
    student = Student(model.to(GPU), max_batch_tokens=400, max_prefix_tokens=100)
    tokens = student.score(examples, progress=lambda *numbers: told.append(numbers))
    done, read = np.sum(told, axis=0)[1:]
    assert read < done
    assert_true(model.cpu(), examples, tokens)


@pytest.mark.parametrize("attention", ["flash_attention_2", "kernels-community/flash-attn2"])
def test_packed_rows_do_not_see_each_other(attention):
    model, examples = build("llama", hidden_size=64, head_dim=16).to(GPU, torch.bfloat16), examples_of()
    expected = Student(model, max_batch_tokens=1).score(examples)  # row by row
    try:
        model.set_attn_implementation(attention)
    except (ImportError, ValueError, OSError) as error:
        pytest.skip(f"{attention} isn't here: {error}")
    assert best_layout(model, torch.device(GPU)) == "packed"
    tokens = Student(model, max_batch_tokens=10_000).score(examples)
    np.testing.assert_allclose(tokens.surprisals, expected.surprisals, rtol=0.05, atol=0.05)


def test_bfloat16_is_its_own_rounding_away_from_the_cpu():
    model, examples = build("qwen3").to(torch.bfloat16), examples_of()
    expected = Student(model).score(examples)
    tokens = Student(model.to(GPU)).score(examples)
    np.testing.assert_allclose(tokens.surprisals, expected.surprisals, rtol=0.05, atol=0.05)


def test_out_of_memory_halves_the_budget_and_goes_on(caplog):
    shape = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 4096, "max_position_embeddings": 4096}
    model = build("llama", **shape).to(GPU)
    examples = examples_of(lengths=[4000] * 64)
    expected = Student(model, max_batch_tokens=4000).score(examples[:2])
    total = torch.cuda.get_device_properties(GPU).total_memory
    try:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(min(1.0, 2e9 / total))
        with caplog.at_level(logging.WARNING, logger="rsr_trl"):
            tokens = Student(model, max_batch_tokens=1 << 18).score(examples)  # 4 GB in each of an MLP's tensors
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert tokens.num_tokens.tolist() == [int(example.scored.sum()) for example in examples]
    assert caplog.records and all("Out of GPU memory" in record.message for record in caplog.records)
    first = len(expected.surprisals)
    np.testing.assert_allclose(tokens.surprisals[:first], expected.surprisals, rtol=1e-3, atol=1e-4)


def test_one_long_row_of_a_large_vocabulary_stays_under_a_gibibyte():
    num_tokens, hidden_size, vocab_size = 32_768, 896, 151_936
    head = LMHead(torch.nn.Linear(hidden_size, vocab_size, bias=False, device=GPU, dtype=torch.bfloat16))
    hidden = torch.randn(num_tokens, hidden_size, device=GPU, dtype=torch.bfloat16)
    targets = torch.randint(vocab_size, (num_tokens,), device=GPU)
    for compile in (False, True):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        head.score(hidden, targets, compile=compile)
        assert torch.cuda.max_memory_allocated() - before < 1 << 30
