"""`rsr teachers`: which teacher suits the student, with error bars, and with as few forward passes as it takes."""

import csv
import logging
import sys
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from trl import TrlParser

from rsr_trl.cli.options import DatasetArguments, FormatArguments, StudentArguments, option_parser


if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import Console

    from rsr_trl.selection.race import TeacherRace
    from rsr_trl.selection.teachers import TeacherRanking


@dataclass
class TeachersStudentArguments(StudentArguments):
    """
    As [`StudentArguments`], but a dataset that is scored already needs no student.

    Args:
        model_name_or_path (`str`, *optional*): Student: Hub id or folder.
    """

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "The student: Hub id or folder. Not needed if the dataset is scored already."}
    )


@dataclass
class TeachersArguments:
    """
    How to compare teachers: the arguments of [`rank_teachers`] and [`race_teachers`].

    Args:
        teacher_column (`str`, *optional*): Column that names the teacher; `teacher` where there is one.
        problem_column (`str`, *optional*): Column that says which trajectories answer the same problem.
        correctness_column (`str`, *optional*): Boolean column from which to report accuracy.
        goal (`str`, *optional*, defaults to `"best"`): With a student: score until the best teacher is certain, until
            the whole order is, or score all.
        certainty (`float`, *optional*, defaults to `0.95`): Level of intervals, and certainty at which to stop.
        max_trajectories (`int`, *optional*): Budget of trajectories to score.
        seed (`int`, *optional*, defaults to `0`): Seed of the order of problems and of the bootstrap.
        score (`str`, *optional*, defaults to `"rsr"`): What to rank by: the name of a score, or a numeric column.
        prefer (`str`, *optional*): Which end of the score is the better one; by default its own.
        json, csv (`bool`, *optional*, defaults to `False`): Print the result for programs on standard output.
    """

    _argument_group_name = "teachers"

    teacher_column: str | None = field(
        default=None, metadata={"help": "Column with the teacher's name; `teacher` by default, where there is one."}
    )
    problem_column: str | None = field(
        default=None, metadata={"help": "Column that names the problem, to compare teachers on the same problems."}
    )
    correctness_column: str | None = field(
        default=None, metadata={"help": "Boolean column, such as `correct`, from which to report accuracy."}
    )
    goal: Literal["best", "order", "all"] = field(
        default="best",
        metadata={
            "help": "With a student: score until the best teacher is certain, or the whole order; or score all."
        },
    )
    certainty: float = field(
        default=0.95, metadata={"help": "Level of the intervals, and certainty at which to stop."}
    )
    max_trajectories: int | None = field(default=None, metadata={"help": "Stop before scoring more than this."})
    seed: int = field(default=0, metadata={"help": "Seed of the order of problems and of the bootstrap."})
    score: str = field(
        default="rsr",
        metadata={"help": "What to rank by: the name of a score that the dataset has, or a numeric column."},
    )
    prefer: Literal["low", "high"] | None = field(
        default=None,
        metadata={
            "help": "Which end of the score is better; by default its own (RSR: low). A column of yours needs it."
        },
    )
    json: bool = field(default=False, metadata={"help": "Print one JSON object on standard output, and nothing else."})
    csv: bool = field(default=False, metadata={"help": "Print the table as CSV on standard output, and nothing else."})


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
    from rsr_trl.cli import summary

    if teachers_args.json and teachers_args.csv:
        raise ValueError("Give one of --json and --csv: both go to standard output.")
    if not 0 < teachers_args.certainty < 1:
        raise ValueError(f"--certainty must be in (0, 1), got {teachers_args.certainty:g}: 95% is 0.95.")
    if teachers_args.goal == "order" and student_args.model_name_or_path is None:
        raise ValueError(
            "--goal order is for scoring in rounds, with --model_name_or_path. Of a scored dataset the whole order is "
            "shown anyway, with the probability of each pair in --json."
        )
    if teachers_args.json or teachers_args.csv:
        summary.without_bars()
    dataset = data.load(data_args.dataset_name, data_args.dataset_config, data_args.dataset_split)
    teacher_column = summary.teacher_column_of(dataset, teachers_args.teacher_column)
    if teacher_column is None:
        raise ValueError(f"Which column names the teacher? --teacher_column is one of {dataset.column_names}.")
    sequential = student_args.model_name_or_path is not None and teachers_args.goal != "all"
    if sequential and teachers_args.problem_column is None:
        raise ValueError("Scoring in rounds needs --problem_column; without problems, use --goal all.")
    if sequential and (teachers_args.score != "rsr" or teachers_args.prefer == "high"):
        raise ValueError(
            "Scoring in rounds compares teachers by RSR: for another score, or its other end, --goal all."
        )
    if not sequential and teachers_args.max_trajectories is not None:
        raise ValueError(
            "--max_trajectories is for scoring in rounds: with --model_name_or_path, --goal best or order."
        )
    logging.getLogger("rsr_trl.scoring").setLevel(logging.ERROR)  # its counts of bad rows are in the table
    if student_args.model_name_or_path is not None:
        scorer = student_args.scorer()
        dataset = data.as_trl_format(dataset, **vars(format_args))
    next_command = _next_command(data_args, format_args, student_args, teachers_args)
    if sequential:
        _race(dataset, scorer, teacher_column, teachers_args, next_command)
    else:
        scored = dataset if student_args.model_name_or_path is None else scorer.score(dataset)
        _rank(scored, teacher_column, teachers_args, next_command, data_args.dataset_name)


def _next_command(
    data_args: DatasetArguments,
    format_args: FormatArguments,
    student_args: TeachersStudentArguments,
    teachers_args: TeachersArguments,
) -> list[str]:
    """`rsr select` from a scored dataset; `rsr score` where the scores were only made to compare."""
    from rsr_trl.cli.summary import beside, given

    teacher = ["--teacher_column", teachers_args.teacher_column] if teachers_args.teacher_column else []
    if student_args.model_name_or_path is not None:
        options = [*given(student_args), *given(data_args), *given(format_args), *teacher]
        return ["rsr", "score", *options, "--output_dir", beside(data_args.dataset_name, "scored")]
    problem = teachers_args.problem_column
    how = ["--keep_fraction", "0.5"] if problem is None else ["--group_column", problem]
    output_dir = beside(data_args.dataset_name, "selected")
    return ["rsr", "select", *given(data_args), *how, *teacher, "--output_dir", output_dir]


def _rank(
    scored: "Dataset", teacher_column: str, args: TeachersArguments, next_command: list[str], source: str
) -> None:
    from rsr_trl.cli import summary
    from rsr_trl.data import is_selection
    from rsr_trl.selection.teachers import SELECTED, rank_teachers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are the notes, which are printed
        ranking = rank_teachers(
            scored,
            teacher_column,
            args.problem_column,
            correctness_column=args.correctness_column,
            confidence=args.certainty,
            seed=args.seed,
            score=args.score,
            prefer=args.prefer,
        )
    verdict = SELECTED if is_selection(source) else ranking.verdict()
    if args.json:
        names = ("score", "prefer", "table", "pairs", "num_problems", "num_problems_in_all", "confidence", "notes")
        direction = summary.DIRECTION if args.score == "rsr" else f"{ranking.prefer}er first"
        result = {"direction": direction, **{name: vars(ranking)[name] for name in names}}
        summary.print_json({**result, "verdict": verdict or None})
    elif args.csv:
        _print_csv(ranking.table)
    else:
        out = summary.console()
        _show_ranking(out, ranking, args, verdict)
        summary.print_next(out, *next_command)


def _race(
    dataset: "Dataset", scorer: object, teacher_column: str, args: TeachersArguments, next_command: list[str]
) -> None:
    from rsr_trl.cli import summary
    from rsr_trl.selection.race import race_teachers

    race = race_teachers(
        dataset,
        scorer,
        teacher_column,
        args.problem_column,
        goal=args.goal,
        certainty=args.certainty,
        max_trajectories=args.max_trajectories,
        seed=args.seed,
    )
    if args.json:
        names = [name for name in vars(race) if name != "scored"]
        result = {"direction": summary.DIRECTION, "best": race.best, **{name: vars(race)[name] for name in names}}
        summary.print_json(result)
    elif args.csv:
        _print_csv(race.table)
    else:
        out = summary.console()
        _show_race(out, race)
        summary.print_next(out, *next_command)


def _print_csv(table: list[dict]) -> None:
    writer = csv.DictWriter(sys.stdout, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)


def _show_ranking(out: "Console", ranking: "TeacherRanking", args: TeachersArguments, verdict: str) -> None:
    from rich.text import Text

    from rsr_trl.cli import summary
    from rsr_trl.cli.summary import number
    from rsr_trl.data import counted

    on = "unmatched problems" if ranking.num_problems is None else counted(ranking.num_problems, "problem")
    first = ", most suitable first" if len(ranking.table) > 1 else ""
    out.print(Text.assemble("\n", (f"{counted(len(ranking.table), 'teacher')} on {on}{first}", "bold")))
    each = {row["trajectories"] for row in ranking.table}
    count = f", {counted(each.pop(), 'trajectory')} each" if len(each) == 1 else ""
    is_rsr = ranking.score == "rsr"
    what = "RSR = mean rank / mean surprisal (nats)" if is_rsr else f"Mean {ranking.score} of its trajectories"
    direction = summary.DIRECTION if is_rsr and ranking.prefer == "low" else f"{ranking.prefer}er first"
    out.print(Text(f"{what}, {direction}{count}."))
    # Columns that would say the same on every line are left out: a terminal has 80 characters.
    counts = {(row["trajectories"], row["unscored"]) for row in ranking.table}
    optional = {
        "correct": (bool(args.correctness_column), lambda row: _percent(row["accuracy"])),
        "cut": (
            any((row["truncated_share"] or 0) >= 0.01 for row in ranking.table),
            lambda row: _percent(row["truncated_share"]),
        ),
        "scored": (len(counts) > 1, lambda row: f"{row['trajectories']:,}"),
    }
    more = {heading: cell for heading, (wanted, cell) in optional.items() if wanted}
    level = f"{ranking.confidence:.0%}"
    name, heading = ("rsr", "RSR") if is_rsr else ("score", ranking.score)
    table = summary.plain_table("teacher", heading, level, "best", "rank / nats", "tokens", *more)
    for row in ranking.table[: summary.MAX_TEACHERS]:
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        interval = "-" if low is None else f"{number(low, 2)}{'-' if low >= 0 else ' to '}{number(high, 2)}"
        summary.add_row(
            table,
            row["teacher"],
            number(row[name]),
            interval,
            _percent(row["probability_best"]),
            f"{number(row['mean_rank'], 2)} / {number(row['mean_surprisal'], 2)}",
            number(row["mean_tokens"], 0),
            *(cell(row) for cell in more.values()),
        )
    out.print(table)
    if (rest := len(ranking.table) - summary.MAX_TEACHERS) > 0:
        out.print(f"... and {counted(rest, 'more teacher')}; --json and --csv list them all.")
    out.print(f"{level}: interval of the {'RSR' if is_rsr else 'mean'}. best: probability of being the most suitable.")
    if verdict:
        out.print(Text(verdict, "bold"))
    if short := [row["teacher"] for row in ranking.table if (row["mean_tokens"] or 0) < summary.NOISY_BELOW]:
        named = ", ".join(map(str, short[:5])) + (", ..." if len(short) > 5 else "")
        out.print(
            Text(
                f"Short: {named} (fewer than {summary.NOISY_BELOW} scored tokens on average). RSR is noisy on them, "
                "and answers without reasoning can look suitable by chance: look before you choose."
            )
        )
    for note in ranking.notes:
        out.print(Text(f"Note: {note}"))


def _show_race(out: "Console", race: "TeacherRace") -> None:
    from rich.text import Text

    from rsr_trl.cli import summary
    from rsr_trl.data import counted

    if race.certain:
        what = "The order of teachers is" if race.goal == "order" else f"{race.best} is the most suitable teacher,"
        head = f"{what} certain to {race.certainty:.0%}"
    else:
        possible = sum(row["status"] == "possible" for row in race.table)
        head = f"Not certain to {race.certainty:.0%}: {possible} teachers can't be told apart yet"
    used = summary.share(race.num_trajectories, race.num_trajectories_in_pool)
    out.print(Text.assemble("\n", (head, "bold")))
    out.print(
        f"Scored {used} of {race.num_trajectories_in_pool:,} trajectories, on {race.num_problems:,} of "
        f"{counted(race.num_problems_in_pool, 'problem')} that all teachers have. RSR: {summary.DIRECTION}."
    )
    table = summary.plain_table("teacher", "RSR", "status", "problems", "trajectories")
    for row in race.table[: summary.MAX_TEACHERS]:
        count = (f"{row['problems']:,}", f"{row['trajectories']:,}")
        summary.add_row(table, row["teacher"], summary.number(row["rsr"]), row["status"], *count)
    out.print(table)
    if (rest := len(race.table) - summary.MAX_TEACHERS) > 0:
        out.print(f"... and {counted(rest, 'more teacher')}; --json and --csv list them all.")
    if not race.certain:
        out.print("More problems would settle it; or choose among these by price, length or licence.")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
