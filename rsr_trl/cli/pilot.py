"""`rsr pilot`: try ways to choose on your own student and data, small, before you train big."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset
from rich.console import Console
from rich.text import Text
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from rsr_trl import __version__, data
from rsr_trl.cli.options import DatasetArguments, FormatArguments, option_parser
from rsr_trl.cli.tables import Column, console, print_json, print_table, without_bars
from rsr_trl.pilot.answers import load_checker
from rsr_trl.pilot.arms import Arms
from rsr_trl.pilot.config import PilotConfig
from rsr_trl.pilot.held_out import HeldOut, check_apart
from rsr_trl.pilot.run import RESULT, SCORED, Pilot, check_folder, check_identity, leave
from rsr_trl.pilot.strategies import DEFAULT, Pool, Strategy, check_budget, parse_strategies
from rsr_trl.pilot.verdict import METRICS
from rsr_trl.report.format import number
from rsr_trl.rsr import RSR, STUDENT, RSRError
from rsr_trl.scoring.job import Job
from rsr_trl.scoring.scorer import RSRScorer
from rsr_trl.scoring.scores import STORED, known_score
from rsr_trl.scoring.shards import digests_of
from rsr_trl.selection.table import check_one_student


CARD = """\
# The scored pool of a pilot

Made by `rsr pilot` (rsr-trl {version}) with the student `{student}`. **A lower `rsr` suits this student better.**
"""


def _option(text: str, **default):
    return field(metadata={"help": text}, **default)


@dataclass
class PilotArguments:
    """What to try and how to measure it."""

    _argument_group_name = "pilot"

    eval_dataset_name: str = _option(
        "The held-out problems, as --dataset_name: prompts with references (completion), with answers, or both."
    )
    eval_dataset_config: str | None = _option(
        "Configuration of the held-out dataset, if it has several.", default=None
    )
    eval_dataset_split: str = _option("Split of the held-out dataset.", default="train")
    strategies: list[str] = _option(
        "What to try: rsr, surprisal, rank (each from its lowest), length (longest first), random, rsr_rescored (chosen "
        "again in each epoch), COLUMN:low or COLUMN:high for any score; with _ordered at the end it trains in the order "
        "of the score instead of shuffled. Controls are added.",
        default_factory=lambda: list(DEFAULT),
    )
    num_seeds: int = _option("Trainings of each strategy; below 3 nothing is said about other runs.", default=3)
    num_examples: int | None = _option(
        "Trajectories that an arm trains on; by default half of the problems, at most 128.", default=None
    )
    num_tokens: int | None = _option("Instead of --num_examples: scored tokens that an arm trains on.", default=None)
    group_column: str | None = _option(
        "Column that names the problem, of which one trajectory is chosen; by default a well-known one such as "
        "problem_id. none: choose from all trajectories.",
        default=None,
    )
    answer_column: str | None = _option(
        "Column of the held-out set with the true answer; `gold` by default, where there is one. Without it only the "
        "loss is measured.",
        default=None,
    )
    checker: str = _option(
        "When a response is right: number (its last number is the answer's), line (its last line is the answer's), math "
        "(math-verify), or module:function, which takes response and answer.",
        default="number",
    )
    max_new_tokens: int = _option("Cut responses at this many tokens.", default=512)
    teacher_column: str | None = _option(
        "Column with the teacher's name; `teacher` by default, where there is one.", default=None
    )
    dry_run: bool = _option("Measure a few steps, say what the pilot would cost.", default=False)
    json: bool = _option("Print the result as one JSON object on standard output, and nothing else.", default=False)

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
    _check_student(model_args.model_name_or_path)
    folder, strategies = Path(training_args.output_dir), parse_strategies(pilot_args.strategies)
    check_folder(folder)
    out = console()
    if pilot_args.json or training_args.process_index:
        without_bars()
    logging.getLogger("rsr_trl.scoring").setLevel(logging.ERROR)  # rows without a score are counted in the notes

    source = (data_args.dataset_name, data_args.dataset_config, data_args.dataset_split)
    pool = data.as_trl_format(data.load(*source), **vars(format_args))
    columns = data.find_columns(pool, data.Columns(pilot_args.teacher_column, pilot_args.group_column))
    eval_source = (pilot_args.eval_dataset_name, pilot_args.eval_dataset_config, pilot_args.eval_dataset_split)
    eval_rows = data.as_trl_format(data.load(*eval_source), **vars(format_args))
    answers = pilot_args.answer_column or ("gold" if "gold" in eval_rows.column_names else None)
    data.read_table(eval_rows, [answers])  # raises where it isn't there
    checker = load_checker(pilot_args.checker)
    held_out = HeldOut(eval_rows, columns.problem, answers, checker, pilot_args.max_new_tokens)
    check_apart(pool, eval_rows)

    scorer = _make_scorer(model_args, training_args, strategies)
    defaults = vars(ModelConfig(model_args.model_name_or_path))
    student = {name: value for name, value in vars(model_args).items() if value != defaults[name]}
    identity = {
        "student": {name: scorer.identity()[name] for name in ("weights", "tokenizer")} | student,
        "pool": _identity_of(source),
        "held_out": _identity_of(eval_source) | {"answer_column": answers, "checker": pilot_args.checker},
        "columns": asdict(format_args),
    }
    check_identity(folder, identity)
    if not _is_scored(pool, scorer):
        if pilot_args.dry_run:
            raise RSRError(
                "--dry_run needs a pool with scores: score it with `rsr score` (whose own --dry_run says what that "
                "costs) and pass the result."
            )
        _score(pool, scorer, folder / SCORED, source, format_args, show_bar=training_args.process_index == 0)
        pool = data.load(str(folder / SCORED))
    del scorer
    without_bars()  # of the many small steps of the arms
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    student = {
        "model": model_args.model_name_or_path,
        "quantization_config": get_quantization_config(model_args),
        "peft_config": get_peft_config(model_args),
    }
    pool = Pool(pool, columns, strategies, pilot_args.num_examples, pilot_args.num_tokens)
    seeds = range(training_args.seed, training_args.seed + pilot_args.num_seeds)
    arms = Arms(student, training_args, pool, held_out)
    pilot = Pilot(arms, strategies, seeds, folder, identity, say=lambda line: out.print(line, markup=False))
    is_main = pilot.state.is_main_process
    try:
        result = pilot.run(dry_run=pilot_args.dry_run)
    except KeyboardInterrupt:
        if is_main and not pilot_args.dry_run:
            out.print("\nStopped. Trainings that were finished are kept: run the same command again to go on.")
        raise
    if is_main and pilot_args.json:
        print_json(result)
    elif is_main and not pilot_args.dry_run:
        _show(out, result, folder)
    leave()
    return 0


def _check_student(name: str | None) -> None:
    if name is None:
        raise RSRError("Say which student to try it on: model_name_or_path.")
    if data.is_written_as_path(name) and not Path(name).exists():
        raise RSRError(f"There is no folder {name!r} (model_name_or_path).")


def _make_scorer(model_args: ModelConfig, training_args: PilotConfig, strategies: Sequence[Strategy]) -> RSRScorer:
    """The scorer that `rsr score` has by default, with the trainings' length limit and the strategies' scores."""
    scores = {known_score(s.column) for s in strategies if s.column is not None} - {None, *STORED}
    options = {
        "revision": None if model_args.model_revision == "main" else model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "assistant_only_loss": training_args.assistant_only_loss,
        "device": str(training_args.device),
    }
    limit = RSRScorer(model_args.model_name_or_path, **options).max_length
    limit = min(limit, training_args.max_length or limit)
    return RSRScorer(model_args.model_name_or_path, **options, max_length=limit, scores=sorted(scores))


def _identity_of(source: tuple[str, str | None, str]) -> dict:
    """What names a dataset, wherever its files are: their bytes."""
    return {"files": digests_of(data.source_files(*source)), "config": source[1], "split": source[2]}


def _is_scored(pool: Dataset, scorer: RSRScorer) -> bool:
    """Whether the pool has scores; those of another student are an error."""
    if not len(pool):
        raise RSRError("The pool has no rows.")
    if others := set(check_one_student(pool)) - {scorer.fingerprint} if RSR in pool.column_names else None:
        raise RSRError(
            f"The pool's scores are of another student, dtype or template ({others.pop()}; this student is "
            f"{scorer.fingerprint}). Pass the pool without its scores to score it now, or, if these scores are "
            f"meant, without the column {STUDENT!r}."
        )
    return RSR in pool.column_names


def _score(
    pool: Dataset, scorer: RSRScorer, folder: Path, source: tuple, format_args: FormatArguments, show_bar: bool
):
    """Write the pool with this student's scores to `folder`, all processes together."""
    identity = {"files": data.source_files(*source), "config": source[1], "split": source[2]}
    identity["columns"] = asdict(format_args)
    card = CARD.format(version=__version__, student=scorer.student.model.config.name_or_path)
    state = PartialState()
    share = {"process": state.process_index, "num_processes": state.num_processes}
    Job(scorer, pool, folder, identity, card=card, **share).run(show_bar=show_bar)
    state.wait_for_everyone()


def _show(out: Console, result: dict, folder: Path) -> None:
    """What `rsr pilot` says at its end."""
    before, seeds, level = result["arms"][0], len(result["seeds"]), f"{result['confidence']:.0%}"
    title = f"{data.counted(seeds, 'seed')}, {data.counted(result['table'][0]['problems'], 'held-out problem')}"
    out.print(Text.assemble("\n", (title, "bold"), "; each strategy beside its control: same seeds, same problems"))
    for metric in METRICS:
        rows = [row for row in result["table"] if row["metric"] == metric.name]
        if not rows:
            continue
        direction = "%, higher = better" if metric.higher_is_better else "nats per token, lower = better"
        out.print(Text(f"\n{metric.label} ({direction}); before training {metric.number(before[metric.name], '')}"))
        form = metric.number
        columns = (
            Column("strategy", "strategy"),
            Column("result", lambda row, form=form: form(row["value"], "")),
            Column("control", lambda row, form=form: f"{row['control']} {form(row['control_value'], '')}"),
            Column("difference", lambda row, form=form: form(row["mean"])),
            Column(level, lambda row, form=form: f"{form(row['low'])} to {form(row['high'])}"),
            Column("verdict", lambda row: {None: "unclear", True: "better", False: "worse"}[row["better"]]),
        )
        print_table(out, rows, columns, limit=None)
    tokens = {}
    for arm in result["arms"][1:]:
        tokens.setdefault(arm["strategy"], []).append(arm["tokens"])
    means = {name: None if None in counts else sum(counts) / len(counts) for name, counts in tokens.items()}
    said = ", ".join(f"{name} {number(mean, 0)}" for name, mean in means.items())
    lines = [f"Scored tokens trained on, mean of the seeds: {said}.", *result["verdict"]]
    for line in [*lines, *(f"Note: {note}" for note in result["notes"])]:
        out.print(Text(line))
    out.print(Text(f"All of it: {folder / RESULT}"), soft_wrap=True)
