"""Trainers of a tiny student, as the tests of the training room share them."""

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.training.runs import build, examples


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
    """`make(rows, trainer_kwargs=None, model=None, tokenizer=None, **args)`: a recording trainer, not trained yet."""

    def make(rows=None, trainer_kwargs=None, model=None, tokenizer=None, config=None, **args):
        own = {"model": model, "tokenizer": tokenizer, "config": config, **(trainer_kwargs or {})}
        return build(student, str(tmp_path / "out"), examples() if rows is None else rows, args, **own)

    return make


@pytest.fixture
def train(make):
    """As `make`, and trained."""

    def train(*args, **kwargs):
        trainer = make(*args, **kwargs)
        trainer.train()
        return trainer

    return train
