import itertools
import random

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler
from datasets import Dataset
from torch.utils.data import BatchSampler, DataLoader

from rsr_trl.rsr import RSRError
from rsr_trl.training.live_table import ScoreTable
from rsr_trl.training.sampler import RSRSampler


def table_of(scores) -> ScoreTable:
    """A table with these ratios; NaN is a row without scored tokens."""
    table = ScoreTable(np.where(np.isnan(scores), 0, 50))
    set_scores(table, scores)
    return table


def set_scores(table: ScoreTable, scores) -> None:
    rows = np.flatnonzero(table.num_tokens)
    scores = np.asarray(scores, dtype=float)[rows]
    table.update(rows, 1 + scores, (1 + scores) / scores, 0)
    np.testing.assert_allclose(table.rsr[rows], scores)


def scores_of(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(n) + 1.0


def ordered(table: ScoreTable, **settings) -> list[int]:
    return list(RSRSampler(table, sampling="ordered", **settings))


def drawn_in(sampler: RSRSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    return list(sampler)


def test_ordered_is_the_sorted_order_with_unscored_rows_last():
    table = table_of([3.0, 1.0, np.nan, 2.0])
    assert ordered(table) == [1, 3, 0, 2] and ordered(table, prefer="high") == [0, 3, 1, 2]


@pytest.mark.parametrize("choice", [{"groups": [0, 0, 1, 1, 2]}, {"keep_fraction": 0.6}], ids=str)
def test_bare_answers_are_not_chosen_unless_asked_for(choice):
    """The same rule as in selection; group 2 has nothing else."""
    table = ScoreTable([31, 32, 40, 50, 5])
    set_scores(table, [1.0, 2.0, 5.0, 4.0, 3.0])
    assert ordered(table, **choice) == [1, 3]
    assert ordered(table, **choice, min_tokens=0) == [0, 4, 3] if "groups" in choice else [0, 1, 4]
    assert sorted(ordered(table)) == [0, 1, 2, 3, 4]  # where nothing is chosen, nothing is left out
    with pytest.raises(RSRError, match="All 2 .* isn't made for bare answers.*min_tokens=0"):
        short = ScoreTable([5, 31])
        RSRSampler(short, **{name: value if name == "keep_fraction" else [0, 1] for name, value in choice.items()})


@pytest.mark.parametrize(
    ("score", "order"), [("rsr", [1, 2, 3, 0]), ("surprisal", [0, 2, 3, 1]), ("score_rank", [2, 1, 0, 3])]
)
def test_the_order_follows_any_live_score(score, order):
    table = ScoreTable([5] * 4, score)
    table.update(range(4), [4.0, 3.0, 2.0, 9.0], [0.5, 3.0, 1.0, 2.0], step=0)
    assert ordered(table) == order and ordered(table, prefer="high") == order[::-1]


def test_the_order_follows_static_scores():
    assert ordered(ScoreTable([5] * 4, "length", [5, 9, 7, 3])) == [1, 2, 0, 3]  # longest
    own = ScoreTable([50] * 4, "judge", [np.nan, 9, 7, 3])
    assert ordered(own, prefer="low") == [3, 2, 1, 0]
    assert sorted(RSRSampler(own, prefer="low", keep_fraction=1 - 1e-6)) == [1, 2, 3]
    with pytest.raises(ValueError, match="Which end of the column 'judge'"):
        RSRSampler(own)


def test_ties_are_broken_by_seed_and_epoch():
    orders = set()
    for seed, epoch in itertools.product(range(3), range(2)):
        order = drawn_in(RSRSampler(table_of([1.0] * 20 + [0.5]), sampling="ordered", seed=10 * seed), epoch)
        assert order[0] == 20 and sorted(order) == list(range(21))
        orders.add(tuple(order))
    assert len(orders) == 6


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_random_is_the_order_that_accelerate_gives_sft_trainer(epoch):
    sampler = RSRSampler(table_of(scores_of(37)), sampling="random", seed=42)
    theirs = SeedableRandomSampler(range(37), generator=None, data_seed=42)
    assert drawn_in(sampler, epoch) == drawn_in(theirs, epoch)


def test_weighted_draws_follow_the_stated_distribution():
    """First draws by the weights exp(-rank / (temperature * n)), and second ones given the first, by chi-square."""
    n, epochs, temperature, scores = 5, 20_000, 0.5, np.array([3.0, 1.0, 5.0, 2.0, 4.0])
    sampler = RSRSampler(table_of(scores), temperature=temperature)
    weights = np.exp(-(scores - 1) / (temperature * n))
    first, second = np.zeros(n), np.zeros((n, n))
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        a, b = itertools.islice(iter(sampler), 2)
        first[a] += 1
        second[a, b] += 1
    expected = epochs * weights / weights.sum()
    assert ((first - expected) ** 2 / expected).sum() < 18.5  # chi-square, 4 degrees of freedom, p = 0.001
    for a in range(n):
        rest = weights.copy()
        rest[a] = 0
        expected = first[a] * rest / rest.sum()
        assert ((second[a] - expected)[rest > 0] ** 2 / expected[rest > 0]).sum() < 16.3  # 3 degrees of freedom


def test_temperature_leads_from_ordered_to_random():
    scores = scores_of(200)

    def disorder(temperature):
        order = list(RSRSampler(table_of(scores), temperature=temperature))
        return np.corrcoef(scores[order], np.arange(200))[0, 1]

    assert disorder(1e-6) == pytest.approx(1.0)
    assert 0.95 > disorder(0.2) > 0.5
    assert abs(disorder(1e6)) < 0.2


SETTINGS = [
    {},
    {"sampling": "ordered"},
    {"sampling": "random"},
    {"keep_fraction": 0.34},
    {"sampling": "ordered", "keep_fraction": 0.34, "prefer": "high"},
    {"sampling": "random", "keep_fraction": 0.5},
    {"groups": np.arange(41) % 7},
    {"sampling": "ordered", "groups": np.arange(41) % 7, "keep_per_group": 3},
    {"sampling": "random", "groups": np.arange(41) // 5, "keep_per_group": 2},
    {"score_threshold": 20.0},
    {"sampling": "ordered", "score_threshold": 20.0, "prefer": "high"},
    {"groups": np.arange(41) % 7, "keep_per_group": 2, "score_threshold": 10.0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_each_kept_example_comes_once_however_scores_change(settings, seed):
    """Scores change at random moments; the length stays, nothing repeats, and quotas hold exactly."""
    rng = random.Random(seed)
    scores = scores_of(41, seed)
    scores[[4, 20]] = np.nan
    table = table_of(scores)
    sampler = RSRSampler(table, pad_to_multiple_of=4, seed=seed, **settings)
    length = len(sampler)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        drawn = []
        for index in sampler:
            drawn.append(index)
            if rng.random() < 0.2:
                set_scores(table, scores_of(41, rng.randrange(1000)))
        assert len(drawn) == len(sampler) == length and length % 4 == 0
        padding = drawn[sampler.num_kept :]
        assert all(index == 82 for index in padding) and len(padding) < 4
        rows = [index % 41 for index in drawn[: sampler.num_kept]]
        assert len(set(rows)) == sampler.num_kept
        if "groups" in settings:
            counts = np.bincount(settings["groups"][rows], minlength=settings["groups"].max() + 1)
            available = np.bincount(settings["groups"][~np.isnan(scores)])
            np.testing.assert_array_equal(counts, np.minimum(available, settings.get("keep_per_group", 1)))
        elif "keep_fraction" in settings:
            assert sampler.num_kept == int(np.ceil(settings["keep_fraction"] * 39))
        else:
            assert sampler.num_kept == 41


@pytest.mark.parametrize("sampling", ["weighted", "ordered", "random"])
def test_the_choice_takes_the_best_and_never_an_unscored_row(sampling):
    scores = scores_of(30)
    scores[scores <= 2] = np.nan  # the two that would be the best
    drawn = list(RSRSampler(table_of(scores), sampling=sampling, keep_fraction=0.25))
    assert sorted(drawn) == sorted(np.argsort(scores)[:7].tolist())
    scores, groups = scores_of(40), np.arange(40) % 8
    drawn = list(RSRSampler(table_of(scores), sampling=sampling, groups=groups, keep_per_group=2))
    expected = [row for g in range(8) for row in sorted(np.flatnonzero(groups == g), key=lambda i: scores[i])[:2]]
    assert sorted(drawn) == sorted(expected)


@pytest.mark.parametrize(
    ("settings", "before", "after", "drawn"),
    [
        ({"groups": [0, 0, 1, 1]}, [1.0, 9.0, 2.0, 8.0], [9.0, 0.5, 8.0, 2.0], [0, 3]),  # group 0 is done
        ({"score_threshold": 2.0}, [1.0, 5.0, 6.0], [9.0, 5.0, 1.5], [0, 2, 3 + 1]),
    ],
)
def test_what_was_drawn_stays_and_the_rest_follows_the_scores_of_its_draw(settings, before, after, drawn):
    table = table_of(before)
    draws = iter(RSRSampler(table, sampling="ordered", **settings))
    first = next(draws)
    set_scores(table, after)
    assert [first, *draws] == drawn


@pytest.mark.parametrize("sampling", ["weighted", "ordered", "random"])
def test_rows_past_the_threshold_come_last_and_are_drawn_masked(sampling):
    sampler = RSRSampler(table_of([4.0, 1.0, 3.0, 2.0, np.nan]), sampling=sampling, score_threshold=2.0)
    drawn = list(sampler)
    assert sorted(drawn[:2]) == [1, 3] and sorted(drawn[2:]) == [5 + 0, 5 + 2, 5 + 4]
    assert sampler.num_masked(2) == 0 and sampler.num_masked(4) == 2
    assert sampler.kept_share() == pytest.approx(2 / 5)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_reading_unchanged_scores_again_changes_no_order(settings):
    scores = scores_of(41)
    quiet, busy = (RSRSampler(table_of(scores), seed=3, **settings) for _ in range(2))
    drawn = []
    for index in busy:
        drawn.append(index)
        set_scores(busy.table, scores)  # a new version with the same values
    assert drawn == list(quiet)


def test_what_is_committed_stays_and_the_rest_follows_a_refresh_or_the_next_epoch():
    table = table_of(scores_of(20))
    sampler = RSRSampler(table, sampling="ordered", live=False)
    order = list(np.argsort(table.rsr))
    draws = iter(sampler)
    assert next(draws) == order[0]
    sampler.commit(6)
    set_scores(table, 21 - table.rsr)
    assert next(draws) == order[1]
    assert set(sampler.candidates()) == set(order[6:])
    sampler.refresh()
    assert list(draws) == order[2:6] + order[:5:-1]
    draws = iter(sampler)
    first = next(draws)
    set_scores(table, 21 - table.rsr)  # without a refresh it shows in the next epoch
    assert [first, *draws] == order[::-1]
    assert list(sampler) == order


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("drawn", [1, 5, 12])
def test_a_restored_sampler_goes_on_as_the_first_would_have(settings, drawn):
    def start():
        return RSRSampler(table_of(scores_of(41)), seed=1, live=False, pad_to_multiple_of=4, **settings)

    whole = start()
    whole.set_epoch(2)
    draws = iter(whole)
    begun = list(itertools.islice(draws, drawn))
    whole.commit(drawn + 2)
    set_scores(whole.table, scores_of(41, 9))
    whole.refresh()
    state = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    saved_table = {name: tensor.clone() for name, tensor in whole.table.state_dict().items()}
    rest = list(draws)

    resumed = start()
    resumed.table.load_state_dict(saved_table)
    resumed.load_state_dict(state)
    assert drawn_in(resumed, 2) == begun + rest
    assert drawn_in(resumed, 3) == drawn_in(whole, 3)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 7, 24, 25])
def test_processes_share_one_stream_and_accelerate_repeats_nothing(n, processes):
    """Through accelerate's own sharding, as in the trainer: each row once, and equally many batches everywhere."""
    batch_size = 4
    shards = []
    for rank in range(processes):
        sampler = RSRSampler(table_of(scores_of(n)), pad_to_multiple_of=batch_size * processes)
        batches = BatchSampler(sampler, batch_size, drop_last=False)
        shards.append(list(BatchSamplerShard(batches, processes, rank) if processes > 1 else batches))
    assert len({len(shard) for shard in shards}) == 1
    drawn = [index for batches in zip(*shards, strict=True) for batch in batches for index in batch]
    assert drawn == list(sampler)
    assert sorted(index for index in drawn if index < n) == list(range(n))


def test_works_alone_with_a_plain_data_loader_and_follows_the_table():
    table = table_of(scores_of(12))
    loader = DataLoader(torch.arange(12), batch_size=3, sampler=RSRSampler(table, sampling="ordered"))
    seen = []
    for batch in loader:
        seen += batch.tolist()
        if len(seen) == 6:
            set_scores(table, 13 - table.rsr)
    best_first = list(np.argsort(scores_of(12)))
    assert seen == best_first[:6] + best_first[:5:-1]
    masked = DataLoader(torch.arange(12), sampler=RSRSampler(table, score_threshold=0.5))
    with pytest.raises(IndexError):  # rather than a wrong row
        list(masked)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling": "best"}, "sampling must be"),
        ({"prefer": "higher"}, "lower is more suitable"),
        ({"temperature": 0}, "temperature"),
        ({"keep_fraction": 0}, "keep_fraction"),
        ({"keep_fraction": 1.2}, "keep_fraction"),
        ({"groups": [0, 1]}, "one group for each of 3 rows"),
        ({"groups": [0, 1, 2], "keep_fraction": 0.5}, "not both"),
        ({"groups": [0, 1, 2], "keep_per_group": 0}, "keep_per_group"),
        ({"table": ScoreTable([])}, "empty"),
        ({"table": ScoreTable([0, 0]), "keep_fraction": 0.5}, "nothing to choose from"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RSRSampler(**{"table": table_of([1.0, 2.0, 3.0])} | settings)


def test_a_state_of_other_rows_and_scores_that_are_no_table_are_refused():
    state = RSRSampler(table_of(scores_of(10))).state_dict()
    with pytest.raises(ValueError, match="10 rows.*9 rows"):
        RSRSampler(table_of(scores_of(9))).load_state_dict(state)
    for given in ([1.0, 2.0], Dataset.from_dict({"rsr": [1.0]})):
        with pytest.raises(TypeError, match=r"ScoreTable.from_dataset\(dataset\)"):
            RSRSampler(given)
