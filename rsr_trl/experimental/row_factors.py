"""A factor for every row's tokens in SFTTrainer's own loss: what `weighting.py` and `redi.py` share.

SFTTrainer sums -ln p over the trained tokens and divides by their number, over all micro-batches and processes of a
step. Here each ln p is first multiplied by the factor of its row; the rest stays SFTTrainer's. It knows neither scores
nor pairs. TRL's trainers have nothing of the kind: this way of adding it is ours.
"""

import functools
import types
from dataclasses import dataclass, fields

import torch
from accelerate.utils import is_peft_model
from transformers import PreTrainedModel
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from rsr_trl.rsr import RSRError
from rsr_trl.training.collator import MASKED_ROW, ROW, RSRDataCollator, in_batch


TOKEN_ROWS = "rsr_token_rows"  # in a batch: row of the training set that each token is of, -1 for padding


@dataclass
class RowCollator(RSRDataCollator):
    """[`RSRDataCollator`] that says which row each token is of, in `rsr_token_rows`; not in evaluation."""

    def torch_call(self, examples: list[dict]) -> dict:
        batch = super().torch_call(examples)
        if ROW not in examples[0]:
            return batch
        rows = [row for row in examples if self._trains(row)] or [MASKED_ROW]
        batch[TOKEN_ROWS] = torch.full(batch["input_ids"].shape, -1)
        for row, line, first in in_batch(rows, self.padding_free):
            batch[TOKEN_ROWS][line, first : first + len(row["input_ids"])] = row[ROW]
        return batch


@dataclass
class WeightedHead:
    """What the patched forward takes and leaves: `(batch, sequence)` weights, and log-probabilities one shorter."""

    weights: torch.Tensor | None = None
    log_probs: torch.Tensor | None = None  # of the trained tokens, before they are weighted; 0 elsewhere

    def patch(self, model: PreTrainedModel) -> None:
        """Let `model`, with TRL's fused head, weight its log-probabilities where weights are set."""
        inner = model.forward

        # Weights aren't an argument: wrappers (FSDP, DeepSpeed) would round arguments to the dtype of the model.
        @functools.wraps(type(model).forward)
        def forward(_, *args, **kwargs):
            outputs = inner(*args, **kwargs)
            if self.weights is not None:
                # Prompt tuning puts virtual tokens in front: the real ones are the last.
                virtual = outputs.log_probs.shape[1] + 1 - self.weights.shape[1]
                self.log_probs = outputs.log_probs.detach()[:, virtual:]
                weights = torch.nn.functional.pad(self.weights, (virtual, 0))[:, 1:]
                outputs.log_probs = outputs.log_probs * weights
            return outputs

        model.forward = types.MethodType(forward, model)


class RowWeightedLoss:
    """Mixin in front of SFTTrainer: each trained token's loss times its row's factor, which `row_factors` gives."""

    def __init__(self, model, args, *positional, **kwargs):
        settings = (
            (args.packing, "packing=True, which joins rows: set packing=False (padding_free=True saves the padding)"),
            (args.loss_type != "nll", f"loss_type={args.loss_type!r}: set loss_type='nll'"),
            (args.label_smoothing_factor > 0, "label_smoothing_factor above 0: leave it at 0"),
            (not args.average_tokens_across_devices, "average_tokens_across_devices=False: leave it at True"),
        )
        self._refuse(*settings)
        super().__init__(model, args, *positional, **kwargs)
        old = self.data_collator
        known = (DataCollatorForLanguageModeling, RSRDataCollator)
        self._refuse(
            (self.compute_loss_func is not None, "a compute_loss_func: leave it out"),
            (self._is_vision_dataset, "images: remove their column, or train without weights"),
            (type(old) not in known, f"a data collator of your own ({type(old).__name__}): leave data_collator out"),
        )
        self.data_collator = RowCollator(**{f.name: getattr(old, f.name) for f in fields(old)})
        self.head = WeightedHead()
        self.head.patch(self.model.get_base_model() if is_peft_model(self.model) else self.model)

    def _refuse(self, *settings: tuple[bool, str]) -> None:
        for found, what in settings:
            if found:
                raise RSRError(f"{type(self).__name__} doesn't work with {what}.")

    def row_factors(self, trained: list[torch.Tensor], num_items) -> torch.Tensor:
        """
        Factor of each row, and 0 behind them for no row: float64 of shape `(n + 1,)`. `trained` has the row of every
        trained token in this process's micro-batches of a step, -1 elsewhere; `num_items` is what SFTTrainer divides
        the summed losses of all processes by. Called once per step on every process.
        """
        raise NotImplementedError

    def get_batch_samples(self, *args):
        batches, num_items = super().get_batch_samples(*args)
        trained = []
        for batch in batches:
            mask = batch["labels"] != -100
            mask[:, 0] = False  # nothing predicts it
            trained.append(batch[TOKEN_ROWS].masked_fill(~mask, -1).to(self.args.device))
        self._factors = self.row_factors(trained, num_items)
        return batches, num_items

    def compute_loss(self, model, inputs, *args, **kwargs):
        rows = inputs.pop(TOKEN_ROWS, None)
        self.head.weights = None if rows is None else self._factors[rows].float()
        try:
            return super().compute_loss(model, inputs, *args, **kwargs)
        finally:
            self.head.weights = None

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns += [ROW] if ROW not in self._signature_columns else []
