"""Settings of the short trainings of a pilot: those of RSRSFTConfig, less what the pilot decides itself."""

import os
from dataclasses import dataclass, field, fields

from rsr_trl.rsr import RSRError
from rsr_trl.training.config import RSRSFTConfig


# What differs from arm to arm, or makes no sense for a student that isn't kept.
DECIDED = {f.name for f in fields(RSRSFTConfig) if f.name[:4] == "rsr_"}
DECIDED -= {"rsr_r_max", "rsr_max_batch_tokens", "rsr_share_prefixes"}
DECIDED |= {"train_sampling_strategy", "data_seed", "eval_strategy", "save_strategy", "resume_from_checkpoint"}
DECIDED |= {"push_to_hub", "load_best_model_at_end", "packing", "shuffle_dataset"}
# Changes no result.
REPORTING = {
    *("output_dir", "run_name", "project", "logging_dir", "logging_strategy", "logging_steps", "logging_first_step"),
    *("logging_nan_inf_filter", "log_level", "log_level_replica", "log_on_each_node", "report_to", "disable_tqdm"),
    *("seed", "dataset_num_proc", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor"),
    *("dataloader_persistent_workers", "per_device_eval_batch_size", "rsr_max_batch_tokens", "ddp_timeout"),
    "rsr_share_prefixes",
    *("local_rank", "hub_model_id", "hub_token", "hub_strategy", "hub_private_repo", "hub_always_push"),
}


@dataclass
class PilotConfig(RSRSFTConfig):
    """One recipe for all trainings of a pilot. What a pilot compares, the choice, order and re-scoring, is refused."""

    output_dir: str | None = field(
        default=None, metadata={"help": "Output folder: new, empty, or this pilot's own to resume."}
    )
    save_strategy: str = field(default="no", metadata={"help": "A pilot doesn't keep its students: don't set this."})
    disable_tqdm: bool = field(default=True, metadata={"help": "Switch off the trainings' own progress bars."})
    logging_steps: float = field(default=1, metadata={"help": "Log the training loss every this many steps."})
    per_device_eval_batch_size: int = field(
        default=32, metadata={"help": "Responses generated at once on each device: lower it if memory runs out."}
    )

    def __post_init__(self):
        if self.output_dir is None:
            raise RSRError("--output_dir is required: the folder for the results.")
        for name in sorted(DECIDED):
            if (value := getattr(self, name)) != self.__dataclass_fields__[name].default:
                raise RSRError(f"--{name} {value}: the pilot sets this for each arm. Leave it out.")
        launched = [os.environ.get(f"ACCELERATE_USE_{name}", "").lower() for name in ("FSDP", "DEEPSPEED")]
        if self.deepspeed or self.fsdp or "true" in launched:
            raise RSRError("A pilot keeps a whole student on each device: run it without FSDP and DeepSpeed.")
        super().__post_init__()

    def recipe(self) -> dict:
        """What of it decides a result: the values that aren't the defaults, and the batch over all devices."""
        options = [f for f in fields(RSRSFTConfig) if f.init and f.name not in DECIDED | REPORTING]
        recipe = {f.name: getattr(self, f.name) for f in options if getattr(self, f.name) != f.default}
        recipe |= {"learning_rate": self.learning_rate, "epochs": self.num_train_epochs, "batch": self.batch}
        return {name: value if isinstance(value, int | float) else str(value) for name, value in recipe.items()}

    @property
    def batch(self) -> int:
        """Examples of a step, over all devices."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * max(1, self.world_size)
