"""`rsr pilot`: try ways to choose on your own student and data, small, before you train big."""

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

from trl import ModelConfig, TrlParser

from rsr_trl.cli.options import DatasetArguments, FormatArguments, option_parser
from rsr_trl.pilot.config import PilotConfig
from rsr_trl.pilot.strategies import DEFAULT


MAX_EXAMPLES = 128  # of the default budget
NO_OUTPUT_DIR = "trainer_output"  # what transformers makes of a missing output_dir


@dataclass
class PilotArguments:
    """
    What to try and how to measure it.

    Args:
        eval_dataset_name (`str`): Held-out problems; the names of columns are those of the pool.
        eval_dataset_config (`str`, *optional*): Configuration of a dataset with several.
        eval_dataset_split (`str`, *optional*, defaults to `"train"`): Split to read.
        strategies (`list[str]`, *optional*): Ways to choose, see [`parse_strategies`].
        num_seeds (`int`, *optional*, defaults to `3`): Trainings of each, with `--seed` and the seeds after it.
        num_examples (`int`, *optional*): Trajectories that an arm trains on.
        num_tokens (`int`, *optional*): Instead: scored tokens that an arm trains on.
        group_column (`str`, *optional*): Column that names the problem, in both datasets.
        answer_column (`str`, *optional*): Column of the held-out set with the true answer.
        checker (`str`, *optional*, defaults to `"number"`): Says whether a response is right, see [`load_checker`].
        max_new_tokens (`int`, *optional*, defaults to `512`): Length limit of responses.
        teacher_column (`str`, *optional*): Column with the teacher's name; `teacher` where there is one.
        dry_run (`bool`, *optional*, defaults to `False`): Whether to measure the cost only.
        json (`bool`, *optional*, defaults to `False`): Whether to print the result as JSON on standard output.
    """

    _argument_group_name = "pilot"

    eval_dataset_name: str = field(
        metadata={
            "help": "The held-out problems, as --dataset_name: prompts with references (completion), with answers, or "
            "both."
        }
    )
    eval_dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of the held-out dataset, if it has several."}
    )
    eval_dataset_split: str = field(default="train", metadata={"help": "Split of the held-out dataset."})
    strategies: list[str] = field(
        default_factory=lambda: list(DEFAULT),
        metadata={
            "help": "What to try: rsr, surprisal, rank (each from its lowest), length (longest first), random, "
            "rsr_rescored (chosen anew each epoch), COLUMN:low or COLUMN:high for any score; with _ordered at the end "
            "it trains in the order of the score instead of shuffled. Controls are added."
        },
    )
    num_seeds: int = field(
        default=3, metadata={"help": "Trainings of each strategy; below 3 nothing is said about other runs."}
    )
    num_examples: int | None = field(
        default=None,
        metadata={"help": "Trajectories that an arm trains on; by default half of the problems, at most 128."},
    )
    num_tokens: int | None = field(
        default=None, metadata={"help": "Instead of --num_examples: scored tokens that an arm trains on."}
    )
    group_column: str | None = field(
        default=None,
        metadata={
            "help": "Column that names the problem, of which one trajectory is chosen; `problem_id` by default, where "
            "there is one."
        },
    )
    answer_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the held-out set with the true answer; `gold` by default, where there is one. Without "
            "it only the loss is measured."
        },
    )
    checker: str = field(
        default="number",
        metadata={
            "help": "When a response is right: number (its last number is the answer's), line (its last line is the "
            "answer's), math (math-verify), or module:function, which takes response and answer."
        },
    )
    max_new_tokens: int = field(default=512, metadata={"help": "Cut responses at this many tokens."})
    teacher_column: str | None = field(
        default=None, metadata={"help": "Column with the teacher's name; `teacher` by default, where there is one."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Measure a few steps, say what the pilot would cost."})
    json: bool = field(
        default=False, metadata={"help": "Print the result as one JSON object on standard output, and nothing else."}
    )


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
    from trl import get_peft_config, get_quantization_config

    from rsr_trl import data
    from rsr_trl.cli import summary
    from rsr_trl.cli.pilot_inputs import check_apart, column_of, identity_of, make_scorer, non_defaults, scored_pool
    from rsr_trl.cli.pilot_summary import show
    from rsr_trl.pilot.answers import load_checker
    from rsr_trl.pilot.arms import Arms, Student
    from rsr_trl.pilot.folder import check_folder, check_identity
    from rsr_trl.pilot.held_out import HeldOut
    from rsr_trl.pilot.run import Pilot, leave
    from rsr_trl.pilot.strategies import Budget, Pool, parse_strategies

    _check(model_args, pilot_args, training_args)
    check_folder(Path(training_args.output_dir))
    strategies = parse_strategies(pilot_args.strategies)
    out = summary.console()
    if pilot_args.json:
        summary.without_bars()
    logging.getLogger("rsr_trl.scoring").setLevel(logging.ERROR)  # rows without a score are counted in the notes

    held_out_source = (
        pilot_args.eval_dataset_name,
        pilot_args.eval_dataset_config,
        pilot_args.eval_dataset_split,
    )
    source = (data_args.dataset_name, data_args.dataset_config, data_args.dataset_split)
    pool = data.load(*source)
    held_out_rows = data.as_trl_format(data.load(*held_out_source), **vars(format_args))
    group_column = column_of(pool, pilot_args.group_column, "group_column", "problem_id")
    answer_column = column_of(held_out_rows, pilot_args.answer_column, "answer_column", "gold")
    teacher_column = summary.teacher_column_of(pool, pilot_args.teacher_column)
    pool = data.as_trl_format(pool, **vars(format_args))
    held_out = HeldOut(held_out_rows, group_column, answer_column, load_checker(pilot_args.checker))
    check_apart(pool, held_out_rows)

    scorer = make_scorer(model_args, training_args, strategies)
    student = {name: scorer.identity()[name] for name in ("weights", "tokenizer")}
    identity = {
        "student": student | non_defaults(model_args),
        "pool": identity_of(source),
        "held_out": identity_of(held_out_source) | {"answer_column": answer_column, "checker": pilot_args.checker},
        "columns": asdict(format_args),
    }
    check_identity(Path(training_args.output_dir), identity)
    output_dir, show_bar = training_args.output_dir, not pilot_args.json and training_args.process_index == 0
    scored = scored_pool(pool, scorer, output_dir, source, format_args, pilot_args.dry_run, show_bar)
    pool = Pool(scored, group_column)
    del scorer, scored
    summary.without_bars()  # of the many small steps of the arms
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    num_examples = pilot_args.num_examples
    if num_examples is None and pilot_args.num_tokens is None:
        num_examples = max(1, min(MAX_EXAMPLES, pool.num_groups // 2))
    budget = Budget(num_examples, pilot_args.num_tokens)
    arms = Arms(
        Student(model_args.model_name_or_path, get_quantization_config(model_args), get_peft_config(model_args)),
        training_args,
        pool,
        held_out,
        budget,
        pilot_args.max_new_tokens,
    )
    pilot = Pilot(
        arms,
        strategies,
        range(training_args.seed, training_args.seed + pilot_args.num_seeds),
        output_dir,
        identity,
        teacher_column,
        say=lambda line: out.print(line, markup=False),
    )
    try:
        result = pilot.run(dry_run=pilot_args.dry_run)
    except KeyboardInterrupt:
        if pilot.state.is_main_process and not pilot_args.dry_run:
            out.print("\nStopped. Trainings that were finished are kept: run the same command again to go on.")
        raise
    if pilot.state.is_main_process and pilot_args.json:
        summary.print_json(result)
    elif pilot.state.is_main_process and not pilot_args.dry_run:
        show(out, result, output_dir)
    leave()
    return 0


def _check(model_args: ModelConfig, pilot_args: PilotArguments, training_args: PilotConfig) -> None:
    """What needs no data to be wrong."""
    from rsr_trl import data

    name = model_args.model_name_or_path
    if name is None:
        raise ValueError("Say which student to try it on: model_name_or_path.")
    if data.is_written_as_path(name) and not Path(name).exists():
        raise ValueError(f"There is no folder {name!r} (model_name_or_path).")
    if training_args.output_dir == NO_OUTPUT_DIR:
        raise ValueError("Say where the results go: output_dir.")
    if pilot_args.num_seeds < 1:
        raise ValueError(f"num_seeds must be at least 1, got {pilot_args.num_seeds}.")
    if pilot_args.num_examples is not None and pilot_args.num_tokens is not None:
        raise ValueError("Give one budget: num_examples or num_tokens.")
    if pilot_args.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {pilot_args.max_new_tokens}.")
