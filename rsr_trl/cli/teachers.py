"""
Rank teachers by how well their trajectories suit your student: from a scored dataset, or with a student, scoring only
as many trajectories as needed. A lower RSR suits the student better.
"""

import csv
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from trl import TrlParser

from rsr_trl.cli import options
from rsr_trl.cli.options import DatasetArguments, FormatArguments, option
from rsr_trl.cli.tables import Column, beside, finish, given, print_table, say, say_notes, short_ones
from rsr_trl.report.format import number, percent, share
from rsr_trl.rsr import DIRECTION, NOISY_BELOW, RSR, RSRError


@dataclass
class TeachersStudentArguments(options.StudentArguments):
    """As [`StudentArguments`], but a dataset that is scored already needs no student."""

    model_name_or_path: str | None = option(
        "The student: Hub id or folder. Not needed if the dataset is scored already.", None
    )


@dataclass
class TeachersArguments(options.JsonArguments, options.ScoreArguments, options.ColumnArguments):
    """How to compare teachers: the arguments of [`rank_teachers`] and [`race_teachers`]."""

    _argument_group_name = "teachers"

    goal: Literal["best", "order", "all"] = option(
        "With a student: score until the best teacher (best) or the whole order (order) is certain, or score all "
        "trajectories (all).",
        "best",
    )
    certainty: float = option("Confidence level of the intervals, and certainty at which scoring stops.", 0.95)
    max_trajectories: int | None = option("With a student: score at most this many trajectories.", None)
    worst_rank: float = option(
        "With a student: mean rank assumed for rare bad trajectories that haven't been sampled yet.", 50.0
    )
    seed: int = option("Random seed for the order of problems and the bootstrap.", 0)
    csv: bool = option("Print only the table, as CSV on standard output.", False)


def make_parser(prog: str | None = None) -> TrlParser:
    return options.option_parser(
        (DatasetArguments, FormatArguments, TeachersStudentArguments, TeachersArguments), prog, __doc__
    )


def main(data_args: DatasetArguments, format_args: FormatArguments, student_args, args: TeachersArguments) -> None:
    from rsr_trl import data
    from rsr_trl.cli import score_summary

    with_student = student_args.model_name_or_path is not None
    in_rounds = with_student and args.goal != "all"
    for contradiction in _contradictions(args, with_student, in_rounds):
        raise RSRError(contradiction)
    dataset, source = data_args.load(), data_args.dataset_name
    if with_student:
        dataset = data.as_trl_format(dataset, **vars(format_args))
    asked = data.Columns(args.teacher_column, args.problem_column, args.correctness_column)
    columns = data.find_columns(dataset, asked, needed=["teacher", "problem"] if in_rounds else ["teacher"])
    logging.getLogger("rsr_trl.scoring").setLevel(logging.ERROR)  # its counts of bad rows are in the table
    scorer = student_args.scorer() if with_student else None
    if scorer is not None and not (args.json or args.csv):
        score_summary.warn_of_plain(scorer, dataset)
    if in_rounds:
        result, show = _race(dataset, scorer, columns, args)
    else:
        scored = scorer.score(dataset) if with_student else dataset
        result, show = rank(scored, asked, args, source)
    if args.csv:
        writer = csv.DictWriter(sys.stdout, list(result["table"][0]), lineterminator="\n")
        writer.writeheader()
        return writer.writerows(result["table"])
    words, teacher = given(data_args), ["--teacher_column", args.teacher_column] if args.teacher_column else []
    if with_student:  # the scores were made to compare alone
        words = ["score", *given(student_args), *words, *given(format_args), *teacher]
    else:
        how = ["--group_column", columns.problem] if columns.problem else ["--keep_fraction", "0.5"]
        words = ["select", *words, *how, *teacher]
    output_dir = beside(source, "scored" if with_student else "selected")
    finish(args.json, result, show, ["rsr", *words, "--output_dir", output_dir])


def _contradictions(args: TeachersArguments, with_student: bool, in_rounds: bool) -> Iterator[str]:
    """What is wrong with the options, before anything is read."""
    on_rounds = "is for scoring in rounds: with --model_name_or_path"
    if args.json and args.csv:
        yield "Pass one of --json and --csv: both go to standard output."
    if not 0 < args.certainty < 1:
        yield f"--certainty must be in (0, 1), got {args.certainty:g}: 95% is 0.95."
    if args.goal == "order" and not with_student:
        shown = "the whole order is shown anyway, with the probability of each pair in --json"
        yield f"--goal order {on_rounds}. Of a scored dataset {shown}."
    if in_rounds and (args.score != RSR or args.prefer == "high"):
        yield "Scoring in rounds compares teachers by RSR: for another score or direction, use --goal all."
    if not in_rounds and args.max_trajectories is not None:
        yield f"--max_trajectories {on_rounds}, --goal best or order."


def rank(scored, asked, args: TeachersArguments, source: str | None) -> tuple:
    """The ranking for programs, and how to show it."""
    from rsr_trl.data import is_selection
    from rsr_trl.selection.teachers import SELECTED, rank_table, read_ranked

    table, notes = read_ranked(scored, asked, args.score, args.prefer)
    ranking = rank_table(table, args.score, args.certainty, seed=args.seed)
    names = ("score", "prefer", "table", "pairs", "num_problems", "num_problems_in_all", "confidence")
    result = {
        "direction": DIRECTION if args.score == RSR else f"{ranking.prefer}er first",
        **{name: vars(ranking)[name] for name in names},
        "notes": notes + ranking.notes,
        "verdict": (SELECTED if is_selection(source) else ranking.verdict()) or None,
    }
    return result, lambda out: _show_ranking(out, result, with_accuracy=table.columns.correct is not None)


def _show_ranking(out: Console, result: dict, with_accuracy: bool) -> None:
    from rsr_trl.data import counted, examples

    rows, score, is_rsr = result["table"], result["score"], result["score"] == RSR
    problems, level, name = result["num_problems"], f"{result['confidence']:.0%}", "rsr" if is_rsr else "score"
    on = "unmatched problems" if problems is None else counted(problems, "problem")
    first = ", most suitable first" if len(rows) > 1 else ""
    say(out, bold=f"\n{counted(len(rows), 'teacher')} on {on}{first}")
    each = {row["trajectories"] for row in rows}
    count = f", {counted(min(each), 'trajectory')} each" if len(each) == 1 else ""
    what = "RSR = mean rank / mean surprisal (nats)" if is_rsr else f"Mean {score} of its trajectories"
    direction = DIRECTION if is_rsr and result["prefer"] == "low" else f"{result['prefer']}er first"
    say(out, f"{what}, {direction}{count}.")
    with_interval, with_best = (
        any(row[one] is not None for row in rows) for one in (f"{name}_low", "probability_best")
    )
    # Columns that would say the same on every line are left out: a terminal has 80 characters.
    cut = any((row["truncated_share"] or 0) >= 0.01 for row in rows)
    counts = len({(row["trajectories"], row["unscored"]) for row in rows}) > 1
    parts = Column(
        "rank / nats", lambda row: f"{number(row['mean_rank'])} / {number(row['mean_surprisal'])}", optional=True
    )
    columns = (
        Column("teacher", "teacher"),
        Column("RSR" if is_rsr else score, name, digits=3),
        Column(level, lambda row: _interval(row[f"{name}_low"], row[f"{name}_high"]), shown=with_interval),
        Column("best", lambda row: percent(row["probability_best"]), shown=with_best),
        Column("tokens", "mean_tokens", digits=0),
        Column("correct", lambda row: percent(row["accuracy"]), shown=with_accuracy),
        Column("cut", lambda row: percent(row["truncated_share"]), shown=cut, optional=True),
        Column("scored", "trajectories", shown=counts, optional=True),
        parts,
    )
    print_table(out, rows, columns, things="teacher")
    if with_interval:
        best = " best: probability of being the most suitable." if with_best else ""
        say(out, f"{level}: interval of the {'RSR' if is_rsr else 'mean'}.{best}")
    if result["verdict"]:
        say(out, bold=result["verdict"])
    if short := [str(row["teacher"]) for row in rows if (row["mean_tokens"] or 0) < NOISY_BELOW]:
        say(out, short_ones(f"on average the trajectories of {examples(short)} have"))
    say_notes(out, result["notes"])


def _interval(low: float | None, high: float | None) -> str:
    return number(low) if low is None else f"{number(low)}{'-' if low >= 0 else ' to '}{number(high)}"


def _race(dataset, scorer, columns, args: TeachersArguments) -> tuple:
    """The race for programs, and how to show it."""
    from rsr_trl.selection.race import race_teachers

    names = ("goal", "certainty", "max_trajectories", "seed", "worst_rank")
    how = {name: getattr(args, name) for name in names}
    race = race_teachers(dataset, scorer, columns.teacher, columns.problem, **how)
    facts = {name: value for name, value in vars(race).items() if name != "scored"}
    return {"direction": DIRECTION, "best": race.best, **facts}, lambda out: _show_race(out, race)


def _show_race(out: Console, race) -> None:
    from rsr_trl.data import counted

    if race.certain:
        what = "The order of teachers is" if race.goal == "order" else f"{race.best} is the most suitable teacher,"
        head = f"{what} certain to {race.certainty:.0%}"
    else:
        possible = sum(row["status"] == "possible" for row in race.table)
        head = f"Not certain to {race.certainty:.0%}: {possible} teachers can't be separated yet"
    say(out, bold=f"\n{head}")
    say(
        out,
        f"Scored {share(race.num_trajectories, race.num_trajectories_in_pool)} of {race.num_trajectories_in_pool:,} "
        f"trajectories, on {race.num_problems:,} of {counted(race.num_problems_in_pool, 'problem')} that all teachers "
        f"have. RSR: {DIRECTION}.",
    )
    columns = [Column(name, name) for name in ("teacher", "status", "problems", "trajectories")]
    columns.insert(1, Column("RSR", "rsr", digits=3))
    print_table(out, race.table, columns, things="teacher")
    if not race.certain:
        say(out, "More problems would settle it; or choose among these by price, length or licence.")
