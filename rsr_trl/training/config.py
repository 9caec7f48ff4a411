"""Settings of [`RSRSFTTrainer`]: those of SFTConfig and the `rsr_` ones."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch
from transformers import IntervalStrategy
from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig

from rsr_trl.rsr import RSRError
from rsr_trl.scoring.scores import direction_of, known_score
from rsr_trl.training.live_table import LIVE
from rsr_trl.training.sampler import Sampling, check_order


Rescoring = Literal["no", "epoch", "steps", "online"]


def _explained_once(config: type) -> type:
    """Make the docstring's explanation of a field its help on the command line too."""
    for f in fields(config):
        explanation = re.search(rf"^ +{f.name} \(.*?\): (.*\n(?: {{12}}.*\n)*)", config.__doc__ or "", re.MULTILINE)
        if explanation:
            f.metadata = {"help": " ".join(explanation[1].split()).replace("`", "").replace("%", "%%")}
    return config


@_explained_once
@dataclass
class RSRSFTConfig(SFTConfig):
    r"""
    Configuration class for the [`RSRSFTTrainer`].

    Its own parameters; the others are those of [`~trl.SFTConfig`] and [`~transformers.TrainingArguments`]. RSR is
    **lower = more suitable**. The defaults are the paper's recipe for a dataset that was selected before: all of it,
    in random order, without re-scoring. With `rsr_group_column` alone they select the best of each problem first.

    Parameters:
        > Parameters that control the score

        rsr_score (`str`, *optional*, defaults to `"rsr"`): What the examples are ordered and chosen by. `"rsr"`,
            `"surprisal"` and `"rank"` are measured with the current student. `"length"`, `"random"`, any other score
            in the dataset (`"lark"` for its column `score_lark`) and any numeric column don't change: they need
            `rsr_rescore_strategy="no"`.
        rsr_r_max (`int`, *optional*, defaults to `100`): Token ranks are clipped at this value.
        rsr_prefer (`str`, *optional*): Whether `"low"` or `"high"` scores come first and are kept. Defaults to the
            score's own direction (RSR: `"low"`, the most suitable); required for your own columns.
        rsr_max_batch_tokens (`int`, *optional*): Tokens per batch of a scoring pass on each device, padding
            included. By default what suits the device.
        rsr_share_prefixes (`bool`, *optional*, defaults to `True`): Read what several examples begin with only once
            in a scoring pass, on one process or under DDP.

        > Parameters that control the order and the choice

        rsr_sampling (`str`, *optional*, defaults to `"random"`): `"random"` (the order of SFTTrainer: scores only
            select), `"weighted"` (without replacement, probability falling with the rank of the score) or `"ordered"`
            (strictly the most suitable first: a curriculum, ties by seed and epoch).
        rsr_temperature (`float`, *optional*, defaults to `0.2`): For `"weighted"`: share of the kept examples over
            which the probability falls by a factor e. Small is near `"ordered"`, large near `"random"`.
        rsr_keep_fraction (`float`, *optional*, defaults to `1.0`): Train each epoch on this share in (0, 1] of the
            scored examples, the most suitable; rounded up.
        rsr_score_threshold (`float`, *optional*): Examples whose score is past this value when they are drawn, or that
            have none, don't train. They come last in the epoch and count towards its length, but a step in which no
            process has an example that trains changes nothing: it runs no forward pass and moves neither the weights,
            nor the optimizer, nor the learning rate schedule, which then doesn't reach its end.
        rsr_group_column (`str`, *optional*): Column that names the problem: each epoch trains on the
            `rsr_keep_per_group` most suitable trajectories of each.
        rsr_keep_per_group (`int`, *optional*, defaults to `1`): Trajectories per group; smaller groups are kept whole.

        rsr_min_tokens (`int`, *optional*): Where `rsr_group_column` or `rsr_keep_fraction` choose, leave out examples
            with fewer scored tokens. By default 32, as in [`select_trajectories`]; `0` lets bare answers in.

        > Parameters that control re-scoring

        rsr_rescore_strategy (`str`, *optional*, defaults to `"no"`): When to re-score with the current student.
            `"no"`: never. `"epoch"`: all examples at the start of each epoch. `"steps"`: what the epoch
            may still draw, every `rsr_rescore_steps`; and all at the start of an epoch, if the last pass wasn't of
            all. `"online"`: in the training steps themselves, for a small part of their time; an epoch's order then
            comes from scores of different moments of the last one, which compare only roughly.
        rsr_rescore_steps (`int` or `float`, *optional*): Steps between two scoring passes for `"steps"`. Smaller than
            1: a ratio of all training steps.
        rsr_teacher_column (`str`, *optional*): Column with teacher names: the RSR of each teacher is logged, a ratio
            of means as in [`rank_teachers`]; of another score the mean.

        > Parameters that control resuming

        rsr_allow_changed_resume (`bool`, *optional*, defaults to `False`): Go on from a checkpoint with other settings
            of order and scores than it was saved with. By default that is an error, which names each difference.

    `bf16` defaults to `True` only where a bf16 GPU is used; elsewhere training runs in fp32.
    """

    rsr_score: str = "rsr"
    rsr_r_max: int = 100
    rsr_prefer: Literal["low", "high"] | None = None
    rsr_max_batch_tokens: int | None = None
    rsr_share_prefixes: bool = True
    rsr_sampling: Sampling = "random"
    rsr_temperature: float = 0.2
    rsr_keep_fraction: float = 1.0
    rsr_score_threshold: float | None = None
    rsr_group_column: str | None = None
    rsr_keep_per_group: int = 1
    rsr_min_tokens: int | None = None
    rsr_rescore_strategy: Rescoring = "no"
    rsr_rescore_steps: float | None = None
    rsr_teacher_column: str | None = None
    rsr_allow_changed_resume: bool = False

    def __post_init__(self):
        if self.bf16 is None and not self.fp16:
            self.bf16 = is_torch_bf16_gpu_available() and not self.use_cpu
        if self.activation_checkpointing is None:  # TRL sets its default under the deprecated name, which warns
            self.activation_checkpointing = self.gradient_checkpointing
        super().__post_init__()
        if not torch.accelerator.is_available():  # there is nothing to copy to, and torch warns about it
            self.dataloader_pin_memory = False
        self.rsr_prefer = direction_of(self.rsr_score, self.rsr_prefer)
        order = (self.rsr_sampling, self.rsr_temperature, self.rsr_keep_fraction, self.rsr_keep_per_group)
        check_order(*order, self.rsr_min_tokens, grouped=self.rsr_group_column is not None, prefix="rsr_")
        for sentence in self._contradictions():
            raise RSRError(sentence)

    @classmethod
    def from_sft_config(cls, args: SFTConfig) -> "RSRSFTConfig":
        """A plain SFTConfig with the default `rsr_` settings."""
        # Not `to_dict`, which hides tokens, the eos_token too.
        return cls(**{f.name: getattr(args, f.name) for f in fields(args) if f.init})

    @property
    def chooses(self) -> bool:
        """Whether only some of the examples train: the best of each group, or of all."""
        return self.rsr_group_column is not None or self.rsr_keep_fraction < 1

    @property
    def needs_scores(self) -> bool:
        """Whether scores choose, order or are to be followed; else all examples come in random order, unscored."""
        orders = self.rsr_sampling != "random" or self.rsr_rescore_strategy != "no"
        return self.chooses or orders or {self.rsr_score_threshold, self.rsr_teacher_column} != {None}

    def rescore_every(self, max_steps: int) -> int:
        """Steps between two scoring passes in a training of `max_steps` steps."""
        steps = self.rsr_rescore_steps
        return int(steps) if steps >= 1 else max(1, math.ceil(max_steps * steps))

    def _contradictions(self) -> Iterator[str]:
        """What doesn't go together with an order by score, or is out of range, and what to set."""
        if self.packing:
            yield "packing=True puts examples into one row: set packing=False (padding_free=True saves the padding)."
        eval_packing = self.packing if self.eval_packing is None else self.eval_packing
        if eval_packing and self.eval_strategy != IntervalStrategy.NO:
            yield "eval_packing=True isn't supported: set eval_packing=False."
        if (strategy := self.train_sampling_strategy) != "random":
            yield f"train_sampling_strategy={strategy!r} is another order: leave it at 'random' and set rsr_sampling."
        if self.truncation_mode != "keep_start":
            yield "truncation_mode='keep_end' scores other tokens than RSRScorer: set truncation_mode='keep_start'."
        if (self.dataset_kwargs or {}).get("skip_prepare_dataset"):
            yield "skip_prepare_dataset=True hides which tokens are the response: pass data before tokenization."
        if self.accelerator_config.split_batches or self.accelerator_config.dispatch_batches:
            yield "split_batches and dispatch_batches of accelerator_config change who draws what: leave them unset."
        strategy, steps = self.rsr_rescore_strategy, self.rsr_rescore_steps
        for name in ("rsr_r_max", "rsr_max_batch_tokens"):
            value = getattr(self, name)
            if value is not None and not value >= 1:
                yield f"{name} must be 1 or more, got {value}."
        if strategy not in get_args(Rescoring):
            yield f"rsr_rescore_strategy must be one of {str(get_args(Rescoring))[1:-1]}, got {strategy!r}."
        if steps is not None and (not steps > 0 or (steps >= 1 and steps != int(steps))):
            yield f"rsr_rescore_steps must be a whole number, or a ratio in (0, 1), got {steps}."
        if self.rsr_group_column is None and self.rsr_keep_per_group != 1:
            yield f"rsr_keep_per_group={self.rsr_keep_per_group} needs rsr_group_column."
        if strategy == "steps" and steps is None:
            yield "rsr_rescore_strategy='steps' needs rsr_rescore_steps."
        if strategy != "steps" and steps is not None:
            yield f"rsr_rescore_steps={steps} needs rsr_rescore_strategy='steps'."
        if strategy == "online" and self.max_steps < 0 and self.num_train_epochs <= 1:
            yield (
                "rsr_rescore_strategy='online' applies its new order from the next epoch, and there is only one: "
                "raise num_train_epochs or set rsr_rescore_strategy='steps'."
            )
        if strategy == "online" and self.torch_compile:
            yield "rsr_rescore_strategy='online' doesn't work with torch_compile=True: set torch_compile=False."
        if strategy != "no" and known_score(self.rsr_score) not in LIVE:
            yield (
                f"rsr_score={self.rsr_score!r} isn't measured while training (those that are: {', '.join(LIVE)}): "
                "leave rsr_rescore_strategy at 'no'."
            )
