"""`rsr report`: one self-contained HTML page about a scored dataset."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from rich.text import Text
from trl import TrlParser

from rsr_trl.cli.options import ColumnArguments, DatasetArguments, JsonArguments, option, option_parser
from rsr_trl.cli.tables import console, print_json, without_bars
from rsr_trl.rsr import DIRECTION


if TYPE_CHECKING:
    from rsr_trl.report.page import Report


@dataclass(kw_only=True)
class ReportArguments(JsonArguments, ColumnArguments):
    """What is on the page: the arguments of [`write_report`] of the same names."""

    _argument_group_name = "page"

    output: str = option("Page to write, ending in .html; an earlier report there is replaced.")
    tokenizer: str | None = option(
        "The student's tokenizer, for reading trajectories token by token: Hub id or folder. Not needed for a folder "
        "of `rsr score`, which names its student.",
        None,
    )
    prefer: Literal["low", "high"] = option(
        "Which end of the RSR the page's choice keeps; low suits the student.", "low"
    )
    rows: list[int] = field(
        default_factory=list,
        metadata={"help": "Rows to show token by token, besides the most, median and least suitable one."},
    )
    run: str | None = option(
        "Output folder of the `rsr sft` run on this dataset: shows how scores moved in training.", None
    )
    pilot: str | None = option("Output folder of the `rsr pilot` on this dataset: shows what it found.", None)


def make_parser(prog: str | None = None) -> TrlParser:
    return option_parser(
        (DatasetArguments, ReportArguments),
        prog=prog,
        description="Write one self-contained HTML page about a scored dataset: teachers, spread, trajectories token "
        "by token, and what selection would change. It opens anywhere and fetches nothing. A lower RSR suits the "
        "student better.",
    )


def main(data_args: DatasetArguments, report_args: ReportArguments) -> None:
    from rsr_trl.report.page import write_report

    options = asdict(report_args)
    if options.pop("json"):
        without_bars()
    report = write_report(data_args.load(), source=data_args.dataset_name, **options)
    if report_args.json:
        missing = {heading: part.why for heading, part in report.missing.items()}
        result = {"output": str(report.path), "bytes": report.num_bytes, "direction": DIRECTION}
        print_json({**result, "headline": report.headline, "cautions": report.cautions, "missing": missing})
    else:
        _show(report)


def _show(report: "Report") -> None:
    out = console()
    size = f" ({report.num_bytes / 1e6:.1f} MB, opens in any browser)"
    out.print(Text.assemble("\n", ("Wrote the report", "bold"), f" -> {report.path}{size}"))
    for sentence in report.headline.values():
        out.print(Text(sentence))
    for about, sentence in report.cautions.items():
        out.print(Text.assemble((f"{about}: ", "bold"), sentence))
    for heading, part in report.missing.items():
        how_to = f"{part.how} {part.command or ''}".strip()
        out.print(Text(f"Not on the page: {heading}. {part.why} {how_to}"))
