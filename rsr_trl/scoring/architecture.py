"""What follows from a student's class and config: how its rows lie in a batch, how long they may be, whether it can be
scored. Knows no tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from threading import RLock
from weakref import WeakKeyDictionary

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from rsr_trl.rsr import RSRError
from rsr_trl.scoring.batches import MAX_BATCH_TOKENS, Layout
from rsr_trl.scoring.lm_head import LMHead


def default_batch_tokens(device: torch.device) -> int:
    """Tokens of a batch when the user doesn't say."""
    return MAX_BATCH_TOKENS.get(device.type, MAX_BATCH_TOKENS["cuda"])


def sees(config: PreTrainedConfig) -> bool:
    """Whether a student takes images."""
    return getattr(config, "vision_config", None) is not None


def best_layout(model: PreTrainedModel, device: torch.device) -> Layout:
    """
    How rows best lie in a batch: by equal lengths on the CPU, which computes on padding as slowly as on tokens;
    elsewhere without padding where all layers keep packed rows apart (FlashAttention sees where they begin, recurrent
    layers don't), else padded.
    """
    if device.type == "cpu":
        return "equal"
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or [])
    flash = "flash" in (model.config._attn_implementation or "")
    # Only a forward with **kwargs passes on where rows begin.
    passes_on = any(p.kind is p.VAR_KEYWORD for p in signature(model.base_model.forward).parameters.values())
    attends = not model._is_stateful and kinds <= {"full_attention", "sliding_attention", "chunked_attention"}
    apart = attends and not sees(model.config)  # models that see count positions by themselves
    return "packed" if flash and passes_on and apart else "padded"


def _rope_parameters(config: PreTrainedConfig) -> list[dict]:
    """The parameters of rotary positions: one set, or one for each kind of layer."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return [rope, *(value for value in rope.values() if isinstance(value, dict))]


def num_positions(config: PreTrainedConfig) -> int | float:
    """
    How many positions a student has: `max_position_embeddings`, or what RoPE scaling stretches them to, which model
    cards set without raising that number. Infinity where nothing limits them.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or float("inf")
    for rope in _rope_parameters(config):
        original, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
        # Dynamic scaling gives a row positions that depend on the longest row before it: it isn't used.
        if original and factor and rope.get("rope_type") != "dynamic":
            positions = max(positions, int(factor * original))
    return positions


def length_border(model: PreTrainedModel) -> int | None:
    """
    The length beyond which a student computes positions in another way: LongRoPE's (Phi-3) long factors hold for all
    rows of a batch whose longest row is longer.
    """
    for rope in _rope_parameters(model.config):
        if rope.get("rope_type") == "longrope":
            return rope["original_max_position_embeddings"]
    return None


def check_architecture(model: PreTrainedModel) -> None:
    """Raise `RSRError` for a model whose scores can't be computed, before any work."""
    LMHead.of(model)
    if model.config.is_encoder_decoder or model.base_model is model:
        raise RSRError(
            f"{type(model).__name__} can't be scored: the student must be a decoder-only causal language model "
            "whose backbone stands apart from its LM head."
        )


# Of two threads with one model, the second would take evaluation for the modes to bring back.
_in_evaluation: WeakKeyDictionary[torch.nn.Module, RLock] = WeakKeyDictionary()


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode for a while, by one thread at a time; every module's own mode comes back."""
    with _in_evaluation.setdefault(model, RLock()):
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


def on_device(arrays: dict[str, np.ndarray | torch.Tensor | int], device: torch.device) -> dict:
    """What [`lay_out`] and [`stack`] return, as models take it."""
    tensors = {name: torch.from_numpy(a) if isinstance(a, np.ndarray) else a for name, a in arrays.items()}
    return {name: t.to(device) if isinstance(t, torch.Tensor) else t for name, t in tensors.items()}
