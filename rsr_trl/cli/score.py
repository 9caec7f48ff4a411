"""`rsr score`: add the RSR of every trajectory to a dataset."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trl import TrlParser

from rsr_trl.cli.options import DatasetArguments, FormatArguments, OutputArguments, StudentArguments, option_parser


if TYPE_CHECKING:
    from datasets import Dataset


CARD = """\
# Scored trajectories

Made by `rsr score` (rsr-trl {version}) from `{dataset}` with the student `{student}`.

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
"""


def make_parser(prog: str | None = None) -> TrlParser:
    return option_parser(
        (DatasetArguments, FormatArguments, StudentArguments, OutputArguments),
        prog=prog,
        description="Score every trajectory of a dataset with your student. A lower RSR suits the student better.",
    )


def main(
    data_args: DatasetArguments,
    format_args: FormatArguments,
    student_args: StudentArguments,
    output_args: OutputArguments,
) -> int:
    from rsr_trl import __version__, data
    from rsr_trl.cli import summary

    if output_args.json:
        summary.without_bars()
    data.check_output_dir(output_args.output_dir, output_args.overwrite)
    scorer = student_args.scorer(output_args.overwrite)
    dataset = data.load(data_args.dataset_name, data_args.dataset_config, data_args.dataset_split)
    teacher_column = summary.teacher_column_of(dataset, output_args.teacher_column)
    dataset = data.as_trl_format(dataset, **vars(format_args))
    logging.getLogger("rsr_trl.scoring").setLevel(logging.ERROR)  # its counts of bad rows are in the summary
    scored = scorer.score(dataset)
    card = CARD.format(
        version=__version__,
        dataset=data_args.dataset_name,
        student=student_args.model_name_or_path,
        r_max=student_args.r_max,
    )
    data.write_scored(scored, output_args.output_dir, card, output_args.overwrite)

    result = {
        "output_dir": output_args.output_dir,
        "max_length": scorer.max_length,
        **summary.figures(scored, teacher_column),
    }
    if output_args.json:
        summary.print_json(result)
    else:
        _print_summary(result, _next_command(scored, output_args.output_dir))
    return 0 if result["scored"] else 1


def _next_command(scored: "Dataset", output_dir: str) -> Sequence[str]:
    """`rsr select` for this dataset: by problem if a column names the problem, else by share."""
    from datasets import Value

    how = ["--keep_fraction", "0.5"]
    for column in ("prompt", "problem_id"):
        if scored.features.get(column) == Value("string") and len(scored.unique(column)) < len(scored):
            how = ["--group_column", column]
    return ["rsr", "select", "--dataset_name", output_dir, *how, "--output_dir", f"{output_dir.rstrip('/')}-selected"]


def _print_summary(result: dict, next_command: Sequence[str]) -> None:
    from rich.text import Text

    from rsr_trl.cli import summary
    from rsr_trl.cli.summary import add_row, number, share

    out = summary.console()
    rows = result["trajectories"]
    out.print(
        Text.assemble(
            "\n", (f"Scored {result['scored']:,} of {rows:,} trajectories", "bold"), f" -> {result['output_dir']}"
        )
    )
    if result["scored"]:
        out.print(
            f"RSR ({summary.DIRECTION}): median {number(result['rsr_median'])}, most suitable tenth up to "
            f"{number(result['rsr_p10'])}, least suitable tenth from {number(result['rsr_p90'])}"
        )
    if result["scored"] and "teachers" in result:
        out.print("Teachers, most suitable first (means over their trajectories; surprisal in nats):")
        table = summary.plain_table("teacher", "RSR", "rank", "surprisal", "tokens", "scored")
        for one in result["teachers"][: summary.MAX_TEACHERS]:
            add_row(
                table,
                one["teacher"],
                number(one["rsr"]),
                number(one["mean_clipped_rank"], 2),
                number(one["mean_surprisal"], 2),
                number(one["mean_tokens"], 0),
                f"{one['scored']:,}",
            )
        out.print(table)
        if (more := len(result["teachers"]) - summary.MAX_TEACHERS) > 0:
            out.print(f"... and {more} more teachers; --json lists them all.")
    if result["not_scored"]:
        out.print(f"Not scored: {share(rows - result['scored'], rows)}. They have null and are never chosen:")
        reasons = list(result["not_scored"].items())
        for reason, count in reasons[:5]:
            out.print(Text(f"  {count:,}  {reason}"))
        if len(reasons) > 5:
            out.print(f"  ... and {len(reasons) - 5} more reasons, in the column rsr_error.")
    if result["truncated"]:
        out.print(
            f"Truncated at {result['max_length']:,} tokens: {share(result['truncated'], rows)}. Their scores are of "
            "their beginnings only."
        )
    if result["short"] > 0.1 * rows:
        out.print(
            f"Short: {share(result['short'], rows)} have fewer than {summary.SHORT} scored tokens. RSR is noisy on "
            "them, and answers without reasoning can look suitable by chance: look before you choose."
        )
    if result["scored"]:
        summary.print_next(out, *next_command)
