"""LARK's gains and weights against loops over the candidates of one problem, as its authors' scripts go about it."""

import math

import numpy as np
import pytest
from datasets import Dataset

from rsr_trl import RSRScorer
from rsr_trl.experimental.lark import chi_square_weights, gains, lark_weights
from rsr_trl.rsr import RSRError
from tests.training.runs import examples


def naive_gains(losses: list[float], rho: list[float]) -> list[float]:
    known = [k for k in range(len(losses)) if math.isfinite(losses[k]) and math.isfinite(rho[k])]
    total, weighted = sum(losses[k] for k in known), sum(rho[k] * losses[k] for k in known)
    return [
        losses[k] / total * (2 * rho[k] - weighted / total) if k in known else math.nan for k in range(len(losses))
    ]


def naive_weights(gain: list[float], best: int) -> list[float]:
    """With every gain's own threshold: e of the first beyond the best, or of the last where there is none beyond."""
    order = sorted((k for k in range(len(gain)) if math.isfinite(gain[k])), key=lambda k: -gain[k])
    chosen, weights = order[:best], [0.0] * len(gain)
    if not chosen:
        return weights
    threshold = gain[order[best]] if len(order) > best else gain[order[-1]]
    total = sum(gain[k] - threshold for k in chosen)
    for k in chosen:
        weights[k] = (gain[k] - threshold) / total if total > 1e-12 else 1 / len(chosen)
    return weights


def pool(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses, rho and problem of 60 candidates; some unscored, some equal."""
    rng = np.random.default_rng(seed)
    groups = np.append(rng.integers(0, 12, 55), [12, 13, 13, 14, 14])
    losses, rho = rng.gamma(2, 0.4, 60), rng.uniform(0.2, 0.9, 60)
    losses[::9], rho[4] = np.nan, np.nan
    losses[56:], rho[56:] = 0.5, 0.4  # problems 13 and 14: all equal
    losses[58:] = np.nan  # problem 14: none scored
    return losses, rho, groups


def test_gains_are_those_of_each_problem_alone():
    losses, rho, groups = pool()
    found = gains(losses, rho, groups)
    for group in np.unique(groups):
        own = groups == group
        np.testing.assert_allclose(found[own], naive_gains(losses[own].tolist(), rho[own].tolist()), rtol=1e-12)


@pytest.mark.parametrize("best", [1, 2, 3, 20])
def test_weights_are_the_tempered_ones_of_the_best(best):
    losses, rho, groups = pool()
    gain = gains(losses, rho, groups)
    found = chi_square_weights(gain, groups, best)
    for group in np.unique(groups):
        own = groups == group
        np.testing.assert_allclose(found[own], naive_weights(gain[own].tolist(), best), rtol=1e-9, atol=1e-12)
        assert found[own].sum() == pytest.approx(float(np.isfinite(gain[own]).any()))


def test_weights_have_the_highest_mean_gain_within_their_own_chi_square_distance():
    gain = np.array([0.9, 0.7, 0.65, 0.3, 0.1])
    weights, rng = chi_square_weights(gain, np.zeros(5, dtype=int), 3), np.random.default_rng(0)
    distance = ((weights - 0.2) ** 2).sum()
    for _ in range(5000):
        other = rng.dirichlet(rng.uniform(0.1, 3, 5) + 8 * weights)
        if ((other - 0.2) ** 2).sum() <= distance:
            assert other @ gain <= weights @ gain + 1e-12


def test_columns_of_a_scored_dataset(tiny_student, tiny_tokenizer):
    rows = examples(9)
    rows[2]["completion"] = ""
    scored = RSRScorer(tiny_student(), tiny_tokenizer, scores=["lark"]).score(Dataset.from_list(rows))
    found = lark_weights(lark_weights(scored, "problem"), "problem", keep_per_group=2)  # again replaces
    gain, weights = found["lark_gain"][:], found["lark_weight"][:]
    assert gain[2] is None and weights[2] == 0
    for start in (0, 3, 6):
        own = slice(start, start + 3)
        losses = [math.nan if value is None else value for value in scored["rsr_mean_surprisal"][own]]
        rho = [math.nan if value is None else value for value in scored["score_lark"][own]]
        expected = naive_gains(losses, rho)
        assert [math.nan if value is None else value for value in gain[own]] == pytest.approx(expected, nan_ok=True)
        assert weights[own] == pytest.approx(naive_weights(expected, 2))
    with pytest.raises(RSRError, match="no score 'lark'"):
        lark_weights(scored.remove_columns("score_lark"), "problem")
    with pytest.raises(RSRError, match="keep_per_group must be 1 or more"):
        lark_weights(scored, "problem", 0)
