"""`rsr report`: one self-contained HTML page about a scored dataset."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from trl import TrlParser

from rsr_trl.cli.options import DatasetArguments, option_parser


if TYPE_CHECKING:
    from rsr_trl.report.page import Report


@dataclass
class ReportArguments:
    """
    What is on the page: the arguments of [`write_report`] of the same names.

    Args:
        output (`str`): Page to write.
        tokenizer (`str`, *optional*): The student's tokenizer: Hub id or folder.
        teacher_column (`str`, *optional*): Column that names the teacher.
        problem_column (`str`, *optional*): Column that says which trajectories answer the same problem.
        correctness_column (`str`, *optional*): Boolean column.
        prefer (`str`, *optional*, defaults to `"low"`): Which end of the RSR the choice on the page keeps.
        rows (`list[int]`, *optional*): Rows to show token by token.
        run (`str`, *optional*): Output folder of a training run.
        pilot (`str`, *optional*): Output folder of a pilot.
        json (`bool`, *optional*, defaults to `False`): Whether to print the summary as JSON on standard output.
    """

    _argument_group_name = "page"

    output: str = field(metadata={"help": "Page to write, ending in .html; an earlier report there is replaced."})
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "The student's tokenizer, for reading trajectories token by token: Hub id or folder. Not needed "
            "for a folder of `rsr score`, which names its student."
        },
    )
    teacher_column: str | None = field(
        default=None, metadata={"help": "Column with the teacher's name; `teacher` by default, where there is one."}
    )
    problem_column: str | None = field(
        default=None,
        metadata={
            "help": "Column that names the problem; by default problem_id, question_id, prompt_id, problem, question "
            "or prompt, the first in which values repeat."
        },
    )
    correctness_column: str | None = field(
        default=None, metadata={"help": "Boolean column; `correct` or `is_correct` by default, where there is one."}
    )
    prefer: Literal["low", "high"] = field(
        default="low", metadata={"help": "Which end of the RSR the page's choice keeps; low suits the student."}
    )
    rows: list[int] = field(
        default_factory=list,
        metadata={"help": "Rows to show token by token, besides the most, median and least suitable one."},
    )
    run: str | None = field(
        default=None,
        metadata={"help": "Output folder of the `rsr sft` run on this dataset: shows how scores moved in training."},
    )
    pilot: str | None = field(
        default=None, metadata={"help": "Output folder of the `rsr pilot` on this dataset: shows what it found."}
    )
    json: bool = field(
        default=False, metadata={"help": "Print the summary as one JSON object on standard output, and nothing else."}
    )


def make_parser(prog: str | None = None) -> TrlParser:
    return option_parser(
        (DatasetArguments, ReportArguments),
        prog=prog,
        description="Write one self-contained HTML page about a scored dataset: teachers, spread, trajectories token "
        "by token, and what selection would change. It opens anywhere and fetches nothing. A lower RSR suits the "
        "student better.",
    )


def main(data_args: DatasetArguments, report_args: ReportArguments) -> None:
    from rsr_trl import data
    from rsr_trl.cli import summary
    from rsr_trl.report.page import write_report

    options = asdict(report_args)
    if options.pop("json"):
        summary.without_bars()
    dataset = data.load(data_args.dataset_name, data_args.dataset_config, data_args.dataset_split)
    report = write_report(dataset, source=data_args.dataset_name, **options)
    if report_args.json:
        missing = {heading: part.why for heading, part in report.missing.items()}
        result = {"output": str(report.path), "bytes": report.num_bytes, "direction": summary.DIRECTION}
        summary.print_json({**result, "headline": report.headline, "cautions": report.cautions, "missing": missing})
    else:
        _print_summary(report)


def _print_summary(report: "Report") -> None:
    from rich.text import Text

    from rsr_trl.cli import summary

    out = summary.console()
    size = f" ({report.num_bytes / 1e6:.1f} MB, opens in any browser)"
    out.print(Text.assemble("\n", ("Wrote the report", "bold"), f" -> {report.path}{size}"))
    for sentence in report.headline.values():
        out.print(Text(sentence))
    for about, sentence in report.cautions.items():
        out.print(Text.assemble((f"{about}: ", "bold"), sentence))
    for heading, part in report.missing.items():
        what = f"{part.why} {part.how}" + (f" {part.command}" if part.command else "")
        out.print(Text(f"Not on the page: {heading}. {what}"))
