from pathlib import Path

import evaluate
import numpy as np
import pytest
from scipy import stats

import rsr_trl.metrics
from rsr_trl.metrics.correlation import correlate
from rsr_trl.rsr import RSRError


SCORES = [2.67, 2.92, 2.93, 3.00, 3.30, 3.36, 3.53, 3.65]
RESULTS = [77.4, 77.2, 77.1, 74.6, 68.8, 54.1, 66.7, 69.5]


def test_coefficients():
    for scores in (SCORES, [round(score) for score in SCORES]):  # without ties and with
        found = correlate(scores, RESULTS)
        truths = {"spearman": stats.spearmanr, "pearson": stats.pearsonr, "kendall": stats.kendalltau}
        for name, truth in truths.items():
            assert found[name] == pytest.approx(truth(scores, RESULTS).statistic)
            assert -1 <= found[f"{name}_low"] <= found[name] <= found[f"{name}_high"]
    assert found["n"] == 8 and correlate(SCORES, RESULTS)["kendall_high"] < 0


def test_groups_are_averaged_and_not_pooled():
    # Within each student a perfect order, pooled none: the second student is better at everything.
    scores, results = SCORES[:4] + SCORES[4:], [8, 7, 6, 5, 18, 17, 16, 15]
    found = correlate(scores, results, groups=["small"] * 4 + ["large"] * 4)
    assert found["spearman"] == -1 and found["spearman_by_group"] == {"small": -1, "large": -1}
    assert correlate(scores, results)["spearman"] > 0


def test_the_interval_covers_the_truth():
    # Of two normal variables with Pearson's rho, Spearman's is 6/pi asin(rho/2).
    rng, inside = np.random.default_rng(0), 0
    truth = 6 / np.pi * np.arcsin(-0.7 / 2)
    for seed in range(60):
        x, noise = rng.normal(size=(2, 60))
        found = correlate(x, -0.7 * x + 0.51**0.5 * noise, num_draws=200, seed=seed)
        inside += found["spearman_low"] <= truth <= found["spearman_high"]
    assert 50 <= inside <= 60


@pytest.mark.parametrize("size, groups", [(4, 1), (6, 1), (9, 1), (5, 3)])
def test_few_values_leave_it_unclear(size, groups):
    perfect = correlate(range(size), range(size, 0, -1))
    assert perfect["spearman"] == perfect["spearman_low"] == pytest.approx(-1) and perfect["spearman_high"] > -0.7
    assert correlate([1, 2, 3, 4], [9, 8, 7, 5])["pearson_high"] > 0
    assert correlate([1, 2, 3], [9, 8, 5])["pearson_low"] is None
    rng, labels = np.random.default_rng(1), np.repeat(np.arange(groups), size)
    apart = dict.fromkeys(["spearman", "pearson", "kendall"], 0)
    for _ in range(300):  # nothing in common
        found = correlate(*rng.normal(size=(2, len(labels))), groups=labels, num_draws=1)
        for name in apart:
            apart[name] += found[f"{name}_low"] is not None and not found[f"{name}_low"] <= 0 <= found[f"{name}_high"]
    assert all(count / 300 <= 0.08 for count in apart.values()), apart


@pytest.mark.parametrize(
    "scores, results, options, message",
    [
        ([1, 2], [1, 2], {}, "3 values at least, got 2"),
        ([1, 2, 3], [1, 2], {}, "of one length"),
        ([1, 2, None], [1, 2, 3], {}, "finite"),
        ([1, 1, 1], [1, 2, 3], {}, "All scores are 1"),
        ([1, 2, 3], [1, 2, 3], {"groups": ["a", "b"]}, "one label for each of the 3 scores, got 2"),
        ([1, 2, 3, 4], [1, 2, 3, 4], {"groups": ["a", "a", "a", "b"]}, "got 1 in group 'b'"),
        ([1, 2, 3], [1, 2, 3], {"confidence": 95}, "confidence"),
    ],
)
def test_bad_input(scores, results, options, message):
    with pytest.raises(RSRError, match=message):
        correlate(scores, results, **options)


def test_as_an_evaluate_module(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path)
    module = evaluate.load(str(Path(rsr_trl.metrics.__file__).parent / "rsr_correlation"))
    assert module.compute(scores=SCORES, results=RESULTS, seed=3) == correlate(SCORES, RESULTS, seed=3)
