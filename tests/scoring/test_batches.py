"""Batches: every row once, within the budget, longest first, the same plan every time."""

from itertools import pairwise

import numpy as np
import pytest

from rsr_trl.scoring.batches import lay_out, plan_batches


LAYOUTS = ("equal", "padded", "packed")
LENGTHS = {
    "random": np.random.default_rng(0).integers(0, 200, 500),
    "one": [7],
    "equal": [50] * 23,
    "with empty rows": [0, 5, 0, 3, 5, 0],
    "some beyond the budget": [1000, 3, 900, 3, 3, 1000],
    "falling": list(range(64, 0, -1)),
    "rising": list(range(1, 65)),
}


def cost(lengths: np.ndarray, layout: str) -> int:
    """Tokens that a batch of these rows computes on, padding included."""
    return int(lengths.sum() if layout == "packed" else lengths.max() * len(lengths))


@pytest.mark.parametrize("budget", [1, 64, 256, 10_000])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LENGTHS)
def test_plan(name, layout, budget):
    lengths = np.asarray(LENGTHS[name])
    batches = plan_batches(LENGTHS[name], budget, layout)
    assert sorted(np.concatenate(batches).tolist()) == np.flatnonzero(lengths).tolist()  # every row with tokens, once
    for batch in batches:
        assert len(batch) == 1 or cost(lengths[batch], layout) <= budget
        assert layout != "equal" or len(set(lengths[batch])) == 1
    for batch, following in pairwise(batches if budget < 8192 else []):  # none could take in the next one's first row
        grown = lengths[[*batch, following[0]]]
        assert cost(grown, layout) > budget or (layout == "equal" and len(set(grown)) > 1)
    longest_first = [n for batch in batches for n in lengths[batch]]
    assert longest_first == sorted(longest_first, reverse=True)


def test_padding_is_little_where_a_window_is_small():
    lengths = np.random.default_rng(0).integers(50, 2000, 300)  # 300k tokens
    batches = plan_batches(lengths, 32_768, "padded")
    assert sum(cost(lengths[batch], "padded") for batch in batches) < 1.07 * lengths.sum()
    for batch, following in pairwise(batches):
        is_full = cost(lengths[[*batch, following[0]]], "padded") > 32_768
        assert is_full or (cost(lengths[batch], "padded") >= 8192 and lengths[following[0]] < 0.9 * lengths[batch[0]])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_lengths_same_plan_and_ties_in_source_order(layout):
    lengths = LENGTHS["random"]
    first, again = plan_batches(lengths, 256, layout), plan_batches(lengths.tolist(), 256, layout)
    assert [b.tolist() for b in first] == [b.tolist() for b in again]
    order = np.concatenate(first)
    assert all(a < b for a, b in pairwise(order) if lengths[a] == lengths[b])
    assert plan_batches([], 100, layout) == plan_batches([0, 0], 100, layout) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_beyond_a_border_stay_among_themselves(layout):
    lengths = np.asarray(LENGTHS["random"])
    border = int(np.median(lengths))
    batches = plan_batches(lengths, 10_000, layout, border)
    assert sorted(np.concatenate(batches).tolist()) == np.flatnonzero(lengths).tolist()
    assert all(len(set(lengths[batch] > border)) == 1 for batch in batches)
    assert {bool(lengths[batch][0] > border) for batch in batches} == {True, False}


def test_rows_lie_behind_another_or_padded_on_the_right():
    ids = [np.array([5, 6, 7], dtype=np.int32), np.array([8], dtype=np.int32)]
    scored = [np.array([False, True, False]), np.array([True])]
    packed = lay_out(ids, scored, "packed")
    assert {name: np.asarray(array).tolist() for name, array in packed.items()} == {
        "input_ids": [[5, 6, 7, 8]],
        "scored": [[False, True, False, True]],
        "position_ids": [[0, 1, 2, 0]],
        "cu_seq_lens_q": [0, 3, 4],
        "cu_seq_lens_k": [0, 3, 4],
        "max_length_q": 3,
        "max_length_k": 3,
    }
    padded = lay_out(ids, scored, "padded", pad_token_id=9)
    assert {name: array.tolist() for name, array in padded.items()} == {
        "input_ids": [[5, 6, 7], [8, 9, 9]],
        "scored": [[False, True, False], [True, False, False]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
    }
    assert set(lay_out(ids[:1] * 2, scored[:1] * 2, "equal")) == {"input_ids", "scored"}  # nothing to mask
    assert packed["input_ids"].dtype == padded["input_ids"].dtype == np.int64
