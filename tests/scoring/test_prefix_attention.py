"""Attention to a prefix and to own tokens, joined: against a softmax over all keys in float64."""

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from rsr_trl.rsr import RSRError
from rsr_trl.scoring import prefix_attention
from rsr_trl.scoring.student import Student
from tests.scoring.students import build
from tests.scoring.test_prefixes import pool


DEVICES = [
    ("cpu", torch.float32, 1e-5),
    ("cpu", torch.bfloat16, 0.02),
    pytest.param("cuda", torch.bfloat16, 0.02, marks=pytest.mark.gpu),
    pytest.param("cuda", torch.float16, 0.003, marks=pytest.mark.gpu),
]


def naive(query, key, value, scaling):
    """`(R, T, heads, D)`: every query attends to all keys up to its own, the last `T` of them."""
    query, key, value = (part.double() for part in (query, key, value))
    heads, tokens = query.shape[1:3]
    key, value = (part.repeat_interleave(heads // part.shape[1], dim=1) for part in (key, value))
    logits = scaling * query @ key.transpose(-1, -2)
    later = torch.ones(tokens, key.shape[2], dtype=torch.bool, device=key.device).triu(1 + key.shape[2] - tokens)
    return (logits.masked_fill(later, -torch.inf).softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize(("device", "dtype", "tolerance"), DEVICES)
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize(("rows", "tokens", "before"), [(1, 1, 1), (1, 40, 7), (3, 5, 300)])
def test_is_a_softmax_over_all_keys(device, dtype, tolerance, heads, groups, rows, tokens, before):
    torch.manual_seed(0)
    size, scaling = 16, 0.7
    layer = DynamicLayer()
    layer.update(*(torch.randn(1, groups, before, size, device=device, dtype=dtype) * 2 for _ in range(2)))
    query = torch.randn(rows, heads, tokens, size, device=device, dtype=dtype)
    own = [torch.randn(rows, groups, tokens, size, device=device, dtype=dtype) for _ in range(2)]
    whole = [
        torch.cat([a.expand(rows, -1, -1, -1), b], dim=-2)
        for a, b in zip((layer.keys, layer.values), own, strict=True)
    ]
    prefix_attention.fork(layer, keep=False)
    found, _ = prefix_attention.attend(None, query, *layer.update(*own), None, scaling=scaling)
    torch.testing.assert_close(found.double(), naive(query, *whole, scaling), rtol=tolerance, atol=tolerance)
    assert layer.get_seq_length() == before


# The second column: by the kind of their layers. Windows need a mask; some have an attention of their own.
@pytest.mark.parametrize(
    ("family", "splits"),
    [("llama", True), ("qwen3", True), ("gpt2", True), ("mixtral", True), ("mistral", False), ("bloom", False)],
)
def test_is_used_by_students_whose_layers_attend_to_all_tokens(family, splits, monkeypatch):
    model, examples, calls = build(family), pool(), []
    own, attention = model.config._attn_implementation, prefix_attention._attention
    monkeypatch.setattr(prefix_attention, "_attention", lambda *a, **k: calls.append(1) or attention(*a, **k))
    Student(model, 200, max_prefix_tokens=100).score(examples)
    assert bool(calls) == splits and model.config._attn_implementation == own


def test_a_student_that_changes_its_keys_later_attends_in_its_own_way(monkeypatch):
    model, examples = build("llama"), pool()
    expected = Student(model, share_prefixes=False).score(examples)
    attend = prefix_attention.attend
    # As a model that copies what the cache hands out: the prefix isn't found.
    changed = lambda module, query, key, *rest, **given: attend(module, query, key.clone(), *rest, **given)  # noqa: E731
    monkeypatch.setitem(prefix_attention.AttentionInterface._global_mapping, prefix_attention.NAME, changed)
    student = Student(model, max_prefix_tokens=100)
    tokens = student.score(examples)
    torch.testing.assert_close(tokens.surprisals, expected.surprisals, rtol=1e-4, atol=1e-5)
    assert not student._split and student._cache_bytes


def test_the_models_own_attention_comes_back_after_an_error():
    model = build("llama")
    with pytest.raises(RSRError), prefix_attention.used_by(model):
        raise RSRError("stopped")
    assert model.config._attn_implementation == "sdpa"
