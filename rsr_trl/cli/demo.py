"""`rsr demo`: the whole way on a toy, offline, through the public API. A tour of what to look at, not evidence."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.text import Text
from trl import TrlParser

from rsr_trl.cli.options import option, option_parser
from rsr_trl.cli.tables import Column, print_table, without_bars
from rsr_trl.report.format import share
from rsr_trl.rsr import RSRError


if TYPE_CHECKING:
    from datasets import Dataset


SHORT = 12  # scored tokens: more than a bare answer has, fewer than the tersest reasoning
HELD_OUT_SHARE = 0.15
MIN_PROBLEMS = 10  # some to train on and some to hold out
RESPONSE_WIDTH = 30  # with the other columns, a terminal of 80


@dataclass
class DemoArguments:
    """Options of `rsr demo`."""

    output_dir: str = option("Folder for the files; those of an earlier demo are replaced.", "demo_output")
    seed: int = option("Seed of the problems, the responses and the training.", 0)
    num_problems: int = option("Problems, each of which every teacher solves.", 120)


def make_parser(prog: str | None = None) -> TrlParser:
    return option_parser(
        (DemoArguments,),
        prog=prog,
        description="Watch the whole idea work, offline, on a small student and data that come with the package.",
    )


def main(args: DemoArguments) -> None:
    import torch

    if args.num_problems < MIN_PROBLEMS:
        raise RSRError(f"--num_problems must be at least {MIN_PROBLEMS}, got {args.num_problems}.")
    without_bars()  # of loading and saving, which take no time here
    # So small a student gains nothing from more, and on a busy machine they wait for each other.
    torch.set_num_threads(1)
    start, folder, out = monotonic(), Path(args.output_dir), Console(highlight=False)
    folder.mkdir(parents=True, exist_ok=True)
    out.print(
        "[bold]A tour of rsr-trl.[/] A stronger teacher needn't make a better student: it matters which trajectories "
        "suit [italic]this[/] student. The student itself says so, in one forward pass over each trajectory:\n\n"
        "    RSR = how far down the student's list the tokens stand (mean rank)\n"
        "          / how much they surprise it (mean surprisal)\n"
        "    [bold]A lower RSR suits it better.[/]\n\n"
        "The demo shows the way on a toy and claims no gain. The evidence, on real language models, is in the paper:\n"
        "https://arxiv.org/abs/2601.14249"
    )
    pool = _make_pool(out, args)
    scored = _score(out, pool, folder / "scored.parquet")
    _show_teachers(out, scored)
    selected = _select(out, scored, folder / "selected.parquet")
    _fine_tune(out, selected, args.seed, folder / "student")
    _show_files(out, folder)
    out.print(f"\nThe demo took {monotonic() - start:.0f} seconds.")


def _make_pool(out: Console, args: DemoArguments) -> "Dataset":
    from rsr_trl.demo.teachers import TEACHERS, make_pool

    _headline(out, 1, "The pool: every teacher solves every problem")
    pool = make_pool(args.num_problems, args.seed)
    out.print(
        f"{args.num_problems} word problems x {len(TEACHERS)} teachers = {len(pool):,} trajectories. The teachers "
        "differ in dialect, length and error rate, and one of them only guesses. The student has never seen these "
        "problems.\n\n"
        f"[dim]The first problem:[/] {pool[0]['prompt'][0]['content']} [dim](answer: {pool[0]['gold']})[/]"
    )
    return pool


def _score(out: Console, pool: "Dataset", path: Path) -> "Dataset":
    from datasets import disable_progress_bars, enable_progress_bars

    from rsr_trl import RSRScorer
    from rsr_trl.demo import STUDENT_PATH

    _headline(out, 2, "The student scores every trajectory")
    _code(out, "add_rsr = RSRScorer(student)", "scored = add_rsr.score(pool)")
    # On the CPU in float32, the demo shows the same on every machine.
    add_rsr = RSRScorer(str(STUDENT_PATH), dtype="float32", device="cpu")
    enable_progress_bars()
    scored = add_rsr.score(pool)
    disable_progress_bars()
    scored.to_parquet(path)
    unscored, cut = sum(rsr is None for rsr in scored["rsr"]), sum(scored["rsr_truncated"])
    out.print(
        f"{len(scored) - unscored:,} scored, {unscored} without a score, {cut} cut at the student's length limit.\n"
        "[bold]Look at[/] the last two numbers. A trajectory without a score is never chosen, and the score of a cut "
        "one is that of its beginning."
    )
    return scored


def _show_teachers(out: Console, scored: "Dataset") -> None:
    from rsr_trl.cli.summary import figures
    from rsr_trl.data import Columns
    from rsr_trl.selection.table import ScoredTable

    _headline(out, 3, "The teachers side by side, the most suitable first")
    teachers = figures(ScoredTable.read(scored, Columns(teacher="teacher")))["teachers"]
    right = Counter(teacher for teacher, correct in zip(scored["teacher"], scored["correct"], strict=True) if correct)
    columns = (
        Column("teacher", "teacher"),
        Column("RSR (lower = better)", "rsr"),
        Column("mean rank", "mean_clipped_rank"),
        Column("surprisal (nats)", "mean_surprisal"),
        Column("tokens", "mean_tokens", digits=0),
        Column("correct", lambda one: f"{right[one['teacher']] / one['scored']:.0%}"),
    )
    print_table(out, teachers, columns)
    out.print(
        "[bold]Look at[/] RSR together with its two parts. It is high for text that the student nearly knows by heart "
        "(hardly any surprisal) and for text that is foreign to it (high rank). It is low in between, where a token "
        "is news and still among the first that the student would think of. And look at what RSR doesn't know: length "
        "and correctness."
    )
    if teachers[0]["teacher"] == "guesser":
        _caution(
            out,
            f"The best RSR goes to the guesser, which is right {right['guesser'] / teachers[0]['scored']:.0%} of the "
            "time and explains nothing. Step 4 says why.",
        )


def _select(out: Console, scored: "Dataset", path: Path) -> "Dataset":
    from rsr_trl import select_trajectories

    _headline(out, 4, "The most suitable trajectory of each problem")
    _code(out, 'best = select_trajectories(scored, group_column="problem_id")')
    reasoned = scored.filter(lambda num_tokens: num_tokens >= SHORT, input_columns="rsr_num_tokens")
    best_of_all = select_trajectories(scored, group_column="problem_id")
    best = select_trajectories(reasoned, group_column="problem_id")
    of_all, of_reasoned = Counter(best_of_all["teacher"]), Counter(best["teacher"])
    columns = (
        Column("teacher", str),
        Column("chosen from all", lambda teacher: share(of_all[teacher], len(best_of_all))),
        Column(f"from those of {SHORT} tokens or more", lambda teacher: share(of_reasoned[teacher], len(best))),
    )
    print_table(out, sorted(of_all | of_reasoned, key=lambda name: (-of_reasoned[name], name)), columns)
    out.print(
        "[bold]Look at[/] whom it chose. If one teacher has nearly everything, read some of its trajectories before "
        "you train on them, or set a cap: max_share_per_teacher."
    )
    if of_all["guesser"]:
        # Of k equally likely tokens the mean rank is (k + 1) / 2 and the surprisal ln k: 1.8 to 2.4 for k of 2 to 10.
        _caution(
            out,
            f"Of the {len(best_of_all)} chosen from all, {of_all['guesser']} are bare guesses. A guess among a few "
            "likely digits has a low rank and a high surprisal: it looks ideal to RSR and teaches nothing. RSR is "
            f"made for reasoning and means little on short answers. So the demo sets those under {SHORT} tokens aside "
            "and goes on with the second column.",
        )
    _show_example(out, scored, best[0])
    best.to_parquet(path)
    return best


def _show_example(out: Console, scored: "Dataset", chosen: dict) -> None:
    """All candidates of one problem, with the chosen one marked."""
    out.print(f"\n[dim]One problem:[/] {chosen['prompt'][0]['content']} [dim](answer: {chosen['gold']})[/]")

    def response(row: dict) -> str:
        text = " ".join(row["completion"][0]["content"].split())
        return text if len(text) <= RESPONSE_WIDTH else text[: RESPONSE_WIDTH - 1] + "…"

    columns = (
        Column("teacher", lambda row: f"{row['teacher']}{' (chosen)' if row['teacher'] == chosen['teacher'] else ''}"),
        Column("RSR", "rsr"),
        Column("tokens", "rsr_num_tokens"),
        Column("correct", lambda row: "yes" if row["correct"] else "no"),
        Column("response", response, justify="left"),
    )
    candidates = (row for row in scored if row["problem_id"] == chosen["problem_id"])
    print_table(out, sorted(candidates, key=lambda row: row["rsr"]), columns)


def _fine_tune(out: Console, selected: "Dataset", seed: int, path: Path) -> None:
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    from rsr_trl.demo import STUDENT_PATH

    _headline(out, 5, "Fine-tuning the student on the chosen ones, with TRL")
    _code(out, "SFTTrainer(student, args=args, train_dataset=best).train()")
    args = SFTConfig(
        output_dir=str(path),
        num_train_epochs=2,
        per_device_train_batch_size=8,
        learning_rate=5e-4,
        lr_scheduler_type="cosine",
        warmup_steps=4,
        seed=seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=None,  # TRL's default for this deprecated option makes transformers warn
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    parts = selected.train_test_split(test_size=HELD_OUT_SHARE, seed=seed)
    student = str(STUDENT_PATH)
    trainer = SFTTrainer(student, args=args, train_dataset=parts["train"], eval_dataset=parts["test"])
    trainer.remove_callback(PrinterCallback)
    with out.status("fine-tuning"):
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        after = trainer.evaluate()["eval_loss"]
    trainer.save_model()
    trainer.end()
    out.print(
        f"{trainer.state.global_step} steps on {len(parts['train'])} trajectories. Loss on the {len(parts['test'])} "
        f"that were held out: {before:.3f} -> {after:.3f} nats per token.\n"
        "[bold]Look at[/] the loss: it should fall, for the student gets used to what was chosen. That says training "
        "works, and nothing about the choice. To judge a choice, train on a random one too and compare both on the "
        "task itself."
    )


def _show_files(out: Console, folder: Path) -> None:
    _headline(out, 6, "What is left for you")
    for name, what in (
        ("scored.parquet", "every trajectory with its scores: sort by `rsr` and read both ends"),
        ("selected.parquet", "the chosen ones, as SFTTrainer takes them"),
        ("student", "the fine-tuned student, as from_pretrained takes it"),
    ):
        out.print(f"  [bold]{escape(str(folder / name))}[/]: {what}", soft_wrap=True)
    out.print(
        "\nThe same with a student and data of your own:\n\n"
        "  rsr score --model_name_or_path STUDENT --dataset_name data.jsonl --output_dir scored\n"
        "  rsr select --dataset_name scored --group_column problem_id --output_dir selected",
        soft_wrap=True,
    )


def _headline(out: Console, step: int, title: str) -> None:
    out.print()
    out.rule(f"[bold]{step} of 6: {title}[/]", align="left")


def _code(out: Console, *lines: str) -> None:
    """What the step does, as a user would write it."""
    out.print(Text("\n".join(f"    {line}" for line in lines) + "\n", style="cyan"))


def _caution(out: Console, text: str) -> None:
    out.print(f"[yellow][bold]Careful:[/bold] {text}[/]")
