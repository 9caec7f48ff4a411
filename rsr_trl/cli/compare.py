"""
Compare RSR (lower = more suitable) with other scores of a scored dataset: how far they agree, what each would choose,
and how much length and correctness explain. Also checks for RSR's known failure modes.
"""

from dataclasses import dataclass

from rich.console import Console
from rich.padding import Padding
from rich.text import Text
from trl import TrlParser

from rsr_trl.cli.options import ColumnArguments, DatasetArguments, JsonArguments, option, option_parser
from rsr_trl.cli.tables import Column, beside, finish, harmless, print_table, say, say_notes
from rsr_trl.report.format import label, number, percent
from rsr_trl.rsr import DIRECTION, RSRError


BASELINES = ("surprisal", "length")  # whose places of teachers come first where not all fit; JSON has all


@dataclass
class CompareArguments(JsonArguments, ColumnArguments):
    """What to compare: the arguments of [`compare_scores`] of the same names."""

    _argument_group_name = "comparison"

    scores: str | None = option(
        "Scores to compare, such as lark,ifd, or all in the dataset. Default: surprisal,rank,length,random.", None
    )
    own_scores: str | None = option("Your own columns, each with its better end, such as quality:high,cost:low.", None)
    keep_per_group: int = option("How many trajectories each score chooses per problem.", 1)
    keep_fraction: float | None = option(
        "Fraction in (0, 1] of all trajectories that each score chooses, instead of choosing per problem.", None
    )


def make_parser(prog: str | None = None) -> TrlParser:
    return option_parser((DatasetArguments, CompareArguments), prog, __doc__)


def main(data_args: DatasetArguments, args: CompareArguments) -> None:
    from rsr_trl.data import is_selection
    from rsr_trl.selection.compare import compare_table, comparison_table
    from rsr_trl.selection.teachers import SELECTED

    dataset, source = data_args.load(), data_args.dataset_name
    columns = args.columns(dataset)
    notes, scores = list(columns.notes), None if args.scores is None else _items(args.scores)
    scores = "all" if scores == ["all"] else scores
    table = comparison_table(dataset, scores, _directions(args.own_scores), columns, notes)
    comparison = compare_table(table, args.keep_per_group, args.keep_fraction, notes)

    def show(out: Console) -> None:
        _show(out, comparison)
        say_notes(out, [*comparison.notes, *([SELECTED] if is_selection(source) else [])])

    next_words = ["rsr", "select", "--dataset_name", source, *comparison.rule.split()]
    next_words += ["--output_dir", beside(source, "selected")]
    finish(args.json, {"direction": DIRECTION, **comparison.to_dict()}, show, next_words)


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _directions(text: str | None) -> dict[str, str]:
    directions = {}
    for item in _items(text or ""):
        column, separator, prefer = item.rpartition(":")
        if not separator:
            raise RSRError(f"--own_scores {item!r} doesn't say which end is better: write {item}:low or {item}:high.")
        directions[column] = prefer
    return directions


def _show(out: Console, comparison) -> None:
    """Findings first, then scores, choices and teachers: a column only where there is something in it."""
    from rsr_trl.data import counted
    from rsr_trl.scoring.scores import SCORES

    scores, teachers, first = comparison.scores, comparison.teachers, comparison.scores[0]
    by_teacher, by_truth = first["teacher_agreement"] is not None, first["correct_first"] is not None
    problems, within = "", ""
    if comparison.num_problems is not None:
        problems, within = f" of {counted(comparison.num_problems, 'problem')}", " within problems"
    of = counted(comparison.num_compared, "trajectory")
    say(out, bold=f"\n{counted(len(scores), 'score')} of {of}{problems}")
    _show_findings(out, comparison.findings)
    say(out, f"\nScores and their better end, compared{within}:")
    columns = (
        Column("score", lambda row: f"{row['name']} ({row['prefer']})"),
        Column("RSR", lambda row: _signed(row["rank_correlation"])),
        Column("choice", lambda row: percent(row["overlap"])),
        Column("teachers", lambda row: _signed(row["teacher_agreement"]), shown=by_teacher),
        Column("length", lambda row: _signed(row["length_correlation"])),
        Column("correct first", _correct_first, shown=by_truth),
    )
    print_table(out, scores, columns, limit=None)
    say(out, "RSR, length: rank correlation with RSR and with length (above 0: prefers long trajectories).")
    say(out, f"choice: overlap with what RSR would choose (by chance: {comparison.chance_overlap:.0%}).")
    if by_teacher:
        say(out, "teachers: rank correlation of the order of teachers with RSR's.")
    if by_truth:
        say(
            out,
            "correct first: how often a correct trajectory is rated better than an incorrect one (95% interval; by "
            "chance: 50%).",
        )
    known = [(row["name"], SCORES[row["name"]].published) for row in scores[1:] if row["name"] in SCORES]
    if published := [f"{name} ({source})" for name, source in known if source]:
        say(out, f"Published as: {', '.join(published)}.")
    say(out, f"\nWhat each would choose with {comparison.rule}:")

    def most_from(row: dict) -> str:
        return f"{label(row['chosen_top_teacher'])} {percent(row['chosen_top_teacher_share'])}"

    is_known = first["chosen_accuracy"] is not None
    columns = [Column("score", "name"), Column("mean tokens", "chosen_tokens", digits=0)]
    columns += [Column("correct", lambda row: percent(row["chosen_accuracy"]), shown=is_known)]
    is_balanced = first["chosen_balance"] is not None
    columns += [Column("balance", "chosen_balance", digits=3, shown=is_balanced)]
    columns += [Column("most from", most_from, shown=bool(teachers))]
    print_table(out, scores, columns, limit=None)
    if is_balanced:
        say(out, "balance: B-STaR's, the mean over problems of min(c / 8, 1) x c / n with c of n chosen correct.")
    if len(teachers) > 1:
        shared = comparison.num_shared_problems
        on = f", on {counted(shared, 'problem')} that all have" if shared else ""
        say(out, f"\nTeachers, most suitable by RSR first{on}, with their places by other scores:")
        names = sorted((row["name"] for row in scores[1:]), key=lambda name: name not in BASELINES)
        places = [Column(name, lambda row, name=name: row["places"][name], optional=True) for name in names]
        rsr = Column("RSR", lambda row: row["values"]["rsr"], digits=3)
        print_table(out, teachers, (Column("teacher", "teacher"), rsr, *places), things="teacher")


def _show_findings(out: Console, findings: list) -> None:
    from rsr_trl.data import counted

    if not findings:
        say(
            out,
            "None of RSR's known failure modes was found here. That doesn't show that RSR helps: only training on its "
            "choice and on a random one can (`rsr pilot`).",
        )
        return
    say(out, f"{counted(len(findings), 'known failure mode')} of RSR found here:")
    for finding in findings:
        rows = f" For example rows {', '.join(map(str, finding.example_rows))}." if finding.example_rows else ""
        what = harmless(f"{finding.what}{rows} {finding.why}")
        text = Text.assemble((f"{finding.name}: ", "bold"), what)
        out.print(Padding(text, (0, 0, 0, 2)))
        out.print(Padding(Text(harmless(f"-> {finding.what_to_do}")), (0, 0, 0, 4)))


def _correct_first(row: dict) -> str:
    if row["correct_first_low"] is None:
        return percent(row["correct_first"])
    return f"{row['correct_first']:.0%} ({row['correct_first_low']:.0%}-{row['correct_first_high']:.0%})"


def _signed(value: float | None) -> str:
    return number(value) if value is None else f"{value:+.2f}"
