"""Attention of rows to the prefix that they share, without a copy of the prefix for each row.

    queries           keys
    row 1             prefix | row 1's own           A = attention to the prefix, of all rows together, not causal
    row 2             prefix | row 2's own           B = attention of each row to its own tokens, causal

A softmax over all keys is A and B weighted by their shares of its denominator, whose logarithms the kernels return:
w A + (1 - w) B with w = sigmoid(logsumexp_A - logsumexp_B) (Hydragen, arXiv:2402.05099). transformers' own way repeats
the prefix's keys and values for each row and each head of a group, and reads a mask of all queries and keys.

Used where an attention of this kind is all that a student's layers do; on a few tokens, `Student` compares it with the
student's own. This file knows keys and values only, not which rows share them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import repeat_kv


NAME = "rsr_shared_prefix"  # in `config._attn_implementation`, while rows are read after a prefix


def fits(model: PreTrainedModel, cache: DynamicCache) -> bool:
    """Whether all layers of the model attend by PyTorch's attention to all tokens, and a kernel returns logsumexps."""
    layers = cache.layers
    if model.config._attn_implementation != "sdpa" or not all(type(layer) is DynamicLayer for layer in layers):
        return False
    if not all(layer.is_initialized and layer.keys.shape[-1] == layer.values.shape[-1] for layer in layers):
        return False
    kinds = {(layer.keys.device.type, layer.keys.dtype) for layer in layers}
    return all(kind == "cpu" or (kind == "cuda" and dtype.itemsize == 2) for kind, dtype in kinds)


def fork(layer: DynamicLayer, keep: bool) -> None:
    """
    Let a layer's copy hand out the new tokens' keys and values alone, for [`attend`] to find the prefix with them.
    With `keep` the layer grows by them.
    """
    before = layer.keys, layer.values

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_, **__) -> tuple[torch.Tensor, torch.Tensor]:
        if keep:
            self.keys, self.values = (torch.cat(pair, dim=-2) for pair in zip(before, (keys, values), strict=True))
        keys.rsr_before = before
        return keys, values

    layer.update = MethodType(update, layer)


@contextmanager
def used_by(model: PreTrainedModel) -> Iterator[None]:
    """Let the model attend by [`attend`] for a while. transformers builds no mask for a name it has no mask for."""
    config = model.config
    own, config._attn_implementation = config._attn_implementation, NAME
    try:
        yield
    finally:
        config._attn_implementation = own


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """
    As functions of transformers' `AttentionInterface`: queries `(R, heads, T, D)`, keys and values
    `(R, groups, T, D)` -> `(R, T, heads, D)`. Rows are padded on the right, if at all: no token attends to padding.
    """
    others = attention_mask, *(kwargs.get(name) for name in ("softcap", "position_bias", "s_aux"))
    if any(other is not None for other in others):
        raise NotImplementedError("attention to a shared prefix is plain and causal")
    rows, heads, tokens, size = query.shape
    groups = key.shape[1]
    # Autocast has given some of them another dtype.
    before_keys, before_values = (part.to(value.dtype) for part in key.rsr_before)
    query, key = query.to(value.dtype), key.to(value.dtype)
    own, own_sums = _attention(
        query, repeat_kv(key, heads // groups), repeat_kv(value, heads // groups), scaling, is_causal=True
    )
    # All rows' queries of a group's heads are queries to the same keys: (1, groups, R * heads / groups * T, D).
    shape = rows, groups, heads // groups * tokens
    folded = query.reshape(*shape, size).transpose(0, 1).reshape(1, groups, -1, size)
    shared, shared_sums = _attention(folded, before_keys, before_values, scaling, is_causal=False)
    shared = shared.reshape(groups, rows, shape[-1], size).transpose(0, 1).reshape(query.shape)
    shared_sums = shared_sums.reshape(groups, rows, shape[-1]).transpose(0, 1).reshape(query.shape[:-1])
    weight = torch.sigmoid(shared_sums - own_sums).to(own.dtype)
    return torch.lerp(own, shared, weight[..., None]).transpose(1, 2).contiguous(), None


def _attention(query, key, value, scaling: float | None, is_causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention `(B, heads, T, D)` and logarithms `(B, heads, T)` of its softmax's denominators."""
    if query.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, is_causal, scale=scaling
        )
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, is_causal, scale=scaling)[:2]


AttentionInterface.register(NAME, attend)
