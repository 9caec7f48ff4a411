"""
Score every trajectory of a dataset with your student. A lower RSR suits the student better. The same command, started
again after a stop, goes on. Under `accelerate launch -m rsr_trl score ...`, the processes share the work.
"""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Literal

from trl import TrlParser

from rsr_trl.cli import options
from rsr_trl.cli.options import DatasetArguments, FormatArguments, OutputArguments, StudentArguments, option
from rsr_trl.rsr import RSRError


@dataclass
class JobArguments:
    """How a large dataset is scored."""

    _argument_group_name = "large datasets"

    dataset_streaming: bool = option("Read rows (of files too) as needed, without a copy on disk.", False)
    shard: str | None = option(
        "i/n: score the i-th of n shares into the same folder, in any order; without torch.distributed.", None
    )
    shard_rows: int | None = option(
        "Rows of an output file, which is also what a stop can lose; by default a minute of work.", None
    )
    on_error: Literal["null", "raise"] = option(
        "Rows that can't be scored get null and a reason, or stop the run (all are tokenized first).", "null"
    )
    dry_run: bool = option("Measure a few rows, say what the run would cost, and write nothing.", False)
    push_to_hub: str | None = option("Dataset repository to upload to (me/scored); made private if new.", None)


def make_parser(prog: str | None = None) -> TrlParser:
    return options.option_parser(
        (DatasetArguments, FormatArguments, StudentArguments, OutputArguments, JobArguments), prog, __doc__
    )


def main(data_args, format_args, student_args, output_args: OutputArguments, job_args: JobArguments) -> int:
    from rsr_trl import __version__, data
    from rsr_trl.cli import score_summary
    from rsr_trl.cli.tables import without_bars
    from rsr_trl.scoring.job import Job
    from rsr_trl.scoring.rows import with_features
    from rsr_trl.scoring.scorer import OF_THE_SCORE
    from rsr_trl.scoring.scores import SCORES

    process, num_processes = share_of(job_args.shard)
    is_main = process == 0 or job_args.shard is not None
    if not is_main:
        without_bars()
    if job_args.push_to_hub:
        _check_login(job_args.push_to_hub)
    logging.getLogger("rsr_trl.scoring").setLevel(logging.ERROR)  # its counts of bad rows are in the summary
    scorer = student_args.scorer(output_args.overwrite)
    dataset = data_args.load(job_args.dataset_streaming)
    dataset = with_features(dataset) if job_args.dataset_streaming else dataset
    if (teacher := output_args.teacher_column) not in (None, "none", *dataset.column_names):
        raise RSRError(f"teacher_column: the dataset has no column {teacher!r}; it has {dataset.column_names}.")
    dataset = data.as_trl_format(dataset, **vars(format_args))
    scorer.check_columns(dataset.column_names)
    if not job_args.dataset_streaming and not len(dataset):
        raise RSRError(f"{data_args.dataset_name!r} has no rows.")
    if job_args.dry_run:
        if is_main:
            score_summary.dry_run(scorer, dataset, job_args.shard_rows, num_processes, output_args.json)
        return 0
    identity = {"files": data.source_files(*data_args.source), "config": data_args.dataset_config}
    identity |= {"split": data_args.dataset_split, "columns": asdict(format_args)}
    settings = {"dtype": str(scorer.student.model.dtype)[6:], "max_length": scorer.max_length}
    settings |= scorer.config.some(OF_THE_SCORE)
    facts = {
        "command": "score",
        "version": __version__,
        "student": student_args.model_name_or_path,
        "dataset": data_args.dataset_name,
        "settings": settings,
        "scores": {name: SCORES[name].prefer for name in scorer.scores},
    }
    share = (job_args.shard_rows, process, num_processes)
    job = Job(scorer, dataset, output_args.output_dir, identity, *share, options.CARD, facts, output_args.overwrite)
    with _stoppable():
        try:
            if job_args.on_error == "raise":
                job.check_rows()
            completed = job.run(show_bar=is_main and not output_args.json)
        except KeyboardInterrupt as stop:
            if is_main:
                score_summary.print_progress(job, output_args, is_stopped=True)
            return 128 + (stop.args[0] if stop.args else signal.SIGINT)
        except FloatingPointError as error:  # the student gives NaN
            raise RSRError(str(error)) from error
    # Once for all processes: by the one that ends last.
    if completed or (job.was_complete and is_main):
        return score_summary.finish(job, output_args, job_args.push_to_hub)
    # Of launched processes, the one that ends last prints the one JSON object.
    if is_main and not (output_args.json and job_args.shard is None):
        score_summary.print_progress(job, output_args)
    return 0


def share_of(shard: str | None) -> tuple[int, int]:
    """Which of how many processes this is: by `--shard i/n`, or as accelerate's and torchrun's environment says."""
    process, num_processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if shard is None:
        return process, num_processes
    if num_processes > 1:
        launched = f"this is one of {num_processes} launched processes"
        raise RSRError(f"--shard {shard} is for independent runs, but {launched}.")
    parts = shard.split("/")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not 1 <= int(parts[0]) <= int(parts[1]):
        raise RSRError(f"--shard must be i/n with i from 1 to n, such as 1/8 to 8/8, got {shard!r}.")
    return int(parts[0]) - 1, int(parts[1])


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM ends the work as Ctrl-C does, so that unfinished files go."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_login(repo_id: str) -> None:
    """Raise before the work, not after it, where the upload would be refused."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        HfApi().whoami()
    except (LocalTokenNotFoundError, HfHubHTTPError, OSError) as error:
        raise RSRError(f"--push_to_hub {repo_id} needs a login: run `hf auth login` first ({error}).") from None
