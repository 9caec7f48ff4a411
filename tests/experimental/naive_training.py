"""The same trainings by their definitions: full logits in float64, row by row, and plain gradient descent.

Run as a script, it is one process of a distributed training: `torchrun ... naive_training.py folder`.
"""

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from rsr_trl.experimental.redi import REDIConfig, REDITrainer
from rsr_trl.experimental.weighting import WeightedRSRSFTConfig, WeightedRSRSFTTrainer
from tests.training.runs import DEFAULTS, Recording, leave, rows_of_steps


SGD = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}  # a step is the gradient, and nothing else


class RecordingWeighted(Recording, WeightedRSRSFTTrainer):
    pass


class RecordingREDI(Recording, REDITrainer):
    pass


def build(kind: str, student: str, output_dir: str, rows, args: dict[str, Any], **kwargs):
    """A recording trainer, `kind` "weighted" or "redi", not trained yet."""
    set_seed(0)
    config, trainer = {
        "weighted": (WeightedRSRSFTConfig, RecordingWeighted),
        "redi": (REDIConfig, RecordingREDI),
    }[kind]
    trainer = trainer(
        AutoModelForCausalLM.from_pretrained(student, dtype="float32"),
        args=config(output_dir, **DEFAULTS | args),
        train_dataset=rows if isinstance(rows, Dataset) else Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(student),
        **kwargs,
    )
    trainer.record = []
    return trainer


def numbered_rows(trainer, records=None) -> list[list[int]]:
    """Rows of the prepared dataset that each step trained on, on all processes."""
    number = {" ".join(map(str, ids)): i for i, ids in enumerate(trainer.train_dataset["input_ids"])}
    return [[number[row] for row in rows] for rows in rows_of_steps(records or [vars(trainer)]).values()]


def surprisals(model: torch.nn.Module, row: dict[str, list[int]]) -> torch.Tensor:
    """-ln p of the trained tokens of one row alone."""
    ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
    log_p = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    trained = labels[1:] != -100
    return -log_p[trained].gather(1, labels[1:][trained, None])[:, 0]


def descend(student: str, trainer, steps: list[list[int]], loss_of: Callable, learning_rate: float):
    """
    Train in float64: `loss_of(model, rows, step)` of the prepared rows of each step. Returns losses and weights.
    """
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float64)
    losses = []
    for step, rows in enumerate(steps):
        loss = loss_of(model, rows, step)
        losses.append(loss.item())
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= learning_rate * parameter.grad
    return losses, {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_trained_as(trainer, losses: list[float], weights: dict[str, torch.Tensor], before=None) -> None:
    """The trainer's logged losses and its steps' changes of the weights are the naive ones."""
    logged = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    np.testing.assert_allclose(logged, losses, rtol=2e-5)
    student = copy.deepcopy(trainer.model).double()
    for name, parameter in student.named_parameters():
        change, expected = parameter - before[name], weights[name] - before[name]
        assert (change - expected).norm() <= 1e-4 * expected.norm(), name


def initial(student: str) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float64)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def run(kind: str, student: str, output_dir: str, rows, args, resume_from: str | None = None) -> dict[str, Any]:
    """Train and return the record of this process, the logs and the weights as one number."""
    trainer = build(kind, student, output_dir, rows, args)
    model = trainer.model
    trainer.train(resume_from_checkpoint=resume_from)
    total = sum(p.double().abs().sum().item() for p in model.parameters())
    return {"record": trainer.record, "logs": trainer.state.log_history, "weights": total}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    leave(folder, [run(**job) for job in json.loads((folder / "jobs.json").read_text())])
