"""Running out of GPU memory halves the budget and goes on; a stand-in raises what CUDA raises."""

import logging

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rsr_trl.scoring.student import Student
from rsr_trl.scoring.tokens import TokenizedExample


def examples(*lengths: int) -> list[TokenizedExample]:
    random = np.random.default_rng(0)
    return [TokenizedExample(random.integers(3, 50, n, dtype=np.int32), np.arange(n) >= 1) for n in lengths]


@pytest.fixture
def student() -> Student:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    student = Student(LlamaForCausalLM(config), max_batch_tokens=64)
    student.layout = "padded"
    return student


def limit_memory(student: Student, tokens: int) -> list[int]:
    """From now on a forward of more than `tokens` tokens runs out of memory. Returns the sizes that were tried."""
    forward, tried = student.hidden_states, []

    def limited(input_ids, **given):
        tried.append(input_ids.numel())
        if input_ids.numel() > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(input_ids, **given)

    student.hidden_states = limited
    return tried


def test_every_row_is_scored_once_with_the_same_numbers(student, caplog):
    rows = examples(12, 10, 9, 8, 8, 3, 2)
    expected = dict(student.score(rows))
    tried = limit_memory(student, tokens=20)

    with caplog.at_level(logging.WARNING, logger="rsr_trl"):
        scores = list(student.score(rows))

    assert sorted(i for i, _ in scores) == list(range(7))
    for i, score in scores:
        np.testing.assert_allclose(score.surprisals, expected[i].surprisals, rtol=1e-5, atol=1e-6)
        assert (score.ranks == expected[i].ranks).all()
    assert max(tried) > 20, "the first batch was meant to fail"
    assert [record.args[0] for record in caplog.records] == [32, 16], "one warning for each halving"


def test_a_row_that_does_not_fit_alone_is_named_with_what_to_do(student):
    list(student.score(examples(4)))  # the comparison with the model's own logits needs memory too
    limit_memory(student, tokens=20)
    with pytest.raises(torch.OutOfMemoryError, match="One trajectory of 30 tokens .* device_map"):
        list(student.score(examples(30, 5)))
