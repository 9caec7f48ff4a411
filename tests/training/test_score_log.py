import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rsr_trl.training.history import ScoreHistory, card_section, spearman, summarize
from rsr_trl.training.live_table import ScoreTable


def test_summary_leaves_out_what_is_not_finite():
    scores = np.array([1.0, 2.0, np.nan, 4.0, np.inf])
    teachers = np.array([0, 1, 0, 1, 2]), ["A", "B", "C"]
    assert summarize(scores, teachers) == {
        "rsr/mean": pytest.approx(7 / 3),
        "rsr/median": 2.0,
        "rsr/p10": pytest.approx(1.2),
        "rsr/p90": pytest.approx(3.6),
        "rsr/mean/A": 1.0,
        "rsr/mean/B": 3.0,
    }
    assert summarize(np.array([np.nan])) == {}


def test_spearman_is_scipys():
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 9, 40).astype(float), rng.normal(size=40)
    assert spearman(before, after) == pytest.approx(stats.spearmanr(before, after).statistic)
    after[3] = np.nan
    rest = np.arange(40) != 3
    assert spearman(before, after) == pytest.approx(stats.spearmanr(before[rest], after[rest]).statistic)
    assert spearman(np.full(40, np.nan), after) is None
    assert spearman(np.ones(40), after) is None


def test_the_history_is_one_table_of_all_files(tmp_path):
    table, log = ScoreTable([4, 4, 0, 4]), ScoreHistory(str(tmp_path), np.array([10, 20, 30, 40]))
    table.update([0, 3], [2.0, 3.0], [1.0, 1.0], step=0)
    log.write(table, np.array([0, 3]), 0, "pass")
    table.update([1], [8.0], [2.0], step=6, train_mode=True)
    log.write(table, np.array([1]), 7, "online")
    log.write(table, np.array([0]), 7, "pass")
    found = pd.read_parquet(tmp_path / "rsr_history").sort_values(["step", "row"])
    assert found["row"].tolist() == [10, 10, 40, 20]
    assert found["rsr"].tolist() == [2.0, 2.0, 3.0, 4.0]
    assert found["step"].tolist() == [0, 0, 0, 6] and found["train_mode"].tolist() == [False] * 3 + [True]
    log.start(6)
    assert [path.name for path in log.folder.iterdir()] == ["step-00000000-pass.parquet"]
    log.start(None)
    assert list(log.folder.iterdir()) == []


def test_the_card_says_direction_settings_and_scores():
    card = card_section({"rsr_r_max": 100}, {"rsr/mean": 1.23456, "rsr/mean/QwQ": 2.0})
    for text in ("Lower means more suitable", "| rsr_r_max | `100` |", "| mean | 1.235 |", "| mean/QwQ | 2 |"):
        assert text in card
    assert "score at the end" not in card_section({}, {})
