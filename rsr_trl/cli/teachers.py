"""`rsr teachers`: which teacher suits the student, with error bars, and with as few forward passes as it takes."""

import csv
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.text import Text
from trl import TrlParser

from rsr_trl.cli.options import (
    ColumnArguments,
    DatasetArguments,
    FormatArguments,
    JsonArguments,
    ScoreArguments,
    StudentArguments,
    option,
    option_parser,
)
from rsr_trl.cli.tables import Column, beside, console, given, print_json, print_next, print_table, without_bars
from rsr_trl.report.format import number, percent, share
from rsr_trl.rsr import DIRECTION, NOISY_BELOW, RSR, RSRError


if TYPE_CHECKING:
    from datasets import Dataset

    from rsr_trl.data import Columns
    from rsr_trl.selection.race import TeacherRace
    from rsr_trl.selection.teachers import TeacherRanking


@dataclass
class TeachersStudentArguments(StudentArguments):
    """As [`StudentArguments`], but a dataset that is scored already needs no student."""

    model_name_or_path: str | None = option(
        "The student: Hub id or folder. Not needed if the dataset is scored already.", None
    )


@dataclass
class TeachersArguments(JsonArguments, ScoreArguments, ColumnArguments):
    """How to compare teachers: the arguments of [`rank_teachers`] and [`race_teachers`]."""

    _argument_group_name = "teachers"

    goal: Literal["best", "order", "all"] = option(
        "With a student: score until the best teacher is certain, or the whole order; or score all.", "best"
    )
    certainty: float = option("Level of the intervals, and certainty at which to stop.", 0.95)
    max_trajectories: int | None = option("Stop before scoring more than this.", None)
    seed: int = option("Seed of the order of problems and of the bootstrap.", 0)
    csv: bool = option("Print the table as CSV on standard output, and nothing else.", False)


def make_parser(prog: str | None = None) -> TrlParser:
    return option_parser(
        (DatasetArguments, FormatArguments, TeachersStudentArguments, TeachersArguments),
        prog=prog,
        description="Find the teacher that suits your student: from a scored dataset, or with a student, which scores "
        "only as many trajectories as it takes. A lower RSR suits the student better.",
    )


def main(
    data_args: DatasetArguments,
    format_args: FormatArguments,
    student_args: TeachersStudentArguments,
    teachers_args: TeachersArguments,
) -> None:
    from rsr_trl import data

    with_student = student_args.model_name_or_path is not None
    in_rounds = with_student and teachers_args.goal != "all"
    _check(teachers_args, with_student, in_rounds)
    if teachers_args.json or teachers_args.csv:
        without_bars()
    dataset = data_args.load()
    if with_student:
        dataset = data.as_trl_format(dataset, **vars(format_args))
    columns = teachers_args.columns(dataset)
    if columns.teacher is None:
        raise RSRError(f"Which column names the teacher? --teacher_column is one of {dataset.column_names}.")
    if in_rounds and columns.problem is None:
        raise RSRError("Scoring in rounds needs --problem_column; without problems, use --goal all.")
    logging.getLogger("rsr_trl.scoring").setLevel(logging.ERROR)  # its counts of bad rows are in the table
    if in_rounds:
        result, show = _race(dataset, student_args, columns, teachers_args)
    else:
        scored = student_args.scorer().score(dataset) if with_student else dataset
        result, show = _rank(scored, columns, teachers_args, data_args.dataset_name)
    if teachers_args.json:
        print_json(result)
    elif teachers_args.csv:
        writer = csv.DictWriter(sys.stdout, list(result["table"][0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(result["table"])
    else:
        out = console()
        show(out)
        print_next(out, *_next_command(data_args, format_args, student_args, teachers_args, columns.problem))


def _check(args: TeachersArguments, with_student: bool, in_rounds: bool) -> None:
    """Raise for options that contradict each other, before anything is read."""
    if args.json and args.csv:
        raise RSRError("Give one of --json and --csv: both go to standard output.")
    if not 0 < args.certainty < 1:
        raise RSRError(f"--certainty must be in (0, 1), got {args.certainty:g}: 95% is 0.95.")
    if args.goal == "order" and not with_student:
        raise RSRError(
            "--goal order is for scoring in rounds, with --model_name_or_path. Of a scored dataset the whole order is "
            "shown anyway, with the probability of each pair in --json."
        )
    if in_rounds and (args.score != RSR or args.prefer == "high"):
        raise RSRError("Scoring in rounds compares teachers by RSR: for another score, or its other end, --goal all.")
    if not in_rounds and args.max_trajectories is not None:
        raise RSRError("--max_trajectories is for scoring in rounds: with --model_name_or_path, --goal best or order.")


def _next_command(
    data_args: DatasetArguments,
    format_args: FormatArguments,
    student_args: TeachersStudentArguments,
    teachers_args: TeachersArguments,
    problem: str | None,
) -> list[str]:
    """`rsr select` from a scored dataset; `rsr score` where the scores were only made to compare."""
    teacher = ["--teacher_column", teachers_args.teacher_column] if teachers_args.teacher_column else []
    if student_args.model_name_or_path is not None:
        options = [*given(student_args), *given(data_args), *given(format_args), *teacher]
        return ["rsr", "score", *options, "--output_dir", beside(data_args.dataset_name, "scored")]
    how = ["--keep_fraction", "0.5"] if problem is None else ["--group_column", problem]
    output_dir = beside(data_args.dataset_name, "selected")
    return ["rsr", "select", *given(data_args), *how, *teacher, "--output_dir", output_dir]


def _rank(
    scored: "Dataset", columns: "Columns", args: TeachersArguments, source: str
) -> tuple[dict, Callable[[Console], None]]:
    """The ranking for programs, and how to show it."""
    from rsr_trl.data import is_selection
    from rsr_trl.selection.table import ScoredTable
    from rsr_trl.selection.teachers import SELECTED, rank_table

    # RSR itself comes from its two parts, so its column may be missing.
    table = ScoredTable.read(scored, columns, [] if args.score == RSR else [args.score], {args.score: args.prefer})
    ranking = rank_table(table, args.score, args.certainty, seed=args.seed)
    verdict = SELECTED if is_selection(source) else ranking.verdict()
    notes = [*columns.notes, *ranking.notes]
    names = ("score", "prefer", "table", "pairs", "num_problems", "num_problems_in_all", "confidence")
    result = {
        "direction": DIRECTION if args.score == RSR else f"{ranking.prefer}er first",
        **{name: vars(ranking)[name] for name in names},
        "notes": notes,
        "verdict": verdict or None,
    }
    return result, lambda out: _show_ranking(out, ranking, columns.correct is not None, verdict, notes)


def _race(
    dataset: "Dataset", student_args: StudentArguments, columns: "Columns", args: TeachersArguments
) -> tuple[dict, Callable[[Console], None]]:
    """The race for programs, and how to show it."""
    from rsr_trl.selection.race import race_teachers

    race = race_teachers(
        dataset,
        student_args.scorer(),
        columns.teacher,
        columns.problem,
        goal=args.goal,
        certainty=args.certainty,
        max_trajectories=args.max_trajectories,
        seed=args.seed,
    )
    facts = {name: value for name, value in vars(race).items() if name != "scored"}
    return {"direction": DIRECTION, "best": race.best, **facts}, lambda out: _show_race(out, race)


def _show_ranking(
    out: Console, ranking: "TeacherRanking", with_accuracy: bool, verdict: str, notes: list[str]
) -> None:
    from rsr_trl.data import counted, examples

    rows, is_rsr = ranking.table, ranking.score == RSR
    on = "unmatched problems" if ranking.num_problems is None else counted(ranking.num_problems, "problem")
    first = ", most suitable first" if len(rows) > 1 else ""
    out.print(Text.assemble("\n", (f"{counted(len(rows), 'teacher')} on {on}{first}", "bold")))
    each = {row["trajectories"] for row in rows}
    count = f", {counted(each.pop(), 'trajectory')} each" if len(each) == 1 else ""
    what = "RSR = mean rank / mean surprisal (nats)" if is_rsr else f"Mean {ranking.score} of its trajectories"
    direction = DIRECTION if is_rsr and ranking.prefer == "low" else f"{ranking.prefer}er first"
    out.print(Text(f"{what}, {direction}{count}."))
    level, name = f"{ranking.confidence:.0%}", "rsr" if is_rsr else "score"
    with_interval = any(row[f"{name}_low"] is not None for row in rows)
    with_best = any(row["probability_best"] is not None for row in rows)
    counts = {(row["trajectories"], row["unscored"]) for row in rows}
    cut = any((row["truncated_share"] or 0) >= 0.01 for row in rows)
    columns = (
        Column("teacher", "teacher"),
        Column("RSR" if is_rsr else ranking.score, name, digits=3),
        Column(level, lambda row: _interval(row[f"{name}_low"], row[f"{name}_high"]), shown=with_interval),
        Column("best", lambda row: percent(row["probability_best"]), shown=with_best),
        Column("tokens", "mean_tokens", digits=0),
        Column("correct", lambda row: percent(row["accuracy"]), shown=with_accuracy),
        # Columns that would say the same on every line are left out: a terminal has 80 characters.
        Column("cut", lambda row: percent(row["truncated_share"]), shown=cut, optional=True),
        Column("scored", "trajectories", shown=len(counts) > 1, optional=True),
        Column(
            "rank / nats", lambda row: f"{number(row['mean_rank'])} / {number(row['mean_surprisal'])}", optional=True
        ),
    )
    print_table(out, rows, columns, things="teacher")
    if with_interval:
        best = " best: probability of being the most suitable." if with_best else ""
        out.print(f"{level}: interval of the {'RSR' if is_rsr else 'mean'}.{best}")
    if verdict:
        out.print(Text(verdict, "bold"))
    if short := [str(row["teacher"]) for row in rows if (row["mean_tokens"] or 0) < NOISY_BELOW]:
        out.print(
            Text(
                f"Short: {examples(short)} (fewer than {NOISY_BELOW} scored tokens on average). RSR is noisy on them, "
                "and answers without reasoning can look suitable by chance: look before you choose."
            )
        )
    for note in notes:
        out.print(Text(f"Note: {note}"))


def _interval(low: float | None, high: float | None) -> str:
    return number(low) if low is None else f"{number(low)}{'-' if low >= 0 else ' to '}{number(high)}"


def _show_race(out: Console, race: "TeacherRace") -> None:
    from rsr_trl.data import counted

    if race.certain:
        what = "The order of teachers is" if race.goal == "order" else f"{race.best} is the most suitable teacher,"
        head = f"{what} certain to {race.certainty:.0%}"
    else:
        possible = sum(row["status"] == "possible" for row in race.table)
        head = f"Not certain to {race.certainty:.0%}: {possible} teachers can't be told apart yet"
    out.print(Text.assemble("\n", (head, "bold")))
    out.print(
        f"Scored {share(race.num_trajectories, race.num_trajectories_in_pool)} of {race.num_trajectories_in_pool:,} "
        f"trajectories, on {race.num_problems:,} of {counted(race.num_problems_in_pool, 'problem')} that all teachers "
        f"have. RSR: {DIRECTION}."
    )
    columns = (
        Column("teacher", "teacher"),
        Column("RSR", "rsr", digits=3),
        Column("status", "status"),
        Column("problems", "problems"),
        Column("trajectories", "trajectories"),
    )
    print_table(out, race.table, columns, things="teacher")
    if not race.certain:
        out.print("More problems would settle it; or choose among these by price, length or licence.")
