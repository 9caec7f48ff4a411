import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from scipy.integrate import quad
from scipy.stats import nct, norm
from scipy.stats import t as student_t

from rsr_trl.rsr import RSRError
from rsr_trl.selection.race import EFFECT_VARIANCE, Elimination, log_e_value, log_evidence, race_teachers


PAPER = Path(__file__).parents[2] / "examples" / "data" / "teacher_student_metrics.csv"


def draw(rng, problems, ranks, surprisals, rank_spread=0.4, surprisal_spread=0.2, correlation=0.93, shared=0.5):
    """Mean ranks and surprisals of matched trajectories, with spreads and shared difficulty as on GSM8K."""
    common, own = rng.normal(size=(2, 2, problems, 1)), rng.normal(size=(2, 2, problems, len(ranks)))
    first, second = (shared**0.5 * common[0, i] + (1 - shared) ** 0.5 * own[0, i] for i in (0, 1))
    mixed = correlation * first + (1 - correlation**2) ** 0.5 * second
    return (
        ranks * np.exp(rank_spread * mixed - rank_spread**2 / 2),
        surprisals * np.exp(surprisal_spread * first - surprisal_spread**2 / 2),
    )


def play(ranks, surprisals, goal="best", certainty=0.95, first=20, step=5):
    """Run the rule over a pool; returns the rule and the trajectories used."""
    rule = Elimination(ranks.shape[1], goal, certainty)
    start = used = 0
    while rule.open.sum() > 1 and start < len(ranks):
        stop = start + (step if start else first)
        used += int(rule.open.sum()) * len(ranks[start:stop])
        mask = np.where(rule.open, 1.0, np.nan)
        rule.add(ranks[start:stop] * mask, surprisals[start:stop] * mask)
        start = stop
    return rule, used


def paper_teachers():
    """Mean clipped rank and mean surprisal of the paper's 11 teachers, by student."""
    rows = list(csv.DictReader(PAPER.open()))
    for student, group in itertools.groupby(rows, lambda row: row["student"]):
        parts = zip(*((float(row["avg_rank_clipped"]), float(row["avg_surprisal"])) for row in group), strict=True)
        ranks, surprisals = map(np.array, parts)
        order = np.argsort(ranks / surprisals)
        yield student, ranks[order], surprisals[order]


@pytest.mark.slow
class TestErrorRate:
    """Over 2,000 pools with a known truth the rule is wrong no more often than it states."""

    @pytest.mark.parametrize(
        "seed, teachers, spreads, skewed",
        [(t, t, spreads, False) for t in (2, 11) for spreads in ((0.4, 0.2, 0.93), (0.8, 0.3, 0.6))]
        + [(3, 6, (), True)],
    )
    def test_the_most_suitable_teacher_is_not_ruled_out(self, seed, teachers, spreads, skewed):
        # The hardest truth: nobody is worse, so whoever rules out teacher 0 is wrong.
        wrong = 0
        for pool in range(2000):
            rng = np.random.default_rng([seed, pool])
            ranks, surprisals = draw(rng, 200, np.full(teachers, 3.0), np.full(teachers, 1.0), *spreads)
            if skewed:  # the mean of a skewed rank is mostly underestimated: the others look better than they are
                ranks[:, 1:] = 3 * np.exp(0.6 * rng.normal(size=(200, 5)) - 0.18)
            wrong += not play(ranks, surprisals)[0].open[0]
        assert wrong / 2000 <= 0.05

    def test_the_order_is_right(self):
        wrong = settled = 0
        for pool in range(2000):
            rng = np.random.default_rng([4, pool])
            rule, _ = play(*draw(rng, 200, 3.0 * 1.08 ** np.arange(4), np.ones(4)), goal="order")
            settled += not rule.open.any()
            wrong += not rule.open.any() and rule.ranking.tolist() != [0, 1, 2, 3]
        assert settled > 500 and wrong / 2000 <= 0.05


@pytest.mark.slow
def test_trajectories_saved_with_the_paper_s_teachers():
    """Against a fixed design that tells a pair apart with the same error and as much power.

    It is sized for the closest pair of all, or for the closest that matters here: the best two.
    """
    against_closest, against_runner_up = [], []
    for _, ranks, surprisals in paper_teachers():
        big = draw(np.random.default_rng(0), 20_000, ranks, surprisals)
        spread = big[0] / ranks - big[1] / surprisals
        gap = np.diff(np.log(ranks / surprisals))
        effect = gap / np.std(np.diff(spread), axis=0)
        sized = ((norm.ppf(1 - 0.05 / 10) + norm.ppf(0.95)) / effect) ** 2
        for pool in range(40):
            used = play(*draw(np.random.default_rng([5, pool]), 1500, ranks, surprisals))[1] / len(ranks)
            against_closest.append(used / sized.max())
            against_runner_up.append(used / sized[0])
    assert np.median(against_closest) <= 0.25
    assert np.median(against_runner_up) <= 0.25


def texts(num_problems=80, teachers=("a", "b", "c"), seed=0):
    """A dataset that knows the scores that a scorer will give, and that scorer; it counts what it scores."""
    rng = np.random.default_rng(seed)
    ranks, surprisals = draw(rng, num_problems, 3.0 * 1.15 ** np.arange(len(teachers)), np.ones(len(teachers)))
    dataset = Dataset.from_dict(
        {
            "problem_id": [f"p{i}" for i in range(num_problems) for _ in teachers],
            "teacher": list(teachers) * num_problems,
            "rank": ranks.ravel(),
            "surprisal": surprisals.ravel(),
        }
    ).shuffle(seed=seed)

    def score(rows):
        score.sizes.append(len(rows))
        return rows.rename_columns({"rank": "rsr_mean_clipped_rank", "surprisal": "rsr_mean_surprisal"})

    score.sizes = []
    return dataset, score


class TestRace:
    def test_finds_the_best_and_stops(self):
        dataset, score = texts()
        scored_before = dataset.add_column("rsr_student", ["one", "two"] * 120)  # by whomever: it doesn't matter
        race = race_teachers(scored_before, score, "teacher", "problem_id")
        assert race.certain and race.best == "a"
        assert [(row["teacher"], row["status"]) for row in race.table][0] == ("a", "best")
        assert {row["status"] for row in race.table[1:]} == {"ruled out"}
        assert race.num_trajectories == sum(score.sizes) == len(race.scored) < race.num_trajectories_in_pool == 240
        assert race.num_trajectories == sum(row["trajectories"] for row in race.table)
        assert "'a' is the most suitable" in str(race) and "lower = more suitable" in str(race)

    def test_rounds_are_matched_and_seeded_and_independent_of_the_order_of_rows(self):
        dataset, score = texts()
        first, again, other = (race_teachers(dataset, score, "teacher", "problem_id", seed=seed) for seed in (1, 1, 2))
        assert first.scored.to_dict() == again.scored.to_dict() != other.scored.to_dict()
        start = first.scored.select(range(60)).to_pandas()
        assert start.groupby("problem_id").teacher.nunique().tolist() == [3] * 20
        shuffled = race_teachers(dataset.shuffle(seed=9), score, "teacher", "problem_id", seed=1)
        assert first.to_pandas().drop(columns="rsr").equals(shuffled.to_pandas().drop(columns="rsr"))

    def test_whole_order(self):
        dataset, score = texts()
        race = race_teachers(dataset, score, "teacher", "problem_id", goal="order")
        assert race.certain and [row["teacher"] for row in race.table] == ["a", "b", "c"]
        assert {row["status"] for row in race.table} == {"placed"}

    def test_budget(self):
        dataset, score = texts()
        race = race_teachers(dataset, score, "teacher", "problem_id", certainty=1 - 1e-9, max_trajectories=100)
        assert not race.certain and race.num_trajectories == 90 and "Not settled" in str(race)
        assert {row["status"] for row in race.table} == {"possible"}
        dataset, score = texts(num_problems=8)  # a pool that ends too early
        race = race_teachers(dataset, score, "teacher", "problem_id")
        assert not race.certain and race.num_trajectories == 24 and race.best == "a"

    def test_a_teacher_that_cannot_be_scored_is_out_and_said(self):
        dataset, score = texts()
        lame = dataset.map(lambda row: {"rank": None if row["teacher"] == "a" else row["rank"]})
        race = race_teachers(lame, score, "teacher", "problem_id")
        assert race.certain and race.best == "b"
        assert race.table[-1] == {"teacher": "a", "status": "no score", "rsr": None, "problems": 0, "trajectories": 20}

    @pytest.mark.parametrize(
        "options, message",
        [
            ({"goal": "first"}, "'best' or 'order', got 'first'"),
            ({"certainty": 95}, r"in \(0, 1\), got 95"),
            ({"problems_per_round": 0}, "1 or more, got 0"),
            ({"max_trajectories": 59}, "max_trajectories=59 is less than the first round, 60 trajectories"),
        ],
    )
    def test_options(self, options, message):
        dataset, score = texts()
        with pytest.raises(RSRError, match=message):
            race_teachers(dataset, score, "teacher", "problem_id", **options)

    @pytest.mark.parametrize(
        "keep, scorer, message",
        [
            (lambda row: row["teacher"] == "a", None, "only one teacher, 'a'"),
            (lambda row: (row["teacher"] == "a") == (row["problem_id"] < "p2"), None, "No problem .* all 3 teachers"),
            (None, lambda rows: rows.select(range(5)), "got a Dataset of 60 rows and returned 5 rows"),
            (None, lambda rows: rows, "no column 'rsr_mean_clipped_rank'"),
            (None, lambda rows: texts()[1](rows.map(lambda row: {"rank": float("nan")})), "None of 60 trajectories"),
        ],
    )
    def test_pools_and_scorers_that_do_not_fit(self, keep, scorer, message):
        dataset, score = texts()
        with pytest.raises(RSRError, match=message):
            race_teachers(dataset.filter(keep) if keep else dataset, scorer or score, "teacher", "problem_id")


@pytest.mark.parametrize("count, t", [(2, 0.5), (20, 3.0), (20, 0.1), (150, 5.0), (150, -2.0)])
def test_the_e_value_is_the_mixture_of_likelihood_ratios(count, t):
    """Against the definition: noncentral t over central t, averaged over a half-normal effect."""
    spread = EFFECT_VARIANCE**0.5

    def weighted(effect):
        prior = 2 * np.exp(-0.5 * (effect / spread) ** 2) / (spread * np.sqrt(2 * np.pi))
        return prior * nct.pdf(t, count - 1, effect * np.sqrt(count)) / student_t.pdf(t, count - 1)

    expected = quad(weighted, 0, 8 * spread, limit=200)[0]
    assert log_e_value(np.array([t]), np.array([count]))[0] == pytest.approx(np.log(expected), rel=1e-5, abs=1e-6)


def test_problems_that_one_teacher_lacks_are_left_out_for_the_pair():
    rng = np.random.default_rng(1)
    ranks, surprisals = np.exp(rng.normal(0, 0.3, (2, 50, 3))) * [1.0, 1.2, 1.1]
    ranks[30:, 1] = np.nan
    both = log_evidence((ranks[:, [0, 0]], surprisals[:, [0, 0]]), (ranks[:, [1, 2]], surprisals[:, [1, 2]]))
    first = log_evidence((ranks[:30, [0]], surprisals[:30, [0]]), (ranks[:30, [1]], surprisals[:30, [1]]))
    assert np.isfinite(both).all() and both[0] == pytest.approx(first[0])


def test_too_few_problems_and_equal_teachers_are_no_evidence():
    rng = np.random.default_rng(2)
    ranks, surprisals = np.exp(rng.normal(0, 0.01, (2, 19, 1)))
    assert log_evidence((ranks, surprisals), (9 * ranks, surprisals))[0] == -np.inf
    more = np.tile(ranks, (2, 1)), np.tile(surprisals, (2, 1))
    assert log_evidence(more, more)[0] == -np.inf
    worse = 9 * more[0], more[1]  # by a constant factor, which is certain
    assert log_evidence(more, worse)[0] > 10 and log_evidence(worse, more)[0] == -np.inf
