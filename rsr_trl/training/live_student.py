"""Scores from the student that is being trained: inside its own forward, so that DDP, FSDP and ZeRO see an ordinary
one.

It knows the model and the processes, and nothing of when to score or what a score is for.
"""

import contextlib
import functools
import random
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from rsr_trl.rsr import trajectory_means
from rsr_trl.scoring.batches import Layout, lay_out
from rsr_trl.scoring.lm_head import LMHead, TokenStats
from rsr_trl.scoring.student import evaluation_mode, on_device
from rsr_trl.training.epoch_rows import SCORED


@dataclass
class RSRHead:
    """
    What [`add_rsr_head`] adds to a model.

    Attributes:
        last ([`TokenStats`], *optional*):
            Of the last training forward that was given `rsr_targets`; take it before the next.
    """

    last: TokenStats | None = field(default=None)

    def take(self) -> TokenStats:
        stats, self.last = self.last, None
        return stats


def add_rsr_head(model: PreTrainedModel) -> RSRHead:
    """
    Patch `model.forward` on the instance, as TRL's `add_fused_lm_head` does, so that it takes `rsr_targets`.

    `rsr_targets` of shape `(batch, sequence)` holds the token id where a token is scored and -100 elsewhere.

    - `model(..., rsr_targets=targets, rsr_only=True)` runs the backbone, and the LM head on scored positions alone. It
      returns `{"ranks", "surprisals"}` of the `N` scored tokens, row after row: int64 and float32 tensors of shape
      `(N,)`.
    - `model(..., rsr_targets=targets, fused_lm_head=True)` is the training forward. It scores the hidden states that
      it makes anyway and leaves the result in [`RSRHead.last`].

    Call it before the model is wrapped, and after TRL's own patch.
    """
    inner, head = model.forward, RSRHead()

    # Keep the original signature: `generate` and the trainer inspect it.
    @functools.wraps(type(model).forward)
    def forward(self, *args, rsr_targets=None, rsr_only=False, **kwargs):
        if rsr_targets is None:
            return inner(*args, **kwargs)
        if rsr_only:
            with torch.no_grad():
                hidden = self.base_model(*args, use_cache=False, **kwargs).last_hidden_state
            stats = _score(self, hidden, rsr_targets)
            return {"ranks": stats.ranks, "surprisals": stats.surprisals}
        seen = []
        hook = self.base_model.register_forward_hook(
            lambda module, inputs, output: seen.append(output.last_hidden_state)
        )
        try:
            outputs = inner(*args, **kwargs)
        finally:
            hook.remove()
        head.last = _score(self, seen[0].detach(), rsr_targets)
        return outputs

    model.forward = types.MethodType(forward, model)
    return head


def _score(model: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor) -> TokenStats:
    # Prompt tuning puts virtual tokens in front: the real ones are the last.
    hidden, targets = hidden[:, -targets.shape[1] :][:, :-1], targets[:, 1:]
    scored = targets != -100
    # The head is looked up on each call: FSDP and PEFT replace it after patching.
    return LMHead.of(model).score(hidden[scored], targets[scored])


@contextlib.contextmanager
def undisturbed(model: torch.nn.Module, optimizer: AcceleratedOptimizer) -> Iterator[None]:
    """Evaluation mode inside; afterwards model, schedule-free optimizer and random numbers are as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    optimizer.eval()  # schedule-free optimizers evaluate other weights than they train; nothing happens in others
    try:
        with evaluation_mode(model), torch.random.fork_rng(devices=devices):
            yield
    finally:
        if model.training:
            optimizer.train()
        random.setstate(python)
        np.random.set_state(numpy)


def token_means(
    ranks: torch.Tensor, surprisals: torch.Tensor, num_scored: Sequence[int], r_max: float
) -> tuple[np.ndarray, np.ndarray]:
    """
    Mean clipped rank and mean surprisal of each row, float64, from the scored tokens of all rows, row after row.

    A row of broken logits is NaN: the table refuses it on all processes together, where an error here would leave the
    others waiting.
    """
    ranks, surprisals = ranks.cpu().numpy(), surprisals.double().cpu().numpy()
    num_scored = np.asarray(num_scored, dtype=np.int64)
    finite = np.isfinite(surprisals)
    means = trajectory_means(ranks, np.where(finite, surprisals, 0.0), num_scored, r_max)
    if not finite.all():
        broken = np.unique(np.repeat(np.arange(num_scored.size), num_scored)[~finite])
        means[0][broken] = means[1][broken] = np.nan
    return means


def score_rows(
    model: torch.nn.Module,
    accelerator: Accelerator,
    dataset: Dataset,
    batches: Sequence[Sequence[int]],
    r_max: float,
    pad_token_id: int,
    progress: bool,
    layout: Layout = "padded",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Score rows with the wrapped model, all processes together. Call it inside [`undisturbed`].

    Args:
        model (`torch.nn.Module`): The model as the trainer wrapped it, with the head of [`add_rsr_head`].
        accelerator ([`~accelerate.Accelerator`]): Of the trainer.
        dataset ([`~datasets.Dataset`]): Prepared rows, with `input_ids` and `rsr_scored`.
        batches (sequence of sequences of `int`): Rows of each forward, the same plan on every process.
        r_max (`float`): Ranks are clipped at this value.
        pad_token_id (`int`): Id to pad with.
        progress (`bool`): Whether to show a bar, on the main process.
        layout (`str`, *optional*, defaults to `"padded"`): How the plan's rows lie in a batch.

    Returns:
        Rows (int64), mean clipped rank and mean surprisal (float64), in the order of the plan, equal on every process.
    """
    columns = dataset.select_columns(["input_ids", SCORED]).with_format("numpy")
    rows = np.concatenate([np.asarray(batch, dtype=np.int64) for batch in batches])
    starts = np.cumsum([0, *map(len, batches)])
    means = np.zeros((2, rows.size))
    world, rank = accelerator.num_processes, accelerator.process_index
    bar = tqdm(total=rows.size, desc="Scoring", unit=" rows", disable=not (progress and accelerator.is_main_process))
    with torch.no_grad(), accelerator.autocast(), bar:
        for first in range(0, len(batches), world):
            number = first + rank
            # A process without a batch in the last round still takes part in the forward, with the cheapest row there
            # is.
            batch = batches[number] if number < len(batches) else batches[-1][-1:]
            given = columns[np.asarray(batch).tolist()]
            arrays = lay_out(given["input_ids"], given[SCORED], layout, pad_token_id)
            arrays["rsr_targets"] = np.where(arrays.pop("scored"), arrays["input_ids"], -100)
            inputs = on_device(arrays, accelerator.device)
            stats = model(**inputs, rsr_only=True)
            if number < len(batches):
                num_scored = [int(mask.sum()) for mask in given[SCORED]]
                means[:, starts[number] : starts[number + 1]] = token_means(
                    **stats, num_scored=num_scored, r_max=r_max
                )
            bar.update(int(starts[min(first + world, len(batches))] - starts[first]))
    if world > 1:
        means = accelerator.reduce(torch.from_numpy(means).to(accelerator.device), "sum").cpu().numpy()
    return rows, means[0], means[1]
