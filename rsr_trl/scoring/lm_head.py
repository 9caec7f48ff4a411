"""Hidden states -> rank and surprisal of the next token, without the logits of a whole sequence.

Logits exist one tile at a time (some positions x some vocabulary columns). With the target's logit z_t known first,
each tile folds into two running sums that need no running maximum:

    rank      = 1 + #{v != t : z_v > z_t}                       (Eq. 2, strict >)
    surprisal = -ln p_t = ln(1 + sum_{v != t} exp(z_v - z_t))   (Eq. 1)

The target's own column never counts, so neither number depends on how the matrix product rounds it. For the asking,
two sums more give, with d_v = z_v - z_t and Z = 1 + sum_{v != t} exp(d_v),

    entropy     = -sum_v p_v ln p_v = ln Z - (sum_{v != t} d_v exp(d_v)) / Z
    sum_squares =  sum_v p_v^2      = (1 + sum_{v != t} exp(d_v)^2) / Z^2

This file knows no tokens and no dataset.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from torch.nn.functional import linear
from torch.utils._triton import has_triton
from transformers import PreTrainedModel
from transformers.utils import is_peft_available
from trl.trainer.utils import maybe_gather_lm_head_ctx

from rsr_trl.rsr import RSRError
from rsr_trl.scoring.batches import TILE


if is_peft_available():
    from peft.tuners.tuners_utils import BaseTunerLayer


# Logits of a whole pass from which compiling the fold (seconds, once a process) repays itself. Measured on the CPU,
# where it saves half a nanosecond a logit. A GPU's is estimated: a fold not compiled moves some 20 bytes a logit.
COMPILE_MIN_LOGITS = {"cpu": 10_000_000_000, "cuda": 1_000_000_000_000}
# Log-odds below this one count as it: exp() is 0 in float32 either way, and 0 times minus infinity is no number.
LOWEST = -200.0


class BrokenLogits(FloatingPointError):
    """The student gives NaN or infinite logits on these `rows`."""

    def __init__(self, rows: np.ndarray, dtype: torch.dtype):
        self.rows = rows
        super().__init__(
            f"The student gives NaN or infinite logits on rows {rows[:10].tolist()}"
            f"{' and more' if len(rows) > 10 else ''}. Its weights may be damaged, or {dtype} may be too narrow for "
            "it: try dtype='float32'."
        )


@dataclass(frozen=True)
class TokenStats:
    """What a student says about `N` tokens: tensors of shape `(N,)`."""

    ranks: torch.Tensor  # int64: 1-based rank of the token in the whole vocabulary, unclipped
    surprisals: torch.Tensor  # float32: -ln p in nats
    top1: torch.Tensor | None = None  # int64: the student's own most likely token there
    entropies: torch.Tensor | None = None  # float32: -sum_v p_v ln p_v of the student's prediction, in nats
    sum_squares: torch.Tensor | None = None  # float32: sum_v p_v^2 of the student's prediction


@dataclass(frozen=True)
class LMHead:
    """A language model's projection from hidden states onto the vocabulary, as numbers rather than as a module."""

    module: torch.nn.Module  # output embeddings: `weight` of shape (V, H) and `bias` of shape (V,) or None
    scale: float = 1.0  # factor on the logits (Cohere, Granite, Falcon-H1, ...)
    softcap: float | None = None  # logits become softcap * tanh(logits / softcap) (Gemma 2)

    @classmethod
    def of(cls, model: PreTrainedModel) -> "LMHead":
        """Read the head off a model; `RSRError` if it has no plain weight matrix (none, quantized, or LoRA on it)."""
        module = model.get_output_embeddings()
        if module is None:
            raise RSRError(f"{type(model).__name__} has no LM head. The student must be a causal language model.")
        weight = getattr(module, "weight", None)
        adapted = is_peft_available() and isinstance(module, BaseTunerLayer)
        if weight is None or not weight.is_floating_point() or adapted:
            raise RSRError(
                f"The student's LM head is a {type(module).__module__}.{type(module).__name__}, not a plain "
                "floating-point matrix. Quantize the student without `lm_head` (bitsandbytes' default), or merge "
                "the adapter first (`model.merge_and_unload()`)."
            )
        config = model.config.get_text_config()
        return cls(module, _logit_scale(config), getattr(config, "final_logit_softcapping", None))

    @property
    def vocab_size(self) -> int:
        return self.module.weight.shape[0]

    def logits(self, product: torch.Tensor) -> torch.Tensor:
        """Logits from the bare matrix product (bias included)."""
        if self.scale != 1.0:
            product = product * self.scale
        return product if self.softcap is None else self.softcap * torch.tanh(product / self.softcap)

    @torch.no_grad()
    def score(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        *,
        with_top1: bool = False,
        with_moments: bool = False,
        logits_dtype: str = "float32",
        tile: tuple[int, int] | None = None,
        compile: bool = False,
    ) -> TokenStats:
        """
        Rank and surprisal of the tokens `targets` (integers of shape `(N,)`), given the `hidden` states `(N, H)` that
        predict them; NaN or infinite surprisals where the student's logits are broken.

        `logits_dtype="float32"` accumulates and keeps logits in float32; `"model"` rounds them to the model's dtype,
        as `model(...).logits` does (bf16 logits tie often, which makes ranks optimistic). `tile` is (positions,
        columns); `compile` folds tiles by a compiled function (see [`compiles`]).
        """
        if logits_dtype not in ("float32", "model"):
            raise RSRError(f'logits_dtype must be "float32" or "model", got {logits_dtype!r}.')
        with self._whole(hidden.device) as (weight, bias):
            if hidden.dtype != weight.dtype:  # under autocast the backbone may end in another dtype than the head has
                hidden = hidden.to(weight.dtype)
            rows, columns = tile or TILE.get(hidden.device.type, TILE["cuda"])
            fold = _compiled_fold() if compile else _fold
            tiles = partial(self._tiles, weight, bias, columns, logits_dtype == "float32")
            # Without a single position, one pass over none of them gives empty results of the right kinds.
            pieces = []
            for h, t in zip(hidden.split(rows), targets.to(hidden.device, torch.int64).split(rows), strict=True):
                target_logit = self._target_logits(h, t, weight, bias, logits_dtype)
                pieces.append(self._score_rows(h, t, target_logit, tiles, fold, with_top1, with_moments))
        return TokenStats(*(torch.cat(p) if p[0] is not None else None for p in zip(*pieces, strict=True)))

    @contextmanager
    def _whole(self, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Weight and bias, without autocast. FSDP2 and ZeRO-3 shard them: gathered once, as TRL's fused head does."""
        weight, bias = self.module.weight, getattr(self.module, "bias", None)
        if isinstance(weight, DTensor):
            weight, bias = weight.full_tensor(), None if bias is None else bias.full_tensor()
        with maybe_gather_lm_head_ctx(weight, bias), torch.autocast(device.type, enabled=False):
            yield weight, bias

    def _target_logits(self, hidden, targets, weight, bias, logits_dtype: str) -> torch.Tensor:
        product = (hidden.float() * weight[targets].float()).sum(-1)  # (n,)
        if bias is not None:
            product = product + bias[targets].float()
        return self.logits(product if logits_dtype == "float32" else product.to(weight.dtype)).float()

    def _tiles(self, weight, bias, columns: int, upcast: bool, hidden) -> Iterator[tuple[int, torch.Tensor]]:
        """First column and logits `(n, columns)` of one tile after another; the receiver may change the logits."""
        for start in range(0, weight.shape[0], columns):
            tile_bias = None if bias is None else bias[start : start + columns]
            yield start, self.logits(_product(hidden, weight[start : start + columns], tile_bias, upcast))

    @staticmethod
    def _score_rows(
        hidden: torch.Tensor,  # (n, H)
        targets: torch.Tensor,  # (n,)
        target_logit: torch.Tensor,  # (n,)
        tiles: Callable,
        fold: Callable,
        with_top1: bool,
        with_moments: bool,
    ) -> tuple[torch.Tensor | None, ...]:  # the fields of TokenStats, each (n,)
        sums = [torch.zeros_like(target_logit) for _ in range(4 if with_moments else 2)]  # as `_fold` gives them
        best, top1 = torch.full_like(target_logit, -torch.inf), torch.zeros_like(targets)
        for start, logits in tiles(hidden):
            if with_top1:
                value, index = logits.max(-1)
                top1 = torch.where(value > best, index + start, top1)
                best = torch.maximum(best, value)
            # The target's own column is taken out before the fold: it neither counts nor adds.
            column = (targets - start).clamp(0, logits.shape[1] - 1)[:, None]
            own = (column[:, 0] == targets - start)[:, None]
            logits.scatter_(1, column, logits.gather(1, column).masked_fill(own, -torch.inf))
            for total, part in zip(sums, fold(logits, target_logit, with_moments), strict=True):
                total += part
        above, others = sums[:2]
        stats = [torch.log1p(others)]
        if with_moments:
            total = 1 + others
            stats += [stats[0] - sums[2] / total, (1 + sums[3]) / total / total]
        overflown = torch.isinf(sums[-1])
        if overflown.any():
            # exp(z_v - z_t) overflows float32 beyond 88 nats, its square beyond 44: these rows take another way.
            for values, exact in zip(stats, _far(hidden[overflown], target_logit[overflown], tiles), strict=False):
                values[overflown] = exact
        surprisals, *moments = stats
        return above.long() + 1, surprisals, top1 if with_top1 else None, *(moments or (None, None))


@torch.no_grad()
def own_logits(model: PreTrainedModel, forward: Callable, **inputs: torch.Tensor) -> torch.Tensor:
    """
    The model's own logits by its `forward`, float32 of shape `(B, T, V)`, checked: `RSRError` if [`LMHead`] gives
    others from the same hidden states, as it does for a scale, cap or projection that it doesn't know.
    """
    eps = [0.0]

    def see_head(module, args, output):
        eps[0] = torch.finfo(output.dtype).eps
        return output.float()  # what the model does to its logits isn't rounded to its dtype: a cap shows

    hidden = model.base_model(**inputs, use_cache=False).last_hidden_state
    with model.get_output_embeddings().register_forward_hook(see_head, prepend=True):
        own = forward(**inputs, use_cache=False).logits.float()
    head = LMHead.of(model)
    with head._whole(own.device) as (weight, bias):
        hidden = hidden.flatten(0, -2).to(own.device, weight.dtype)
        ours = head.logits(_product(hidden, weight, bias, upcast=True))
    error = (ours.view_as(own) - own).square().mean().sqrt() / own.square().mean().sqrt()
    # Rounding the product to the dtype alone makes a fifth of its epsilon. NaN passes: scoring names the broken rows.
    if error > max(1e-4, eps[0] / 2):
        raise unknown_logits(model, f"they differ from the expected ones by {error:.2%}")
    return own


def unknown_logits(model: PreTrainedModel, how: str) -> RSRError:
    return RSRError(
        f"{type(model).__name__} doesn't compute its logits in a way that is known here ({how}). Only causal language "
        "models can be scored; if it is one, please report the architecture."
    )


def _far(hidden: torch.Tensor, target_logit: torch.Tensor, tiles: Callable) -> tuple[torch.Tensor, ...]:
    """Surprisal, entropy and sum of squares by a running logsumexp and a second pass with it."""
    total = torch.full_like(target_logit, -torch.inf)
    for _, logits in tiles(hidden):
        total = torch.logaddexp(total, logits.float().logsumexp(-1))
    entropy, squares = torch.zeros_like(total), torch.zeros_like(total)
    for _, logits in tiles(hidden):
        logp = (logits.float() - total[:, None]).clamp(min=LOWEST)
        p = logp.exp()
        entropy -= (p * logp).sum(-1)
        squares += (p * p).sum(-1)
    return total - target_logit, entropy, squares


def compiles(device: torch.device, num_logits: int) -> bool:
    """Whether a pass over `num_logits` (scored tokens x vocabulary) repays compiling, and a compiler is there."""
    if num_logits < COMPILE_MIN_LOGITS.get(device.type, COMPILE_MIN_LOGITS["cuda"]):
        return False
    if device.type == "cpu":
        return any(shutil.which(name) for name in ("c++", "g++", "clang++"))
    return has_triton()


def _product(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, upcast: bool) -> torch.Tensor:
    """`hidden @ weight.T + bias` of shape `(n, columns)`, accumulated and kept in float32 if `upcast`."""
    if not upcast or weight.dtype == torch.float32:
        return linear(hidden, weight, bias)
    if hidden.is_cuda and weight.dtype in (torch.bfloat16, torch.float16):
        product = torch.mm(hidden, weight.T, out_dtype=torch.float32)  # tensor cores accumulate in float32 anyway
        return product if bias is None else product + bias
    return linear(hidden.float(), weight.float(), None if bias is None else bias.float())


def _fold(logits: torch.Tensor, target_logit: torch.Tensor, with_moments: bool) -> tuple[torch.Tensor, ...]:
    """
    One tile's share, each of shape `(n,)`, of `#{v != t : d_v > 0}` and `sum_{v != t} exp(d_v)`, where
    `d_v = z_v - z_t`; with moments, of `sum_{v != t} d_v exp(d_v)` and `sum_{v != t} exp(d_v)^2` too.
    """
    difference = logits.float() - target_logit[:, None]
    # As floats, exact up to 2^24 columns: booleans take the CPU several times as long to make and to add up.
    above = torch.gt(difference, 0, out=torch.empty_like(difference)).sum(-1)
    if not with_moments:
        return above, difference.exp().sum(-1)
    difference.clamp_(min=LOWEST)
    odds = difference.exp()
    return above, odds.sum(-1), difference.mul_(odds).sum(-1), odds.square_().sum(-1)


@cache
def _compiled_fold() -> Callable:
    # The number of positions changes from batch to batch: one dynamic kernel serves all.
    return torch.compile(_fold, dynamic=True)


def _logit_scale(config) -> float:
    """Factor that a model applies to its logits, under the names that TRL's fused head knows."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    if getattr(config, "logits_scaling", None) is not None:  # divides, except in HyperCLOVA X
        return config.logits_scaling if config.model_type == "hyperclovax" else 1 / config.logits_scaling
    return 1.0
