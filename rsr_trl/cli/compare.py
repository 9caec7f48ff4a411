"""`rsr compare`: RSR beside other scores of the same trajectories, and the known failure modes of RSR."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.text import Text
from trl import TrlParser

from rsr_trl.cli.options import ColumnArguments, DatasetArguments, JsonArguments, option, option_parser
from rsr_trl.cli.tables import Column, console, print_json, print_next, print_table, without_bars
from rsr_trl.report.format import label, number, percent
from rsr_trl.rsr import DIRECTION, RSRError


if TYPE_CHECKING:
    from rsr_trl.selection.compare import Comparison


BASELINES = ("surprisal", "length")  # whose places of teachers come first where not all fit; JSON has all


@dataclass
class CompareArguments(JsonArguments, ColumnArguments):
    """What to compare: the arguments of [`compare_scores`] of the same names."""

    _argument_group_name = "comparison"

    scores: str | None = option("Scores to compare, such as surprisal,length; by default all that are there.", None)
    own_scores: str | None = option(
        "Other columns, each with the end that is more suitable: quality:high,cost:low.", None
    )
    keep_per_group: int = option("How many each score chooses of each problem.", 1)
    keep_fraction: float | None = option(
        "Instead of by problem: each score chooses this share of all, in (0, 1].", None
    )


def make_parser(prog: str | None = None) -> TrlParser:
    return option_parser(
        (DatasetArguments, CompareArguments),
        prog=prog,
        description="Compare RSR (lower = more suitable) with other scores of a scored dataset: how far they agree, "
        "what each would choose, how much of each is length and correctness; and look for RSR's known failure modes.",
    )


def main(data_args: DatasetArguments, compare_args: CompareArguments) -> None:
    from rsr_trl.data import is_selection
    from rsr_trl.selection.compare import compare_table, comparison_table
    from rsr_trl.selection.teachers import SELECTED

    if compare_args.json:
        without_bars()
    dataset = data_args.load()
    columns = compare_args.columns(dataset)
    notes = list(columns.notes)
    scores = None if compare_args.scores is None else _items(compare_args.scores)
    table = comparison_table(dataset, scores, _directions(compare_args.own_scores), columns, notes)
    comparison = compare_table(table, compare_args.keep_per_group, compare_args.keep_fraction, notes)
    if compare_args.json:
        print_json({"direction": DIRECTION, **comparison.to_dict()})
        return
    out = console()
    problems = f" of {comparison.num_problems:,} problems" if comparison.num_problems is not None else ""
    head = f"{len(comparison.scores)} scores of {comparison.num_compared:,} trajectories{problems}"
    out.print(Text.assemble("\n", (head, "bold")))
    _show_findings(out, comparison)
    _show_scores(out, comparison)
    _show_choices(out, comparison)
    if len(comparison.teachers) > 1:
        _show_teachers(out, comparison)
    source = data_args.dataset_name
    for note in [*comparison.notes, *([SELECTED] if is_selection(source) else [])]:
        out.print(Text(f"Note: {note}"))
    print_next(out, "rsr", "select", "--dataset_name", source, *comparison.rule.split(), "--output_dir", "OUT")


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _directions(text: str | None) -> dict[str, str]:
    directions = {}
    for item in _items(text or ""):
        column, separator, prefer = item.rpartition(":")
        if not separator:
            raise RSRError(
                f"--own_scores {item!r} doesn't say which end is more suitable: write {item}:low or {item}:high."
            )
        directions[column] = prefer
    return directions


def _show_findings(out: Console, comparison: "Comparison") -> None:
    if not comparison.findings:
        out.print(
            "None of RSR's known failure modes was found here. That doesn't show that it helps: only training on a "
            "sample does, beside a random choice."
        )
        return
    count = len(comparison.findings)
    out.print(f"{count} known failure mode{'s' if count > 1 else ''} of RSR found here:")
    for finding in comparison.findings:
        rows = ", ".join(f"{row}" for row in finding.example_rows)
        text = f"{finding.what}{f' For example rows {rows}.' if rows else ''} {finding.why}"
        out.print(Padding(Text.assemble((f"{finding.name}: ", "bold"), text), (0, 0, 0, 2)))
        out.print(Padding(Text(f"-> {finding.what_to_do}"), (0, 0, 0, 4)))


def _show_scores(out: Console, comparison: "Comparison") -> None:
    """How far each score agrees with RSR, and with what else it goes: a column only where there is something in it."""
    first = comparison.scores[0]
    by_teacher, by_truth = first["teacher_agreement"] is not None, first["correct_first"] is not None
    within = " within problems" if comparison.num_problems is not None else ""
    out.print(f"\nScores, and the end of each that is more suitable, compared{within}:")
    columns = (
        Column("score", lambda row: f"{row['name']} ({row['prefer']})"),
        Column("RSR", lambda row: _signed(row["rank_correlation"])),
        Column("choice", lambda row: percent(row["overlap"])),
        Column("teachers", lambda row: _signed(row["teacher_agreement"]), shown=by_teacher),
        Column("length", lambda row: _signed(row["length_correlation"])),
        Column("correct first", _correct_first, shown=by_truth),
    )
    print_table(out, comparison.scores, columns, limit=None)
    out.print("RSR, length: rank correlation with it (above 0: what it rates suitable is rated so by RSR, is long).")
    out.print(f"choice: share of RSR's choice that it would choose too, by chance {comparison.chance_overlap:.0%}.")
    if by_teacher:
        out.print("teachers: rank correlation of its order of teachers with RSR's.")
    if by_truth:
        out.print(
            "correct first: how often it rates a correct one more suitable than an incorrect one (95% interval), by "
            "chance 50%."
        )


def _show_choices(out: Console, comparison: "Comparison") -> None:
    by_truth = comparison.scores[0]["chosen_accuracy"] is not None
    out.print(Text(f"\nWhat each would choose with {comparison.rule}:"))
    columns = (
        Column("score", "name"),
        Column("mean tokens", "chosen_tokens", digits=0),
        Column("correct", lambda row: percent(row["chosen_accuracy"]), shown=by_truth),
        Column(
            "most from",
            lambda row: f"{label(row['chosen_top_teacher'])} {percent(row['chosen_top_teacher_share'])}",
            shown=bool(comparison.teachers),
        ),
    )
    print_table(out, comparison.scores, columns, limit=None)


def _show_teachers(out: Console, comparison: "Comparison") -> None:
    names = sorted((row["name"] for row in comparison.scores[1:]), key=lambda name: name not in BASELINES)
    on = f", on {comparison.num_shared_problems:,} problems that all have" if comparison.num_shared_problems else ""
    out.print(f"\nTeachers, most suitable by RSR first{on}, with their places by other scores:")
    places = [Column(name, lambda row, name=name: row["places"][name], optional=True) for name in names]
    columns = (Column("teacher", "teacher"), Column("RSR", lambda row: row["values"]["rsr"], digits=3), *places)
    print_table(out, comparison.teachers, columns, things="teacher")


def _correct_first(row: dict) -> str:
    if row["correct_first_low"] is None:
        return percent(row["correct_first"])
    return f"{row['correct_first']:.0%} ({row['correct_first_low']:.0%}-{row['correct_first_high']:.0%})"


def _signed(value: float | None) -> str:
    return number(value) if value is None else f"{value:+.2f}"
