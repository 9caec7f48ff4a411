"""The equations against values worked out by hand, plain Python loops, and the paper's own simulation."""

import math
import warnings

import numpy as np
import pytest

from rsr_trl.rsr import (
    dataset_rsr,
    filtered_token_rsr,
    rsr_from_means,
    token_rsr,
    trajectory_means,
    trajectory_rsr,
)


RANKS = [1, 4, 300, 100, 101]
SURPRISALS = [0.5, 1.5, 8.0, 5.0, 5.0]  # 20 nats in all


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def random_trajectories(n: int = 40, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 50, n)
    return [(random.integers(1, 100_000, k), random.exponential(2, k).astype(np.float32)) for k in lengths]


class TestToken:
    def test_by_hand(self):
        np.testing.assert_array_equal(token_rsr(RANKS, SURPRISALS), [2, 4 / 1.5, 37.5, 20, 20.2])

    def test_clips_only_when_asked(self):
        np.testing.assert_array_equal(token_rsr(RANKS, SURPRISALS, r_max=100), [2, 4 / 1.5, 12.5, 20, 20])

    def test_certain_token_is_infinite(self):
        np.testing.assert_array_equal(token_rsr([1, 2], [0.0, 1.0]), [math.inf, 2])

    def test_no_tokens(self):
        assert token_rsr([], []).shape == (0,)


class TestFiltered:
    def test_keeps_the_30_percent_of_highest_surprisal(self):
        # Surprisals 1..10: 3 tokens stay.
        surprisals = [3, 1, 10, 2, 9, 4, 5, 8, 6, 7]
        ranks = [1, 1, 20, 1, 27, 1, 1, 4, 1, 1]
        assert filtered_token_rsr(ranks, surprisals) == pytest.approx((20 / 10 + 27 / 9 + 4 / 8) / 3, rel=1e-15)

    @pytest.mark.parametrize(("tokens", "kept"), [(1, 1), (2, 1), (3, 1), (4, 2), (7, 3), (20, 6), (101, 31)])
    def test_number_of_tokens_is_rounded_up(self, tokens, kept):
        surprisals = np.arange(tokens, 0, -1)
        ranks = np.where(np.arange(tokens) < kept, surprisals, 9 * surprisals)  # ratio 1 if kept, else 9
        assert filtered_token_rsr(ranks, surprisals, r_max=None) == pytest.approx(1, rel=1e-12)

    @pytest.mark.parametrize(("share", "tokens", "kept"), [(0.07, 100, 7), (0.28, 25, 7), (0.55, 100, 55)])
    def test_shares_that_floating_point_makes_a_little_larger(self, share, tokens, kept):
        assert share * tokens > kept
        surprisals = np.arange(tokens, 0, -1)
        ranks = np.where(np.arange(tokens) < kept, surprisals, 9 * surprisals)
        assert filtered_token_rsr(ranks, surprisals, share, r_max=None) == pytest.approx(1, rel=1e-12)

    def test_ties_go_to_the_earlier_token(self):
        assert filtered_token_rsr([6, 9, 12], [3, 3, 3]) == 2

    def test_share_and_clipping(self):
        assert filtered_token_rsr([500, 1], [2, 1], share=1.0) == pytest.approx((50 + 1) / 2)
        assert filtered_token_rsr([500, 1], [2, 1], share=1.0, r_max=None) == pytest.approx((250 + 1) / 2)

    def test_no_tokens(self):
        assert math.isnan(filtered_token_rsr([], []))

    @pytest.mark.parametrize("share", [0, -0.1, 1.1, math.nan])
    def test_impossible_share(self, share):
        with pytest.raises(ValueError, match="share must be in"):
            filtered_token_rsr([1], [1], share=share)


class TestTrajectory:
    def test_by_hand(self):
        assert trajectory_rsr(RANKS, SURPRISALS) == (1 + 4 + 100 + 100 + 100) / 20
        assert trajectory_rsr([1, 4, 300], [0.5, 1.5, 8.0]) == 10.5

    @pytest.mark.parametrize(("r_max", "total"), [(1, 5), (50, 155), (100, 305), (101, 307), (999, 506), (None, 506)])
    def test_stored_ranks_can_be_clipped_again_at_any_r_max(self, r_max, total):
        assert trajectory_rsr(RANKS, SURPRISALS, r_max) == pytest.approx(total / 20, rel=1e-15)

    def test_is_the_surprisal_weighted_mean_of_token_ratios(self):
        ranks, surprisals = random_trajectories()[1]
        weighted = np.average(token_rsr(ranks, surprisals, 100), weights=surprisals.astype(np.float64))
        assert trajectory_rsr(ranks, surprisals) == pytest.approx(weighted, rel=1e-12)

    def test_nothing_scored_and_nothing_surprising(self):
        assert math.isnan(trajectory_rsr([], []))
        assert trajectory_rsr([1, 1], [0.0, 0.0]) == math.inf

    def test_sums_in_float64(self):
        # In float32 a sum of 100,000 times 0.1 is off by 1e-4 and more.
        surprisals = np.full(100_000, 0.1, dtype=np.float32)
        truth = 100_000 / math.fsum(surprisals.tolist())
        assert trajectory_rsr(np.ones(100_000, np.int32), surprisals) == pytest.approx(truth, rel=1e-12)


class TestManyTrajectories:
    @pytest.mark.parametrize("r_max", [100, 7, None])
    def test_equals_one_at_a_time(self, r_max):
        rows = random_trajectories()
        assert min(len(ranks) for ranks, _ in rows) == 0  # empty ones are among them
        ranks, surprisals = (np.concatenate(parts) for parts in zip(*rows, strict=True))
        means = trajectory_means(ranks, surprisals, [len(r) for r, _ in rows], r_max)
        limit = math.inf if r_max is None else r_max
        for i, (r, s) in enumerate(rows):
            if len(r) == 0:
                assert math.isnan(means[0][i]) and math.isnan(means[1][i])
                continue
            assert means[0][i] == pytest.approx(sum(min(int(x), limit) for x in r) / len(r), rel=1e-13)
            assert means[1][i] == pytest.approx(math.fsum(s.tolist()) / len(s), rel=1e-13)
        assert means[0].dtype == means[1].dtype == np.float64

    @pytest.mark.parametrize("counts", [[0, 2, 0], [0, 0, 2], [2, 0, 0], [1, 0, 1]])
    def test_empty_ones_anywhere(self, counts):
        ranks, _ = trajectory_means([3, 5], [1.0, 1.0], counts)
        expected = {0: math.nan, 2: 4.0}
        if 1 in counts:
            np.testing.assert_array_equal(ranks, [3, math.nan, 5])
        else:
            np.testing.assert_array_equal(ranks, [expected[c] for c in counts])

    def test_no_trajectories(self):
        assert [m.shape for m in trajectory_means([], [], [])] == [(0,), (0,)]
        assert np.isnan(trajectory_means([], [], [0, 0])).all()

    def test_counts_must_fit(self):
        with pytest.raises(ValueError, match="add up to 3, but there are 2"):
            trajectory_means([1, 2], [1, 2], [3])
        with pytest.raises(ValueError, match="whole numbers"):
            trajectory_means([1, 2], [1, 2], [3, -1])
        with pytest.raises(ValueError, match="whole numbers"):
            trajectory_means([1, 2], [1, 2], [1.0, 1.0])

    def test_ratio_of_the_two_means(self):
        np.testing.assert_array_equal(rsr_from_means([3, np.nan, 2], [1.5, np.nan, 0]), [2, np.nan, np.inf])


class TestDataset:
    def test_ratio_of_means_every_trajectory_weighing_the_same(self):
        rows = [([1] * 9, [1.0] * 9), ([10], [2.0])]
        ranks, surprisals = zip(*(trajectory_means(r, s, [len(r)]) for r, s in rows), strict=True)
        ranks, surprisals = np.concatenate(ranks), np.concatenate(surprisals)
        assert dataset_rsr(ranks, surprisals) == pytest.approx((1 + 10) / (1 + 2))
        assert dataset_rsr(ranks, surprisals) != pytest.approx(np.mean(ranks / surprisals))  # mean of ratios: 3
        assert dataset_rsr(ranks, surprisals) != pytest.approx(19 / 11)  # pooled over tokens

    def test_leaves_out_trajectories_without_tokens(self):
        assert dataset_rsr([2, np.nan, 4], [1, np.nan, 2]) == 2
        assert math.isnan(dataset_rsr([np.nan], [np.nan]))
        assert math.isnan(dataset_rsr([], []))

    def test_shapes_must_agree(self):
        with pytest.raises(ValueError, match="1-D arrays of one length"):
            dataset_rsr([1, 2], [1])


class TestBadNumbers:
    @pytest.mark.parametrize(
        ("ranks", "surprisals", "message"),
        [
            ([1, 2], [0.1], "one length"),
            ([[1, 2]], [[0.1, 0.2]], "1-D"),
            ([1, 2], [0.1, math.nan], "finite"),
            ([1, math.nan], [0.1, 0.1], "finite"),
            ([1, 2], [0.1, math.inf], "finite"),
            ([0, 2], [0.1, 0.1], "1-based"),
            ([1, 2], [0.1, -0.1], "-ln p >= 0"),
        ],
    )
    @pytest.mark.parametrize("function", [token_rsr, filtered_token_rsr, trajectory_rsr])
    def test_are_refused(self, function, ranks, surprisals, message):
        with pytest.raises(ValueError, match=message):
            function(ranks, surprisals)

    @pytest.mark.parametrize("r_max", [0, 0.5, -1, math.nan, "100"])
    def test_r_max_below_the_first_rank(self, r_max):
        with pytest.raises(ValueError, match="r_max must be at least 1"):
            trajectory_rsr([1], [1], r_max)


def test_simulation_of_the_paper():
    """Section 3.3: a student of two Zipf(2.3) modes, 0.8/0.2 over 50 words; what its minor mode writes suits it."""
    zipf = np.arange(1, 51) ** -2.3
    zipf /= zipf.sum()
    worlds = []
    for seed in range(100):  # which words the modes like is drawn anew each time
        random = np.random.default_rng(seed)
        major, minor = zipf[random.permutation(50)], zipf[random.permutation(50)]
        student = 0.8 * major + 0.2 * minor
        ranks, surprisals = 1 + (student > student[:, None]).sum(1), -np.log(student)
        statistics = np.stack([student, surprisals, ranks, token_rsr(ranks, surprisals)], axis=1)
        worlds.append([writer @ statistics for writer in (major, minor, student)])
    major, minor, mixed = np.median(worlds, axis=0)
    # As printed, from 10,000 draws in one world: mean probability, surprisal, rank and token RSR.
    np.testing.assert_allclose(major, [0.41, 1.38, 2.49, 1.69], rtol=0.01, atol=0.005)
    np.testing.assert_allclose(minor, [0.10, 2.73, 4.31, 1.30], rtol=0.05, atol=0.01)
    np.testing.assert_allclose(mixed, [0.35, 1.67, 2.93, 1.62], rtol=0.05)
    assert minor[3] < mixed[3] < major[3]  # lower suits better
