"""`rsr select`: choose the most suitable trajectories of a scored dataset."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.text import Text
from trl import TrlParser

from rsr_trl.cli.options import DatasetArguments, OutputArguments, ScoreArguments, option, option_parser
from rsr_trl.cli.tables import Column, beside, console, print_json, print_next, print_table, without_bars
from rsr_trl.report.format import number, share
from rsr_trl.rsr import DIRECTION, NOISY_BELOW, RSR, RSRError


if TYPE_CHECKING:
    from rsr_trl.selection.table import ScoredTable


@dataclass
class SelectArguments(ScoreArguments):
    """What to choose: the arguments of [`select_trajectories`] of the same names."""

    _argument_group_name = "choice"

    group_column: str | None = option("Keep the most suitable of each group: the column that names the problem.", None)
    keep_per_group: int = option("How many to keep of each group.", 1)
    keep_fraction: float | None = option("Instead of by group: keep this share of all, in (0, 1].", None)
    score_threshold: float | None = option("Instead of by group: keep all with a score up to this.", None)
    require: str | None = option("Boolean column that must be true, such as `correct`.", None)
    when_none_qualifies: Literal["drop", "any", "error"] = option(
        "What to do with groups where `--require` is true of none.", "drop"
    )
    min_tokens: int | None = option("Leave out trajectories with fewer scored tokens, such as bare answers.", None)
    max_tokens: int | None = option("Leave out trajectories with more scored tokens.", None)
    max_share_per_teacher: float | None = option("No teacher gets more than this share of what is chosen.", None)


CARD = """\
# Selected trajectories

{chosen} of {trajectories} trajectories of `{dataset}`{scored}, chosen by `rsr select` of rsr-trl {version} with
`{options}`.

A lower `rsr` suits the student better; the other columns are those of the scored dataset.
"""


def make_parser(prog: str | None = None) -> TrlParser:
    return option_parser(
        (DatasetArguments, SelectArguments, OutputArguments),
        prog=prog,
        description="Choose the most suitable trajectories of a scored dataset: of each problem with --group_column, "
        "or of all with --keep_fraction or --score_threshold.",
    )


def main(data_args: DatasetArguments, select_args: SelectArguments, output_args: OutputArguments) -> None:
    from rsr_trl import __version__, data
    from rsr_trl.selection.choose import Criteria, choose
    from rsr_trl.selection.table import ScoredTable

    if output_args.json:
        without_bars()
    source, output_dir = data_args.dataset_name, output_args.output_dir
    data.check_not_read([source], output_dir)
    data.check_output_dir(output_dir, output_args.overwrite)
    dataset = data_args.load()
    teacher_column = output_args.teacher(dataset)
    by = Criteria(teacher_column=teacher_column, **asdict(select_args))
    columns = data.Columns(teacher_column, problem=by.group_column, correct=by.require)
    table = ScoredTable.read(dataset, columns, [by.score], {by.score: by.prefer}, optional=True)
    selection = choose(table, by)
    if not len(selection.rows):
        raise RSRError(f"Nothing was chosen of {len(table)} trajectories, so nothing is written. Loosen the choice.")
    options = {name: value for name, value in asdict(select_args).items() if value != getattr(SelectArguments, name)}
    student = data.card_facts(source).get("student")
    card = CARD.format(
        chosen=len(selection.rows),
        scored=f", scored with the student `{student}`" if student else "",
        trajectories=len(table),
        dataset=source,
        version=__version__,
        options=" ".join(f"--{name} {value}" for name, value in options.items()),
    )
    facts = {"command": "select", "student": student, "dataset": source, "settings": options}
    facts["scoring"] = data.scoring_settings(source)
    data.write_scored(dataset.select(selection.rows), output_dir, card, output_args.overwrite, facts)
    result = {
        "output_dir": output_dir,
        "score": by.score,
        "prefer": by.prefer,
        "chosen": len(selection.rows),
        "left_out": selection.left_out,
        "groups": selection.num_groups,
        "empty_groups": {reason: len(groups) for reason, groups in selection.empty_groups.items()},
        "relaxed_groups": len(selection.relaxed_groups),
        "before": _figures(table, by.score),
        "after": _figures(table.where(selection.rows), by.score),
    }
    if output_args.json:
        print_json(result)
    else:
        _print_summary(result, select_args, student)


def _figures(table: "ScoredTable", score: str) -> dict:
    import numpy as np

    from rsr_trl.cli.summary import figures

    values = table.values[score]
    return figures(table) | ({} if score == RSR else {"score": float(values[np.isfinite(values)].mean())})


def _print_summary(result: dict, select_args: SelectArguments, student: str | None) -> None:
    out, before, after = console(), result["before"], result["after"]
    of = f" from {result['groups']:,} groups in {select_args.group_column!r}" if select_args.group_column else ""
    chose = f"Chose {result['chosen']:,} of {before['trajectories']:,} trajectories"
    out.print(Text.assemble("\n", (chose, "bold"), f"{of} -> {result['output_dir']}"))
    rows = [
        (f"RSR ({DIRECTION})", "rsr", 3),
        ("  median of its trajectories", "rsr_median", 3),
        ("mean rank", "mean_clipped_rank", 2),
        ("mean surprisal (nats)", "mean_surprisal", 2),
        ("mean tokens", "mean_tokens", 0),
    ]
    rows += [(f"mean {result['score']} ({result['prefer']}er first)", "score", 3)] if "score" in before else []
    columns = (
        Column("", lambda row: row[0]),
        Column("before", lambda row: number(before[row[1]], row[2])),
        Column("chosen", lambda row: number(after[row[1]], row[2])),
    )
    print_table(out, rows, columns)
    if "teachers" in before:
        _print_teachers(out, before, after)
    for reason, count in result["left_out"].items():
        out.print(Text(f"Never chosen: {share(count, before['trajectories'])} trajectories ({reason})."))
    for reason, count in result["empty_groups"].items():
        out.print(Text(f"{count:,} of {result['groups']:,} groups {reason}, so nothing was chosen for them."))
    if result["relaxed_groups"]:
        out.print(
            Text(f"In {result['relaxed_groups']:,} groups {select_args.require!r} is true of none: all were let in.")
        )
    if after["short"] > 0.1 * result["chosen"]:
        out.print(
            f"Short: {share(after['short'], result['chosen'])} of the chosen have fewer than {NOISY_BELOW} scored "
            "tokens. Answers without reasoning can look suitable by chance: look at them before you train, or leave "
            f"them out with --min_tokens {NOISY_BELOW}."
        )
    what = ["--model_name_or_path", student or "STUDENT", "--dataset_name", result["output_dir"]]
    print_next(out, "rsr", "sft", *what, "--output_dir", beside(result["output_dir"], "student"))


def _print_teachers(out: Console, before: dict, after: dict) -> None:
    """Composition by teacher, the most chosen first, and a word if one teacher takes most of it."""
    counts = {one["teacher"]: one["scored"] for one in after["teachers"]}
    out.print("Teachers, most chosen first:")
    columns = (
        Column("teacher", "teacher"),
        Column("RSR", "rsr", digits=3),
        Column("before", lambda one: share(one["scored"], before["scored"])),
        Column("chosen", lambda one: share(counts.get(one["teacher"], 0), after["scored"])),
    )
    teachers = sorted(before["teachers"], key=lambda one: -counts.get(one["teacher"], 0))
    print_table(out, teachers, columns, things="teacher")
    if len(teachers) > 2 and max(counts.values()) > 0.5 * after["scored"]:
        out.print("More than half of the chosen come from one teacher. --max_share_per_teacher 0.4 spreads them.")
