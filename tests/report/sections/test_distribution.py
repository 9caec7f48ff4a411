import numpy as np
from scipy import stats

from rsr_trl.rsr import RSR
from tests.report.pages import UNSCORED, scored_rows


def test_length_correlation_is_scipys_over_finite_ratios(write, rows):
    rows[2] |= UNSCORED
    rows[3][RSR] = float("inf")
    rest = [row for i, row in enumerate(rows) if i not in (2, 3)]
    expected = stats.spearmanr([row["rsr"] for row in rest], [row["rsr_num_tokens"] for row in rest]).statistic
    assert f"Spearman's correlation: {expected:.2f} (0 = no correlation)" in write(rows).words("distribution")


def test_correctness_compares_every_pair(write, tiny_tokenizer):
    rows = scored_rows(tiny_tokenizer, 12)
    rows[0]["correct"] = None
    right = np.array([row["rsr"] for row in rows if row["correct"] is True])
    wrong = np.array([row["rsr"] for row in rows if row["correct"] is False])
    lower = (right[:, None] < wrong[None]).mean()
    words = write(rows).words("distribution")
    assert f"with probability {lower:.2f} (0.5 = no correlation)" in words
    assert f"{len(right) / (len(right) + len(wrong)):.0%} of all 35 with a known result" in words
