import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr


SCRIPT = Path(__file__).parents[2] / "examples" / "paper_tables.py"


@pytest.fixture(scope="module")
def paper():
    spec = importlib.util.spec_from_file_location("paper_tables", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def table(paper):
    return paper.load()


def beyond_rounding(found, digits):
    """Printed values that no values behind the printed tables could give."""
    half = 0.5 * 10.0**-digits
    outside = (found["printed"] + half < found["low"]) | (found["printed"] - half > found["high"])
    return found[outside].iloc[:, 0].tolist()


def test_the_tables_are_whole_and_rsr_is_clipped_rank_over_surprisal(paper, table):
    assert table.shape == (55, 16) and not table.isna().any().any()
    assert table.groupby("student")["teacher"].nunique().tolist() == [11] * 5
    assert len(paper.cells_beyond_rounding(table)) == 0
    wrong = table.assign(rsr=table["rsr"] * 1.02)
    assert len(paper.cells_beyond_rounding(wrong)) > 40


def test_correlations(paper, table):
    found = paper.correlations(table).set_index("metric")["replay"]
    by_hand = [
        abs(spearmanr(group["rsr"], group["post_training_accuracy"]).statistic)
        for _, group in table.groupby("student")
    ]
    assert found["rsr"] == pytest.approx(np.mean(by_hand)) and round(found["rsr"], 3) == 0.847
    assert round(found["rsr_200"], 3) == 0.866
    assert found.idxmax() == "rsr_200" and found.drop(["rsr_200"]).idxmax() == "rsr"


def test_every_difference_is_rounding_and_one_pair_of_accuracies(paper, table):
    found = paper.rsr_by_student(table)
    assert found["replay"].round(3).tolist() == [0.855, 0.845, 0.888, 0.829, 0.815]
    assert beyond_rounding(found, 3) == ["Qwen-2.5-7B"]
    exchanged = paper.exchange(table)
    assert (exchanged["post_training_accuracy"] != table["post_training_accuracy"]).sum() == 2
    assert beyond_rounding(paper.rsr_by_student(exchanged), 3) == []
    printed = paper.correlations(exchanged).dropna()
    assert len(printed) == 11 and beyond_rounding(printed, 3) == []
    # Two digits are printed for some, but the exchange is needed even so.
    assert beyond_rounding(paper.correlations(table).dropna(), 2)


def test_teachers_that_200_trajectories_pick(paper, table):
    among_all = paper.teacher_choice(table)
    assert among_all["first"].tolist() == ["QwQ-32B"] * 5
    # The paper's figures: right for 3 of 5 students, 48.3 for the two picks, 48.7 for the best two.
    found = paper.teacher_choice(table, without=paper.ALL_ROUNDERS)
    assert found["first_is_best"].sum() == 3
    assert round(found["picks"].mean(), 1) == 48.3 and round(found["oracle"].mean(), 1) == 48.7


def test_simulation(paper):
    found = paper.simulation(draws=200_000).set_index("source")
    for source, (probability, surprisal, rank, token_rsr) in paper.PRINTED_SIMULATION.items():
        replayed = found.loc[source]
        assert replayed["probability"] == pytest.approx(probability, abs=0.01)
        assert replayed["surprisal"] == pytest.approx(surprisal, abs=0.03)
        assert replayed["rank"] == pytest.approx(rank, rel=0.05)  # how the two tails lie to each other isn't said
        assert replayed["token_rsr"] == pytest.approx(token_rsr, abs=0.02)
    # What the simulation is for: the preferred tokens have the lowest ratio.
    assert found["token_rsr"].idxmin() == "minor mode (X_B, preferred)"
