"""`rsr score`: add the RSR of every trajectory to a dataset, with any number of processes, and go on after a stop."""

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from trl import TrlParser

from rsr_trl.cli.options import DatasetArguments, FormatArguments, OutputArguments, StudentArguments, option_parser


if TYPE_CHECKING:
    from rsr_trl.scoring.job import Share


CARD = """\
# Scored trajectories

Made by `rsr score` (rsr-trl {version}) from `{dataset}` with the student `{student}` ({dtype}, at most {max_length}
tokens a trajectory).

**A lower `rsr` suits this student better.** Scores of different students can't be compared with each other.

| column | meaning |
|---|---|
| `rsr` | Rank-Surprisal Ratio of the trajectory, mean clipped rank / mean surprisal (arXiv:2601.14249, Eq. 7) |
| `rsr_mean_clipped_rank` | mean rank of its tokens, clipped at {r_max} |
| `rsr_mean_surprisal` | mean surprisal of its tokens, in nats |
| `rsr_num_tokens` | tokens that were scored |
| `rsr_truncated` | whether it was cut at the length limit |
| `rsr_error` | why it has no score; null when it has one |
| `rsr_student` | fingerprint of the student and the settings |

The other columns and the order of the rows are those of the source. Where there are `rsr_token_...` columns, they hold
each scored token: its id, its rank (not clipped), its surprisal, and the student's own most likely token there.
{others}
```bibtex
{citation}
```
"""


@dataclass
class JobArguments:
    """
    How a large dataset is scored.

    Args:
        dataset_streaming (`bool`, *optional*, defaults to `False`): Whether to read rows as they are needed.
        shard (`str`, *optional*): `i/n`: score the i-th of n parts, counted from 1, independently of the others.
        shard_rows (`int`, *optional*): Rows of an output file; by default some minutes of work.
        on_error (`str`, *optional*, defaults to `"null"`): What to do about rows that can't be scored.
        dry_run (`bool`, *optional*, defaults to `False`): Whether to estimate the cost only.
        push_to_hub (`str`, *optional*): Dataset repository to upload the result to.
    """

    _argument_group_name = "large datasets"

    dataset_streaming: bool = field(
        default=False, metadata={"help": "Read rows as they are needed, without a copy on disk; works for files too."}
    )
    shard: str | None = field(
        default=None,
        metadata={
            "help": "i/n: score the i-th of n parts (i from 1 to n), for schedulers without torch.distributed. All "
            "parts go into the same folder, in any order."
        },
    )
    shard_rows: int | None = field(
        default=None,
        metadata={
            "help": "Rows of an output file, which is also what a stop can lose; by default some minutes of work."
        },
    )
    on_error: Literal["null", "raise"] = field(
        default="null",
        metadata={
            "help": "Rows that can't be scored get null and their reason, or stop the run before anything is scored "
            "(all rows are tokenized first)."
        },
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Measure a few rows, say what the run would cost, and write nothing."}
    )
    push_to_hub: str | None = field(
        default=None,
        metadata={"help": "Dataset repository, such as me/scored, to upload the result to; made private if new."},
    )


class _Stopped(BaseException):
    """The scheduler asked the process to end."""


def make_parser(prog: str | None = None) -> TrlParser:
    return option_parser(
        (DatasetArguments, FormatArguments, StudentArguments, OutputArguments, JobArguments),
        prog=prog,
        description="Score every trajectory of a dataset with your student. A lower RSR suits the student better. The "
        "same command, started again after a stop, goes on. Under `accelerate launch -m rsr_trl score ...`, every "
        "process takes what is free.",
    )


def main(
    data_args: DatasetArguments,
    format_args: FormatArguments,
    student_args: StudentArguments,
    output_args: OutputArguments,
    job_args: JobArguments,
) -> int:
    from rsr_trl import __version__, data
    from rsr_trl.cli import score_summary, summary
    from rsr_trl.rsr import CITATION
    from rsr_trl.scoring.job import Job
    from rsr_trl.scoring.manifest import data_identity
    from rsr_trl.scoring.parts import rows_of_part, sample, with_features

    share = share_of(job_args.shard)
    is_main = share.own_only or share.number == 0
    if output_args.json or not is_main:
        summary.without_bars()
    if job_args.push_to_hub and is_main:
        _check_login(job_args.push_to_hub)
    logging.getLogger("rsr_trl.scoring").setLevel(logging.ERROR)  # its counts of bad rows are in the summary
    source = (data_args.dataset_name, data_args.dataset_config, data_args.dataset_split)
    scorer = student_args.scorer(output_args.overwrite)
    dataset = data.load(*source, streaming=job_args.dataset_streaming)
    dataset = with_features(dataset) if job_args.dataset_streaming else dataset
    teacher_column = summary.teacher_column_of(dataset, output_args.teacher_column)
    dataset = data.as_trl_format(dataset, **vars(format_args))
    scorer.check_columns(dataset.column_names)
    if not job_args.dataset_streaming and not len(dataset):
        raise ValueError(f"{data_args.dataset_name!r} has no rows.")
    rows = job_args.shard_rows
    if rows is None or job_args.dry_run:
        examples = [example for window in scorer.windows_of(sample(dataset)) for example in window.examples]
        rows = rows or rows_of_part(dataset, examples)
    if job_args.dry_run:
        return score_summary.dry_run(scorer, dataset, examples, rows, share, output_args.json)
    card = CARD.format(
        version=__version__,
        dataset=data_args.dataset_name,
        student=student_args.model_name_or_path,
        dtype=str(scorer.student.model.dtype).removeprefix("torch."),
        max_length=f"{scorer.max_length:,}",
        r_max=student_args.r_max,
        others=_others(scorer.scores),
        citation=CITATION,
    )
    settings = {"dtype": str(scorer.student.model.dtype)[6:], "max_length": scorer.max_length, "r_max": scorer.r_max}
    facts = {
        "command": "score",
        "student": student_args.model_name_or_path,
        "dataset": data_args.dataset_name,
        "settings": settings,
    }
    identity = data_identity(
        data.source_files(*source),
        config=data_args.dataset_config,
        split=data_args.dataset_split,
        columns=asdict(format_args),
    )
    job = Job(scorer, dataset, output_args.output_dir, identity, rows, share, card, output_args.overwrite, facts)
    with _stoppable():
        try:
            if job_args.on_error == "raise":
                job.check_rows()
            job.run(wait=is_main and not share.own_only and share.of > 1, show_bar=is_main and not output_args.json)
        except (_Stopped, KeyboardInterrupt) as stop:
            if is_main:
                score_summary.print_stopped(job.totals(), output_args.output_dir)
            return 128 + (signal.SIGTERM if isinstance(stop, _Stopped) else signal.SIGINT)
    if not is_main:
        return 0
    return score_summary.finish(
        job, output_args.output_dir, scorer.max_length, teacher_column, output_args.json, job_args.push_to_hub
    )


def _others(scores: Sequence[str]) -> str:
    """What a dataset's card says of the other scores in it."""
    from rsr_trl.scoring.scores import SCORES

    if not scores:
        return ""
    which = ", ".join(f"`score_{name}` ({SCORES[name].prefer}er first)" for name in scores if name != "casl")
    casl = "`rsr_step_share`: share of the tokens that begin a reasoning step" if "casl" in scores else ""
    return f"\nOther scores of the same student: {'; '.join(part for part in (which, casl) if part)}.\n"


def share_of(shard: str | None) -> "Share":
    """Which of how many processes this is: by `--shard i/n`, or as accelerate's and torchrun's environment says."""
    from rsr_trl.scoring.job import Share

    number, of = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if shard is None:
        return Share(number, of)
    if of > 1:
        raise ValueError(f"--shard {shard} is for independent runs, but this is one of {of} launched processes.")
    parts = shard.split("/")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not 1 <= int(parts[0]) <= int(parts[1]):
        raise ValueError(f"--shard must be i/n with i from 1 to n, such as 1/8 to 8/8, got {shard!r}.")
    return Share(int(parts[0]) - 1, int(parts[1]), own_only=True)


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM ends the work as an exception, so that locks and temporary files go."""

    def stop(*_) -> None:
        raise _Stopped

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
        raise ValueError(f"--push_to_hub {repo_id} needs a login: run `hf auth login` first ({error}).") from None
