import numpy as np
import pytest
from scipy.stats import binomtest, rankdata, spearmanr

from rsr_trl.selection.compare import chance_overlap, correct_first, rank_correlation


def naive_within(values, group):
    """Rank every group by itself, as the words say it, and correlate what is left of all rows."""
    rows = []
    for label in np.unique(group):
        part = values[group == label]
        ranks = np.stack([rankdata(column) for column in part.T], axis=1) / len(part)
        rows.append(ranks - ranks.mean(axis=0))
    return np.corrcoef(np.concatenate(rows).T)


def naive_pairs(cost, correct, group):
    won, pairs = 0.0, 0
    for i in np.flatnonzero(correct):
        for j in np.flatnonzero(~correct & (group == group[i])):
            won += 1.0 if cost[i] < cost[j] else 0.5 * (cost[i] == cost[j])
            pairs += 1
    return won / pairs


class TestRankCorrelation:
    def test_is_spearmans_with_ties(self):
        values = np.random.default_rng(0).integers(0, 6, (80, 4)).astype(float)
        np.testing.assert_allclose(rank_correlation(values), spearmanr(values).statistic, atol=1e-12)

    def test_within_groups_of_any_size(self):
        rng = np.random.default_rng(1)
        values, group = rng.integers(0, 5, (200, 3)).astype(float), rng.integers(0, 40, 200)
        np.testing.assert_allclose(rank_correlation(values, group), naive_within(values, group), atol=1e-12)

    def test_what_differs_between_groups_plays_no_part(self):
        rng = np.random.default_rng(2)
        values, group = rng.normal(size=(120, 3)), np.repeat(np.arange(20), 6)
        moved = values + 100 * rng.normal(size=(20, 3))[group]
        np.testing.assert_allclose(rank_correlation(moved, group), rank_correlation(values, group))
        assert abs(rank_correlation(moved)[0, 1] - rank_correlation(values)[0, 1]) > 0.1

    def test_what_does_not_vary_has_none(self):
        values = np.stack([np.ones(9), np.arange(9.0)], axis=1)
        assert np.isnan(rank_correlation(values)).tolist() == [[True, True], [True, False]]
        assert np.isnan(rank_correlation(values, np.arange(9))).all()  # groups of one row


class TestCorrectFirst:
    @pytest.mark.parametrize("seed", range(5))
    def test_share_of_pairs_with_ties_half(self, seed):
        rng = np.random.default_rng(seed)
        cost, correct = rng.integers(0, 5, 90).astype(float), rng.random(90) < 0.6
        group = rng.integers(0, 25, 90)
        share, low, high, num_groups = correct_first(cost, correct, group)
        assert share == pytest.approx(naive_pairs(cost, correct, group)) and low < share < high
        assert num_groups == sum(correct[group == g].any() and (~correct[group == g]).any() for g in range(25))
        whole = correct_first(cost, correct)
        assert whole[0] == pytest.approx(naive_pairs(cost, correct, np.zeros(90))) and whole[3] == 1

    def test_lower_cost_of_correct_ones_is_above_chance(self):
        cost, correct = np.array([1.0, 3.0, 2.0, 4.0]), np.array([True, False, False, True])
        assert correct_first(cost, correct)[0] == 0.5
        assert correct_first(cost, correct, np.array([0, 0, 1, 1]))[0] == 0.5
        assert correct_first(np.array([1.0, 3.0, 4.0, 2.0]), correct)[0] == 1.0

    @pytest.mark.parametrize("grouped", [True, False])
    def test_interval_covers_what_it_states(self, grouped):
        rng = np.random.default_rng(7)
        # Two normals one apart: P(correct is lower) = Phi(1 / sqrt 2). Problems differ in difficulty and accuracy.
        truth, covered = 0.7602, []
        for _ in range(400):
            group = np.repeat(np.arange(60), 5)
            correct = rng.random(300) < (rng.uniform(0.2, 0.9, 60)[group] if grouped else 0.6)
            cost = rng.normal(size=300) - correct + (3 * rng.normal(size=60)[group] if grouped else 0)
            _, low, high, _ = correct_first(cost, correct, group if grouped else None)
            covered.append(low <= truth <= high)
        assert 0.92 <= np.mean(covered) <= 0.98

    def test_says_nothing_where_nothing_can_be_said(self):
        one, both = np.ones(4, dtype=bool), np.array([True, True, False, False])
        assert np.isnan(correct_first(np.arange(4.0), one)[0]) and correct_first(np.arange(4.0), one)[3] == 0
        assert np.isnan(correct_first(np.zeros(0), np.zeros(0, dtype=bool))[0])
        assert np.isnan(correct_first(np.arange(4.0), both, np.array([0, 1, 2, 3]))[0])  # no pair within a problem
        assert np.isnan(correct_first(np.zeros(4), both, np.array([0, 1, 1, 0]))[1])  # nothing but ties

    @pytest.mark.parametrize("sign", [1, -1])
    def test_all_pairs_one_way_bound_the_share_as_so_many_coins_would(self, sign):
        correct, group = np.tile([True, True, False], 30), np.repeat(np.arange(30), 3)
        bound = binomtest(30, 30).proportion_ci(method="exact").low
        expected = (1.0, bound, 1.0) if sign == 1 else (0.0, 0.0, 1 - bound)
        assert correct_first(-sign * correct.astype(float), correct, group)[:3] == pytest.approx(expected)
        assert correct_first(-sign * correct.astype(float), correct)[:3] == pytest.approx(expected)  # 30 incorrect


def test_chance_overlap_is_that_of_random_choices():
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(30), rng.integers(1, 8, 30))

    def at_random(group):
        order = np.lexsort((rng.random(len(group)), group))
        place = np.arange(len(group)) - np.searchsorted(group[order], group[order])
        chosen = np.zeros(len(group), dtype=bool)
        chosen[order[place < 2]] = True
        return chosen

    chosen = at_random(group)
    seen = np.mean([(at_random(group) & chosen).sum() / chosen.sum() for _ in range(2000)])
    assert chance_overlap(chosen, group) == pytest.approx(seen, abs=0.01)
    assert chance_overlap(chosen) == pytest.approx(chosen.mean())
