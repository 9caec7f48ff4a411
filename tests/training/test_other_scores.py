"""Training ordered by another score than RSR: measured live, or a column that stays as it is."""

import numpy as np
import pytest
from datasets import Dataset

from rsr_trl.scoring.scorer import RSRScorer
from rsr_trl.selection.table import read_score
from tests.training.runs import examples, source_rows


def assert_ordered(trainer, values, sign: int = 1) -> None:
    """Batches of two come in the order of `values`, whichever of the two is first."""
    steps = source_rows(trainer, 0)
    np.testing.assert_array_equal(np.sort(sum(steps, [])), np.arange(len(values)))
    pairs = [sign * np.asarray(values)[rows] for rows in steps]
    assert all(before.max() <= after.min() for before, after in zip(pairs, pairs[1:], strict=False))


@pytest.mark.parametrize("score", ["surprisal", "rank"])
def test_live(score, train, student):
    dataset = Dataset.from_list(examples(12))
    expected = RSRScorer(student, scores=[score]).score(dataset)[f"score_{score}"][:]
    trainer = train(dataset, rsr_score=score, rsr_sampling="ordered", num_train_epochs=2)
    assert_ordered(trainer, expected)
    assert sorted(sum(source_rows(trainer, epoch=1), [])) == list(range(12))
    assert trainer.table.step.min() > 0  # scored again at the second epoch
    assert np.abs(trainer.table.scores - expected).max() > 1e-3
    logs = {name: value for log in trainer.state.log_history for name, value in log.items()}
    assert logs[f"{score}/mean"] == pytest.approx(trainer.table.scores.mean())
    assert logs["rsr/mean"] == pytest.approx(trainer.table.rsr.mean())


STATIC = {"rsr_rescore_strategy": "no", "rsr_sampling": "ordered", "num_train_epochs": 1}


@pytest.mark.parametrize("score", ["length", "random", "lark", "casl"])
def test_static(score, train, student):
    scored = RSRScorer(student, scores=[score]).score(Dataset.from_list(examples(12)))
    of_tokens = score in ("length", "random")  # these need no column
    trainer = train(Dataset.from_list(examples(12)) if of_tokens else scored, rsr_score=score, **STATIC)
    assert_ordered(trainer, read_score(scored, score), sign=-1 if trainer.args.rsr_prefer == "high" else 1)
    if of_tokens:
        assert np.isnan(trainer.table.rsr).all()  # no scoring pass for nothing


def test_a_column_of_ones_own(make, train):
    dataset = Dataset.from_list(examples(12)).add_column("judge", [*range(11), None])
    settings = STATIC | {"rsr_score": "judge", "rsr_prefer": "high"}
    trainer = train(dataset, rsr_keep_fraction=0.5, **settings)
    assert sorted(sum(source_rows(trainer, 0), [])) == [5, 6, 7, 8, 9, 10]  # half of the eleven that have a value
    with pytest.raises(ValueError, match="no column 'judge'"):
        make(dataset.remove_columns("judge"), **settings)
    with pytest.raises(ValueError, match="no score 'lark'"):
        make(dataset, rsr_score="lark", rsr_rescore_strategy="no")
