"""Shared prefixes: rows whose ids begin alike are planned together, and the student reads the common tokens once.

    rows              a b c d e f      a b c d g      a b h i j k      (three trajectories of one problem)
    pieces            [a b] -> [c d] -> [e f]                         what is common, what is common to two of
                                     -> [g]                           them, and what each row has of its own
                            -> [h i j k]

A piece is read after another one: with its keys and values (or recurrent states) in the cache, and its last hidden
state predicts the first token after it. What is shared follows from ids and settings alone. This file is the only one
that knows how pieces lie in rows and what a cache is made of; it knows neither the LM head nor datasets.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from itertools import chain, pairwise

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers import cache_utils as kinds
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from rsr_trl.scoring import prefix_attention
from rsr_trl.scoring.batches import Layout, plan_batches
from rsr_trl.scoring.pictures import Pictures


# A forward pass costs this many tokens before it computes any: to share, a prefix has to save more. On the CPU
# measured by `make bench`. A GPU's is estimated: it is busy with thousands of tokens while the CPU starts a pass's
# kernels, and a group's rows are batches of their own.
PASS_TOKENS = {"cpu": 24, "cuda": 4096}
# A cached token takes about as much memory as a quarter of a token that is being read: its keys and values are
# repeated for each row of the batch, in one layer at a time.
CACHED_SHARE = 4
# Layers whose state before a row can be handed to several rows (`_forked`).
LAYERS = (DynamicLayer, kinds.DynamicSlidingWindowLayer, LinearAttentionLayer)
LAYERS += (kinds.LinearAttentionAndFullAttentionLayer, kinds.LinearAttentionAndSlidingWindowAttentionLayer)
LAYERS += (kinds.DummyLayer,) if hasattr(kinds, "DummyLayer") else ()  # transformers 5.19, vLLM's, has none


# ------------------------------------------------------------------------------------------------------- the plan


@dataclass(frozen=True)
class Piece:
    """Tokens `start` to `stop` of `rows`, which have the same ids up to there."""

    rows: np.ndarray
    start: int
    stop: int


@dataclass
class Reading:
    """One forward pass over `pieces`, which follow the tokens that the reading numbered `after` has read last."""

    pieces: list[Piece]
    after: int | None = None
    followers: int = 0  # readings after this one, which then has one piece


@dataclass
class _Node:
    """Rows `left` to `right` of the sorted ones share `depth` tokens."""

    depth: int
    left: int
    right: int = 0
    rows: list[int] = field(default_factory=list)  # sorted places of those that share no more with another one
    nodes: list["_Node"] = field(default_factory=list)


def plan_readings(
    ids: Sequence[np.ndarray],
    max_batch_tokens: int,
    layout: Layout,
    border: int | None = None,
    max_prefix_tokens: int = 0,
    pass_tokens: int = PASS_TOKENS["cpu"],
    pictures: Sequence[Pictures | None] | None = None,
    share_images: bool = True,
) -> list[Reading]:
    """
    Forward passes that together read every token of every row once, or where rows share it, once for them all. A row's
    pieces come in their order. The plan depends on the arguments alone.

    Args:
        ids (sequence of `n` integer arrays): Token ids of each row; empty ones are left out.
        max_batch_tokens, layout, border: As [`~rsr_trl.scoring.batches.plan_batches`] takes them. Rows longer than
            `border`, whose positions are others, share nothing.
        max_prefix_tokens (`int`, *optional*, defaults to `0`): Longest prefix to share.
        pass_tokens (`int`, *optional*): Tokens that a prefix has to save.
        pictures (*optional*): Images of the rows that have some. Such a row shares a prefix that holds all of them, or
            none (as without `share_images`), and a batch with images of one kind.
    """
    pictures = pictures or [None] * len(ids)
    lengths = np.array([len(row) for row in ids], dtype=np.int64)
    able = np.flatnonzero((lengths > 0) & (lengths <= (border or lengths.max(initial=0))))
    order, groups = np.zeros(0, np.int64), []
    if max_prefix_tokens > 0 and len(able) > 1:
        order = np.array(sorted(able, key=lambda row: ids[row].astype(">u4").tobytes()))  # as ids are ordered
        if any(pictures):  # rows with the same images lie together
            order = order[np.argsort([pictures[row].digest if pictures[row] else 0 for row in order], kind="stable")]
        common = [min(max_prefix_tokens, _common(ids[a], ids[b])) for a, b in pairwise(order)]
        if any(pictures):
            pairs = [(pictures[a], pictures[b]) for a, b in pairwise(order)]
            common = [_with_all(c, *pair, share_images) for c, pair in zip(common, pairs, strict=True)]
        groups = _groups([len(ids[row]) for row in order], common, pass_tokens)
    alone = lengths.copy()
    for group in groups:
        alone[order[group.left : group.right]] = 0
    plan = [
        Reading([Piece(np.array([row]), 0, int(lengths[row])) for row in batch])
        for batch in _batches_by_kind(alone, pictures, max_batch_tokens, layout, border)
    ]
    # Longest first, as batches are.
    waiting = [(group, None, 0) for group in sorted(groups, key=lambda g: lengths[order[g.left : g.right]].max())]
    while waiting:
        node, after, start = waiting.pop()
        number = len(plan)
        plan.append(Reading([Piece(order[node.left : node.right], start, node.depth)], after))
        rows = np.sort(order[node.rows])
        tails = lengths[rows] - node.depth  # 0 for a row that ends here
        cached = np.where(tails > 0, node.depth // CACHED_SHARE, 0)
        for batch in plan_batches(tails + cached, max_batch_tokens, layout):
            plan.append(Reading([Piece(np.array([r]), node.depth, int(lengths[r])) for r in rows[batch]], number))
        # The next one is read right after this one: the one with most rows last, when this one's cache may go.
        waiting += [(child, number, node.depth) for child in sorted(node.nodes, key=lambda n: n.left - n.right)]
    for reading in plan:
        if reading.after is not None:
            plan[reading.after].followers += 1
    return plan


def tokens_of(reading: Reading) -> int:
    """Tokens that a reading reads."""
    return sum(piece.stop - piece.start for piece in reading.pieces)


def _with_all(common: int, one: Pictures | None, other: Pictures | None, share_images: bool) -> int:
    """What two rows share of `common` tokens of the same ids: nothing, unless all of their images are in them."""
    if one is other is None:
        return common
    same = share_images and None not in (one, other) and one.digest == other.digest
    return common if same and common >= one.end == other.end else 0


def _batches_by_kind(
    lengths: np.ndarray, pictures: Sequence[Pictures | None], max_batch_tokens: int, layout: Layout, border: int | None
) -> list[np.ndarray]:
    """Batches of rows whose images have the same shapes, with no more patches than `max_batch_tokens`."""
    if not any(pictures):
        return plan_batches(lengths, max_batch_tokens, layout, border)
    kinds = [None if one is None else one.kind for one in pictures]
    batches = []
    for kind in dict.fromkeys(kinds):
        own = np.where([other == kind for other in kinds], lengths, 0)
        for batch in plan_batches(own, max_batch_tokens, layout, border):
            patches = np.cumsum([0 if kind is None else pictures[row].num_patches for row in batch])
            full = patches[:-1] // max_batch_tokens  # with those of the rows before
            batches += np.split(batch, np.flatnonzero(np.diff(full)) + 1)
    return batches


def _groups(lengths: list[int], common: list[int], pass_tokens: int) -> list[_Node]:
    """
    The largest groups of rows, given in sorted order, that share a prefix worth it: `lengths` of the rows, and what
    neighbours have in `common`. The tree of all common prefixes is built bottom up: a node that isn't worth a pass
    leaves its rows to the one above it.
    """
    path = [_Node(0, 0)]  # nodes that aren't complete, each within the one before it
    for place, after in enumerate([*common, 0]):
        if after > path[-1].depth:
            path.append(_Node(after, place))
        path[-1].rows.append(place)
        while path[-1].depth > after:
            node = path.pop()
            node.right = place + 1
            if path[-1].depth < after:
                path.append(_Node(after, node.left))
            ends = any(lengths[row] == node.depth for row in node.rows)  # reads it anyway: no pass more
            saved = (len(node.rows) + len(node.nodes) - 1) * (node.depth - path[-1].depth)
            if saved > (0 if ends else pass_tokens):
                path[-1].nodes.append(node)
            else:
                path[-1].rows += node.rows
                path[-1].nodes += node.nodes
    return path[0].nodes


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """How many ids two rows begin with that are the same."""
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    first = int(differs.argmax())
    return first if differs[first] else length


@dataclass(frozen=True)
class Places:
    """Where the results of a reading go: `source[k]` of them to `target[k]` of the places of all scored tokens."""

    source: np.ndarray
    target: np.ndarray
    done: np.ndarray  # rows that end here

    @classmethod
    def together(cls, places: Sequence["Places"], counts: Iterable[int]) -> "Places":
        """Those of several readings, which have so many results each."""
        offsets = np.cumsum([0, *counts])
        sources = [place.source + offset for place, offset in zip(places, offsets, strict=False)]
        return cls(*map(np.concatenate, (sources, [p.target for p in places], [p.done for p in places])))


def scored_in(piece: Piece, scored: Sequence[np.ndarray]) -> np.ndarray:
    """Which tokens of a piece are scored in any of its rows, given the bool arrays of all rows."""
    return np.logical_or.reduce([scored[row][piece.start : piece.stop] for row in piece.rows])


def places_of(reading: Reading, scored: Sequence[np.ndarray], firsts: np.ndarray, lengths: np.ndarray) -> Places:
    """
    Places of a reading's results, which are those of the tokens that [`scored_in`] finds, piece after piece. Row `i`'s
    scored tokens have the places from `firsts[i]` on.
    """
    sources, targets, offset = [], [], 0
    for piece in reading.pieces:
        number = np.cumsum(either := scored_in(piece, scored)) - 1 + offset
        for row in piece.rows:
            here = scored[row][piece.start : piece.stop]
            first = firsts[row] + np.count_nonzero(scored[row][: piece.start])
            sources.append(number[here])
            targets.append(first + np.arange(np.count_nonzero(here)))
        offset += np.count_nonzero(either)
    done = [row for piece in reading.pieces for row in piece.rows if lengths[row] == piece.stop]
    return Places(np.concatenate(sources), np.concatenate(targets), np.array(done, dtype=np.int64))


# ------------------------------------------------------------------------------------------------------ the cache


@dataclass(frozen=True)
class Prefix:
    """
    What is kept of `length` tokens: the cache, the last hidden state `(H,)`, which predicts the next token, and by how
    much positions go on behind images in another place than tokens (Qwen-VL's `rope_deltas`), where they do.
    """

    cache: DynamicCache
    last: torch.Tensor
    length: int
    deltas: torch.Tensor | None = None


def takes_cache(model: PreTrainedModel) -> bool:
    """
    Whether the backbone's forward has a cache to give to (state space models have another kind) and its attention is
    transformers' own with one mask for all layers' rows: others may know no tokens before those of the batch.
    """
    attends = model.config._attn_implementation in ("eager", "sdpa", None)
    return attends and "past_key_values" in signature(model.base_model.forward).parameters


def can_share(cache: object) -> bool:
    """Whether the cache that a model makes for itself is one that can be handed to several rows."""
    return type(cache) is DynamicCache and all(type(layer) in LAYERS for layer in cache.layers)


def bytes_per_token(cache: DynamicCache) -> float:
    """Bytes that a cache, filled by some tokens, grows by with each; 0 where it doesn't grow."""
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer) and layer.is_initialized]
    parts = [(part.nbytes, part.shape[-2]) for layer in layers for part in (layer.keys, layer.values)]
    return sum(size / max(1, tokens) for size, tokens in parts)


def difference(cache: DynamicCache, other: DynamicCache, last: int) -> float:
    """
    How much two caches of the same tokens differ: the largest [`relative_error`] of a layer's states, or of the keys
    or values of its `last` tokens. Rounding adds up from layer to layer, so that of the first layers counts up to
    three times: there a forgotten state or a wrong position shows in full, while the last hidden state may hide it.
    """
    errors = [
        max(map(relative_error, _tensors(mine, last), _tensors(its, last)), default=0.0)
        for mine, its in zip(cache.layers, other.layers, strict=True)
    ]
    return max(error * 3 / (1 + 2 * depth / len(errors)) for depth, error in enumerate(errors))


def _tensors(layer, last: int) -> list[torch.Tensor]:
    grown = [getattr(layer, name, None) for name in ("keys", "values")]
    tensors = [tensor[..., -last:, :] for tensor in grown if tensor is not None]
    states = [states.values() for _, states in sorted(vars(layer).items()) if isinstance(states, dict)]
    return tensors + [state for state in chain(*states) if torch.is_tensor(state)]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the difference, by that of what is expected; infinity where the shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    error = (found.float() - expected.float()).square().mean().sqrt()
    return float(error / expected.float().square().mean().sqrt().clamp(min=1e-12))


@contextmanager
def cache_for(
    model: PreTrainedModel, prefix: Prefix | None, rows: int, keep: bool, split: bool
) -> Iterator[DynamicCache | None]:
    """
    The cache with which the backbone reads `rows` rows after `prefix`, within the context: its own is never changed.
    With `keep` it also holds what is read, so that more can follow. With `split` the student attends to the prefix by
    [`~rsr_trl.scoring.prefix_attention`]. `None` where there is nothing to read after, nor to keep.
    """
    if prefix is None:
        yield DynamicCache(config=model.base_model.config) if keep else None
        return
    cache = copy.copy(prefix.cache)
    if not split:
        cache.layers = [_forked(layer, rows, keep) for layer in cache.layers]
        yield cache
        return
    cache.layers = list(map(copy.copy, cache.layers))
    for layer in cache.layers:
        prefix_attention.fork(layer, keep)
    with prefix_attention.used_by(model):
        yield cache
    for layer in cache.layers:
        del layer.update  # of the copy: more rows are read after it


def _forked(layer, rows: int, keep: bool):
    """
    A layer's state for `rows` rows after the one it was made by. Attention layers make new tensors when they grow, so
    keys and values are the same memory; recurrent ones write into theirs, which are copied.
    """
    layer = copy.copy(layer)
    if isinstance(layer, DynamicLayer) and layer.is_initialized:
        layer.keys, layer.values = (t.expand(rows, *t.shape[1:]) for t in (layer.keys, layer.values))
        if not keep:  # else all layers would hold all rows' keys and values until the pass ends
            layer.update = partial(_read_only_update, layer.keys, layer.values)
    if isinstance(layer, LinearAttentionLayer):
        for name, states in vars(layer).items():
            if isinstance(states, dict):  # tensors, or what is known of them, by their number
                copies = {i: s.repeat_interleave(rows, 0) if torch.is_tensor(s) else s for i, s in states.items()}
                setattr(layer, name, copies)
    return layer


def _read_only_update(keys: torch.Tensor, values: torch.Tensor, new_keys: torch.Tensor, new_values: torch.Tensor, *_):
    return torch.cat([keys, new_keys], dim=-2), torch.cat([values, new_values], dim=-2)


class Prefixes:
    """The prefixes that readings of a plan still need, by the number of the reading that read them."""

    def __init__(self, plan: Sequence[Reading]):
        self._plan = plan
        self._left = [reading.followers for reading in plan]
        self._kept: dict[int, Prefix] = {}

    def before(self, reading: Reading) -> Prefix | None:
        return None if reading.after is None else self._kept[reading.after]

    def done(self, number: int, prefix: Prefix | None) -> None:
        """Reading `number` is done; `prefix` is what it leaves to its followers."""
        if prefix is not None:
            self._kept[number] = prefix
        before = self._plan[number].after
        if before is None:
            return
        self._left[before] -= 1
        if not self._left[before]:
            del self._kept[before]
        elif prefix is not None:
            _share_memory(self._kept[before], prefix)


def _share_memory(shorter: Prefix, longer: Prefix) -> None:
    """Let a prefix be the beginning of a longer one instead of a copy: nested prefixes take the memory of one."""
    for mine, other in zip(shorter.cache.layers, longer.cache.layers, strict=True):
        if type(mine) is DynamicLayer and mine.is_initialized:
            mine.keys, mine.values = (t[..., : shorter.length, :] for t in (other.keys, other.values))
