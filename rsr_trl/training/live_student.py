"""Scores from the student that is being trained: inside its own forward, so that DDP, FSDP and ZeRO see an ordinary
one.

It knows the model and the processes, and nothing of when to score or what a score is for.
"""

import contextlib
import functools
import random
import types
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType, is_compiled_module
from datasets import Dataset
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.utils import logging

from rsr_trl.rsr import RSRError, trajectory_means
from rsr_trl.scoring.architecture import (
    best_layout,
    check_architecture,
    default_batch_tokens,
    evaluation_mode,
    length_border,
    on_device,
)
from rsr_trl.scoring.batches import ROWS_WITH_IMAGES, WINDOW_TOKENS, lay_out, plan_batches
from rsr_trl.scoring.lm_head import BrokenLogits, LMHead, TokenStats, own_logits
from rsr_trl.scoring.rows import undecoded, windows
from rsr_trl.scoring.student import Student
from rsr_trl.scoring.tokens import TokenizedExample
from rsr_trl.training.prepare import SCORED


logger = logging.get_logger(__name__)

# Every process has the whole model: a pass without its wrapper needs no other process, and nobody has to keep in step.
WHOLE = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)

Measured = tuple[np.ndarray, np.ndarray, np.ndarray]  # rows (int64), mean clipped rank, mean surprisal (float64)


def add_rsr_head(model: PreTrainedModel) -> list[TokenStats]:
    """
    Patch `model.forward` on the instance, as TRL's `add_fused_lm_head` does before, so that it takes `rsr_targets` of
    shape `(batch, sequence)`: the token id where a token is scored and -100 elsewhere. Not after the model is wrapped.

    - `model(..., rsr_targets=targets, rsr_only=True)` runs the backbone, and the LM head on scored positions alone. It
      returns `{"ranks", "surprisals"}` of the `N` scored tokens, row after row: int64 and float32 of shape `(N,)`.
      The first such call compares with the model's own logits, as [`own_logits`] does.
    - `model(..., rsr_targets=targets, fused_lm_head=True)` is the training forward. It scores the hidden states that
      it computes anyway and leaves the result in the list that this function returns: take it out before the next.
    """
    check_architecture(model)
    inner, measured, checked = model.forward, [], []

    # Keep the original signature: `generate` and the trainer inspect it.
    @functools.wraps(type(model).forward)
    def forward(self, *args, rsr_targets=None, rsr_only=False, **kwargs):
        if rsr_targets is None:
            return inner(*args, **kwargs)
        if rsr_only:
            if not checked:  # once, on a few tokens
                given = {name: kwargs.get(name) for name in ("input_ids", "inputs_embeds")}
                few = {name: value[:1, :16] for name, value in given.items() if value is not None}
                checked.append(own_logits(self, inner, **few).shape)
            with torch.no_grad():
                hidden = self.base_model(*args, use_cache=False, **kwargs).last_hidden_state
            stats = _score(self, hidden, rsr_targets)
            return {"ranks": stats.ranks, "surprisals": stats.surprisals}
        seen = []
        with self.base_model.register_forward_hook(lambda _, inputs, output: seen.append(output.last_hidden_state)):
            outputs = inner(*args, **kwargs)
        measured[:] = [_score(self, seen[0].detach(), rsr_targets)]
        return outputs

    model.forward = types.MethodType(forward, model)
    return measured


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
    """Mean clipped rank and mean surprisal of each row, float64, from the scored tokens of all rows in sequence."""
    ranks, surprisals = ranks.cpu().numpy(), surprisals.double().cpu().numpy()
    num_scored = np.asarray(num_scored, dtype=np.int64)
    finite = np.isfinite(surprisals)
    means = trajectory_means(ranks, np.where(finite, surprisals, 0.0), num_scored, r_max)
    # Broken logits give NaN. The table refuses it on all processes; an error here would leave the others waiting.
    broken = np.repeat(np.arange(num_scored.size), num_scored)[~finite]
    means[0][broken] = means[1][broken] = np.nan
    return means


class ScoringPass:
    """
    Scores rows of a prepared dataset (`lengths`: tokens of each) with the student as it is, all processes together, in
    batches that fit its memory. `model` is neither wrapped nor is it a PEFT model around one.

    Where every process has all of the model (one process, DDP), rows share prefixes as in [`Student`], each process
    with rows of its own. FSDP and ZeRO need equally many forward passes of the wrapped model on all of them, and
    prompt learning needs the PEFT model: there `as_wrapped` is set and each row is read alone.

    `tokenize` makes [`TokenizedExample`]s of rows with images, each time anew; only where a process has all of the
    model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        accelerator: Accelerator,
        dataset: Dataset,
        lengths: np.ndarray,
        pad_token_id: int,
        r_max: float,
        max_batch_tokens: int | None = None,
        share_prefixes: bool = True,
        show_bar: bool = True,
        tokenize: Callable | None = None,
    ):
        self._model, self._student, self._share_prefixes, self._tokenize = model, None, share_prefixes, tokenize
        self.as_wrapped = accelerator.distributed_type not in WHOLE or not (share_prefixes or tokenize)
        self.accelerator, self.lengths, self.pad_token_id = accelerator, lengths, pad_token_id
        self.r_max, self._show_bar = r_max, show_bar and accelerator.is_main_process
        self.max_batch_tokens = max_batch_tokens or default_batch_tokens(accelerator.device)
        self.layout, self._border = best_layout(model, accelerator.device), length_border(model)
        self._rows = (
            undecoded(dataset) if tokenize else dataset.select_columns(["input_ids", SCORED]).with_format("numpy")
        )

    def __call__(self, model: torch.nn.Module, optimizer: AcceleratedOptimizer, rows: np.ndarray) -> Measured:
        """Score these rows; weights, modes and random numbers stay. Batches shrink until they fit the memory."""
        # Compiled for training batches, it would be compiled again for every shape of a scoring batch.
        model = model._orig_mod if is_compiled_module(model) else model
        if not self.as_wrapped and not any(isinstance(weight, DTensor) for weight in self._model.parameters()):
            settings = {"max_batch_tokens": self.max_batch_tokens, "share_prefixes": self._share_prefixes}
            self._student = self._student or Student(self._model, **settings)
            self._student.layout = self.layout
            with undisturbed(model, optimizer):
                return self.score_whole(rows)
        if self._tokenize:
            raise RSRError(
                "Scoring rows with images in training needs all of the student in every process, without FSDP, ZeRO-3 "
                "and prompt learning. Score the dataset before (rsr score) and leave rsr_rescore_strategy at 'no'."
            )
        while True:
            plan = plan_batches(self.lengths[rows], self.max_batch_tokens, self.layout, self._border)
            batches = [rows[batch] for batch in plan]  # the same on every process
            try:
                with undisturbed(model, optimizer):
                    return self.score(model, batches)
            except torch.OutOfMemoryError as error:
                # Several processes work in step: one alone can't start again. No batch is below its longest row.
                if self.accelerator.num_processes > 1 or self.lengths[batches[0][0]] >= self.max_batch_tokens:
                    longest = max(self.lengths[batch].sum() for batch in batches)
                    error.add_note(
                        f"This was while scoring, in batches of up to {longest} tokens: set rsr_max_batch_tokens "
                        f"below {self.max_batch_tokens}, or where one trajectory is too long for the memory, lower "
                        "max_length."
                    )
                    raise
            self.max_batch_tokens //= 2
            logger.warning(
                f"Out of GPU memory while scoring: going on with rsr_max_batch_tokens={self.max_batch_tokens}. Set it "
                "next time."
            )

    def score_whole(self, rows: np.ndarray) -> Measured:
        """Score the rows without the wrapper, each process consecutive ones of about as many tokens."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        means, ends = np.zeros((2, rows.size)), np.cumsum(self.lengths[rows])
        windows = -(-int(ends[-1]) // (world * WINDOW_TOKENS))  # of each process
        shares = ends[-1] * np.arange(world * windows + 1) / (world * windows)
        borders = np.searchsorted(ends, shares, side="right")[rank * windows : (rank + 1) * windows + 1]
        with self.accelerator.autocast(), self._bar(int(borders[-1] - borders[0])) as bar:
            for start, stop in zip(borders, borders[1:], strict=False):
                means[:, start:stop] = self._means_of(rows[start:stop], lambda done, *_: bar.update(done))
        return self._of_all_processes(rows, means)

    def _means_of(self, rows: np.ndarray, progress: Callable) -> np.ndarray:
        if not self._tokenize:
            given = self._rows[rows.tolist()]
            return self._means(list(map(TokenizedExample, given["input_ids"], given[SCORED])), progress)
        seen = windows(self._rows.select(rows), self._tokenize, rows_at_once=ROWS_WITH_IMAGES)
        return np.concatenate([np.zeros((2, 0)), *(self._means(window.examples, progress) for window in seen)], axis=1)

    def _means(self, examples: list[TokenizedExample], progress: Callable) -> np.ndarray:
        try:
            tokens = self._student.score(examples, progress=progress)
        except BrokenLogits as broken:  # NaN for them: the table refuses it on all processes
            means = np.zeros((2, len(examples)))
            means[:, broken.rows] = np.nan
            return means
        return np.stack(trajectory_means(tokens.ranks, tokens.surprisals, tokens.num_tokens, self.r_max))

    def score(self, model: torch.nn.Module, batches: Sequence[Sequence[int]]) -> Measured:
        """Score the rows of these batches with the model as the trainer wrapped it: the same on every process."""
        rows = np.concatenate([np.asarray(batch, dtype=np.int64) for batch in batches])
        starts, means = np.cumsum([0, *map(len, batches)]), np.zeros((2, rows.size))
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        with torch.no_grad(), self.accelerator.autocast(), self._bar(rows.size) as bar:
            for first in range(0, len(batches), world):
                number = first + rank
                # A process without a batch in the last round still takes part in the forward, with the cheapest row.
                batch = batches[number] if number < len(batches) else batches[-1][-1:]
                given = self._rows[np.asarray(batch).tolist()]
                arrays = lay_out(given["input_ids"], given[SCORED], self.layout, self.pad_token_id)
                arrays["rsr_targets"] = np.where(arrays.pop("scored"), arrays["input_ids"], -100)
                stats = model(**on_device(arrays, self.accelerator.device), rsr_only=True)
                if number < len(batches):
                    num_scored = [int(mask.sum()) for mask in given[SCORED]]
                    part = slice(starts[number], starts[number + 1])
                    means[:, part] = token_means(stats["ranks"], stats["surprisals"], num_scored, self.r_max)
                bar.update(int(starts[min(first + world, len(batches))] - starts[first]))
        return self._of_all_processes(rows, means)

    def _bar(self, num_rows: int) -> tqdm:
        return tqdm(total=num_rows, desc="Scoring", unit=" rows", disable=not self._show_bar)

    def _of_all_processes(self, rows: np.ndarray, means: np.ndarray) -> Measured:
        if self.accelerator.num_processes > 1:
            means = self.accelerator.reduce(torch.from_numpy(means).to(self.accelerator.device), "sum").cpu().numpy()
        return rows, means[0], means[1]
