"""A student that sees: where its positions go on behind images, and whether batches and shared prefixes hold for it.

On a few tokens it is compared with its own forward before it scores: no family of models is known by name. This file
knows tensors and the model, and neither rows nor where an image comes from.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature

import numpy as np
import torch

from rsr_trl.rsr import RSRError
from rsr_trl.scoring import prefixes
from rsr_trl.scoring.pictures import Pictures, stack
from rsr_trl.scoring.prefixes import Prefix
from rsr_trl.scoring.tokens import TokenizedExample


BEHIND = 16  # tokens behind the images that are compared


# ------------------------------------------------------------------------------------------------------- positions


def positions(backbone: torch.nn.Module, before: Prefix | None, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """
    The `position_ids` of a batch of `(rows, tokens)` behind a prefix with images, for backbones that count them in
    three dimensions (Qwen-VL and its kin note their `rope_deltas`); nothing for others.
    """
    if hasattr(backbone, "rope_deltas"):  # what it has noted of another row would move this one's positions
        backbone.rope_deltas = None
    if before is None or before.deltas is None:
        return {}
    places = torch.arange(before.length, before.length + shape[1], device=before.deltas.device) + before.deltas
    return {"position_ids": places.expand(3, *shape)}


def deltas_of(backbone: torch.nn.Module, before: Prefix | None) -> torch.Tensor | None:
    """What a prefix that was just read has to keep of them."""
    return getattr(backbone, "rope_deltas", None) if before is None or before.deltas is None else before.deltas


@contextmanager
def positions_kept(backbone: torch.nn.Module) -> Iterator[None]:
    """What a backbone has noted of its last generation comes back."""
    noted = hasattr(backbone, "rope_deltas")
    kept = backbone.rope_deltas if noted else None
    try:
        yield
    finally:
        if noted:
            backbone.rope_deltas = kept


# ----------------------------------------------------------------------------------------------------- comparisons


@torch.no_grad()
def verify(student, example: TokenizedExample) -> bool:
    """
    Compare, on one row up to some tokens behind its images, what the model's own forward gives to its head with that
    row twice in a batch: `RSRError` where it differs. Returns whether it doesn't differ behind a shared prefix with
    the images either. `student` is a [`~rsr_trl.scoring.student.Student`].
    """
    end = example.pictures.end  # at least 1: an image has a token
    ids = example.input_ids[: end + BEHIND]
    pictures, places = example.pictures.cut(len(ids)), np.arange(len(ids))
    expected = _own_states(student, ids, pictures)[-(len(ids) - end) - 1 : -1]  # that predict the tokens behind them
    stops = (len(ids), max(end + 1, len(ids) - 2))
    rows = [TokenizedExample(ids[:stop], places[:stop] >= end, pictures=pictures.cut(stop)) for stop in stops]
    found = student._forward(rows)[0]
    tolerance = 0.001 if student._is_exact else 0.1
    error = prefixes.relative_error(found, torch.cat([expected[: stop - end] for stop in stops]).to(found.device))
    if not error <= tolerance and torch.isfinite(expected).all():
        raise RSRError(
            f"{type(student.model).__name__} gives other hidden states for a row with images in a batch than alone "
            f"({error:.2%} apart). This student's images aren't supported; please report the architecture."
        )
    return bool(student._cache_bytes) and _error_behind_prefix(student, rows, expected) <= tolerance


def _error_behind_prefix(student, rows: list[TokenizedExample], expected: torch.Tensor) -> float:
    """How much what follows a prefix with images differs from what is `expected` behind those of the first row."""
    stop = rows[0].pictures.end
    prefix = TokenizedExample(rows[0].input_ids[:stop], np.zeros(stop, bool), pictures=rows[0].pictures.cut(stop))
    tails = [TokenizedExample(row.input_ids[stop:], row.scored[stop:]) for row in rows]
    try:
        found = student._forward(tails, student._forward([prefix], keep=True)[2])[0]
    except (AttributeError, RuntimeError, ValueError, IndexError):  # some count places behind images in their own way
        return float("inf")
    return prefixes.relative_error(found, torch.cat([expected[: len(t.input_ids)] for t in tails]).to(found.device))


def _own_states(student, ids: np.ndarray, pictures: Pictures) -> torch.Tensor:
    """The states `(T, H)` of one row, or its last ones, that the model's own forward gives to its LM head."""
    seen, model = [], student._base
    inputs = {"input_ids": torch.from_numpy(ids[None].astype(np.int64)), **stack([pictures], len(ids))}
    few = {"logits_to_keep": 2 * BEHIND} if "logits_to_keep" in signature(model.forward).parameters else {}
    with model.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0])):
        model(**{name: tensor.to(student.device) for name, tensor in inputs.items()}, use_cache=False, **few)
    return seen[0][0]
