"""
Score every trajectory of a dataset with your student. A lower RSR suits the student better. Re-running the same
command resumes. Under `accelerate launch -m rsr_trl score ...`, the processes share the work.
"""

import logging
import os
import signal
from argparse import ArgumentTypeError
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from trl import TrlParser

from rsr_trl.cli import options
from rsr_trl.cli.options import DatasetArguments, FormatArguments, OutputArguments, StudentArguments, option
from rsr_trl.rsr import RSRError, did_you_mean


@dataclass
class JobArguments:
    """How a large dataset is scored."""

    _argument_group_name = "large datasets"

    dataset_streaming: bool = option("Stream rows (files too) instead of caching the dataset on disk.", False)
    shard: str | None = option(
        "i/n: score the i-th of n shares into the same folder, in any order, without torch.distributed.", None
    )
    shard_rows: int | None = option(
        "Rows per output shard. An interrupted run loses at most one shard per process. Default: a few minutes of "
        "work at most, by the student's size.",
        None,
    )
    on_error: Literal["null", "raise"] = option(
        "What to do with rows that can't be scored: store null with the reason (null), or tokenize all rows first and "
        "stop at the first such row (raise).",
        "null",
    )
    dry_run: bool = option("Score a small sample, print the estimated cost, and write nothing.", False)
    push_to_hub: bool = option("Upload the scored dataset to the Hub, as a private repository if it is new.", False)
    hub_dataset_id: str | None = option(
        "Repository to upload to, such as me/scored. Default: the name of the output folder.", None
    )


def make_parser(prog: str | None = None) -> TrlParser:
    parser = options.option_parser(
        (DatasetArguments, FormatArguments, StudentArguments, OutputArguments, JobArguments), prog, __doc__
    )
    parser._option_string_actions["--push_to_hub"].type = _switch
    return parser


def _switch(text: str) -> bool:
    """`--push_to_hub` is a switch, as in TRL; it once took the repository."""
    from transformers.hf_argparser import string_to_bool

    try:
        return string_to_bool(text)
    except ArgumentTypeError:
        raise ArgumentTypeError(f"takes no name: pass --push_to_hub --hub_dataset_id {text}") from None


def main(data_args, format_args, student_args, output_args: OutputArguments, job_args: JobArguments) -> int:
    from rsr_trl.cli import score_summary, tables
    from rsr_trl.scoring.job import Job

    process, num_processes = share_of(job_args.shard)
    is_main = process == 0 or job_args.shard is not None
    if not is_main:
        tables.without_bars()
    repo_id = (job_args.hub_dataset_id or Path(output_args.output_dir).name) if job_args.push_to_hub else None
    if repo_id:
        _check_login(repo_id)
    elif job_args.hub_dataset_id:
        raise RSRError("--hub_dataset_id needs --push_to_hub.")
    logging.getLogger("rsr_trl.scoring").setLevel(logging.ERROR)  # its counts of bad rows are in the summary
    scorer = student_args.scorer(output_args.overwrite)
    dataset = _dataset(data_args, format_args, job_args.dataset_streaming, output_args.teacher_column)
    scorer.check_columns(dataset.column_names)
    if job_args.dry_run:
        if is_main:
            score_summary.dry_run(scorer, dataset, job_args.shard_rows, num_processes, output_args.json)
        return 0
    identity, facts = _names(data_args, format_args, scorer)
    share, overwrite = (job_args.shard_rows, process, num_processes), output_args.overwrite
    job = Job(scorer, dataset, output_args.output_dir, identity, *share, tables.DATASET_CARD, facts, overwrite)
    before, speaks = signal.signal(signal.SIGTERM, _stop), is_main and not output_args.json
    try:
        if speaks:
            score_summary.say_what_is_there(job)
            score_summary.warn_of_plain(scorer, dataset)
        if job_args.on_error == "raise":
            job.check_rows()
        completed = job.run(show_bar=speaks)
    except KeyboardInterrupt as stop:
        if is_main:
            score_summary.print_progress(job, output_args, is_stopped=True)
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)
    except FloatingPointError as error:  # the student gives NaN
        raise RSRError(str(error)) from error
    finally:
        signal.signal(signal.SIGTERM, before)
    # Once for all processes: by the one that ends last.
    if completed or (job.was_complete and is_main):
        return score_summary.finish(job, output_args, repo_id)
    # Of launched processes, the one that ends last prints the one JSON object.
    if is_main and not (output_args.json and job_args.shard is None):
        score_summary.print_progress(job, output_args)
    return 0


def _dataset(data_args: DatasetArguments, format_args: FormatArguments, streaming: bool, teacher_column: str | None):
    from rsr_trl import data
    from rsr_trl.scoring.rows import with_features

    dataset = with_features(data_args.load(streaming=True)) if streaming else data_args.load()
    if teacher_column not in (None, "none", *(names := dataset.column_names)):
        meant = did_you_mean(teacher_column, names)
        raise RSRError(f"teacher_column={teacher_column!r}: there is no such column.{meant} Columns are {names}.")
    if not streaming and not len(dataset):
        raise RSRError(f"{data_args.dataset_name!r} has no rows.")
    return data.as_trl_format(dataset, **vars(format_args))


def _names(data_args: DatasetArguments, format_args: FormatArguments, scorer) -> tuple:
    """What names the data, for the manifest; and what the card says of the result."""
    from rsr_trl import data

    name, config, split = data_args.source
    identity = {"files": data.source_files(name, config, split), "config": config, "split": split}
    identity["columns"] = asdict(format_args)
    return identity, facts_of(scorer, name)


def facts_of(scorer, dataset_name: str) -> dict:
    """What the card says of a dataset that this scorer has scored."""
    from rsr_trl import __version__
    from rsr_trl.scoring.loading import weight_bits
    from rsr_trl.scoring.scores import SCORES
    from rsr_trl.scoring.settings import OF_THE_SCORE

    settings = {"dtype": str(scorer.student.dtype)[6:], "max_length": scorer.max_length}
    settings |= {} if (template := scorer.config.chat_template_path) is None else {"chat_template_path": template}
    bits = weight_bits(scorer.model_id, scorer.config.revision)
    settings |= {} if bits is None else {"weights": f"{bits}-bit"}
    facts = {"command": "score", "version": __version__, "student": scorer.model_id, "dataset": dataset_name}
    facts |= {"settings": settings | scorer.config.some(OF_THE_SCORE)}
    return facts | {"scores": {name: SCORES[name].prefer for name in scorer.scores}}


def share_of(shard: str | None) -> tuple[int, int]:
    """Which of how many processes this is: by `--shard i/n`, or as accelerate's and torchrun's environment says."""
    process, num_processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if shard is None:
        return process, num_processes
    if num_processes > 1:
        launched = f"this is one of {num_processes} launched processes"
        raise RSRError(f"--shard {shard} is for independent runs, but {launched}.")
    part, _, parts = shard.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise RSRError(f"--shard must be i/n with i from 1 to n, such as 1/8 to 8/8, got {shard!r}.")
    return int(part) - 1, int(parts)


def _stop(number: int, frame: object) -> None:
    """SIGTERM ends the work as Ctrl-C does, so that unfinished files go."""
    raise KeyboardInterrupt(number)


def _check_login(repo_id: str) -> None:
    """Raise before the work, not after it, where the upload would be refused."""
    from huggingface_hub import HfApi

    try:
        HfApi().whoami()
    except OSError as error:  # no token, an invalid one, no connection
        raise RSRError(f"Uploading to {repo_id!r} needs a login: run `hf auth login` first ({error}).") from None
