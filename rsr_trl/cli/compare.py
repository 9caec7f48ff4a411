"""`rsr compare`: RSR beside other scores of the same trajectories, and its known failure modes looked for."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trl import TrlParser

from rsr_trl.cli.options import DatasetArguments, option_parser


if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import Console

    from rsr_trl.selection.compare import Comparison


BASELINES = ("surprisal", "length")  # whose places of teachers come first where not all fit; JSON has all


@dataclass
class CompareArguments:
    """
    What to compare: the arguments of [`compare_scores`] of the same names.

    Args:
        scores (`str`, *optional*): Names of scores with commas between; all that are there by default.
        own_scores (`str`, *optional*): Other columns, each with its direction: `quality:high,cost:low`.
        teacher_column (`str`, *optional*): Column with the teacher's name; `teacher` where there is one.
        problem_column (`str`, *optional*): Column that names the problem; `problem_id` where there is one.
        correctness_column (`str`, *optional*): Boolean column; `correct` where there is one.
        keep_per_group (`int`, *optional*, defaults to `1`): How many each score chooses of each problem.
        keep_fraction (`float`, *optional*): Share of all that each score chooses instead.
        json (`bool`, *optional*, defaults to `False`): Whether to print the result as JSON on standard output.
    """

    _argument_group_name = "comparison"

    scores: str | None = field(
        default=None, metadata={"help": "Scores to compare, such as surprisal,length; by default all that are there."}
    )
    own_scores: str | None = field(
        default=None,
        metadata={"help": "Other columns, each with the end that is more suitable: quality:high,cost:low."},
    )
    teacher_column: str | None = field(
        default=None, metadata={"help": "Column with the teacher's name; `teacher` by default, where there is one."}
    )
    problem_column: str | None = field(
        default=None,
        metadata={"help": "Column that names the problem, to compare within problems; `problem_id` by default."},
    )
    correctness_column: str | None = field(
        default=None, metadata={"help": "Boolean column that says what is correct; `correct` by default."}
    )
    keep_per_group: int = field(default=1, metadata={"help": "How many each score chooses of each problem."})
    keep_fraction: float | None = field(
        default=None, metadata={"help": "Instead of by problem: each score chooses this share of all, in (0, 1]."}
    )
    json: bool = field(default=False, metadata={"help": "Print one JSON object on standard output, and nothing else."})


def make_parser(prog: str | None = None) -> TrlParser:
    return option_parser(
        (DatasetArguments, CompareArguments),
        prog=prog,
        description="Compare RSR (lower = more suitable) with other scores of a scored dataset: how far they agree, "
        "what each would choose, how much of each is length and correctness; and look for RSR's known failure modes.",
    )


def main(data_args: DatasetArguments, compare_args: CompareArguments) -> None:
    from rsr_trl import data
    from rsr_trl.cli import summary
    from rsr_trl.selection.compare import compare_scores

    if compare_args.json:
        summary.without_bars()
    dataset = data.load(data_args.dataset_name, data_args.dataset_config, data_args.dataset_split)
    comparison = compare_scores(
        dataset,
        scores=None if compare_args.scores is None else _items(compare_args.scores),
        own_scores=_directions(compare_args.own_scores),
        teacher_column=summary.teacher_column_of(dataset, compare_args.teacher_column),
        problem_column=compare_args.problem_column or _default(dataset, "problem_id"),
        correctness_column=compare_args.correctness_column or _default(dataset, "correct", "bool"),
        keep_per_group=compare_args.keep_per_group,
        keep_fraction=compare_args.keep_fraction,
    )
    if compare_args.json:
        summary.print_json({"direction": summary.DIRECTION, **comparison.to_dict()})
    else:
        _show(summary.console(), comparison, data_args.dataset_name)


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _directions(text: str | None) -> dict[str, str]:
    found = {}
    for item in _items(text or ""):
        column, separator, prefer = item.rpartition(":")
        if not separator:
            raise ValueError(
                f"--own_scores {item!r} doesn't say which end is more suitable: write {item}:low or {item}:high."
            )
        found[column] = prefer
    return found


def _default(dataset: "Dataset", name: str, dtype: str | None = None) -> str | None:
    """The column of this name, if there is one that can be used without being asked for."""
    if name not in dataset.column_names or (dtype is not None and dataset.features[name].dtype != dtype):
        return None
    return name


def _show(out: "Console", comparison: "Comparison", dataset_name: str) -> None:
    from rich.text import Text

    from rsr_trl.cli import summary
    from rsr_trl.data import is_selection
    from rsr_trl.selection.teachers import SELECTED

    problems = f" of {comparison.num_problems:,} problems" if comparison.num_problems is not None else ""
    head = f"{len(comparison.scores)} scores of {comparison.num_compared:,} trajectories{problems}"
    out.print(Text.assemble("\n", (head, "bold")))
    _show_findings(out, comparison)
    _show_scores(out, comparison)
    _show_choices(out, comparison)
    if len(comparison.teachers) > 1:
        _show_teachers(out, comparison)
    for note in [*comparison.notes, *([SELECTED] if is_selection(dataset_name) else [])]:
        out.print(Text(f"Note: {note}"))
    summary.print_next(
        out, "rsr", "select", "--dataset_name", dataset_name, *comparison.rule.split(), "--output_dir", "OUT"
    )


def _show_findings(out: "Console", comparison: "Comparison") -> None:
    from rich.padding import Padding
    from rich.text import Text

    if not comparison.findings:
        out.print(
            "None of RSR's known failure modes was found here. That doesn't show that it helps: only training on a "
            "sample does, beside a random choice."
        )
        return
    number = len(comparison.findings)
    out.print(f"{number} known failure mode{'s' if number > 1 else ''} of RSR found here:")
    for finding in comparison.findings:
        rows = ", ".join(f"{row}" for row in finding.example_rows)
        found = f"{finding.what}{f' For example rows {rows}.' if rows else ''} {finding.why}"
        out.print(Padding(Text.assemble((f"{finding.name}: ", "bold"), found), (0, 0, 0, 2)))
        out.print(Padding(Text(f"-> {finding.what_to_do}"), (0, 0, 0, 4)))


def _show_scores(out: "Console", comparison: "Comparison") -> None:
    """How far each score agrees with RSR, and with what else it goes: a column only where there is something in it."""
    from rsr_trl.cli import summary

    rows = comparison.scores
    cells = {
        "RSR": lambda row: _signed(row["rank_correlation"]),
        "choice": lambda row: _percent(row["overlap"]),
        "teachers": lambda row: _signed(row["teacher_agreement"]),
        "length": lambda row: _signed(row["length_correlation"]),
        "correct first": _correct_first,
    }
    meaning = [
        "RSR, length: rank correlation with it (above 0: what it rates suitable is rated so by RSR, is long).",
        f"choice: share of RSR's choice that it would choose too, by chance {comparison.chance_overlap:.0%}.",
    ]
    if rows[0]["teacher_agreement"] is None:
        del cells["teachers"]
    else:
        meaning.append("teachers: rank correlation of its order of teachers with RSR's.")
    if rows[0]["correct_first"] is None:
        del cells["correct first"]
    else:
        meaning.append(
            "correct first: how often it rates a correct one more suitable than an incorrect one (95% interval), by "
            "chance 50%."
        )
    within = " within problems" if comparison.num_problems is not None else ""
    out.print(f"\nScores, and the end of each that is more suitable, compared{within}:")
    table = summary.plain_table("score", *cells)
    for row in rows:
        summary.add_row(table, f"{row['name']} ({row['prefer']})", *(cell(row) for cell in cells.values()))
    out.print(table)
    for line in meaning:
        out.print(line)


def _show_choices(out: "Console", comparison: "Comparison") -> None:
    from rich.text import Text

    from rsr_trl.cli import summary

    rows = comparison.scores
    cells = {
        "mean tokens": lambda row: summary.number(row["chosen_tokens"], 0),
        "correct": lambda row: _percent(row["chosen_accuracy"]),
        "most from": lambda row: f"{row['chosen_top_teacher']} {_percent(row['chosen_top_teacher_share'])}",
    }
    if rows[0]["chosen_accuracy"] is None:
        del cells["correct"]
    if not comparison.teachers:
        del cells["most from"]
    out.print(Text(f"\nWhat each would choose with {comparison.rule}:"))
    table = summary.plain_table("score", *cells)
    for row in rows:
        summary.add_row(table, row["name"], *(cell(row) for cell in cells.values()))
    out.print(table)


def _show_teachers(out: "Console", comparison: "Comparison") -> None:
    from rsr_trl.cli import summary

    names = sorted((row["name"] for row in comparison.scores[1:]), key=lambda name: name not in BASELINES)
    listed = comparison.teachers[: summary.MAX_TEACHERS]
    # Beside the widest name and the RSR: columns have two spaces between them, and the table one at each end.
    left = out.width - max(len(str(row["teacher"])) for row in listed) - 10
    fits = [sum(len(name) + 3 for name in names[: i + 1]) <= left for i in range(len(names))]
    shown = names[: max(1, sum(fits))]
    on = f", on {comparison.num_shared_problems:,} problems that all have" if comparison.num_shared_problems else ""
    out.print(f"\nTeachers, most suitable by RSR first{on}, with their places by other scores:")
    table = summary.plain_table("teacher", "RSR", *shown)
    for row in listed:
        places = (row["places"][name] for name in shown)
        summary.add_row(table, row["teacher"], summary.number(row["values"]["rsr"]), *places)
    out.print(table)
    more = []
    if (rest := len(comparison.teachers) - summary.MAX_TEACHERS) > 0:
        more.append(f"{rest:,} more teachers")
    if len(names) > len(shown):
        more.append(f"the places by {', '.join(names[len(shown) :])}")
    if more:
        out.print(f"--json has {' and '.join(more)} too.")


def _correct_first(row: dict) -> str:
    if row["correct_first_low"] is None:
        return _percent(row["correct_first"])
    return f"{row['correct_first']:.0%} ({row['correct_first_low']:.0%}-{row['correct_first_high']:.0%})"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
