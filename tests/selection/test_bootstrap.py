import numpy as np
import pytest
from scipy import stats

from rsr_trl.selection.bootstrap import _LARGE, probability_below, probability_best, resample_ratios


def lognormal_pools(rng, units, pools, rank_spread, surprisal_spread, correlation):
    """Mean ranks and surprisals of independent pools whose true ratio is 1."""
    common, own = rng.normal(size=(2, units, pools))
    surprisals = np.exp(surprisal_spread * common - surprisal_spread**2 / 2)
    mixed = correlation * common + np.sqrt(1 - correlation**2) * own
    return np.exp(rank_spread * mixed - rank_spread**2 / 2), surprisals


# Spreads of ln(rank) and ln(surprisal) over trajectories, and their correlation. The first is as measured on short
# maths answers; in the second mean ranks have a skewness of 3.7.
SHAPES = [(0.4, 0.2, 0.93), (0.8, 0.3, 0.6)]


class TestIntervals:
    @pytest.mark.parametrize("units", [100, 200])
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("level, least, most", [(0.95, 0.93, 0.97), (0.8, 0.77, 0.83)])
    def test_cover_what_they_state_over_2000_pools(self, units, shape, level, least, most):
        rng = np.random.default_rng(20260114)
        # Each column is a pool of its own: the draws they share don't enter the truth of any.
        found = resample_ratios(*lognormal_pools(rng, units, 2000, *shape), 1000, level, rng)
        assert least <= ((found.low <= 1) & (found.high >= 1)).mean() <= most

    def test_match_an_unblocked_loop(self):
        rng = np.random.default_rng(2)
        top, bottom = lognormal_pools(rng, 40, 1, *SHAPES[0])
        found = resample_ratios(top, bottom, 4000, 0.9, rng)
        pivots = []
        ratio, error = top.sum() / bottom.sum(), _naive_error(top, bottom)
        for _ in range(4000):
            pick = rng.integers(0, 40, 40)
            again = np.log(top[pick].sum() / bottom[pick].sum())
            pivots.append((again - np.log(ratio)) / _naive_error(top[pick], bottom[pick]))
        high, low = np.quantile(pivots, [0.05, 0.95])
        assert found.low[0] == pytest.approx(ratio * np.exp(-low * error), rel=0.01)
        assert found.high[0] == pytest.approx(ratio * np.exp(-high * error), rel=0.01)


class TestFewUnits:
    @pytest.mark.parametrize("units", [4, 5, 7, 9])
    def test_cover_about_what_they_state_over_4000_pools(self, units):
        rng = np.random.default_rng(20260114)
        for level, least, most in ((0.95, 0.92, 0.97), (0.8, 0.76, 0.83)):
            found = resample_ratios(*lognormal_pools(rng, units, 4000, *SHAPES[0]), 100, level, rng)
            assert least <= ((found.low <= 1) & (found.high >= 1)).mean() <= most

    def test_a_mean_has_the_interval_of_a_t_test(self):
        values = np.array([[-0.3], [0.4], [0.1], [0.2], [-0.2]])
        found = resample_ratios(values, np.ones_like(values), 100, 0.9, np.random.default_rng(0), on_log=False)
        expected = stats.ttest_1samp(values[:, 0], 0).confidence_interval(0.9)
        assert (found.low[0], found.high[0]) == pytest.approx(tuple(expected))

    def test_draws_reach_as_far_in_90_percent_as_intervals_of_95(self):
        rng = np.random.default_rng(6)
        found = resample_ratios(*lognormal_pools(rng, 6, 3, *SHAPES[0]), 40_000, 0.95, rng)
        low, high = np.quantile(found.draws, [0.05, 0.95], axis=0)
        assert low == pytest.approx(found.low, rel=0.02) and high == pytest.approx(found.high, rel=0.02)

    @pytest.mark.parametrize("units", [5, 10, 15, 29, 30, 60])
    def test_teachers_that_are_alike_seldom_reach_95_percent(self, units):
        # Draws that were not spread further reached it in 12 to 17% of pools.
        rng, reached = np.random.default_rng(9), 0
        found = resample_ratios(*lognormal_pools(rng, units, 3000, *SHAPES[0]), 400, 0.95, rng)
        for first in range(0, 3000, 2):
            reached += abs(probability_below(found.draws, first, first + 1) - 0.5) >= 0.45
        assert reached / 1500 <= 0.075  # 6% and what 1500 pools may stray

    def test_pairs_are_compared_as_by_a_paired_t_test(self):
        # To first order the difference of log ratios is a mean: the probability reaches 95% where p does two-sided.
        rng = np.random.default_rng(7)
        hard = rng.normal(0, 0.02, (5, 1))
        top = np.exp(hard + rng.normal(0, 0.02, (5, 2)) + [0, 0.015])
        found = resample_ratios(top, np.ones((5, 2)), 40_000, 0.95, rng)
        t = stats.ttest_rel(top[:, 1], top[:, 0]).statistic * stats.t.ppf(0.95, 4) / stats.t.ppf(0.975, 4)
        assert 0.02 < stats.t.sf(t, 4) < 0.98
        assert probability_below(found.draws, 0, 1) == pytest.approx(stats.t.cdf(t, 4), abs=0.015)

    def test_twins_tie(self):
        top, bottom = lognormal_pools(np.random.default_rng(8), 4, 1, *SHAPES[0])
        found = resample_ratios(np.repeat(top, 7, 1), np.repeat(bottom, 7, 1), 100, 0.95, np.random.default_rng(0))
        assert probability_best(found.draws) == pytest.approx(1 / 7)

    def test_units_that_are_all_alike(self):
        found = resample_ratios(np.full((3, 1), 0.3), np.full((3, 1), 0.1), 100, 0.95, np.random.default_rng(0))
        assert found.low[0] == found.high[0] == pytest.approx(3)


def _naive_error(top, bottom):
    return np.sqrt(((top / top.mean() - bottom / bottom.mean()) ** 2).sum()) / len(top)


class TestDraws:
    def test_large_pools_draw_alike(self):
        rng = np.random.default_rng(3)
        top, bottom = lognormal_pools(rng, _LARGE + 1, 1, *SHAPES[0])
        found = resample_ratios(top, bottom, 400, 0.95, rng)
        assert np.log(found.draws).std() == pytest.approx(1.19 * _naive_error(top, bottom), rel=0.15)

    def test_teachers_share_the_draws(self):
        rng = np.random.default_rng(4)
        top, bottom = lognormal_pools(rng, 50, 1, *SHAPES[0])
        found = resample_ratios(np.hstack([top, 1.01 * top]), np.hstack([bottom, bottom]), 200, 0.95, rng)
        assert np.allclose(found.draws[:, 1], 1.01 * found.draws[:, 0])
        assert probability_best(found.draws).tolist() == [1, 0] and probability_below(found.draws, 0, 1) == 1

    def test_one_unit_has_no_draws_and_who_has_none_takes_no_part(self):
        found = resample_ratios(np.ones((1, 2)), np.ones((1, 2)), 100, 0.95, np.random.default_rng(0))
        assert all(np.isnan(part).all() for part in found)
        draws = np.array([[np.nan, 1.0, 2.0], [np.nan, 3.0, 2.0], [np.nan, 3.0, 4.0], [np.nan, 1.0, 1.0]])
        assert np.isnan(probability_below(draws, 0, 1)) and probability_below(draws, 1, 2) == 0.625
        nobody, first, second = probability_best(draws)
        assert np.isnan(nobody) and (first, second) == (0.625, 0.375)
        assert np.isnan(probability_best(draws[:, :2])).all()  # one alone has no rival
