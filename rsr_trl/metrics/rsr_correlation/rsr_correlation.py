"""Correlation of a suitability score with results after training, as a module for Hugging Face evaluate."""

import datasets
import evaluate

from rsr_trl.metrics.correlation import correlate


_DESCRIPTION = """\
Spearman, Pearson and Kendall correlation, with bootstrap intervals, between a suitability score of teachers or
datasets (such as their Rank-Surprisal Ratio) and results after training on them. RSR is LOWER for what suits better,
so a useful RSR has a NEGATIVE correlation with accuracy.
"""

_INPUTS = """
Args:
    scores (list of float): score of each teacher or dataset, such as its dataset RSR.
    results (list of float): result after training on each, such as accuracy.
    groups (list, optional): student of each pair; coefficients are then averaged over students.
    confidence (float, defaults to 0.95), num_draws (int, defaults to 1000), seed (int, defaults to 0): bootstrap.

Returns:
    n (int); spearman, pearson, kendall (float), each with its interval as <name>_low and <name>_high; with groups also
    <name>_by_group (dict).

Example:
    >>> correlation = evaluate.load("path/to/rsr_trl/metrics/rsr_correlation")
    >>> correlation.compute(scores=[2.7, 2.9, 3.0, 3.4], results=[77.4, 76.8, 74.6, 66.7])["spearman"]
    -1.0
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class SuitabilityCorrelation(evaluate.Measurement):
    def _info(self) -> evaluate.MeasurementInfo:
        return evaluate.MeasurementInfo(
            module_type="measurement",
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({name: datasets.Value("float64") for name in ("scores", "results")}),
            homepage="https://arxiv.org/abs/2601.14249",
        )

    def _compute(self, scores: list[float], results: list[float], **options) -> dict:
        return correlate(scores, results, **options)
