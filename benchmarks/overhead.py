"""What RSRSFTTrainer costs: its steps beside SFTTrainer's, and a scoring pass beside a bare forward, in one run."""

import copy
import tempfile
import time

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from rsr_trl.scoring.architecture import on_device
from rsr_trl.scoring.batches import lay_out, plan_batches
from rsr_trl.scoring.lm_head import LMHead
from rsr_trl.training.config import RSRSFTConfig
from rsr_trl.training.prepare import SCORED
from rsr_trl.training.trainer import RSRSFTTrainer


def _now(device: torch.device) -> float:
    """
    Seconds. On the CPU those that all threads of this process computed: what else runs there doesn't count, and
    training waits for nothing but itself.
    """
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize()
    return time.perf_counter()


class _StepTimes(TrainerCallback):
    """Seconds from one step's end to the next's, data loading and callbacks included."""

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(_now(args.device))

    def seconds(self) -> list[float]:
        # The first steps warm up allocators and kernels.
        return [b - a for a, b in zip(self.ends[1:], self.ends[2:], strict=False)]


def measure_overheads(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    dataset: Dataset,
    steps: int = 8,
    repeats: int = 3,
    **settings,
) -> dict[str, list[float]]:
    """
    Time the trainers' steps on the same examples in the same order, and a full scoring pass.

    Args:
        model ([`~transformers.PreTrainedModel`]): Student; copied for every training.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        dataset ([`~datasets.Dataset`]): A few steps' examples; more than one epoch must fit into `steps`.
        steps (`int`, *optional*, defaults to `8`): Steps of each training.
        repeats (`int`, *optional*, defaults to `3`): Rounds; each runs every trainer once.
        settings: Of SFTConfig, for all trainers alike.

    Returns:
        `dict`: seconds of each step (`sft`, `no`, `online`), of each scoring pass over all examples (`rescore`) and
        of each bare no-grad forward over them (`bare`: the backbone and one product of scored positions with the
        vocabulary).
    """
    ways = {
        "sft": (SFTTrainer, SFTConfig, {}),
        "no": (RSRSFTTrainer, RSRSFTConfig, {"rsr_rescore_strategy": "no", "rsr_sampling": "random"}),
        "online": (RSRSFTTrainer, RSRSFTConfig, {"rsr_rescore_strategy": "online", "rsr_sampling": "random"}),
    }
    found: dict[str, list[float]] = {name: [] for name in [*ways, "rescore", "bare"]}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            for name, (trainer_class, config_class, own) in ways.items():
                times = _StepTimes()
                args = config_class(
                    folder, max_steps=steps, save_strategy="no", report_to="none", disable_tqdm=True, **settings, **own
                )
                trainer = trainer_class(
                    copy.deepcopy(model),
                    args=args,
                    train_dataset=dataset,
                    processing_class=processing_class,
                    callbacks=[times],
                )
                trainer.remove_callback(PrinterCallback)
                trainer.train()
                found[name] += times.seconds()
            found["rescore"].append(_seconds(trainer.rescore, args.device))
            found["bare"].append(_seconds(lambda: _bare_forward(trainer), args.device))  # noqa: B023 - called at once
    return found


def _seconds(run, device: torch.device) -> float:
    started = _now(device)
    run()
    return _now(device) - started


@torch.no_grad()
def _bare_forward(trainer: RSRSFTTrainer) -> None:
    """
    The least that a pass can be: the batches of `rescore` through the backbone, and scored positions times the head.
    """
    model, device = trainer.accelerator.unwrap_model(trainer.model).eval(), trainer.accelerator.device
    weight = LMHead.of(model).module.weight
    rows = trainer.train_dataset.select_columns(["input_ids", SCORED]).with_format("numpy")
    with trainer.accelerator.autocast():
        scoring, scorable = trainer.scoring, np.flatnonzero(trainer.table.num_tokens)
        for batch in plan_batches(scoring.lengths[scorable], scoring.max_batch_tokens, scoring.layout):
            taken = rows[scorable[batch].tolist()]
            arrays = lay_out(taken["input_ids"], taken[SCORED], scoring.layout)
            tensors = on_device(arrays, device)
            scored = tensors.pop("scored")
            hidden = model.base_model(use_cache=False, **tensors).last_hidden_state[:, :-1][scored[:, 1:]]
            for part in hidden.split(512):
                torch.nn.functional.linear(part, weight)
