"""
Rows laid end to end for FlashAttention, which needs a GPU: here a stand-in for it, which keeps rows apart only if the
model hands on to it where they begin.
"""

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from rsr_trl.scoring.architecture import best_layout, on_device
from rsr_trl.scoring.batches import lay_out
from rsr_trl.scoring.student import Student
from rsr_trl.training.live_student import add_rsr_head
from tests.scoring.students import FAMILIES, V, build, examples_of


STAND_IN = "stand_in"  # with "flash" in its name transformers would look for a kernel


def attend(module, query, key, value, attention_mask, scaling=None, **given):
    """What FlashAttention computes, plainly, for the arguments by which transformers calls it."""
    names = ("sliding_window", "softcap", "s_aux", "position_ids", "cu_seq_lens_q")
    sliding_window, softcap, s_aux, position_ids, cu_seq_lens_q = (given.get(name) for name in names)
    length = query.shape[2]
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    places = torch.arange(length)
    seen = places[:, None] >= places
    if sliding_window is not None:
        seen &= places[:, None] - places < sliding_window
    if attention_mask is not None:
        seen = seen & attention_mask[:, None, None, :length].bool()
    elif cu_seq_lens_q is not None:
        row = torch.searchsorted(cu_seq_lens_q, places, right=True)
        seen &= row[:, None] == row
    elif position_ids is not None and len(query) == 1:
        row = (position_ids[0] == 0).cumsum(0)
        seen &= row[:, None] == row
    scores = scores.masked_fill(~seen, -torch.inf)
    if s_aux is not None:
        scores = torch.cat([scores, s_aux.reshape(1, -1, 1, 1).expand(len(scores), -1, length, -1)], -1)
    weights = scores.softmax(-1)[..., :length]
    return (weights @ value).transpose(1, 2).contiguous(), None


@pytest.fixture(scope="module", autouse=True)
def stand_in():
    AttentionInterface.register(STAND_IN, attend)
    AttentionMaskInterface.register(STAND_IN, flash_attention_mask)


def assert_apart(model, rtol: float, atol: float) -> tuple[list, np.ndarray]:
    """Packed rows have the scores of rows alone. Returns the rows, and those scores."""
    examples = examples_of(lengths=(9, 16, 5, 12), seed=1)
    alone, packed = Student(model), Student(model, max_batch_tokens=30)
    packed.layout = "packed"
    expected, tokens = alone.score(examples), packed.score(examples)
    np.testing.assert_allclose(tokens.surprisals, expected.surprisals, rtol=rtol, atol=atol)
    assert (tokens.token_ids == expected.token_ids).all()
    return examples, expected.surprisals


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "gpt2"])
def test_a_mask_that_transformers_builds_from_the_positions_keeps_rows_apart(family):
    assert_apart(build(family), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_do_not_see_each_other(family):
    model = build(family)
    model.config._attn_implementation_internal = "flash_attention_2"
    if not model._supports_flash_attn or best_layout(model, torch.device("cuda")) != "packed":
        rare = ("gpt_oss", "falcon_h1", "lfm2", "opt", "mamba", "bloom")
        assert family in rare, "a common family isn't packed any more"
        return
    model.set_attn_implementation(STAND_IN)
    examples, expected = assert_apart(model, rtol=1e-3, atol=1e-4)

    add_rsr_head(model)  # and in the trainer's pass
    arrays = lay_out([example.input_ids for example in examples], [example.scored for example in examples], "packed")
    arrays["rsr_targets"] = np.where(arrays.pop("scored"), arrays["input_ids"], -100)
    with torch.no_grad():
        stats = model(**on_device(arrays, torch.device("cpu")), rsr_only=True)
    np.testing.assert_allclose(stats["surprisals"].numpy(), expected, rtol=1e-3, atol=1e-4)


def test_the_stand_in_would_show_rows_that_see_each_other():
    model = build("llama")
    model.set_attn_implementation(STAND_IN)
    ids = torch.randint(3, V, (1, 12), generator=torch.Generator().manual_seed(0))
    apart = model(input_ids=ids, position_ids=torch.tensor([[*range(5), *range(7)]])).logits
    whole = model(input_ids=ids, position_ids=torch.arange(12)[None]).logits
    assert not torch.allclose(apart[:, 5:], whole[:, 5:], atol=1e-2)
