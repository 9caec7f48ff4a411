"""Rank and surprisal from hidden states against all logits in float64."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rsr_trl.scoring.lm_head import LMHead
from tests.scoring.truth import Truth


V, H = 257, 24  # odd on purpose
ROUNDING = 2e-5  # logits here reach 20; float32 keeps seven digits of a sum of 24 products
KINDS = {
    "plain": {},
    "bias": {"bias": True},
    "softcap": {"softcap": 5.0},
    "scale": {"scale": 0.25},
    "all": {"bias": True, "softcap": 8.0, "scale": 2.0},
}


def make(
    n: int, dtype: torch.dtype = torch.float32, bias: bool = False, spread: float = 1.0, seed: int = 0, **head
) -> tuple[LMHead, torch.Tensor, torch.Tensor]:
    """A head of random numbers that `dtype` holds exactly, hidden states `(n, H)` and targets `(n,)`."""
    random = torch.Generator().manual_seed(seed)
    module = torch.nn.Linear(H, V, bias=bias)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=random) * spread
    hidden = torch.randn(n, H, generator=random)
    targets = torch.randint(0, V, (n,), generator=random)
    return LMHead(module.to(dtype), **head), hidden.to(dtype), targets


def truth(head: LMHead, hidden: torch.Tensor, targets: torch.Tensor) -> Truth:
    logits = hidden.double() @ head.module.weight.detach().double().T
    if head.module.bias is not None:
        logits = logits + head.module.bias.detach().double()
    logits = logits * head.scale
    if head.softcap is not None:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    return Truth(logits, targets)


@pytest.mark.parametrize("tile", [None, (7, 13), (64, 128), (3, V), (4096, 100_000)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_equals_the_definition(dtype, kind, tile):
    head, hidden, targets = make(70, dtype, **KINDS[kind])
    stats = head.score(hidden, targets, with_top1=True, with_moments=True, tile=tile)
    # Whatever the weights' dtype, products are accumulated and kept in float32.
    truth(head, hidden, targets).assert_stats(stats, ROUNDING, decided=0.95)
    assert stats.ranks.dtype == torch.int64 and stats.surprisals.dtype == torch.float32


@pytest.mark.parametrize(("n", "tile"), [(0, (64, 100)), (1, (64, 100)), (65, (64, 100)), (5, (1, 1))], ids=str)
def test_any_number_of_positions_and_tiles_of_a_single_logit(n, tile):
    head, hidden, targets = make(n, bias=True, softcap=8.0)
    stats = head.score(hidden, targets, with_top1=True, tile=tile)
    assert stats.ranks.shape == stats.surprisals.shape == stats.top1.shape == (n,)
    if n:
        truth(head, hidden, targets).assert_stats(stats, ROUNDING, atol=0)
    without = head.score(hidden, targets)
    assert without.top1 is without.entropies is without.sum_squares is None


def test_words_that_cannot_come():
    """A model may rule words out by a logit of minus infinity."""
    head, hidden, targets = make(30, bias=True)
    head.module.bias.data[100:200] = -torch.inf
    targets %= 100
    stats = head.score(hidden, targets, with_moments=True, tile=(16, 50))
    truth(head, hidden, targets).assert_stats(stats, ROUNDING, atol=0)


def test_every_token_of_the_vocabulary():
    """At one place the ranks of all tokens are 1 to V, and their probabilities add up to 1."""
    head, hidden, _ = make(1)
    stats = head.score(hidden.expand(V, H), torch.arange(V), tile=(50, 31))
    assert sorted(stats.ranks.tolist()) == list(range(1, V + 1))
    assert (-stats.surprisals.double()).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_compiled_equals_the_definition():
    head, hidden, targets = make(70, bias=True, softcap=8.0)
    true = truth(head, hidden, targets)
    for n in (70, 1, 33):  # the number of positions changes from batch to batch
        stats = head.score(hidden[:n], targets[:n], with_top1=True, with_moments=True, tile=(32, 100), compile=True)
        Truth(true.logits[:n], targets[:n]).assert_stats(stats, ROUNDING)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_far_beyond_the_range_of_exp(dtype):
    """exp overflows float32 at 88 nats; text that the student finds impossible has more."""
    head, hidden, targets = make(70, dtype, spread=40.0)
    true = truth(head, hidden, targets)
    assert (true.surprisals > 100).any() and true.surprisals.min() < 88
    stats = head.score(hidden, targets, with_moments=True, tile=(16, 50))
    true.assert_moments(stats, atol=1e-3)
    true.assert_ranks(stats.ranks, rounding=1e-3)
    np.testing.assert_allclose(stats.surprisals, true.surprisals, rtol=1e-5, atol=1e-3)


def test_near_certain_tokens_keep_their_tiny_surprisal():
    head, hidden, _ = make(1, bias=True)
    head.module.bias.data[7] += 40
    true = truth(head, hidden, torch.tensor([7]))
    stats = head.score(hidden, torch.tensor([7]), tile=(1, 100))
    naive = -torch.log_softmax(head.module(hidden), -1)[0, 7].item()
    assert 0 < true.surprisals[0] < 1e-8 and naive == 0  # what log_softmax makes of it in float32
    # 1 + x is rounded in float64 too: sum the others for the truth.
    others = (true.logits - true.target_logits).exp().sum().item() - 1
    assert stats.surprisals.item() == pytest.approx(others, rel=1e-4, abs=1e-15)


def test_ties():
    """Equal rows of the vocabulary (padding rows often are) may change a rank by no more than their own number."""
    head, hidden, _ = make(40)
    same = [3, 100, 200, 256]
    head.module.weight.data[same] = head.module.weight.data[3].clone()
    for token in same:
        targets = torch.full((40,), token)
        truth(head, hidden, targets).assert_stats(head.score(hidden, targets, tile=(16, 64)), ROUNDING, 0.0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_logits_in_the_models_dtype(dtype):
    """As the paper's code: logits rounded to the model's dtype, then compared."""
    head, hidden, targets = make(400, dtype, bias=False)
    stats = head.score(hidden, targets, with_top1=True, logits_dtype="model", tile=(100, 64))
    logits = torch.nn.functional.linear(hidden, head.module.weight).detach()  # as the model itself makes them
    true = Truth(logits.double(), targets)
    step = torch.finfo(dtype).eps * logits.abs().max().item()  # a product may round to either of two neighbours
    true.assert_ranks(stats.ranks, step, decided=0.0)
    true.assert_top1(stats.top1, step)
    np.testing.assert_allclose(stats.surprisals, true.surprisals, atol=step)
    assert (stats.ranks.numpy() == true.ranks).mean() > 0.97
    # Ties make these ranks optimistic.
    assert stats.ranks.double().mean() < head.score(hidden, targets).ranks.double().mean()
    with pytest.raises(ValueError, match='"float32" or "model", got \'bf16\''):
        head.score(hidden, targets, logits_dtype="bf16")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
def test_broken_hidden_states_show_in_their_own_row_only(bad):
    head, hidden, targets = make(20)
    hidden[[4, 11]] = bad
    stats = head.score(hidden, targets, tile=(8, 100))
    assert (~stats.surprisals.isfinite()).nonzero()[:, 0].tolist() == [4, 11]


def test_autocast_changes_nothing():
    head, hidden, targets = make(20)
    plain, expected = (head.score(states, targets) for states in (hidden, hidden.bfloat16().float()))
    with torch.autocast("cpu", torch.bfloat16):
        for states in (hidden.bfloat16().float(), hidden.bfloat16()):  # as a backbone under autocast ends
            assert torch.equal(head.score(states, targets).surprisals, expected.surprisals)
    assert torch.equal(plain.surprisals, head.score(hidden, targets.int()).surprisals)


def test_never_makes_all_logits():
    """The largest tensor made on the way is a tile, and nothing is left for a backward pass."""

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple) else (result,):
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in given:
                    self.numel = max(self.numel, tensor.numel())
            return result

    head, hidden, targets = make(500)
    hidden.requires_grad_()
    given = {tensor.untyped_storage().data_ptr() for tensor in (hidden, targets, *head.module.parameters())}
    with Largest() as largest:
        stats = head.score(hidden, targets, tile=(50, 40))
    assert 0 < largest.numel <= 50 * 40
    assert not stats.surprisals.requires_grad


def test_scale_and_softcap_come_from_the_config(tiny_student):
    model = tiny_student()
    assert LMHead.of(model) == LMHead(model.lm_head, 1.0, None)
    model.config.logits_scaling, model.config.final_logit_softcapping = 8.0, 30.0
    assert LMHead.of(model) == LMHead(model.lm_head, 1 / 8, 30.0)
    model.config.logit_scale = 0.5
    assert LMHead.of(model) == LMHead(model.lm_head, 0.5, 30.0)


def test_a_quantized_head(tiny_student):
    model = tiny_student(tie_word_embeddings=False)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="Linear, not a plain floating-point matrix"):
        LMHead.of(model)
