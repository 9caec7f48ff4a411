"""
Compare selection strategies with a random choice: short trainings of your student, measured on held-out problems.
Re-running the same command resumes with the next arm. RSR: lower suits better.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset
from rich.console import Console
from trl import ModelConfig, TrlParser

from rsr_trl import data
from rsr_trl.cli import options, score_summary
from rsr_trl.cli.options import (
    DatasetArguments,
    FormatArguments,
    GgufArguments,
    JsonArguments,
    TeacherArguments,
    option,
)
from rsr_trl.cli.tables import Column, console, finish, print_table, say, say_notes, without_bars
from rsr_trl.formats import check_no_images
from rsr_trl.pilot.config import PilotConfig
from rsr_trl.pilot.held_out import HeldOut, check_apart, load_checker
from rsr_trl.pilot.run import RESULT, SCORED, Pilot, check_folder, leave
from rsr_trl.pilot.strategies import DEFAULT, Pool, Strategy, parse_strategies
from rsr_trl.pilot.verdict import METRICS
from rsr_trl.report.format import number
from rsr_trl.rsr import RSR, STUDENT, RSRError
from rsr_trl.scoring.fingerprint import same_student
from rsr_trl.scoring.job import Job
from rsr_trl.scoring.scorer import RSRScorer
from rsr_trl.scoring.scores import STORED, known_score
from rsr_trl.scoring.shards import digests_of
from rsr_trl.selection.table import check_one_student


CARD = "# The scored pool of a pilot\n\nMade by `rsr pilot`. **A lower `rsr` suits the student better.**"


@dataclass(kw_only=True)
class PilotArguments(TeacherArguments, JsonArguments):
    """What to try and how to measure it."""

    _argument_group_name = "pilot"

    eval_dataset_name: str = option(
        "Held-out problems, as --dataset_name: prompts with references (completion), with answers, or both."
    )
    eval_dataset_config: str | None = option("Configuration of the held-out dataset, if it has several.", None)
    eval_dataset_split: str = option("Split of the held-out dataset.", "train")
    strategies: list[str] | None = option(
        "Strategies to compare. Default: rsr surprisal length random. Others: rank, rsr_rescored (re-selects every "
        "epoch), COLUMN:low, COLUMN:high; the suffix _ordered trains in order of the score. Controls are added "
        "automatically.",
        None,
    )
    num_seeds: int = option("Trainings per strategy. With fewer than 3, results hold for these runs only.", 3)
    num_examples: int | None = option("Trajectories per training. Default: half of the problems, at most 128.", None)
    num_tokens: int | None = option("Scored tokens per training, instead of --num_examples.", None)
    group_column: str | None = option(options.PROBLEM_HELP, None, "--problem_column")
    min_tokens: int | None = option("Leave out trajectories with fewer scored tokens. Default: 32; 0 keeps all.", None)
    answer_column: str | None = option("Column of the held-out set with the true answer. Default: `gold`.", None)
    checker: str = option(
        "How to check a response: by its last number (number) or last line (line), with math-verify (math), or with "
        "your own module:function, which takes the response and the answer.",
        "number",
    )
    max_new_tokens: int = option("Truncate responses at this many tokens.", 512)
    dry_run: bool = option("Time a few steps and a part of an evaluation (about a minute), print the cost.", False)

    def __post_init__(self):
        if None not in (self.num_examples, self.num_tokens):
            raise RSRError("Pass --num_examples or --num_tokens, not both.")
        for name in ("num_seeds", "num_examples", "num_tokens", "max_new_tokens"):
            if (value := vars(self)[name]) is not None and value < 1:
                raise RSRError(f"--{name} must be at least 1, got {value}.")


def make_parser(prog: str | None = None) -> TrlParser:
    return options.option_parser(
        (DatasetArguments, FormatArguments, PilotArguments, PilotConfig, ModelConfig, GgufArguments), prog, __doc__
    )


def main(data_args: DatasetArguments, format_args, pilot_args: PilotArguments, training_args, model_args, gguf) -> int:
    student = options.student_to_train(model_args, training_args, gguf)
    strategies = parse_strategies(pilot_args.strategies or DEFAULT)
    check_folder(Path(training_args.output_dir), {})
    if training_args.process_index:
        without_bars()
    logging.getLogger("rsr_trl.scoring").setLevel(logging.ERROR)  # rows without a score are counted in the notes
    held_out_set = (pilot_args.eval_dataset_name, pilot_args.eval_dataset_config, pilot_args.eval_dataset_split)
    eval_args = DatasetArguments(*held_out_set)
    rows, eval_rows = (data.as_trl_format(one.load(), **vars(format_args)) for one in (data_args, eval_args))
    check_no_images(rows, "A pilot", "pool")
    columns = data.find_columns(rows, data.Columns(pilot_args.teacher_column, pilot_args.group_column))
    answers = pilot_args.answer_column or ("gold" if "gold" in eval_rows.column_names else None)
    data.read_table(eval_rows, [answers])  # an error where there is no such column
    checker = load_checker(pilot_args.checker)
    held_out = HeldOut(eval_rows, columns.problem, answers, checker, pilot_args.max_new_tokens)
    check_apart(rows, eval_rows)

    scorer, defaults = _make_scorer(student["model"], training_args, strategies), vars(ModelConfig(student["model"]))
    changed = {name: value for name, value in vars(model_args).items() if value != defaults[name]}
    identity = {
        "student": changed | {name: scorer.identity()[name] for name in ("weights", "tokenizer")},
        "pool": _named(data_args),
        "held_out": _named(eval_args) | {"answer_column": answers, "checker": pilot_args.checker},
        "columns": asdict(format_args),
    }
    check_folder(Path(training_args.output_dir), identity)
    if not training_args.process_index:
        score_summary.warn_of_plain(scorer, rows)
    if not _is_scored(rows, scorer):
        if pilot_args.dry_run:
            raise RSRError("--dry_run needs a scored pool: run `rsr score` first and pass its output.")
        run = _named(data_args) | {"files": data.source_files(*data_args.source), "columns": asdict(format_args)}
        scored, share = Path(training_args.output_dir, SCORED), (training_args.process_index, training_args.world_size)
        Job(scorer, rows, scored, run, None, *share, CARD).run()
        PartialState().wait_for_everyone()
        rows = data.load(str(scored))
    del scorer
    without_bars()  # of the many small steps of the arms
    pool = Pool(rows, columns, strategies, pilot_args.num_examples, pilot_args.num_tokens, pilot_args.min_tokens)
    seeds = range(training_args.seed, training_args.seed + pilot_args.num_seeds)
    speak = partial(say, console())
    pilot = Pilot(student, training_args, pool, held_out, strategies, seeds, identity, speak)
    try:
        result = pilot.run(dry_run=pilot_args.dry_run)
    except KeyboardInterrupt:
        if not pilot_args.dry_run:
            pilot.say("\nStopped. Finished trainings are kept: run the same command again to resume.")
        raise
    if pilot.is_main and (pilot_args.json or not pilot_args.dry_run):
        finish(pilot_args.json, result, lambda out: _show(out, result, training_args.output_dir))
    leave()
    return 0


def _named(args: DatasetArguments) -> dict:
    """What names a dataset: how it was asked for, and the bytes of its files."""
    files = digests_of(data.source_files(*args.source))
    return {"files": files, "config": args.dataset_config, "split": args.dataset_train_split}


def _make_scorer(model: str, args: PilotConfig, strategies: Sequence[Strategy]) -> RSRScorer:
    """The scorer that `rsr score` has by default, with the trainings' length limit and the strategies' scores."""
    scores = {known_score(one.column) for one in strategies if one.column is not None} - {None, *STORED}
    names = ("revision", "trust_remote_code", "attn_implementation", "gguf_file")
    same = {name: args.model_init_kwargs.get(name) for name in names}
    same |= {name: getattr(args, name) for name in ("assistant_only_loss", "chat_template_path")}
    same |= {"device": str(args.device)}
    longest = RSRScorer(model, **same).max_length
    return RSRScorer(model, **same, max_length=min(longest, args.max_length or longest), scores=sorted(scores))


def _is_scored(pool: Dataset, scorer: RSRScorer) -> bool:
    """Whether the pool has scores; those of another student are an error."""
    if not len(pool):
        raise RSRError("The pool has no rows.")
    if RSR not in pool.column_names:
        return False
    for student in check_one_student(pool):
        if same_student(student, scorer.fingerprint):
            continue
        raise RSRError(
            f"The pool's scores are from another student or template ({student}; this student is "
            f"{scorer.fingerprint}). To score the pool now, pass it without its scores. To use these scores, pass it "
            f"without the column {STUDENT!r}."
        )
    return True


def _show(out: Console, result: dict, folder: str) -> None:
    before, level, problems = result["arms"][0], f"{result['confidence']:.0%}", result["table"][0]["problems"]
    size = f"{data.counted(len(result['seeds']), 'seed')}, {data.counted(problems, 'held-out problem')}"
    say(out, "; each strategy beside its control, same seeds and problems", f"\n{size}")
    for metric in METRICS:
        if rows := [row for row in result["table"] if row["metric"] == metric.name]:
            direction = "%, higher = better" if metric.higher_is_better else "nats per token, lower = better"
            start = metric.number(before[metric.name], "")
            say(out, f"\n{metric.label} ({direction}); before training {start}")
            print_table(out, rows, _columns(metric.number, level), limit=None)
    means = []
    for name in (strategy["name"] for strategy in result["strategies"]):
        counts = [arm["tokens"] for arm in result["arms"] if arm["strategy"] == name]
        means.append(f"{name} {number(None if None in counts else sum(counts) / len(counts), 0)}")
    say(out, f"Scored tokens trained on, mean of the seeds: {', '.join(means)}.")
    for line in result["verdict"]:
        say(out, line)
    say_notes(out, result["notes"])
    say(out, f"Full results: {Path(folder, RESULT)}", soft_wrap=True)


def _columns(show, level: str) -> list[Column]:
    """Of the table of one metric, which `show` writes."""
    return [
        Column("strategy", lambda row: f"{row['strategy']} vs {row['control']}"),
        Column("result", lambda row: show(row["value"], "")),
        Column("control", lambda row: show(row["control_value"], "")),
        Column("difference", lambda row: show(row["mean"])),
        Column(level, lambda row: f"{show(row['low'])} to {show(row['high'])}"),
        Column("verdict", lambda row: {None: "unclear", True: "better", False: "worse"}[row["better"]]),
    ]
