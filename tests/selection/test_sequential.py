import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import nct
from scipy.stats import t as student_t

from rsr_trl.selection.race import EFFECT_VARIANCE, log_e_value, log_evidence


@pytest.mark.parametrize("count, t", [(2, 0.5), (20, 3.0), (20, 0.1), (150, 5.0), (150, -2.0)])
def test_the_e_value_is_the_mixture_of_likelihood_ratios(count, t):
    """Against the definition: noncentral t over central t, averaged over a half-normal effect."""
    spread = EFFECT_VARIANCE**0.5

    def weighted(effect):
        prior = 2 * np.exp(-0.5 * (effect / spread) ** 2) / (spread * np.sqrt(2 * np.pi))
        return prior * nct.pdf(t, count - 1, effect * np.sqrt(count)) / student_t.pdf(t, count - 1)

    expected = quad(weighted, 0, 8 * spread, limit=200)[0]
    assert log_e_value(np.array([t]), np.array([count]))[0] == pytest.approx(np.log(expected), rel=1e-5, abs=1e-6)


def test_evidence_is_for_the_lower_ratio():
    rng = np.random.default_rng(0)
    surprisals = np.exp(rng.normal(0, 0.2, (60, 2)))
    ranks = surprisals * np.exp(rng.normal(0, 0.1, (60, 2))) * [2.0, 2.4]
    low, high = ((ranks[:, [i]], surprisals[:, [i]]) for i in (0, 1))
    assert log_evidence(low, high)[0] > 10 and log_evidence(high, low)[0] == -np.inf


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
    assert log_evidence(more, (9 * more[0], more[1]))[0] > 10  # a constant factor is certain
