"""`rsr select`: choose the most suitable trajectories of a scored dataset."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from trl import TrlParser

from rsr_trl.cli.options import DatasetArguments, OutputArguments, option_parser


if TYPE_CHECKING:
    from rich.console import Console


@dataclass
class SelectArguments:
    """
    What to choose: the arguments of [`select_trajectories`] of the same names.

    Args:
        group_column (`str`, *optional*): Column that says which trajectories answer the same problem.
        keep_per_group (`int`, *optional*, defaults to `1`): How many to keep of each group.
        keep_fraction (`float`, *optional*): Share of all trajectories to keep, instead of by group.
        score_threshold (`float`, *optional*): Keep all with a score up to this value, instead of by group.
        score (`str`, *optional*, defaults to `"rsr"`): What to choose by: the name of a score, or a numeric column.
        prefer (`str`, *optional*): Which end of the score to keep; by default its own.
        require (`str`, *optional*): Boolean column that must be true.
        when_none_qualifies (`str`, *optional*, defaults to `"drop"`): What to do with groups where `require` never is.
        min_tokens (`int`, *optional*): Leave out shorter trajectories.
        max_tokens (`int`, *optional*): Leave out longer trajectories.
        max_share_per_teacher (`float`, *optional*): Cap on each teacher's share of what is chosen.
    """

    _argument_group_name = "choice"

    group_column: str | None = option(
        "Keep the most suitable of each group: the column that names the problem.", default=None
    )
    keep_per_group: int = option("How many to keep of each group.", default=1)
    keep_fraction: float | None = option("Instead of by group: keep this share of all, in (0, 1].", default=None)
    score_threshold: float | None = option("Instead of by group: keep all with a score up to this.", default=None)
    score: str = option(
        "What to choose by: the name of a score that the dataset has, or a numeric column.", default="rsr"
    )
    prefer: Literal["low", "high"] | None = option(
        "Which end of the score to keep; by default its own (RSR: low). A column of yours needs it.", default=None
    )
    require: str | None = option("Boolean column that must be true, such as `correct`.", default=None)
    when_none_qualifies: Literal["drop", "any", "error"] = option(
        "What to do with groups where `--require` is true of none.", default="drop"
    )
    min_tokens: int | None = option(
        "Leave out trajectories with fewer scored tokens, such as bare answers.", default=None
    )
    max_tokens: int | None = option("Leave out trajectories with more scored tokens.", default=None)
    max_share_per_teacher: float | None = option(
        "No teacher gets more than this share of what is chosen.", default=None
    )


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
    import numpy as np

    from rsr_trl import __version__, data
    from rsr_trl.cli import summary
    from rsr_trl.selection.choose import Criteria, choose
    from rsr_trl.selection.table import ScoredTable

    if output_args.json:
        summary.without_bars()
    data.check_not_read([data_args.dataset_name], output_args.output_dir)
    data.check_output_dir(output_args.output_dir, output_args.overwrite)
    dataset = data.load(data_args.dataset_name, data_args.dataset_config, data_args.dataset_split)
    teacher_column = summary.teacher_column_of(dataset, output_args.teacher_column)
    by = Criteria(teacher_column=teacher_column, **asdict(select_args))
    table = ScoredTable.read(dataset, by.columns, [by.score], {by.score: by.prefer}, optional=True)
    selection = choose(table, by)
    if not len(selection.rows):
        raise ValueError(
            f"Nothing was chosen of {len(dataset)} trajectories, so nothing is written. Loosen the choice."
        )
    chosen = dataset.select(selection.rows)
    options = {name: value for name, value in asdict(select_args).items() if value != getattr(SelectArguments, name)}
    student = data.card_facts(data_args.dataset_name).get("student")
    card = CARD.format(
        chosen=len(chosen),
        scored=f", scored with the student `{student}`" if student else "",
        trajectories=len(dataset),
        dataset=data_args.dataset_name,
        version=__version__,
        options=" ".join(f"--{name} {value}" for name, value in options.items()),
    )
    facts = {"command": "select", "student": student, "dataset": data_args.dataset_name, "settings": options}
    data.write_scored(chosen, output_args.output_dir, card, output_args.overwrite, facts)

    result = {
        "output_dir": output_args.output_dir,
        "score": by.score,
        "prefer": by.prefer,
        "chosen": len(chosen),
        "left_out": selection.left_out,
        "groups": selection.num_groups,
        "empty_groups": {reason: len(groups) for reason, groups in selection.empty_groups.items()},
        "relaxed_groups": len(selection.relaxed_groups),
        "before": summary.figures(dataset, teacher_column),
        "after": summary.figures(chosen, teacher_column),
    }
    if by.score != "rsr":
        values = table.values[by.score]  # not of the chosen alone: casl is fitted to all
        for which, rows in (("before", np.isfinite(values)), ("after", selection.rows)):
            result[which]["score"] = float(values[rows].mean())
    if output_args.json:
        summary.print_json(result)
    else:
        _print_summary(result, select_args, student)


def _print_summary(result: dict, select_args: SelectArguments, student: str | None) -> None:
    from rich.text import Text

    from rsr_trl.cli import summary
    from rsr_trl.cli.summary import add_row, number, share

    out = summary.console()
    before, after = result["before"], result["after"]
    of = f" from {result['groups']:,} groups in {select_args.group_column!r}" if select_args.group_column else ""
    out.print(
        Text.assemble(
            "\n",
            (f"Chose {result['chosen']:,} of {before['trajectories']:,} trajectories", "bold"),
            f"{of} -> {result['output_dir']}",
        )
    )
    table = summary.plain_table("", "before", "chosen")
    for label, name, digits in (
        (f"RSR ({summary.DIRECTION})", "rsr", 3),
        ("  median of its trajectories", "rsr_median", 3),
        ("mean rank", "mean_clipped_rank", 2),
        ("mean surprisal (nats)", "mean_surprisal", 2),
        ("mean tokens", "mean_tokens", 0),
    ):
        add_row(table, label, number(before[name], digits), number(after[name], digits))
    if "score" in before:
        label = f"mean {result['score']} ({result['prefer']}er first)"
        add_row(table, label, number(before["score"], 3), number(after["score"], 3))
    out.print(table)
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
            f"Short: {share(after['short'], result['chosen'])} of the chosen have fewer than {summary.NOISY_BELOW} "
            "scored tokens. Answers without reasoning can look suitable by chance: look at them before you train, or "
            f"leave them out with --min_tokens {summary.NOISY_BELOW}."
        )
    what = ["--model_name_or_path", student or "STUDENT", "--dataset_name", result["output_dir"]]
    summary.print_next(out, "rsr", "sft", *what, "--output_dir", summary.beside(result["output_dir"], "student"))


def _print_teachers(out: "Console", before: dict, after: dict) -> None:
    """Composition by teacher, the most chosen first, and a word if one teacher takes most of it."""
    from rsr_trl.cli import summary

    counts = {one["teacher"]: one["scored"] for one in after["teachers"]}
    out.print("Teachers, most chosen first:")
    table = summary.plain_table("teacher", "RSR", "before", "chosen")
    teachers = sorted(before["teachers"], key=lambda one: -counts.get(one["teacher"], 0))
    for one in teachers[: summary.MAX_TEACHERS]:
        summary.add_row(
            table,
            one["teacher"],
            summary.number(one["rsr"]),
            summary.share(one["scored"], before["scored"]),
            summary.share(counts.get(one["teacher"], 0), after["scored"]),
        )
    out.print(table)
    if (more := len(teachers) - summary.MAX_TEACHERS) > 0:
        out.print(f"... and {more} more teachers; --json lists them all.")
    if len(teachers) > 2 and max(counts.values()) > 0.5 * after["scored"]:
        out.print("More than half of the chosen come from one teacher. --max_share_per_teacher 0.4 spreads them.")
