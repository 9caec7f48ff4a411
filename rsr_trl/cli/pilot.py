"""`rsr pilot`: try ways to choose on your own student and data, small, before you train big."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset
from rich.console import Console
from rich.text import Text
from trl import ModelConfig, TrlParser

from rsr_trl import data
from rsr_trl.cli import tables
from rsr_trl.cli.options import (
    DatasetArguments,
    FormatArguments,
    JsonArguments,
    TeacherArguments,
    option,
    option_parser,
    student_to_train,
)
from rsr_trl.cli.tables import Column
from rsr_trl.pilot.answers import load_checker
from rsr_trl.pilot.arms import Arms
from rsr_trl.pilot.config import PilotConfig
from rsr_trl.pilot.held_out import HeldOut, check_apart
from rsr_trl.pilot.run import RESULT, SCORED, Pilot, check_folder, leave
from rsr_trl.pilot.strategies import DEFAULT, Pool, Strategy, check_budget, parse_strategies
from rsr_trl.pilot.verdict import METRICS
from rsr_trl.report.format import number
from rsr_trl.rsr import RSR, STUDENT, RSRError
from rsr_trl.scoring.job import Job
from rsr_trl.scoring.scorer import RSRScorer
from rsr_trl.scoring.scores import STORED, known_score
from rsr_trl.scoring.shards import digests_of
from rsr_trl.selection.table import check_one_student


CARD = "# The scored pool of a pilot\n\nMade by `rsr pilot`. **A lower `rsr` suits the student `{}` better.**"


@dataclass(kw_only=True)
class PilotArguments(TeacherArguments, JsonArguments):
    """What to try and how to measure it."""

    _argument_group_name = "pilot"

    eval_dataset_name: str = option(
        "The held-out problems, as --dataset_name: prompts with references (completion), with answers, or both."
    )
    eval_dataset_config: str | None = option("Configuration of the held-out dataset, if it has several.", None)
    eval_dataset_split: str = option("Split of the held-out dataset.", "train")
    strategies: list[str] = field(
        default_factory=lambda: list(DEFAULT),
        metadata={
            "help": "What to try: rsr, surprisal, rank (each from its lowest), length (longest first), random, "
            "rsr_rescored (chosen again in each epoch), COLUMN:low or COLUMN:high for any score; with _ordered at the "
            "end it trains in the order of the score instead of shuffled. Controls are added."
        },
    )
    num_seeds: int = option("Trainings of each strategy; below 3 nothing is said about other runs.", 3)
    num_examples: int | None = option(
        "Trajectories that an arm trains on; by default half of the problems, at most 128.", None
    )
    num_tokens: int | None = option("Instead of --num_examples: scored tokens that an arm trains on.", None)
    group_column: str | None = option(
        "Column that names the problem, of which one trajectory is chosen; by default a well-known one, such as "
        "problem_id; none: choose from all trajectories.",
        None,
    )
    answer_column: str | None = option(
        "Column of the held-out set with the true answer; by default `gold`, if there is one. Without it only the loss "
        "is measured.",
        None,
    )
    checker: str = option(
        "When a response is right: number (its last number is the answer's), line (its last line is the answer's), "
        "math (math-verify), or module:function, which takes response and answer.",
        "number",
    )
    max_new_tokens: int = option("Cut responses at this many tokens.", 512)
    dry_run: bool = option("Measure a few steps, say what the pilot would cost.", False)

    def __post_init__(self):
        check_budget(self.num_examples, self.num_tokens)
        for name in ("num_seeds", "max_new_tokens"):
            if (value := vars(self)[name]) < 1:
                raise RSRError(f"{name} must be at least 1, got {value}.")


def make_parser(prog: str | None = None) -> TrlParser:
    return option_parser(
        (DatasetArguments, FormatArguments, PilotArguments, PilotConfig, ModelConfig),
        prog=prog,
        description="Try ways to choose trajectories against a random choice: small trainings of your student, "
        "measured on held-out problems. The same command, started again after a stop, goes on with the next arm. RSR: "
        "lower suits the student better.",
    )


def main(
    data_args: DatasetArguments,
    format_args: FormatArguments,
    pilot_args: PilotArguments,
    training_args: PilotConfig,
    model_args: ModelConfig,
) -> int:
    student = student_to_train(model_args, training_args)
    folder, strategies, out = Path(training_args.output_dir), parse_strategies(pilot_args.strategies), tables.console()
    check_folder(folder, {})
    if pilot_args.json or training_args.process_index:
        tables.without_bars()
    logging.getLogger("rsr_trl.scoring").setLevel(logging.ERROR)  # rows without a score are counted in the notes

    source = (data_args.dataset_name, data_args.dataset_config, data_args.dataset_split)
    eval_source = (pilot_args.eval_dataset_name, pilot_args.eval_dataset_config, pilot_args.eval_dataset_split)
    rows, eval_rows = (data.as_trl_format(data.load(*one), **vars(format_args)) for one in (source, eval_source))
    columns = data.find_columns(rows, data.Columns(pilot_args.teacher_column, pilot_args.group_column))
    answers = pilot_args.answer_column or ("gold" if "gold" in eval_rows.column_names else None)
    data.read_table(eval_rows, [answers])  # an error where there is no such column
    checker = load_checker(pilot_args.checker)
    held_out = HeldOut(eval_rows, columns.problem, answers, checker, pilot_args.max_new_tokens)
    check_apart(rows, eval_rows)

    scorer, defaults = _make_scorer(model_args, training_args, strategies), vars(ModelConfig())
    changed = {name: value for name, value in vars(model_args).items() if value != defaults[name]}
    identity = {
        "student": changed | {name: scorer.identity()[name] for name in ("weights", "tokenizer")},
        "pool": _identity_of(source),
        "held_out": _identity_of(eval_source) | {"answer_column": answers, "checker": pilot_args.checker},
        "columns": asdict(format_args),
    }
    check_folder(folder, identity)
    if not _is_scored(rows, scorer):
        if pilot_args.dry_run:
            raise RSRError("--dry_run needs a pool with scores: pass one that `rsr score` has written.")
        run = _identity_of(source, hashed=False) | {"columns": asdict(format_args)}
        card = CARD.format(model_args.model_name_or_path)
        state = PartialState()
        Job(scorer, rows, folder / SCORED, run, None, state.process_index, state.num_processes, card).run()
        state.wait_for_everyone()
        rows = data.load(str(folder / SCORED))
    del scorer
    tables.without_bars()  # of the many small steps of the arms
    pool = Pool(rows, columns, strategies, pilot_args.num_examples, pilot_args.num_tokens)
    arms = Arms(student, training_args, pool, held_out)
    seeds = range(training_args.seed, training_args.seed + pilot_args.num_seeds)
    pilot = Pilot(arms, strategies, seeds, folder, identity, say=lambda line: out.print(line, markup=False))
    try:
        result = pilot.run(dry_run=pilot_args.dry_run)
    except KeyboardInterrupt:
        if pilot.is_main and not pilot_args.dry_run:
            out.print("\nStopped. Trainings that were finished are kept: run the same command again to go on.")
        raise
    if pilot.is_main and pilot_args.json:
        tables.print_json(result)
    elif pilot.is_main and not pilot_args.dry_run:
        _show(out, result, folder)
    leave()
    return 0


def _identity_of(source: tuple[str, str | None, str], hashed: bool = True) -> dict:
    """What names a dataset: how it was asked for, and its files, wherever they are."""
    files = data.source_files(*source)
    return {"files": digests_of(files) if hashed else files, "config": source[1], "split": source[2]}


def _make_scorer(model_args: ModelConfig, training_args: PilotConfig, strategies: Sequence[Strategy]) -> RSRScorer:
    """The scorer that `rsr score` has by default, with the trainings' length limit and the strategies' scores."""
    scores = {known_score(one.column) for one in strategies if one.column is not None} - {None, *STORED}
    options = {
        "revision": None if model_args.model_revision == "main" else model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "assistant_only_loss": training_args.assistant_only_loss,
        "device": str(training_args.device),
    }
    longest = RSRScorer(model_args.model_name_or_path, **options).max_length
    options["max_length"] = min(longest, training_args.max_length or longest)
    return RSRScorer(model_args.model_name_or_path, **options, scores=sorted(scores))


def _is_scored(pool: Dataset, scorer: RSRScorer) -> bool:
    """Whether the pool has scores; those of another student are an error."""
    if not len(pool):
        raise RSRError("The pool has no rows.")
    if RSR in pool.column_names and (others := set(check_one_student(pool)) - {scorer.fingerprint}):
        raise RSRError(
            f"The pool's scores are of another student, dtype or template ({others.pop()}; this student is "
            f"{scorer.fingerprint}). Pass the pool without its scores to score it now, or, if these scores are "
            f"meant, without the column {STUDENT!r}."
        )
    return RSR in pool.column_names


def _show(out: Console, result: dict, folder: Path) -> None:
    """What `rsr pilot` says at its end."""
    before, arms, level = result["arms"][0], result["arms"][1:], f"{result['confidence']:.0%}"
    seeds, problems = data.counted(len(result["seeds"]), "seed"), result["table"][0]["problems"]
    size = f"{seeds}, {data.counted(problems, 'held-out problem')}"
    out.print(Text.assemble("\n", (size, "bold"), "; each strategy beside its control, same seeds and problems"))
    for metric in METRICS:
        rows = [row for row in result["table"] if row["metric"] == metric.name]
        if not rows:
            continue
        direction = "%, higher = better" if metric.higher_is_better else "nats per token, lower = better"
        was, show = metric.number(before[metric.name], ""), metric.number
        out.print(Text(f"\n{metric.label} ({direction}); before training {was}"))
        table = [
            Column("strategy", "strategy"),
            Column("result", lambda row, show=show: show(row["value"], "")),
            Column("control", lambda row, show=show: f"{row['control']} {show(row['control_value'], '')}"),
            Column("difference", lambda row, show=show: show(row["mean"])),
            Column(level, lambda row, show=show: f"{show(row['low'])} to {show(row['high'])}"),
            Column("verdict", lambda row: {None: "unclear", True: "better", False: "worse"}[row["better"]]),
        ]
        tables.print_table(out, rows, table, limit=None)
    tokens = []
    for name in (strategy["name"] for strategy in result["strategies"]):
        counts = [arm["tokens"] for arm in arms if arm["strategy"] == name]
        tokens.append(f"{name} {number(None if None in counts else sum(counts) / len(counts), 0)}")
    lines = [f"Scored tokens trained on, mean of the seeds: {', '.join(tokens)}.", *result["verdict"]]
    for line in (*lines, *(f"Note: {note}" for note in result["notes"])):
        out.print(Text(line))
    out.print(Text(f"All of it: {folder / RESULT}"), soft_wrap=True)
