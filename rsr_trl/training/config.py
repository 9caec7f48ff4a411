"""Settings of [`RSRSFTTrainer`]: those of SFTConfig and the `rsr_` ones."""

from dataclasses import dataclass, field, fields

import torch
from transformers import IntervalStrategy
from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig

from rsr_trl.scoring.scores import direction_of, known_score
from rsr_trl.training.score_table import LIVE


@dataclass
class RSRSFTConfig(SFTConfig):
    r"""
    Configuration class for the [`RSRSFTTrainer`].

    This class includes only the parameters that are specific to RSR. For a full list of training arguments, please
    refer to the [`~trl.SFTConfig`] and [`~transformers.TrainingArguments`] documentation. RSR is **lower = more
    suitable**.

    Parameters:
        > Parameters that control the score

        rsr_score (`str`, *optional*, defaults to `"rsr"`):
            What the examples are ordered and chosen by. `"rsr"`, `"surprisal"` and `"rank"` are measured with the
            student as it is. `"length"`, `"random"`, any other score that the dataset has (`"lark"` for its column
            `score_lark`) and any numeric column stay as they are: they need `rsr_rescore_strategy="no"`.
        rsr_r_max (`int`, *optional*, defaults to `100`):
            Token ranks are clipped at this value.
        rsr_prefer (`str`, *optional*):
            Which end of the score comes first and is kept: `"low"` or `"high"`. By default the score's own (RSR:
            `"low"`, the most suitable); a column of your own has none and needs it.
        rsr_max_batch_tokens (`int`, *optional*):
            Tokens of one batch of a scoring pass on each device, padding included. By default what suits the device.

        > Parameters that control the order and the choice

        rsr_sampling (`str`, *optional*, defaults to `"weighted"`):
            `"weighted"` (without replacement, probability falling with the rank of the score), `"ordered"` (strictly
            the most suitable first) or `"random"` (the order of [`~trl.SFTTrainer`]).
        rsr_temperature (`float`, *optional*, defaults to `0.2`):
            For `"weighted"`: share of the kept examples over which the probability falls by a factor e.
        rsr_keep_fraction (`float`, *optional*, defaults to `1.0`):
            Train each epoch on this share of the examples, the most suitable.
        rsr_score_threshold (`float`, *optional*):
            Examples whose score is past this value when they are drawn don't train. They come last in the epoch and
            count towards its length.
        rsr_group_column (`str`, *optional*):
            Column that says which trajectories answer the same problem: each epoch trains on the `rsr_keep_per_group`
            most suitable of each.
        rsr_keep_per_group (`int`, *optional*, defaults to `1`):
            Trajectories of each group.

        > Parameters that control re-scoring

        rsr_rescore_strategy (`str`, *optional*, defaults to `"epoch"`):
            When to score again with the student as it is then: `"no"`, at the start of each `"epoch"`, every
            `rsr_rescore_steps` `"steps"`, or `"online"`: in the training steps themselves, for a small part of their
            time; the new order shows from the next epoch.
        rsr_rescore_steps (`int` or `float`, *optional*):
            Steps between two scoring passes for `"steps"`. Smaller than 1: a ratio of all training steps.
        rsr_teacher_column (`str`, *optional*):
            Column that names the teacher: the mean score of each teacher is logged.

    > [!NOTE]
    > These parameters have default values different from [`~trl.SFTConfig`]:
    > - `bf16`: Defaults to `True` only where a bf16 GPU is used; elsewhere training runs in fp32.
    """

    # Parameters that control the score
    rsr_score: str = field(
        default="rsr",
        metadata={
            "help": "What the examples are ordered and chosen by: 'rsr', 'surprisal' or 'rank', measured with the "
            "student as it is; or, with rsr_rescore_strategy='no', 'length', 'random', another score that the dataset "
            "has, or a numeric column of it."
        },
    )
    rsr_r_max: int = field(default=100, metadata={"help": "Token ranks are clipped at this value."})
    rsr_prefer: str | None = field(
        default=None,
        metadata={
            "help": "Which end of the score comes first and is kept; by default its own. RSR: lower is more suitable.",
            "choices": ["low", "high"],
        },
    )
    rsr_max_batch_tokens: int | None = field(
        default=None,
        metadata={"help": "Tokens of one batch of a scoring pass on each device. By default what suits the device."},
    )

    # Parameters that control the order and the choice
    rsr_sampling: str = field(
        default="weighted",
        metadata={
            "help": "'weighted' (without replacement, probability falling with the rank of the score), 'ordered' "
            "(strictly the most suitable first) or 'random' (the order of SFTTrainer).",
            "choices": ["weighted", "ordered", "random"],
        },
    )
    rsr_temperature: float = field(
        default=0.2,
        metadata={
            "help": "For 'weighted': share of the kept examples over which the probability falls by a factor e."
        },
    )
    rsr_keep_fraction: float = field(
        default=1.0,
        metadata={"help": "Train each epoch on this share of the examples, the most suitable."},
    )
    rsr_score_threshold: float | None = field(
        default=None,
        metadata={"help": "Examples whose score is past this value when they are drawn don't train."},
    )
    rsr_group_column: str | None = field(
        default=None,
        metadata={
            "help": "Column that says which trajectories answer the same problem: each epoch trains on the "
            "`rsr_keep_per_group` most suitable of each."
        },
    )
    rsr_keep_per_group: int = field(default=1, metadata={"help": "Trajectories of each group."})

    # Parameters that control re-scoring
    rsr_rescore_strategy: str = field(
        default="epoch",
        metadata={
            "help": "When to score again with the student as it is then: 'no', at the start of each 'epoch', every "
            "`rsr_rescore_steps` 'steps', or 'online', in the training steps themselves.",
            "choices": ["no", "epoch", "steps", "online"],
        },
    )
    rsr_rescore_steps: float | None = field(
        default=None,
        metadata={
            "help": "Steps between two scoring passes for 'steps'. Smaller than 1: a ratio of all training steps.",
        },
    )
    rsr_teacher_column: str | None = field(
        default=None,
        metadata={"help": "Column that names the teacher: the mean score of each teacher is logged."},
    )

    def __post_init__(self):
        if self.bf16 is None and not self.fp16:
            self.bf16 = is_torch_bf16_gpu_available() and not self.use_cpu
        if self.activation_checkpointing is None:  # TRL sets its default under the deprecated name, which warns
            self.activation_checkpointing = self.gradient_checkpointing
        super().__post_init__()
        if not torch.accelerator.is_available():  # there is nothing to copy to, and torch warns about it
            self.dataloader_pin_memory = False
        self._check_values()
        self._check_contradictions()

    @classmethod
    def from_sft_config(cls, args: SFTConfig) -> "RSRSFTConfig":
        """A plain SFTConfig with the default `rsr_` settings."""
        # Not `to_dict`, which hides tokens, the eos_token too.
        return cls(**{f.name: getattr(args, f.name) for f in fields(args) if f.init})

    def rescore_every(self, max_steps: int) -> int:
        """Steps between two scoring passes in a training of `max_steps` steps."""
        if self.rsr_rescore_steps >= 1:
            return int(self.rsr_rescore_steps)
        return max(1, int(-(-max_steps * self.rsr_rescore_steps // 1)))

    def _check_values(self) -> None:
        if self.rsr_prefer is None:
            self.rsr_prefer = direction_of(self.rsr_score)
        for name in ("rsr_prefer", "rsr_sampling", "rsr_rescore_strategy"):
            choices, value = self.__dataclass_fields__[name].metadata["choices"], getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")
        for name in ("rsr_r_max", "rsr_max_batch_tokens", "rsr_keep_per_group"):
            value = getattr(self, name)
            if value is not None and not value >= 1:
                raise ValueError(f"{name} must be 1 or more, got {value}.")
        if not 0 < self.rsr_keep_fraction <= 1:
            raise ValueError(f"rsr_keep_fraction must be in (0, 1], got {self.rsr_keep_fraction}.")
        if not 0 < self.rsr_temperature < float("inf"):
            raise ValueError(
                f"rsr_temperature must be above 0 and finite, got {self.rsr_temperature}: set rsr_sampling='ordered' "
                "or 'random' for the two ends."
            )
        steps = self.rsr_rescore_steps
        if steps is not None and (not steps > 0 or (steps >= 1 and steps != int(steps))):
            raise ValueError(f"rsr_rescore_steps must be a whole number, or a ratio in (0, 1), got {steps}.")

    def _check_contradictions(self) -> None:
        """One sentence for each: what doesn't go together, and what to set."""
        strategy, evaluates = self.rsr_rescore_strategy, self.eval_strategy != IntervalStrategy.NO
        eval_packing = evaluates and (self.packing if self.eval_packing is None else self.eval_packing)
        accelerator = self.accelerator_config
        for wrong, sentence in (
            (
                self.packing,
                "packing=True puts several examples into one row, which then have no order of their own: set "
                "packing=False (padding_free=True saves the padding).",
            ),
            (eval_packing, "eval_packing=True isn't supported: set eval_packing=False."),
            (
                self.train_sampling_strategy != "random",
                f"train_sampling_strategy={self.train_sampling_strategy!r} contradicts ordering by score: leave it at "
                "'random' and set rsr_sampling.",
            ),
            (
                self.truncation_mode != "keep_start",
                "truncation_mode='keep_end' would score other tokens than RSRScorer does: set "
                "truncation_mode='keep_start'.",
            ),
            (
                bool((self.dataset_kwargs or {}).get("skip_prepare_dataset")),
                "dataset_kwargs={'skip_prepare_dataset': True} leaves unknown which tokens are the response: pass the "
                "dataset before tokenization.",
            ),
            (
                bool(accelerator.split_batches or accelerator.dispatch_batches),
                "accelerator_config's split_batches and dispatch_batches change which process draws what: leave them "
                "unset.",
            ),
            (
                self.rsr_group_column is not None and self.rsr_keep_fraction < 1,
                "rsr_group_column and rsr_keep_fraction both choose what an epoch trains on: set one of them.",
            ),
            (
                self.rsr_group_column is None and self.rsr_keep_per_group != 1,
                f"rsr_keep_per_group={self.rsr_keep_per_group} needs rsr_group_column.",
            ),
            (
                strategy == "steps" and self.rsr_rescore_steps is None,
                "rsr_rescore_strategy='steps' needs rsr_rescore_steps.",
            ),
            (
                strategy != "steps" and self.rsr_rescore_steps is not None,
                f"rsr_rescore_steps={self.rsr_rescore_steps} needs rsr_rescore_strategy='steps'.",
            ),
            (
                strategy == "online" and self.max_steps < 0 and self.num_train_epochs <= 1,
                "rsr_rescore_strategy='online' shows its new order from the next epoch, and there is only one: raise "
                "num_train_epochs or set rsr_rescore_strategy='steps'.",
            ),
            (
                strategy == "online" and self.torch_compile,
                "rsr_rescore_strategy='online' reads hidden states that torch_compile=True hides: set "
                "rsr_rescore_strategy='epoch' or torch_compile=False.",
            ),
            (
                strategy != "no" and known_score(self.rsr_score) not in LIVE,
                f"rsr_score={self.rsr_score!r} isn't measured while training (those that are: {', '.join(LIVE)}), so "
                "it can't be measured again: set rsr_rescore_strategy='no'.",
            ),
        ):
            if wrong:
                raise ValueError(sentence)
