import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from rsr_trl.training.collator import MASKED_ROW, DrawnRows, RSRDataCollator
from tests.training.runs import build, examples, rows_of_steps


ROWS = [
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "rsr": 2.0},
    {"input_ids": [8, 9], "labels": [8, 9], "rsr": 5.0},
    {"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4], "rsr": None},
    {"input_ids": [3, 3], "labels": [3, 3], "rsr": float("inf")},
]


def same(batch, expected):
    assert batch.keys() == expected.keys()
    assert all(torch.equal(torch.as_tensor(batch[name]), torch.as_tensor(expected[name])) for name in batch)


@pytest.mark.parametrize("settings", [{}, {"padding_free": True}, {"pad_to_multiple_of": 8}], ids=str)
def test_without_a_threshold_it_is_trls_collator(settings):
    collator = RSRDataCollator(pad_token_id=0, **settings)
    same(collator(ROWS), DataCollatorForLanguageModeling(pad_token_id=0, **settings)(ROWS))
    assert isinstance(collator, DataCollatorForLanguageModeling)  # SFTTrainer asks


@pytest.mark.parametrize(
    ("prefer", "threshold", "kept"),
    [("low", 2.0, [0]), ("low", 5.0, [0, 1]), ("high", 5.0, [1]), ("high", 1.0, [0, 1])],
)
def test_rows_past_the_threshold_or_without_a_score_are_dropped_and_counted(prefer, threshold, kept):
    collator = RSRDataCollator(pad_token_id=0, score_threshold=threshold, prefer=prefer)
    same(collator(ROWS), DataCollatorForLanguageModeling(pad_token_id=0)([ROWS[i] for i in kept]))
    assert collator.num_dropped == len(ROWS) - len(kept)
    collator(ROWS)
    assert collator.num_dropped == 2 * (len(ROWS) - len(kept))


def test_rows_masked_at_the_draw_are_dropped_and_when_all_rows_go_a_fully_masked_one_stays():
    batch = RSRDataCollator(pad_token_id=0, score_threshold=1.0)(ROWS)
    assert batch["input_ids"].shape == (1, 2) and (batch["labels"] == -100).all()
    rows = DrawnRows(Dataset.from_list([{k: row[k] for k in ("input_ids", "labels")} for row in ROWS]), 3, 4)
    collator = RSRDataCollator(pad_token_id=0)
    same(collator(rows.__getitems__([1, 4, 8, 3])), DataCollatorForLanguageModeling(0)([ROWS[1], ROWS[3]]))
    assert (collator(rows.__getitems__([4, 8]))["labels"] == -100).all()
    assert rows[5] == MASKED_ROW and rows[2]["rsr_row"] == 2 and len(rows) == 3


@pytest.mark.parametrize("padding_free", [False, True])
def test_passes_on_which_tokens_are_scored(padding_free):
    masks = [[False, True, True], [], [False, True, False, True]]  # the second can't be scored
    rows = [
        {"input_ids": r["input_ids"], "labels": r["labels"], "rsr_scored": m, "rsr_row": i}
        for i, (r, m) in enumerate(zip(ROWS, masks, strict=False))
    ]
    collator = RSRDataCollator(pad_token_id=0, with_scored=True, padding_free=padding_free)
    batch, masked = collator([*rows, MASKED_ROW]), collator([MASKED_ROW])
    assert batch["rsr_row"].tolist() == [0, 1, 2] and batch["rsr_num_scored"].tolist() == [2, 0, 2]
    assert batch["rsr_scored"].shape == batch["input_ids"].shape
    assert batch["input_ids"][batch["rsr_scored"]].tolist() == [6, 7, 2, 4]
    assert masked["rsr_row"].tolist() == [-1] and not masked["rsr_scored"].any()


def test_counts_in_worker_processes():
    collator = RSRDataCollator(pad_token_id=0, score_threshold=2.0)
    list(DataLoader(ROWS * 10, batch_size=2, num_workers=2, collate_fn=collator))
    assert collator.num_dropped == 30


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"score": "surprisal", "score_threshold": 1.0}, [0, 2]),
        ({"score": "lark", "score_threshold": 0.3}, [1, 2]),  # high is better
        ({"score": "judge", "prefer": "low", "score_threshold": 2}, [2]),
    ],
    ids=str,
)
def test_drops_by_any_score(settings, kept):
    names, values = ("rsr_mean_surprisal", "score_lark", "judge"), [(0.5, 0.1, 4), (3.0, 0.4, 3), (1.0, 0.3, 2)]
    scores = [dict(zip(names, row, strict=True)) for row in [*values, (2.0, None, None)]]
    rows = [{"input_ids": [i, 6, 7], "labels": [i, 6, 7]} | own for i, own in enumerate(scores)]
    batch = RSRDataCollator(pad_token_id=0, **settings)(rows)
    assert batch["input_ids"][:, 0].tolist() == kept


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score_threshold": 2.0}, "remove_unused_columns=False"),
        ({"score": "lark", "score_threshold": 1.0}, "found no 'score_lark'"),
        ({"prefer": "lowest"}, "lower is more suitable"),
        ({"score": "judge"}, "Which end of the column 'judge'"),
        ({"score": "casl", "score_threshold": 1.0}, "'casl' is fitted to a whole dataset"),
    ],
)
def test_errors_say_what_to_do(settings, message):
    with pytest.raises(ValueError, match=message):
        RSRDataCollator(pad_token_id=0, **settings)([{"input_ids": [1, 2], "labels": [1, 2]}])


def test_filters_in_a_plain_sft_trainer(tmp_path, tiny_student_path):
    scores = np.random.default_rng(0).uniform(1, 9, 12).tolist()
    collator = RSRDataCollator(pad_token_id=0, score_threshold=5.0)
    rows = Dataset.from_list(examples(12)).add_column("rsr", scores)
    args = {"remove_unused_columns": False, "num_train_epochs": 1}
    trainer = build(tiny_student_path, str(tmp_path), rows, args, plain=True, data_collator=collator)
    trainer.train()
    ids = [" ".join(map(str, row)) for row in trainer.train_dataset["input_ids"]]
    trained = sorted(sum(rows_of_steps([vars(trainer)]).values(), []))
    assert trained == sorted(row for row, score in zip(ids, scores, strict=True) if score <= 5.0)
    assert collator.num_dropped == sum(score > 5.0 for score in scores)
