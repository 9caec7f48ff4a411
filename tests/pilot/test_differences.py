import numpy as np
import pytest
from scipy.stats import binomtest

from rsr_trl.pilot.differences import difference, intervals, mean_squares


def pilots(count, seeds, problems, by_seed, by_problem, rng):
    """Paired differences of `count` pilots: what seeds, problems and the rest add are standard deviations."""
    of_seeds, of_problems = (
        by_seed * rng.normal(size=(count, seeds, 1)),
        by_problem * rng.normal(size=(count, 1, problems)),
    )
    return of_seeds + of_problems + rng.normal(size=(count, seeds, problems))


def share_with(truth, d, bounded=False):
    low, high = intervals(d, bounded)
    return ((low <= truth) & (truth <= high)).mean()


def test_2000_pilots_without_effect_include_zero_93_to_97_percent_of_the_time():
    rng = np.random.default_rng(0)
    included = []
    for _ in range(20):  # each its own world: seeds and problems matter from not at all to as much as all the rest
        seeds, problems = int(rng.integers(3, 6)), int(rng.integers(40, 200))
        d = pilots(100, seeds, problems, rng.uniform(0, 1), rng.uniform(0, 1), rng)
        included.append(share_with(0, d))
    assert 0.93 <= np.mean(included) <= 0.97


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("by_seed", "by_problem"), [(0, 0), (0.1, 0.3), (0.5, 0), (1, 1), (0, 1)])
def test_each_kind_of_world_by_itself(seeds, by_seed, by_problem):
    # 2,000 pilots leave an error of 0.5 points; where problems matter most and seeds are three, intervals are wide.
    d = pilots(2000, seeds, 80, by_seed, by_problem, np.random.default_rng(seeds))
    assert 0.93 <= share_with(0, d) <= 0.975


def test_right_or_wrong_answers_of_easy_and_hard_problems():
    rng = np.random.default_rng(1)
    ease = rng.normal(-0.5, 1.5, size=(2000, 1, 60))
    arms = []
    for _ in range(2):
        chance = 1 / (1 + np.exp(-(ease + 0.3 * rng.normal(size=(2000, 3, 1)))))
        arms.append((rng.random((2000, 3, 60)) < chance).astype(float))
    assert 0.93 <= share_with(0, arms[0] - arms[1], bounded=True) <= 0.97


@pytest.mark.parametrize(("only_ours", "only_theirs"), [(n, m) for n in range(13) for m in (0, 1, 3)])
def test_few_answers_that_differ_are_significant_as_in_an_exact_sign_test(only_ours, only_theirs):
    ours, theirs = np.zeros((1, 80)), np.zeros((1, 80))
    ours[0, :only_ours] = 1
    theirs[0, only_ours : only_ours + only_theirs] = 1
    differ = only_ours + only_theirs
    p = binomtest(only_ours, differ).pvalue if differ else 1.0
    assert difference(ours, theirs, bounded=True)["significant"] == (p < 0.05) or 0.03 < p < 0.08


@pytest.mark.parametrize("seeds", [1, 2])
def test_below_three_seeds_the_interval_speaks_of_these_runs(seeds):
    rng = np.random.default_rng(seeds)
    of_these_runs = rng.normal(size=(2000, seeds, 1))
    d = of_these_runs + 0.5 * rng.normal(size=(2000, 1, 60)) + rng.normal(size=(2000, seeds, 60))
    assert 0.93 <= share_with(of_these_runs.mean(axis=(1, 2)), d) <= 0.97
    assert share_with(0, d) < 0.6  # and not of other runs
    assert difference(d[0], np.zeros_like(d[0]))["these_runs_only"]


def test_mean_squares_are_those_of_an_analysis_of_variance():
    d = np.random.default_rng(0).normal(size=(4, 3, 7))
    for one, *squares in zip(d, *mean_squares(d), strict=True):
        sums = np.zeros(3)
        for s in range(3):
            for p in range(7):
                of_seed, of_problem = one[s].mean() - one.mean(), one[:, p].mean() - one.mean()
                sums += [of_seed**2, of_problem**2, (one[s, p] - one.mean() - of_seed - of_problem) ** 2]
        assert squares == pytest.approx(sums / [2, 6, 12])


@pytest.mark.parametrize(("by_seed", "by_problem"), [(0.0, 0.5), (0.3, 0.3)])
def test_an_effect_of_the_detectable_size_is_significant_about_four_times_in_five(by_seed, by_problem):
    rng = np.random.default_rng(2)
    # What is detectable is estimated from each pilot: the middle of many stands for the truth.
    trial = pilots(300, 5, 60, by_seed, by_problem, rng)
    size = np.median([difference(one, np.zeros_like(one))["detectable"] for one in trial])
    low, high = intervals(pilots(2000, 5, 60, by_seed, by_problem, rng) + size)
    assert 0.7 <= ((low > 0) | (high < 0)).mean() <= 0.9


def test_needed_problems_are_the_least_that_make_the_difference_seen_significant():
    rng = np.random.default_rng(3)
    d = pilots(1, 3, 50, 0.0, 1.0, rng)[0]
    d += 0.15 - d.mean() - (d.mean(axis=1, keepdims=True) - d.mean())  # seeds agree
    one = difference(d, np.zeros_like(d))
    assert not one["significant"] and one["needed_problems"] > 50
    # Repeating the same problems keeps what they vary by: with as many as needed, the size seen is detectable.
    times = one["needed_problems"] / 50
    more, fewer = (np.tile(d, (1, count)) for count in (int(np.ceil(1.1 * times)), int(0.7 * times)))
    assert difference(more, np.zeros_like(more))["detectable"] <= 0.15
    assert difference(fewer, np.zeros_like(fewer))["detectable"] >= 0.15


def test_a_difference_that_seeds_disagree_on_stays_unclear_with_more_problems():
    d = np.array([[1.0, 1.1], [-1.2, -1.0], [0.4, 0.5]]).repeat(20, axis=1)
    one = difference(d, np.zeros_like(d))
    assert not one["significant"] and one["needed_problems"] is None and one["needed_seeds"] > 3


def test_the_same_answers_to_all_problems_leave_room_for_a_rare_difference():
    answers = np.array([[1.0, 0.0, 1.0, 1.0] * 15])
    one = difference(answers, answers.copy(), bounded=True)
    assert one["mean"] == 0 and not one["significant"]
    # Where 5% differ, sixty problems without a difference are seen in 1 of 20 pilots.
    assert 0.95**60 == pytest.approx(0.05, abs=0.005)
    for end in (-one["low"], one["high"]):
        assert end == pytest.approx(0.05, abs=0.02)


def test_swapping_the_arms_turns_the_interval_around_and_a_problem_s_ease_cancels():
    rng = np.random.default_rng(4)
    ours, theirs, ease = rng.normal(0.3, 1, size=(4, 30)), rng.normal(size=(4, 30)), 100 * rng.normal(size=30)
    one, other = difference(ours, theirs), difference(theirs, ours)
    assert one["mean"] == pytest.approx(-other["mean"])
    assert [one["low"], one["high"]] == pytest.approx([-other["high"], -other["low"]], rel=0.05)
    assert one["detectable"] == pytest.approx(other["detectable"])
    assert difference(10 * ours, 10 * theirs)["low"] == pytest.approx(10 * one["low"])
    assert difference(ours + ease, theirs + ease)["low"] == pytest.approx(one["low"])


@pytest.mark.parametrize(
    ("value", "problems", "message"), [(0.0, 4, "broadcast"), (0.0, 1, "two at least"), (np.nan, 3, "finite")]
)
def test_bad_arrays(value, problems, message):
    with pytest.raises(ValueError, match=message):
        difference(np.full((2, problems), value), np.zeros((2, min(problems, 3))))
