"""
Choose the most suitable trajectories of a scored dataset: the best of each problem, or the best of all with
--keep_fraction or --score_threshold. A lower RSR suits the student better.
"""

from dataclasses import asdict, dataclass
from typing import Literal

from rich.console import Console
from trl import TrlParser

from rsr_trl import __version__
from rsr_trl.cli.options import (
    PROBLEM_HELP,
    DatasetArguments,
    OutputArguments,
    ScoreArguments,
    option,
    option_parser,
)
from rsr_trl.cli.tables import DATASET_CARD, Column, beside, finish, print_table, say, short_ones
from rsr_trl.report.format import correct_text, number, share
from rsr_trl.rsr import DIRECTION, RSR, TOO_SHORT, RSRError


@dataclass
class SelectArguments(ScoreArguments):
    """What to choose: the arguments of [`select_trajectories`] of the same names."""

    _argument_group_name = "choice"

    group_column: str | None = option(f"Keep the best of each problem. {PROBLEM_HELP}", None, "--problem_column")
    keep_per_group: int = option("How many trajectories to keep per problem.", 1)
    keep_fraction: float | None = option(
        "Fraction in (0, 1] of all trajectories to keep, instead of choosing per problem.", None
    )
    score_threshold: float | None = option(
        "Keep every trajectory with a score at or below this (at or above if high is better).", None
    )
    require: str | None = option("Boolean column that must be true, such as `correct`.", None)
    when_none_qualifies: Literal["drop", "any", "error"] = option(
        "What to do with problems for which no trajectory meets --require.", "drop"
    )
    min_tokens: int | None = option(
        "Leave out trajectories with fewer scored tokens: by default 32, which leaves bare answers out; 0 keeps all.",
        None,
    )
    max_tokens: int | None = option("Leave out trajectories with more scored tokens.", None)
    max_share_per_teacher: float | None = option("Maximum share of the chosen trajectories per teacher.", None)


def make_parser(prog: str | None = None) -> TrlParser:
    return option_parser((DatasetArguments, SelectArguments, OutputArguments), prog, __doc__)


def main(data_args: DatasetArguments, args: SelectArguments, output_args: OutputArguments) -> None:
    from rsr_trl import data
    from rsr_trl.selection.choose import Criteria, choose, correctness
    from rsr_trl.selection.table import ScoredTable

    source, output_dir = data_args.dataset_name, output_args.output_dir
    data.check_not_read([source], output_dir)
    data.check_output_dir(output_dir, output_args.overwrite)
    dataset = data_args.load()
    by = Criteria.found(dataset, teacher_column=output_args.teacher_column, **asdict(args))
    found = data.find_columns(dataset, data.Columns("none", "none")).correct

    def read(correct: str | None) -> ScoredTable:
        columns = data.Columns(by.teacher_column, by.group_column, correct)
        return ScoredTable.read(dataset, columns, [by.score], {by.score: by.prefer}, optional=True)

    table = read(by.require or found)
    selection = choose(table, by)
    if not len(selection.rows):
        raise RSRError(f"Nothing was chosen of {len(table)} trajectories, so nothing is written. Loosen the choice.")
    student, dtype = data.card_facts(source).get("student"), data.scoring_settings(source).get("dtype")
    chosen_by = {name: vars(by)[name] for name in asdict(args) if name != "prefer"} | {"prefer": args.prefer}
    settings = {name: value for name, value in chosen_by.items() if value != getattr(SelectArguments, name)}
    facts = {
        "command": "select",
        "version": __version__,
        "student": student,
        "dataset": source,
        "settings": settings,
        "chosen": len(selection.rows),
        "trajectories": len(table),
        "scoring": data.scoring_settings(source),
    }
    data.write_scored(dataset.select(selection.rows), output_dir, DATASET_CARD, output_args.overwrite, facts)
    result = {
        "output_dir": output_dir,
        "score": by.score,
        "group_column": by.group_column,
        "prefer": by.prefer,
        "chosen": len(selection.rows),
        "left_out": selection.left_out,
        "short": selection.short,
        "groups": selection.num_groups,
        "empty_groups": {reason: len(groups) for reason, groups in selection.empty_groups.items()},
        "relaxed_groups": len(selection.relaxed_groups),
        "close_calls": selection.close_calls(dtype) if by.score == RSR else None,
        "dtype": dtype,
        "correct": correctness(read(found) if by.require else table, by, selection.rows),
        "before": _figures(table, by.score),
        "after": _figures(table.where(selection.rows), by.score),
    }
    words = ["rsr", "sft", "--model_name_or_path", student or "STUDENT", "--dataset_name", output_dir]
    words += ["--output_dir", beside(output_dir, "student")]
    finish(output_args.json, result, lambda out: _show(out, result, args), words)


def _figures(table, score: str) -> dict:
    import numpy as np

    from rsr_trl.cli.summary import figures

    values = table.values[score]
    return figures(table) | ({} if score == RSR else {"score": float(values[np.isfinite(values)].mean())})


def _show(out: Console, result: dict, args: SelectArguments) -> None:
    from rsr_trl.data import counted

    before, after, groups, chosen = result["before"], result["after"], result["groups"], result["chosen"]
    of = f" from {counted(groups, 'problem')} (column {result['group_column']!r})" if groups is not None else ""
    chose = f"\nChose {chosen:,} of {counted(before['trajectories'], 'trajectory')}"
    say(out, f"{of} -> {result['output_dir']}", chose)
    if result["correct"]:
        say(out, correct_text(result["correct"]), "Correct: ")
    rows = [(f"RSR ({DIRECTION})", "rsr", 3), ("  median of trajectories", "rsr_median", 3)]
    rows += [("mean rank", "mean_clipped_rank", 2), ("mean surprisal (nats)", "mean_surprisal", 2)]
    rows += [("mean tokens", "mean_tokens", 0)]
    rows += [(f"mean {result['score']} ({result['prefer']}er first)", "score", 3)] if "score" in before else []
    columns = [Column("", lambda row: row[0])]
    for when, facts in (("before", before), ("chosen", after)):
        columns.append(Column(when, lambda row, facts=facts: number(facts[row[1]], row[2])))
    print_table(out, rows, columns)
    if "teachers" in before:
        _show_teachers(out, before, after)
    for reason, count in result["left_out"].items():
        say(out, f"Never chosen: {share(count, before['trajectories'])} of all trajectories ({reason}).")
    if result["short"] and args.min_tokens is None:
        say(out, f"{TOO_SHORT}. --min_tokens 0 lets them in.")
    for reason, count in result["empty_groups"].items():
        say(out, f"{count:,} of {counted(groups, 'problem')} {reason}: nothing was chosen for them.")
    if result["relaxed_groups"]:
        relaxed = counted(result["relaxed_groups"], "problem")
        say(out, f"{relaxed} without a trajectory for which {args.require!r} is true: all of theirs were considered.")
    if result["close_calls"] and result["close_calls"] > 0.1 * groups:
        better = "" if result["dtype"] == "float32" else "; `rsr score --dtype float32` separates more of them"
        error = f"the numerical error of scores in {result['dtype']}{better}"
        say(out, f"For {share(result['close_calls'], groups)} of the problems the next best is within {error}.")
    if after["short"] > 0.1 * chosen:
        say(
            out, short_ones(f"{share(after['short'], chosen)} of the chosen have", "leave --min_tokens at its default")
        )


def _show_teachers(out: Console, before: dict, after: dict) -> None:
    """Composition by teacher, the most chosen first, and a word if one teacher takes most of it."""
    counts = {one["teacher"]: one["scored"] for one in after["teachers"]}
    say(out, "Teachers, most chosen first:")
    columns = [Column("teacher", "teacher"), Column("RSR", "rsr", digits=3)]
    columns += [Column("before", lambda one: share(one["scored"], before["scored"]))]
    columns += [Column("chosen", lambda one: share(counts.get(one["teacher"], 0), after["scored"]))]
    teachers = sorted(before["teachers"], key=lambda one: -counts.get(one["teacher"], 0))
    print_table(out, teachers, columns, things="teacher")
    if len(teachers) > 2 and max(counts.values()) > 0.5 * after["scored"]:
        say(out, "More than half of the chosen come from one teacher. --max_share_per_teacher 0.4 spreads them.")
