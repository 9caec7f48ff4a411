"""Rows that begin alike read their common tokens once: the plan against a set of prefixes, scores against float64."""

import numpy as np
import pytest
import torch

from rsr_trl.scoring import prefixes
from rsr_trl.scoring.batches import plan_batches
from rsr_trl.scoring.prefixes import Piece, plan_readings, tokens_of
from rsr_trl.scoring.student import Student
from rsr_trl.scoring.tokens import TokenizedExample
from tests.scoring.students import V, assert_true, build, examples_of, rsr_of


# By what their caches hold: keys and values; of a window; both; compressed ones; what other layers share; states and
# keys in one layer or in different ones.
SHARING = ["llama", "qwen3", "gpt2", "opt", "bloom", "mixtral", "mistral", "gemma2", "gemma3_text", "gpt_oss"]
SHARING += ["deepseek_v3", "gemma3n_text", "falcon_h1", "lfm2", "qwen3_next", "granitemoehybrid"]
# No cache of this kind, one of their own, or layers that forget their state before several tokens.
PLAIN = ["mamba", "minimax", "bamba", "jamba"]
LAYOUTS = ["equal", "padded"]


def pool(seed: int = 0) -> list[TokenizedExample]:
    """
    Trajectories of three problems with one system prompt, in any order: some branch within the response, one is the
    beginning of another, one is there twice, one has nothing in common with the others.
    """
    drawn = np.random.default_rng(seed)
    rows, system = [(drawn.integers(3, V, 33), 6)], drawn.integers(3, V, 20)
    for problem in range(3):
        prompt = np.concatenate([system, drawn.integers(3, V, 5 + 7 * problem)])
        for length in (3, 18, 25):
            ids = np.concatenate([prompt, drawn.integers(3, V, length)])
            rows.append((ids, len(prompt)))
        cut = len(ids) - 12
        rows += [(np.concatenate([ids[:cut], drawn.integers(3, V, 6)]), len(prompt)), (ids[:cut], len(prompt))]
        rows.append((ids, len(prompt)))
    return [
        TokenizedExample(ids.astype(np.int32), np.arange(len(ids)) >= first)
        for ids, first in (rows[i] for i in drawn.permutation(len(rows)))
    ]


@pytest.fixture(autouse=True)
def every_token_counts(monkeypatch):
    monkeypatch.setitem(prefixes.PASS_TOKENS, "cpu", 0)


def tokens_read(student: Student, examples: list[TokenizedExample], **asked) -> tuple:
    """Scores, and the sums of what `progress` is told."""
    told = []
    tokens = student.score(examples, progress=lambda *numbers: told.append(numbers), **asked)
    return tokens, np.sum(told, axis=0).tolist()


# ---------------------------------------------------------------------------------------------------------- scores


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", SHARING + PLAIN)
def test_scores_are_those_of_the_definition(family, layout):
    model, examples = build(family), pool()
    student = Student(model, max_batch_tokens=200, max_prefix_tokens=100)
    student.layout = layout
    tokens, told = tokens_read(student, examples, with_top1=True)
    lengths = [len(example.input_ids) for example in examples]
    distinct = {tuple(row.input_ids[: i + 1].tolist()) for row in examples for i in range(len(row.input_ids))}
    assert told == [len(examples), sum(lengths), len(distinct) if family in SHARING else sum(lengths)]
    if family == "minimax":  # a window of its own over linear attention, in blocks: not exact enough for the truth
        assert_same(tokens, Student(model, share_prefixes=False).score(examples))
    else:
        assert_true(model, examples, tokens)


def assert_same(tokens, others):
    np.testing.assert_allclose(tokens.surprisals, others.surprisals, rtol=1e-4, atol=1e-5)
    assert rsr_of(tokens) == pytest.approx(rsr_of(others), rel=1e-5)


def test_a_pass_is_as_without_sharing_whatever_the_order_and_the_bound():
    model, examples = build("qwen3"), pool()
    order = np.random.default_rng(1).permutation(len(examples))
    alone, told = tokens_read(Student(model, share_prefixes=False), examples, with_moments=True)
    assert told[1] == told[2]
    for bound in (None, 0, 1, 30, 1000):
        tokens, told = tokens_read(Student(model, 100, max_prefix_tokens=bound), examples, with_moments=True)
        assert (told[2] == told[1]) == (bound == 0)
        assert_same(tokens, alone)
        np.testing.assert_allclose(tokens.entropies, alone.entropies, rtol=1e-4, atol=1e-5)
    shuffled = Student(model).score([examples[i] for i in order])
    assert np.asarray(rsr_of(shuffled)) == pytest.approx(np.asarray(rsr_of(alone))[order], rel=1e-5)
    assert (shuffled.ranks == Student(model).score([examples[i] for i in order]).ranks).all()


def test_in_bfloat16_the_difference_is_rounding():
    model, examples = build("llama", num_hidden_layers=4).to(torch.bfloat16), pool()
    tokens, told = tokens_read(Student(model), examples)
    assert told[2] < told[1]
    alone = rsr_of(Student(model, share_prefixes=False).score(examples))
    assert np.median(np.abs(np.array(rsr_of(tokens)) / alone - 1)) < 0.02


# Weights as narrow as most families' own `initializer_range` hide the state of 16 tokens from the last hidden state.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("family", ["bamba", "jamba", "falcon_h1"])
def test_a_state_that_is_forgotten_is_noticed_in_every_dtype(family, spread, dtype):
    student = Student(build(family, initializer_range=spread).to(dtype))
    for num_tokens in (1, 2, 40):  # after few tokens no state is forgotten
        student._verified = False
        student.score(examples_of((num_tokens,)))
        assert bool(student._cache_bytes) == (family in SHARING)


def test_prefixes_that_do_not_fit_are_shortened_then_given_up(caplog):
    student, examples = Student(build("llama"), 256, max_prefix_tokens=64), pool()
    expected, forward, tried = student.score(examples), student.hidden_states, []

    def limited(ids, **given):
        tried.append("past_key_values" in given)
        if "past_key_values" in given and ids.shape[1] + given["past_key_values"].get_seq_length() > 10:
            raise torch.OutOfMemoryError
        return forward(ids, **given)

    student.hidden_states = limited
    assert_same(student.score(examples), expected)
    assert any(tried) and not tried[-1] and "Out of GPU memory" in caplog.text


# -------------------------------------------------------------------------------------------------------- the plan


def random_rows(seed: int) -> list[np.ndarray]:
    """Rows over two words, so that many begin alike, of 0 to 40 tokens; some twice."""
    drawn = np.random.default_rng(seed)
    rows = [drawn.integers(0, 2, drawn.integers(0, 41)) for _ in range(30)]
    return rows + [np.concatenate([row, drawn.integers(0, 2, 5)]) for row in rows[:10]] + rows[:5]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_tokens", [0, 4, 1000])
@pytest.mark.parametrize("limit", [0, 7, 100])
@pytest.mark.parametrize("seed", range(3))
def test_every_token_of_every_row_is_read_once(seed, limit, pass_tokens, layout):
    rows = random_rows(seed)
    plan = plan_readings(rows, 64, layout, max_prefix_tokens=limit, pass_tokens=pass_tokens)
    read = [0] * len(rows)
    for number, reading in enumerate(plan):
        before = None if reading.after is None else plan[reading.after].pieces[0]
        assert reading.followers == sum(later.after == number for later in plan)
        assert len(reading.pieces) == 1 or not reading.followers
        assert len(reading.pieces) == 1 or layout == "padded" or len({p.stop for p in reading.pieces}) == 1
        longest = max(piece.stop - piece.start for piece in reading.pieces)
        assert len(reading.pieces) * longest <= 64
        assert not reading.followers or reading.pieces[0].stop <= limit
        for piece in reading.pieces:
            assert piece.start == (0 if before is None else before.stop) < piece.stop
            same = {rows[row][: piece.stop].tobytes() for row in piece.rows}
            assert len(same) == 1, "these rows don't have the same ids"
            for row in piece.rows:
                assert read[row] == piece.start and (before is None or row in before.rows)
                assert before is None or number > reading.after
                read[row] = piece.stop
    assert read == [len(row) for row in rows]
    again = plan_readings(rows, 64, layout, max_prefix_tokens=limit, pass_tokens=pass_tokens)
    assert [tokens_of(reading) for reading in plan] == [tokens_of(reading) for reading in again]
    if limit == 100 and pass_tokens == 0:  # nothing that is read is read twice: the nodes of the trie of all rows
        distinct = {tuple(row[: i + 1].tolist()) for row in rows for i in range(len(row))}
        assert sum(map(tokens_of, plan)) == len(distinct)


def test_only_what_repays_is_shared():
    drawn = np.random.default_rng(0)
    common = drawn.integers(0, 99, 30)
    rows = [np.concatenate([common, [100 + i], drawn.integers(0, 99, 20 + i)]) for i in range(3)]
    saves = {pass_tokens: plan_readings(rows, 4096, "equal", None, 100, pass_tokens) for pass_tokens in (59, 60)}
    assert [tokens_of(reading) for reading in saves[59]] == [30, 23, 22, 21]
    batches = plan_batches([len(row) for row in rows], 4096, "equal")
    assert [[p.rows.tolist() for p in reading.pieces] for reading in saves[60]] == [[b.tolist()] for b in batches]
    beyond = plan_readings(rows, 4096, "equal", border=52, max_prefix_tokens=100, pass_tokens=0)
    assert [reading.pieces[0].rows.tolist() for reading in beyond] == [[2], [0, 1], [1], [0]]


def test_nested_prefixes_take_the_memory_of_one():
    rows = examples_of((60,))
    student = Student(build("llama"))
    student.score(rows)
    ids = rows[0].input_ids
    _, _, short = student._forward([TokenizedExample(ids[:20], np.zeros(20, bool))], keep=True)
    _, _, long = student._forward([TokenizedExample(ids[20:50], np.zeros(30, bool))], short, keep=True)
    plan = [prefixes.Reading([Piece(np.arange(2), 0, 20)], None, 2), prefixes.Reading([], 0, 1)]
    kept = prefixes.Prefixes(plan)
    kept.done(0, short)
    kept.done(1, long)
    for shorter, longer in zip(short.cache.layers, long.cache.layers, strict=True):
        assert shorter.keys.shape[-2] == 20 and longer.keys.shape[-2] == 50
        assert shorter.keys.untyped_storage().data_ptr() == longer.keys.untyped_storage().data_ptr()
    assert prefixes.bytes_per_token(long.cache) == 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, size, float32
