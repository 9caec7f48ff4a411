"""`rsr sft`: TRL's `sft` script with RSRSFTTrainer, on our own loader of data.

On several processes: `accelerate launch -m rsr_trl sft ...` with the same options.
"""

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser

from rsr_trl.cli.options import FormatArguments, option_parser
from rsr_trl.training.config import RSRSFTConfig


if TYPE_CHECKING:
    from datasets import Dataset

    from rsr_trl.training.trainer import RSRSFTTrainer


MAX_PASSES = 8  # lines of the table of scorings; JSON has them all


@dataclass
class SummaryArguments:
    """
    How the result is told.

    Args:
        json (`bool`, *optional*, defaults to `False`): Whether to print the summary as JSON on standard output.
    """

    _argument_group_name = "output"

    json: bool = field(
        default=False, metadata={"help": "Print the summary as one JSON object on standard output, and nothing else."}
    )


def make_parser(prog: str | None = None) -> TrlParser:
    return option_parser(
        (ScriptArguments, FormatArguments, RSRSFTConfig, ModelConfig, DatasetMixtureConfig, SummaryArguments),
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
    summary_args: SummaryArguments,
) -> int:
    from rsr_trl.cli import summary

    if summary_args.json:
        summary.without_bars()
        training_args.disable_tqdm = True
    # The trainer's progress and logs are for people, who read standard error: a pipe gets data and nothing else.
    with redirect_stdout(sys.stderr):
        checkpoint = _checkpoint(training_args)
        train_dataset, eval_dataset = _load(script_args, format_args, training_args, mixture_args)
        result = _train(
            train_dataset, eval_dataset, training_args, model_args, script_args, checkpoint, quiet=summary_args.json
        )
    if result is not None and summary_args.json:
        summary.print_json(result)
    elif result is not None:
        _print_summary(result, _next_command(train_dataset, script_args, format_args, result["output_dir"]))
    return 0


def _checkpoint(args: RSRSFTConfig) -> str | None:
    """The checkpoint to go on from, `None` to begin anew: what is wrong with it is said before anything is loaded."""
    from transformers.trainer import TRAINER_STATE_NAME

    last = _last_checkpoint(args)
    wanted = str(args.resume_from_checkpoint)  # a word of the command line, or a truth value of a config file
    if wanted.lower() in ("none", "false"):
        if last is not None:
            raise ValueError(
                f"{last} is the last checkpoint of an earlier run. To go on from it, pass --resume_from_checkpoint "
                "True; to begin anew, pass another --output_dir or delete this one."
            )
        return None
    if wanted.lower() == "true":
        if last is None:
            raise ValueError(
                f"There is no checkpoint in {args.output_dir!r} (output_dir) to go on from: to begin anew, leave out "
                "--resume_from_checkpoint."
            )
        wanted = last
    if not Path(wanted, TRAINER_STATE_NAME).is_file():
        raise ValueError(
            f"{wanted!r} (resume_from_checkpoint) is no complete checkpoint: {Path(wanted, TRAINER_STATE_NAME)} is "
            "missing. Name the folder checkpoint-STEP of an earlier run, or True for the last one in output_dir."
        )
    return wanted


def _last_checkpoint(args: RSRSFTConfig) -> str | None:
    from transformers.trainer_utils import get_last_checkpoint

    return get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None


def _train(
    train_dataset: "Dataset",
    eval_dataset: "Dataset | None",
    training_args: RSRSFTConfig,
    model_args: ModelConfig,
    script_args: ScriptArguments,
    checkpoint: str | None,
    quiet: bool,
) -> dict | None:
    """Train, save, and return the summary on the main process, `None` on the others."""
    from transformers import PrinterCallback
    from trl import get_peft_config, get_quantization_config

    from rsr_trl.training.trainer import RSRSFTTrainer

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
    if quiet:
        trainer.remove_callback(PrinterCallback)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except KeyboardInterrupt:
        if trainer.is_world_process_zero():
            print(f"\n{_stopped(trainer)}", file=sys.stderr)
        raise
    trainer.save_model(training_args.output_dir)
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
    result = _summarize(trainer, checkpoint) if trainer.is_world_process_zero() else None
    trainer.end()
    return result


def _stopped(trainer: "RSRSFTTrainer") -> str:
    """What is left of a training that was interrupted."""
    args, step, last = trainer.args, trainer.state.global_step, _last_checkpoint(trainer.args)
    if last is not None:
        return f"Stopped at step {step:,}. To go on from {last}, add --resume_from_checkpoint True."
    saves = f"save_strategy={args.save_strategy.value!r}"
    saves += f" and save_steps={args.save_steps:g}" if args.save_strategy.value == "steps" else ""
    return (
        f"Stopped at step {step:,}, and no checkpoint was saved yet ({saves}): with --save_strategy steps "
        "--save_steps N there is one every N steps to go on from."
    )


def _summarize(trainer: "RSRSFTTrainer", checkpoint: str | None) -> dict:
    """What a program is told, from the trainer and the history of scores that it has written."""
    from transformers import TrainerState
    from transformers.trainer import TRAINER_STATE_NAME

    from rsr_trl.cli.summary import DIRECTION
    from rsr_trl.training.live_table import HISTORY_DIR

    history = Path(trainer.args.output_dir, HISTORY_DIR)
    resumed = TrainerState.load_from_json(Path(checkpoint, TRAINER_STATE_NAME)).global_step if checkpoint else 0
    # Of the steps of this call: without any there is no mean.
    losses = [log["train_loss"] for log in trainer.state.log_history if "train_loss" in log]
    losses = losses if trainer.state.global_step > resumed else []
    return {
        "output_dir": trainer.args.output_dir,
        "steps": trainer.state.global_step,
        "resumed_from_step": resumed,
        "epochs": trainer.state.epoch,
        "train_loss": losses[-1] if losses else None,
        "trajectories": len(trainer.table),
        # By the last scores: what is past the threshold is drawn without training.
        "kept_per_epoch": round(trainer.scores.sampler.kept_share() * len(trainer.table)),
        "score_threshold": trainer.args.rsr_score_threshold,
        "history": str(history),
        "direction": DIRECTION,
        "passes": _passes(history),
    }


def _passes(history: Path) -> list[dict]:
    """Each scoring of the run beside the first one of the same rows: a later one may be of a part of them only."""
    import pandas as pd

    from rsr_trl.cli.summary import finite
    from rsr_trl.rsr import dataset_rsr
    from rsr_trl.training.live_table import spearman

    passes, first = [], None
    for path in sorted(history.glob("step-*.parquet")):
        scores = pd.read_parquet(path).set_index("row")
        first = scores if first is None else first.combine_first(scores)
        before = first.loc[scores.index]
        now, then = (
            float(dataset_rsr(one["rsr_mean_clipped_rank"], one["rsr_mean_surprisal"])) for one in (scores, before)
        )
        passes.append(
            {
                "step": int(path.stem.split("-")[1]),
                "kind": path.stem.split("-")[2],
                "scored": int(scores["rsr"].notna().sum()),
                "rsr": finite(now),
                "rsr_at_first": finite(then),
                "mean_clipped_rank": finite(scores["rsr_mean_clipped_rank"].mean()),
                "mean_surprisal": finite(scores["rsr_mean_surprisal"].mean()),
                "spearman_with_first": spearman(before["rsr"].to_numpy(), scores["rsr"].to_numpy()),
            }
        )
    return passes


def _next_command(
    dataset: "Dataset", script_args: ScriptArguments, format_args: FormatArguments, output_dir: str
) -> list[str] | None:
    """The picture of the run where the dataset has scores to draw it over; else the trained student's own scores."""
    from rsr_trl.cli.summary import beside, given
    from rsr_trl.rsr import RSR

    if script_args.dataset_name is None:
        return None  # a mixture has no name
    options = ["--dataset_name", script_args.dataset_name]
    options += ["--dataset_config", script_args.dataset_config] if script_args.dataset_config else []
    split = script_args.dataset_train_split
    options += ["--dataset_split", split] if split != "train" else []
    if RSR in dataset.column_names:
        return ["rsr", "report", *options, "--run", output_dir, "--output", f"{beside(output_dir, 'report')}.html"]
    options += [*given(format_args), "--output_dir", beside(output_dir, "scored")]
    return ["rsr", "score", "--model_name_or_path", output_dir, *options]


def _print_summary(result: dict, next_command: list[str] | None) -> None:
    from rich.text import Text

    from rsr_trl.cli import summary
    from rsr_trl.cli.summary import add_row, number

    out, passes, threshold = summary.console(), result["passes"], result["score_threshold"]
    resumed = result["resumed_from_step"]
    loss = ""
    # Steps in which nothing is within the threshold have a loss of 0, and count in the trainer's mean.
    if result["train_loss"] is not None and threshold is None:
        loss = f", mean loss {'of these ' if resumed else ''}{result['train_loss']:.3f}"
    title = (f"Trained {result['steps']:,} steps", "bold")
    part = f" ({result['steps'] - resumed:,} of them now, from step {resumed:,} on)" if resumed else ""
    kept, all_of_them = result["kept_per_epoch"], result["trajectories"]
    share = "all" if kept == all_of_them else f"{summary.share(kept, all_of_them)} of"
    within = f" (within rsr_score_threshold={threshold} by their last scores)" if threshold is not None else ""
    on = f"{part} on {share} {all_of_them:,} trajectories an epoch{within}"
    out.print(Text.assemble("\n", title, f"{on}{loss} -> {result['output_dir']}"))
    out.print(f"RSR of the trajectories as the student changed ({summary.DIRECTION}):")
    table = summary.plain_table("step", "scored", "RSR", "same at first", "rank / nats", "order kept")
    for one in passes if len(passes) <= MAX_PASSES else [passes[0], *passes[1 - MAX_PASSES :]]:
        add_row(
            table,
            f"{one['step']:,}{' (while training)' if one['kind'] == 'online' else ''}",
            f"{one['scored']:,}",
            number(one["rsr"]),
            number(one["rsr_at_first"]),
            f"{number(one['mean_clipped_rank'], 2)} / {number(one['mean_surprisal'], 2)}",
            number(one["spearman_with_first"], 2),
        )
    out.print(table)
    if len(passes) > MAX_PASSES:
        out.print(f"The first and the last of {len(passes):,} scorings; --json lists them all.")
    if len(passes) > 1:
        out.print(
            "order kept: Spearman correlation with the first scores of the same rows. Before and after training these "
            "are scores of two different students: whether the later one solves more, only its own task can say."
        )
    out.print(Text(f"All scores of every row: {result['history']}"))
    if next_command:
        summary.print_next(out, *next_command)


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
    from rsr_trl import data

    name = model_args.model_name_or_path
    if name is None:
        raise ValueError("Say which student to train: model_name_or_path.")
    if data.is_written_as_path(name) and not Path(name).exists():
        raise ValueError(f"There is no folder {name!r} (model_name_or_path).")
    return name
