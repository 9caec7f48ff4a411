"""
Fine-tune your student with TRL: by default on the whole dataset in random order, which is the paper's recipe for what
`rsr select` wrote. The rsr_ options select, order and re-score while training. A lower RSR suits the student better.
Takes the options of `trl sft` too. On several processes: `accelerate launch -m rsr_trl sft ...` with the same options.
"""

import sys
from contextlib import redirect_stdout
from pathlib import Path

import pandas as pd
from datasets import Dataset
from rich.console import Console
from transformers import PrinterCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser, get_dataset

from rsr_trl import data
from rsr_trl.cli.options import (
    DatasetArguments,
    FormatArguments,
    GgufArguments,
    JsonArguments,
    option_parser,
    student_to_train,
)
from rsr_trl.cli.summary import finite
from rsr_trl.cli.tables import Column, beside, finish, given, print_table, say
from rsr_trl.report.format import number, share
from rsr_trl.rsr import DIRECTION, RSR, RSRError, dataset_rsr
from rsr_trl.training.config import RSRSFTConfig
from rsr_trl.training.live_table import HISTORY_DIR, spearman
from rsr_trl.training.trainer import RSRSFTTrainer


ORDERS = {"random": "in random order", "weighted": "the best mostly first", "ordered": "the best first"}
MAX_PASSES = 8  # lines of the table of scorings; JSON has them all


def make_parser(prog: str | None = None) -> TrlParser:
    return option_parser(
        (
            ScriptArguments,
            FormatArguments,
            RSRSFTConfig,
            ModelConfig,
            GgufArguments,
            DatasetMixtureConfig,
            JsonArguments,
        ),
        prog,
        __doc__,
    )


def main(script_args, format_args, training_args: RSRSFTConfig, model_args, gguf, mixture_args, json_args) -> int:
    if json_args.json:
        training_args.disable_tqdm = True
    # The trainer's progress and logs are for people, who read standard error: a pipe gets data and nothing else.
    with redirect_stdout(sys.stderr):
        checkpoint = _checkpoint(training_args)
        student = student_to_train(model_args, training_args, gguf)
        train_dataset, eval_dataset = _load(script_args, format_args, training_args, mixture_args)
        trainer = RSRSFTTrainer(args=training_args, train_dataset=train_dataset, eval_dataset=eval_dataset, **student)
        if json_args.json:
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
    if result is not None:
        has_moved = len(result["passes"]) > 1
        next_words = _next_words(has_moved, train_dataset, script_args, format_args, result["output_dir"])
        finish(json_args.json, result, lambda out: _show(out, result), next_words)
    return 0


def _last_checkpoint(args: RSRSFTConfig) -> str | None:
    return get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None


def _checkpoint(args: RSRSFTConfig) -> str | None:
    """The checkpoint to go on from, `None` to start over: what is wrong with it is said before anything is loaded."""
    last = _last_checkpoint(args)
    wanted = str(args.resume_from_checkpoint)  # a word of the command line, or a truth value of a config file
    resume = "--resume_from_checkpoint"
    if wanted.lower() in ("none", "false"):
        if last is None:
            return None
        raise RSRError(
            f"--output_dir has a checkpoint of an earlier run, {last}. To resume, add {resume} True; to start over, "
            "choose another --output_dir or delete this one."
        )
    wanted = last if wanted.lower() == "true" else wanted
    if wanted is None:
        raise RSRError(f"There is no checkpoint in --output_dir {args.output_dir}. To start over, drop {resume}.")
    if not Path(wanted, TRAINER_STATE_NAME).is_file():
        raise RSRError(
            f"{resume} {wanted} isn't a complete checkpoint: {Path(wanted, TRAINER_STATE_NAME)} is missing. Pass a "
            "folder checkpoint-STEP of an earlier run, or True for the last one in --output_dir."
        )
    return wanted


def _load(script_args, format_args, training_args, mixture_args) -> tuple[Dataset, Dataset | None]:
    """Training rows, and evaluation rows if `eval_strategy` asks for them."""
    if script_args.dataset_streaming or mixture_args.streaming:
        raise RSRError("Ordering by score needs the whole dataset: drop --dataset_streaming and --streaming.")
    if bool(mixture_args.datasets) == bool(script_args.dataset_name):
        raise RSRError("Pass the training data: either --dataset_name, or a mixture as `datasets` in --config.")
    evaluates = training_args.eval_strategy != "no"
    wanted = [script_args.dataset_train_split] + [script_args.dataset_test_split] * evaluates
    if mixture_args.datasets:
        mixture = get_dataset(mixture_args)
        if lacking := [split for split in wanted if split not in mixture]:
            have = ", ".join(mixture)
            raise RSRError(f"The mixture has no split {lacking[0]!r}, only {have}: set --test_split_size.")
        splits = [mixture[split] for split in wanted]
    else:
        splits = [data.load(script_args.dataset_name, script_args.dataset_config, split) for split in wanted]
    splits = [data.as_trl_format(split, **vars(format_args)) for split in splits]
    return splits[0], splits[1] if evaluates else None


def _stopped(trainer: RSRSFTTrainer) -> str:
    """What an interrupted training leaves, and how to go on."""
    args, step, last = trainer.args, trainer.state.global_step, _last_checkpoint(trainer.args)
    if last is not None:
        return f"Stopped at step {step:,}. To resume from {last}, add --resume_from_checkpoint True."
    every = {"no": "none is saved", "epoch": "one is saved every epoch"}
    saves = every.get(args.save_strategy.value, f"one is saved every {args.save_steps:g} steps")
    so = "Pass --save_strategy steps --save_steps N to save one every N steps"
    return f"Stopped at step {step:,}, before the first checkpoint ({saves}). {so}."


def _summarize(trainer: RSRSFTTrainer, checkpoint: str | None) -> dict:
    """The summary for programs, from the trainer and the history of scores that it has written."""
    history = Path(trainer.args.output_dir, HISTORY_DIR)
    resumed = TrainerState.load_from_json(Path(checkpoint, TRAINER_STATE_NAME)).global_step if checkpoint else 0
    losses = [log["train_loss"] for log in trainer.state.log_history if "train_loss" in log]
    if trainer.state.global_step <= resumed:  # a mean is of the steps of this call, of which there are none
        losses = []
    return {
        "output_dir": trainer.args.output_dir,
        "steps": trainer.state.global_step,
        "resumed_from_step": resumed,
        "epochs": trainer.state.epoch,
        "train_loss": losses[-1] if losses else None,
        "trajectories": len(trainer.scores.table),
        # By the last scores: what is past the threshold is drawn without training.
        "kept_per_epoch": round(trainer.scores.sampler.kept_share() * len(trainer.scores.table)),
        "score_threshold": trainer.args.rsr_score_threshold,
        "sampling": trainer.args.rsr_sampling,
        "history": str(history) if history.is_dir() else None,
        "direction": DIRECTION,
        "passes": passes_of(history),
    }


def passes_of(history: Path) -> list[dict]:
    """Each scoring of the run beside the first one of the same rows: a later one may be of a part of them only."""
    passes, first = [], None
    for path in sorted(history.glob("step-*.parquet")):
        now = pd.read_parquet(path).set_index("row")
        first = now if first is None else first.combine_first(now)
        then = first.loc[now.index]
        ratios = [dataset_rsr(one["rsr_mean_clipped_rank"], one["rsr_mean_surprisal"]) for one in (now, then)]
        _, step, kind = path.stem.split("-")
        facts = {"step": int(step), "kind": kind, "scored": int(now["rsr"].notna().sum())}
        facts |= dict(zip(("rsr", "rsr_at_first"), map(finite, ratios), strict=True))
        facts |= {name: finite(now[f"rsr_{name}"].mean()) for name in ("mean_clipped_rank", "mean_surprisal")}
        passes.append(facts | {"spearman_with_first": spearman(then["rsr"].to_numpy(), now["rsr"].to_numpy())})
    return passes


def _next_words(
    has_moved: bool, dataset: Dataset, args: ScriptArguments, format_args, output_dir: str
) -> list[str] | None:
    """The picture of how the dataset's scores have moved; for a dataset without, the trained student's own scores."""
    if args.dataset_name is None or (RSR in dataset.column_names and not has_moved):
        return None  # a mixture has no name
    options = given(DatasetArguments(args.dataset_name, args.dataset_config, args.dataset_train_split))
    if RSR in dataset.column_names:
        return ["rsr", "report", *options, "--run", output_dir, "--output_dir", beside(output_dir, "report")]
    options += [*given(format_args), "--output_dir", beside(output_dir, "scored")]
    return ["rsr", "score", "--model_name_or_path", output_dir, *options]


def _show(out: Console, result: dict) -> None:
    passes = result["passes"]
    say(out, _what_it_trained_on(result), f"\nTrained {data.counted(result['steps'], 'step')}")
    if len(passes) > 1:
        show_passes(out, passes)
    elif passes:
        rsr, scored = number(passes[0]["rsr"], 3), data.counted(passes[0]["scored"], "scored trajectory")
        say(out, f"RSR of the {scored} before training ({DIRECTION}): {rsr}")
    if passes:
        say(out, f"All scores of every row: {result['history']}")


def show_passes(out: Console, passes: list[dict]) -> None:
    """The scorings of a run, as [`passes_of`] gives them."""
    say(out, f"RSR of the trajectories as the student changed ({DIRECTION}):")
    columns = (
        Column("step", lambda one: f"{one['step']:,}{' (while training)' if one['kind'] == 'online' else ''}"),
        Column("scored", "scored"),
        Column("RSR", "rsr", digits=3),
        Column("RSR at step 0", "rsr_at_first", digits=3),
        Column("rank / nats", lambda one: f"{number(one['mean_clipped_rank'])} / {number(one['mean_surprisal'])}"),
        Column("rank corr. with step 0", "spearman_with_first"),
    )
    print_table(out, passes if len(passes) <= MAX_PASSES else [passes[0], *passes[1 - MAX_PASSES :]], columns)
    if len(passes) > MAX_PASSES:
        say(out, f"The first and the last of {len(passes):,} scoring passes; --json lists them all.")
    say(
        out,
        "RSR at step 0: first scores of the same rows. rank corr.: Spearman's rank correlation with them. The student "
        "before and after training are two different students: only your own task shows which one solves more.",
    )


def _what_it_trained_on(result: dict) -> str:
    resumed, threshold = result["resumed_from_step"], result["score_threshold"]
    now = f" ({result['steps'] - resumed:,} of them now, from step {resumed:,} on)" if resumed else ""
    kept, total = result["kept_per_epoch"], result["trajectories"]
    part = "all" if kept == total else f"{share(kept, total)} of"
    within = f" (within --rsr_score_threshold {threshold} by their last scores)" if threshold is not None else ""
    order, loss = ORDERS[result["sampling"]], ""
    # Steps in which nothing is within the threshold have a loss of 0, and count in the trainer's mean.
    if result["train_loss"] is not None and threshold is None:
        loss = f", mean loss {'of these ' if resumed else ''}{result['train_loss']:.3f}"
    of = f"{part} {data.counted(total, 'trajectory')} per epoch"
    return f"{now} on {of}{within}, {order}{loss} -> {result['output_dir']}"
