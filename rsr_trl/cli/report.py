"""
Write a self-contained HTML report on a scored dataset: teachers, distribution, trajectories token by token, what
selection would change. It opens in any browser, offline. A lower RSR suits the student better.
"""

from dataclasses import MISSING, asdict, dataclass
from typing import Literal

from rich.console import Console
from trl import TrlParser

from rsr_trl.cli.options import ColumnArguments, DatasetArguments, JsonArguments, option, option_parser
from rsr_trl.cli.tables import console, finish, say
from rsr_trl.rsr import DIRECTION


@dataclass(kw_only=True)
class ReportArguments(JsonArguments, ColumnArguments):
    """What is on the page: the arguments of [`write_report`] of the same names."""

    _argument_group_name = "page"

    output_dir: str = option(
        "Output folder, in which the page is report.html; or the page itself, ending in .html (or --output). An "
        "earlier report there is replaced.",
        MISSING,
        "--output",
    )
    tokenizer: str | None = option(
        "The student's tokenizer (Hub id or folder), to show tokens. Not needed for a folder of `rsr score`.", None
    )
    prefer: Literal["low", "high"] = option("Select trajectories with low or high RSR; low suits the student.", "low")
    rows: list[int] | None = option("Rows to show besides the most, median and least suitable one.", None)
    run: str | None = option("Output folder of an `rsr sft` run on this dataset, to show how scores changed.", None)
    pilot: str | None = option("Output folder of an `rsr pilot` on this dataset, to show its results.", None)


def make_parser(prog: str | None = None) -> TrlParser:
    return option_parser((DatasetArguments, ReportArguments), prog, __doc__)


def main(data_args: DatasetArguments, report_args: ReportArguments) -> None:
    from rsr_trl.data import counted
    from rsr_trl.report.page import write_report

    options = asdict(report_args)
    as_json = options.pop("json")
    options["rows"] = options["rows"] or ()
    dataset, output = data_args.load(), options.pop("output_dir")
    if not as_json:
        say(console(), f"Writing a report on {counted(len(dataset), 'trajectory')} ...")
    report = write_report(dataset, output, source=data_args.dataset_name, **options)
    result = {
        "output": str(report.path),
        "bytes": report.num_bytes,
        "direction": DIRECTION,
        "headline": report.headline,
        "cautions": report.cautions,
        "missing": {heading: part.why for heading, part in report.missing.items()},
    }

    def show(out: Console) -> None:
        say(out, f" -> {report.path} ({report.num_bytes / 1e6:.1f} MB, opens in any browser)", "\nWrote the report")
        for about, sentence in report.headline.items():
            say(out, sentence, f"{about}: ")
        for about, sentence in report.cautions.items():
            say(out, sentence, f"Warning, {about}: ")
        for heading, part in report.missing.items():
            say(out, f"{part.why} {part.how} {part.command or ''}".strip(), f"Not in the report: {heading}. ")

    finish(as_json, result, show)
