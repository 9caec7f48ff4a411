"""Training on rows with images: steps are SFTTrainer's, scores those of RSRScorer, before, between and after."""

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Json, List, Value
from trl import SFTConfig, SFTTrainer

from rsr_trl.experimental.weighting import WeightedRSRSFTConfig, WeightedRSRSFTTrainer
from rsr_trl.rsr import RSR, RSRError
from rsr_trl.scoring.scorer import RSRScorer
from rsr_trl.training.config import RSRSFTConfig
from rsr_trl.training.trainer import RSRSFTTrainer
from tests.scoring.seeing import build, picture
from tests.scoring.test_images import says, user
from tests.training.runs import DEFAULTS


def pool(as_messages: bool = False, **last) -> Dataset:
    """Four problems, one of them without a picture, by two teachers; `last` replaces values of the last row."""
    rows = []
    for problem in range(4):
        images = [] if problem == 2 else [picture(problem, 30 + 10 * problem)]
        question = user(*[None] * len(images), f"What is in picture {problem}?")
        for teacher in "AB":
            answer = says(f"Teacher {teacher} says: " + "so it is, " * (1 + problem * (teacher == "B")))
            chat = {"messages": [question, answer]} if as_messages else {"prompt": [question], "completion": [answer]}
            rows.append({"images": images, "teacher": teacher, "problem": problem} | chat)
    kinds = {"images": List(Image()), "teacher": Value("string"), "problem": Value("int64")}
    features = Features({name: kinds.get(name, List(Json())) for name in rows[0]})
    return Dataset.from_list([*rows[:-1], rows[-1] | last], features=features)


def trainer_of(student, dataset: Dataset, folder, kind=RSRSFTTrainer, **args):
    config = RSRSFTConfig if kind is RSRSFTTrainer else SFTConfig
    args = config(output_dir=str(folder), **DEFAULTS | {"learning_rate": 1e-3, "max_length": None} | args)
    return kind(student[0], args=args, train_dataset=dataset, processing_class=student[1])


def losses(trainer) -> list[float]:
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize("family", ["qwen", "gemma"])
def test_without_scores_the_steps_are_those_of_sft_trainer(family, tmp_path):
    ours, theirs = (
        losses(trainer_of(build(family), pool(), tmp_path, kind, num_train_epochs=1))
        for kind in (RSRSFTTrainer, SFTTrainer)
    )
    assert ours == theirs and len(ours) == 4


@pytest.mark.parametrize(
    ("family", "as_messages", "args"),
    [
        ("qwen", False, {"rsr_rescore_strategy": "steps", "rsr_rescore_steps": 2}),
        ("idefics", True, {"rsr_rescore_strategy": "epoch"}),
        ("gemma", False, {"rsr_rescore_strategy": "online"}),
        ("llava", False, {"rsr_rescore_strategy": "epoch", "rsr_share_prefixes": False}),
    ],
)
def test_scores_are_taken_and_measured_again(family, as_messages, args, tmp_path):
    student, dataset = build(family), pool(as_messages)
    scored = RSRScorer(*student).score(dataset)
    trainer = trainer_of(
        student, scored, tmp_path, num_train_epochs=2, rsr_sampling="weighted", rsr_teacher_column="teacher", **args
    )
    np.testing.assert_array_equal(trainer.table.rsr, scored[RSR])  # its own, without a pass
    trainer.train()
    assert (trainer.table.step > 0).all()
    trainer.rescore()
    now = RSRScorer(trainer.model, student[1], overwrite=True).score(scored)[RSR]
    np.testing.assert_allclose(trainer.table.rsr, now, rtol=1e-5)
    assert (trainer.table.rsr != scored[RSR]).all()


@pytest.mark.parametrize("family", ["idefics", "llava"])
def test_resuming_is_exact_or_refused(family, tmp_path):
    """transformers 5.23 doesn't find the weights of a LLaVA checkpoint again, and only warns of it."""
    args = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 4, "rsr_rescore_strategy": "epoch"}

    def train(resume=None):
        trainer = trainer_of(build(family), pool(), tmp_path, rsr_sampling="weighted", **args)
        trainer.train(resume_from_checkpoint=resume)
        return [log["loss"] for log in trainer.state.log_history if "loss" in log]

    whole, checkpoint = train(), str(tmp_path / "checkpoint-4")
    if family == "idefics":
        assert train(checkpoint) == whole
    else:
        with pytest.raises(ValueError, match="weights have other names than the student's"):
            train(checkpoint)


def test_rows_past_the_threshold_do_not_train(tmp_path):
    student = build("llava")
    scored = RSRScorer(*student).score(pool())
    threshold = sorted(scored[RSR])[1]
    trainer = trainer_of(student, scored, tmp_path, num_train_epochs=1, rsr_score_threshold=threshold)
    trainer.train()
    assert trainer.state.log_history[-1]["train_loss"] > 0
    assert [log["rsr/masked_rows"] for log in trainer.state.log_history if "rsr/masked_rows" in log][-1] == 6


@pytest.mark.parametrize(
    ("last", "args", "message"),
    [
        (
            {"images": [{"bytes": b"no image", "path": None}]},
            {},
            "Row 7 .* can't be trained on: the image can't be read",
        ),
        ({}, {"max_length": 30}, "Row 0 .* longer than max_length=30"),
        ({}, {"packing": True}, "packing=True puts examples into one row"),
    ],
)
def test_what_cannot_train_is_said_before_the_first_step(last, args, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer_of(build("llava"), pool(**last), tmp_path, **args)


def test_weights_per_row_refuse_them_by_name(tmp_path):
    student, args = build("qwen"), DEFAULTS | {"rsr_weighting": "rank", "max_length": None}
    args = WeightedRSRSFTConfig(output_dir=str(tmp_path), **args)
    with pytest.raises(RSRError, match="WeightedRSRSFTTrainer doesn't work with images"):
        WeightedRSRSFTTrainer(student[0], args=args, train_dataset=pool(), processing_class=student[1])
