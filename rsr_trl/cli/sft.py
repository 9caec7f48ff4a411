"""`rsr sft`: TRL's `sft` script with RSRSFTTrainer, on our own loader of data.

On several processes: `accelerate launch -m rsr_trl sft ...` with the same options.
"""

from typing import TYPE_CHECKING

from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser

from rsr_trl.cli.options import FormatArguments, option_parser
from rsr_trl.training.config import RSRSFTConfig


if TYPE_CHECKING:
    from datasets import Dataset


def make_parser(prog: str | None = None) -> TrlParser:
    return option_parser(
        (ScriptArguments, FormatArguments, RSRSFTConfig, ModelConfig, DatasetMixtureConfig),
        prog=prog,
        description="Fine-tune your student with the trajectories that suit it best, as scored while it trains. A "
        "lower RSR suits the student better. Options are those of `trl sft`, and the rsr_ ones.",
    )


def main(
    script_args: ScriptArguments,
    format_args: FormatArguments,
    training_args: RSRSFTConfig,
    model_args: ModelConfig,
    mixture_args: DatasetMixtureConfig,
) -> int:
    from trl import get_peft_config, get_quantization_config

    from rsr_trl.cli import summary
    from rsr_trl.training.trainer import RSRSFTTrainer

    train_dataset, eval_dataset = _load(script_args, format_args, training_args, mixture_args)
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    trainer = RSRSFTTrainer(
        _model(model_args),
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    resume = training_args.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=True if resume == "True" else resume)
    trainer.save_model(training_args.output_dir)
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
    if trainer.is_world_process_zero():
        summary.console().print(
            f"Trained {trainer.state.global_step:,} steps -> {training_args.output_dir}\n"
            f"Scores of all passes ({summary.DIRECTION}) -> {training_args.output_dir}/rsr_history"
        )
    trainer.end()
    return 0


def _load(
    script_args: ScriptArguments,
    format_args: FormatArguments,
    training_args: RSRSFTConfig,
    mixture_args: DatasetMixtureConfig,
) -> "tuple[Dataset, Dataset | None]":
    """Training rows, and evaluation rows if `eval_strategy` asks for them."""
    from trl import get_dataset

    from rsr_trl import data

    if script_args.dataset_streaming or mixture_args.streaming:
        raise ValueError("Ordering by score needs all examples at hand: don't set dataset_streaming or streaming.")
    if bool(mixture_args.datasets) == bool(script_args.dataset_name):
        raise ValueError("Say which data to train on: either dataset_name, or a mixture in `datasets` (in --config).")
    evaluates = training_args.eval_strategy != "no"
    wanted = [script_args.dataset_train_split] + [script_args.dataset_test_split] * evaluates
    if mixture_args.datasets:
        mixture = get_dataset(mixture_args)
        for split in wanted:
            if split not in mixture:
                raise ValueError(
                    f"The mixture has no split {split!r}, only {', '.join(mixture)}: set test_split_size."
                )
        splits = [mixture[split] for split in wanted]
    else:
        splits = [data.load(script_args.dataset_name, script_args.dataset_config, split) for split in wanted]
    splits = [data.as_trl_format(split, **vars(format_args)) for split in splits]
    return splits[0], splits[1] if evaluates else None


def _model(model_args: ModelConfig) -> str:
    from pathlib import Path

    from rsr_trl import data

    name = model_args.model_name_or_path
    if name is None:
        raise ValueError("Say which student to train: model_name_or_path.")
    if data.is_written_as_path(name) and not Path(name).exists():
        raise ValueError(f"There is no folder {name!r} (model_name_or_path).")
    return name
