import numpy as np
import pytest

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
    def test_cover_what_they_state_over_2000_pools(self, units, shape):
        rng = np.random.default_rng(20260114)
        # Each column is a pool of its own: the draws they share don't enter the truth of any.
        found = resample_ratios(*lognormal_pools(rng, units, 2000, *shape), 1000, 0.95, rng)
        coverage = ((found.low <= 1) & (found.high >= 1)).mean()
        assert 0.93 <= coverage <= 0.97

    def test_level(self):
        rng = np.random.default_rng(1)
        found = resample_ratios(*lognormal_pools(rng, 150, 2000, *SHAPES[0]), 1000, 0.8, rng)
        assert 0.77 <= ((found.low <= 1) & (found.high >= 1)).mean() <= 0.83

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


def _naive_error(top, bottom):
    return np.sqrt(((top / top.mean() - bottom / bottom.mean()) ** 2).sum()) / len(top)


class TestDraws:
    def test_large_pools_draw_alike(self):
        rng = np.random.default_rng(3)
        top, bottom = lognormal_pools(rng, _LARGE + 1, 1, *SHAPES[0])
        found = resample_ratios(top, bottom, 400, 0.95, rng)
        assert np.log(found.draws).std() == pytest.approx(_naive_error(top, bottom), rel=0.15)

    def test_teachers_share_the_draws(self):
        rng = np.random.default_rng(4)
        top, bottom = lognormal_pools(rng, 50, 1, *SHAPES[0])
        found = resample_ratios(np.hstack([top, 1.01 * top]), np.hstack([bottom, bottom]), 200, 0.95, rng)
        assert np.allclose(found.draws[:, 1], 1.01 * found.draws[:, 0])
        assert probability_best(found.draws).tolist() == [1, 0] and probability_below(found.draws, 0, 1) == 1

    def test_one_unit_has_no_interval(self):
        found = resample_ratios(np.ones((1, 2)), np.ones((1, 2)), 100, 0.95, np.random.default_rng(0))
        assert np.isnan(found.low).all() and np.isnan(found.high).all()
