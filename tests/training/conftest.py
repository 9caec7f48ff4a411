"""Trainers of a tiny student, as the tests of the training room share them."""

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from rsr_trl.training.config import RSRSFTConfig
from rsr_trl.training.trainer import RSRSFTTrainer
from tests.training.runs import DEFAULTS, examples, recording


@pytest.fixture
def student(tmp_path, tiny_student, tiny_tokenizer) -> str:
    """Folder of a student with dropout, so that a random number more or less shows in the losses."""
    path = tmp_path / "student"
    tiny_student(attention_dropout=0.1).save_pretrained(path)
    tiny_tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture
def student_parts(student):
    """The student and its tokenizer, loaded."""
    return AutoModelForCausalLM.from_pretrained(student, dtype="float32"), AutoTokenizer.from_pretrained(student)


@pytest.fixture
def make(student, tmp_path):
    """`make(rows, trainer_kwargs=None, **args)`: a recording trainer that hasn't trained yet."""

    def build(rows=None, trainer_kwargs=None, model=None, tokenizer=None, config=RSRSFTConfig, **args):
        trainer = recording(RSRSFTTrainer)(
            model or AutoModelForCausalLM.from_pretrained(student, dtype="float32"),
            args=config(str(tmp_path / "out"), **DEFAULTS | args),
            train_dataset=rows if isinstance(rows, Dataset) else Dataset.from_list(rows or examples()),
            processing_class=tokenizer or AutoTokenizer.from_pretrained(student),
            **trainer_kwargs or {},
        )
        trainer.record = []
        return trainer

    return build
