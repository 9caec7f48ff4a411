"""Training ordered by another score than RSR: measured live, or a column that stays as it is."""

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from rsr_trl.scoring.scorer import RSRScorer
from rsr_trl.selection.table import read_score
from rsr_trl.training.collator import RSRDataCollator
from rsr_trl.training.config import RSRSFTConfig
from rsr_trl.training.live_table import ScoreTable
from rsr_trl.training.sampler import RSRSampler
from rsr_trl.training.trainer import RSRSFTTrainer
from tests.training.runs import DEFAULTS, examples, recording, rows_of_steps


RANKS, SURPRISALS = np.array([4.0, 3.0, 2.0, 9.0]), np.array([0.5, 3.0, 1.0, 2.0])  # rsr: 8, 1, 2, 4.5


@pytest.fixture
def student(tmp_path, tiny_student, tiny_tokenizer) -> str:
    tiny_student().save_pretrained(tmp_path / "student")
    tiny_tokenizer.save_pretrained(tmp_path / "student")
    return str(tmp_path / "student")


@pytest.fixture
def make(student, tmp_path):
    """`make(dataset, **args)`: a recording trainer that draws strictly in the order of the score."""

    def build(dataset: Dataset, **args):
        trainer = recording(RSRSFTTrainer)(
            AutoModelForCausalLM.from_pretrained(student, dtype="float32"),
            args=RSRSFTConfig(str(tmp_path / "out"), **DEFAULTS | {"rsr_sampling": "ordered"} | args),
            train_dataset=dataset,
            processing_class=AutoTokenizer.from_pretrained(student),
        )
        trainer.record = []
        return trainer

    return build


def table_of(score: str, static=None) -> ScoreTable:
    table = ScoreTable([5] * 4, score, static)
    table.update(range(4), RANKS, SURPRISALS, step=0)
    return table


def trained_rows(trainer, epoch: int = 0) -> list[int]:
    """Source rows in the order in which an epoch trained on them, batch by batch."""
    number = {" ".join(map(str, ids)): i for i, ids in enumerate(trainer.train_dataset["input_ids"])}
    steps = rows_of_steps([{"record": trainer.record}])
    first = epoch * trainer.scores.steps_per_epoch
    return [number[row] for i in range(trainer.scores.steps_per_epoch) for row in steps.get(first + i, [])]


def assert_ordered(trainer, values, sign: int = 1) -> None:
    """Batches of two come in the order of `values`, whichever of the two is first."""
    rows = trained_rows(trainer)
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(rows)))
    drawn = np.asarray(values)[rows]
    pairs = [np.sort(drawn[i : i + 2]) * sign for i in range(0, len(drawn), 2)]
    assert all(before.max() <= after.min() for before, after in zip(pairs, pairs[1:], strict=False))


class TestTableAndSampler:
    @pytest.mark.parametrize(
        ("score", "order"), [("rsr", [1, 2, 3, 0]), ("surprisal", [0, 2, 3, 1]), ("score_rank", [2, 1, 0, 3])]
    )
    def test_live_scores(self, score, order):
        table = table_of(score)
        assert list(RSRSampler(table, sampling="ordered")) == order
        assert list(RSRSampler(table, sampling="ordered", prefer="high")) == order[::-1]

    def test_static_scores(self):
        assert list(RSRSampler(table_of("length", [5, 9, 7, 3]), sampling="ordered")) == [1, 2, 0, 3]  # longest first
        own = table_of("judge", [5, 9, 7, 3])
        assert list(RSRSampler(own, sampling="ordered", prefer="low")) == [3, 0, 2, 1]
        with pytest.raises(ValueError, match="Which end of the column 'judge'"):
            RSRSampler(own)

    def test_a_row_without_a_static_value_comes_last_and_is_never_chosen(self):
        table = table_of("judge", [np.nan, 9, 7, 3])
        assert list(RSRSampler(table, sampling="ordered", prefer="low")) == [3, 2, 1, 0]
        assert sorted(RSRSampler(table, prefer="low", keep_fraction=1 - 1e-6)) == [1, 2, 3]

    def test_draws_that_are_decided_stay_when_the_live_score_changes(self):
        table = table_of("surprisal")
        sampler = RSRSampler(table, sampling="ordered", live=False)
        draws = iter(sampler)
        assert next(draws) == 0
        table.update([3], [9.0], [0.1], step=1)
        assert list(draws) == [2, 3, 1]  # not read again before the next epoch
        sampler.set_epoch(1)
        assert list(sampler) == [3, 0, 2, 1]

    def test_what_is_live_and_what_is_not(self):
        with pytest.raises(ValueError, match="rsr, surprisal, rank are measured live.*got score='lark' without them"):
            ScoreTable([1, 2], "lark")
        with pytest.raises(ValueError, match="got score='rank' with them"):
            ScoreTable([1, 2], "rank", [1.0, 2.0])
        with pytest.raises(ValueError, match="a value for each of 2 rows"):
            ScoreTable([1, 2], "lark", [1.0])

    def test_from_a_dataset(self):
        columns = {"rsr_mean_clipped_rank": RANKS, "rsr_mean_surprisal": SURPRISALS, "rsr_num_tokens": [5] * 4}
        dataset = Dataset.from_dict({**columns, "score_lark": [0.1, 0.4, 0.3, 0.2], "rank": [0, 0, 0, 0]})
        assert list(RSRSampler(ScoreTable.from_dataset(dataset, "lark"), sampling="ordered")) == [1, 2, 3, 0]
        assert ScoreTable.from_dataset(dataset, "surprisal").scores.tolist() == SURPRISALS.tolist()
        with pytest.raises(ValueError, match="'rank' may mean the score of that name or the dataset's own column"):
            ScoreTable.from_dataset(dataset, "rank")


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"score": "surprisal", "score_threshold": 1.0}, [0, 2]),
        ({"score": "lark", "score_threshold": 0.3}, [1, 2]),  # high is better
        ({"score": "judge", "prefer": "low", "score_threshold": 2}, [2]),
    ],
    ids=str,
)
def test_the_collator_drops_by_any_score(settings, kept):
    rows = [
        {"input_ids": [i, 6, 7], "labels": [i, 6, 7], "rsr_mean_surprisal": s, "score_lark": lark, "judge": 4 - i}
        for i, (s, lark) in enumerate(zip(SURPRISALS.tolist(), [0.1, 0.4, 0.3, None], strict=True))
    ]
    rows[3]["judge"] = None
    batch = RSRDataCollator(pad_token_id=0, **settings)(rows)
    expected = DataCollatorForLanguageModeling(pad_token_id=0)([rows[i] for i in kept])
    assert batch["input_ids"].tolist() == expected["input_ids"].tolist()


def test_the_collators_errors():
    with pytest.raises(ValueError, match="Which end of the column 'judge'"):
        RSRDataCollator(pad_token_id=0, score="judge")
    with pytest.raises(ValueError, match="'casl' is fitted to a whole dataset"):
        RSRDataCollator(pad_token_id=0, score="casl", score_threshold=1.0)
    with pytest.raises(ValueError, match="found no 'score_lark'"):
        RSRDataCollator(pad_token_id=0, score="lark", score_threshold=1.0)([{"input_ids": [1], "labels": [1]}])


def test_config():
    assert RSRSFTConfig("out").rsr_prefer == "low"
    assert RSRSFTConfig("out", rsr_score="surprisal").rsr_prefer == "low"
    assert RSRSFTConfig("out", rsr_score="length", rsr_rescore_strategy="no").rsr_prefer == "high"
    with pytest.raises(ValueError, match="Which end of the column 'judge'"):
        RSRSFTConfig("out", rsr_score="judge", rsr_rescore_strategy="no")
    for score in ("lark", "length", "random"):
        with pytest.raises(ValueError, match=f"rsr_score='{score}' isn't measured.*: rsr, surprisal, rank"):
            RSRSFTConfig("out", rsr_score=score)


class TestTrainer:
    @pytest.mark.parametrize("score", ["surprisal", "rank"])
    def test_live(self, score, make, student):
        dataset = Dataset.from_list(examples(12))
        expected = RSRScorer(student, scores=[score]).score(dataset)[f"score_{score}"][:]
        trainer = make(dataset, rsr_score=score, num_train_epochs=2)
        trainer.train()
        assert_ordered(trainer, expected)
        assert sorted(trained_rows(trainer, epoch=1)) == list(range(12))
        assert trainer.table.step.min() > 0  # scored again at the second epoch
        assert np.abs(trainer.table.scores - expected).max() > 1e-3
        logs = {name: value for log in trainer.state.log_history for name, value in log.items()}
        assert logs[f"{score}/mean"] == pytest.approx(trainer.table.scores.mean())
        assert logs["rsr/mean"] == pytest.approx(trainer.table.rsr.mean())

    @pytest.mark.parametrize("score", ["length", "random", "lark", "casl"])
    def test_static(self, score, make, student):
        scored = RSRScorer(student, scores=[score]).score(Dataset.from_list(examples(12)))
        of_tokens = score in ("length", "random")  # these need no column
        dataset = Dataset.from_list(examples(12)) if of_tokens else scored
        trainer = make(dataset, rsr_score=score, rsr_rescore_strategy="no", num_train_epochs=1)
        trainer.train()
        assert_ordered(trainer, read_score(scored, score), sign=-1 if trainer.args.rsr_prefer == "high" else 1)
        if of_tokens:
            assert np.isnan(trainer.table.rsr).all()  # no scoring pass for nothing

    def test_a_column_of_ones_own(self, make):
        dataset = Dataset.from_list(examples(12)).add_column("judge", [*range(11), None])
        settings = {"rsr_score": "judge", "rsr_prefer": "high", "rsr_rescore_strategy": "no", "num_train_epochs": 1}
        trainer = make(dataset, rsr_keep_fraction=0.5, **settings)
        trainer.train()
        assert sorted(trained_rows(trainer)) == [5, 6, 7, 8, 9, 10]  # half of the eleven that have a value
        with pytest.raises(ValueError, match="no column 'judge'"):
            make(dataset.remove_columns("judge"), **settings)
        with pytest.raises(ValueError, match="no score 'lark'"):
            make(dataset, rsr_score="lark", rsr_rescore_strategy="no")
