"""Run everything end to end, offline, on a small student and data that come with the package."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from time import monotonic

from rich.console import Console
from rich.text import Text
from trl import TrlParser

from rsr_trl.cli.options import option, option_parser
from rsr_trl.cli.tables import Column, print_table, without_bars
from rsr_trl.report.format import percent, share
from rsr_trl.rsr import NOISY_BELOW, RSRError


MIN_PROBLEMS = 10  # some to train on and some to hold out
RESPONSE_WIDTH = 30  # with the other columns, a terminal of 80
INTRODUCTION = """\
[bold]A tour of rsr-trl.[/] A stronger teacher doesn't always make a better student: what matters is which \
trajectories suit [italic]this[/] student. The student itself can tell, in one forward pass over each trajectory:

    RSR = how far down the student's list the tokens are (mean rank)
          / how much they surprise it (mean surprisal)
    [bold]A lower RSR suits it better.[/]

The demo runs every step on a toy and claims no gain. The evidence, on real language models, is in the paper:
https://arxiv.org/abs/2601.14249"""

YOUR_OWN = """
The same with your own student and data:

  rsr score --model_name_or_path STUDENT --dataset_name data.jsonl --output_dir scored
  rsr select --dataset_name scored --group_column problem_id --output_dir selected"""


@dataclass
class DemoArguments:
    """Options of `rsr demo`."""

    output_dir: str = option("Output folder; the files of an earlier demo are replaced.", "demo_output")
    seed: int = option("Seed of the problems, the responses and the training.", 0)
    num_problems: int = option("Number of problems; every teacher solves each of them.", 120)


def make_parser(prog: str | None = None) -> TrlParser:
    return option_parser((DemoArguments,), prog, __doc__)


def main(args: DemoArguments) -> None:
    import torch

    if args.num_problems < MIN_PROBLEMS:
        raise RSRError(f"--num_problems must be at least {MIN_PROBLEMS}, got {args.num_problems}.")
    without_bars()  # of loading and saving, which take no time here
    # So small a student gains nothing from more, and on a busy machine they wait for each other.
    torch.set_num_threads(1)
    start, folder, out = monotonic(), Path(args.output_dir), Console(highlight=False)
    folder.mkdir(parents=True, exist_ok=True)
    out.print(INTRODUCTION)
    scored = _score(out, args, folder / "scored.parquet")
    _show_teachers(out, scored)
    selected = _select(out, scored, folder / "selected.parquet")
    _fine_tune(out, selected, args.seed, folder / "student")
    _headline(out, 6, "Your files")
    files = {"scored.parquet": "every trajectory with its scores: sort by `rsr` and read both ends"}
    files |= {"selected.parquet": "the chosen trajectories, ready for SFTTrainer"}
    for name, what in (files | {"student": "the fine-tuned student, ready for from_pretrained"}).items():
        out.print(Text.assemble("  ", (str(folder / name), "bold"), f": {what}"), soft_wrap=True)
    out.print(YOUR_OWN, soft_wrap=True)
    out.print(f"\nThe demo took {monotonic() - start:.0f} seconds.")


def _score(out: Console, args: DemoArguments, path: Path):
    from datasets import disable_progress_bars, enable_progress_bars

    from rsr_trl import RSRScorer
    from rsr_trl.demo import STUDENT_PATH
    from rsr_trl.demo.teachers import TEACHERS, make_pool

    _headline(out, 1, "The pool: every teacher solves every problem")
    pool = make_pool(args.num_problems, args.seed)
    out.print(
        f"{args.num_problems} word problems x {len(TEACHERS)} teachers = {len(pool):,} trajectories. The teachers "
        "differ in dialect, length and error rate; one of them only guesses. The student never saw these problems.\n"
    )
    _show_problem(out, "The first problem", pool[0])
    code = "add_rsr = RSRScorer(student)\nscored = add_rsr.score(pool)"
    _headline(out, 2, "The student scores every trajectory", code)
    # On the CPU in float32, the demo shows the same on every machine.
    add_rsr = RSRScorer(str(STUDENT_PATH), dtype="float32", device="cpu")
    enable_progress_bars()
    scored = add_rsr.score(pool)
    disable_progress_bars()
    scored.to_parquet(path)
    unscored, cut = sum(rsr is None for rsr in scored["rsr"]), sum(scored["rsr_truncated"])
    out.print(
        f"{len(scored) - unscored:,} scored, {unscored} without a score, {cut} cut at the student's length limit.\n"
        "[bold]Look at[/] the last two numbers. A trajectory without a score is never chosen. The score of a cut one "
        "covers only the part before the cut."
    )
    return scored


def _show_teachers(out: Console, scored) -> None:
    from rsr_trl.data import Columns
    from rsr_trl.selection.table import ScoredTable
    from rsr_trl.selection.teachers import rank_table

    _headline(out, 3, "The teachers side by side, the most suitable first")
    teachers = rank_table(ScoredTable.read(scored, Columns("teacher", "problem_id", "correct"))).table
    columns = [Column("teacher", "teacher"), Column("RSR (lower = better)", "rsr"), Column("mean rank", "mean_rank")]
    columns += [Column("surprisal (nats)", "mean_surprisal"), Column("tokens", "mean_tokens", digits=0)]
    columns += [Column("correct", lambda one: percent(one["accuracy"]))]
    print_table(out, teachers, columns)
    out.print(
        "[bold]Look at[/] RSR and its two parts. RSR is high for text that the student nearly knows by heart (hardly "
        "any surprisal) and for text that is foreign to it (high rank). It is low where tokens are new to the student "
        "and still among its most likely ones. Look at what RSR doesn't know, too: length and correctness."
    )
    if teachers[0]["teacher"] == "guesser":
        right = f"is right {percent(teachers[0]['accuracy'])} of the time and explains nothing"
        _caution(out, f"The best RSR goes to the guesser, which {right}. Step 4 says why.")


def _select(out: Console, scored, path: Path):
    from rsr_trl import select_trajectories

    code = 'best = select_trajectories(scored, group_column="problem_id")'
    _headline(out, 4, "The most suitable trajectory of each problem", code)
    # The default, given so that no warning comes between: the second column shows what is left out.
    best_of_all, best = (select_trajectories(scored, "problem_id", min_tokens=least) for least in (0, NOISY_BELOW))
    of_all, of_reasoned = Counter(best_of_all["teacher"]), Counter(best["teacher"])
    columns = (
        Column("teacher", str),
        Column("chosen from all", lambda teacher: share(of_all[teacher], len(best_of_all))),
        Column(f"from those of {NOISY_BELOW} tokens or more", lambda teacher: share(of_reasoned[teacher], len(best))),
    )
    print_table(out, sorted(of_all | of_reasoned, key=lambda name: (-of_reasoned[name], name)), columns)
    out.print(
        "[bold]Look at[/] which teachers were chosen. If one teacher dominates, read some of its trajectories before "
        "you train on them, or set a cap: max_share_per_teacher."
    )
    if of_all["guesser"]:
        # Of k equally likely tokens the mean rank is (k + 1) / 2 and the surprisal ln k: 1.8 to 2.4 for k of 2 to 10.
        _caution(
            out,
            f"Of the {len(best_of_all)} chosen from all, {of_all['guesser']} are bare guesses. A guess among a few "
            "likely digits has a low rank and a high surprisal: it looks ideal to RSR and teaches nothing. RSR means "
            f"little on short answers: by default those under {NOISY_BELOW} tokens are left out (second column).",
        )
    _show_example(out, scored, best[0])
    best.to_parquet(path)
    return best


def _show_example(out: Console, scored, chosen: dict) -> None:
    """All candidates of one problem, with the chosen one marked."""
    _show_problem(out, "\nOne problem", chosen)

    def teacher(row: dict) -> str:
        return f"{row['teacher']} (chosen)" if row["teacher"] == chosen["teacher"] else row["teacher"]

    def response(row: dict) -> str:
        return shorten(row["completion"][0]["content"], RESPONSE_WIDTH, placeholder="…")

    columns = [Column("teacher", teacher), Column("RSR", "rsr"), Column("tokens", "rsr_num_tokens")]
    columns += [Column("correct", lambda row: "yes" if row["correct"] else "no")]
    columns += [Column("response", response, justify="left")]
    candidates = (row for row in scored if row["problem_id"] == chosen["problem_id"])
    print_table(out, sorted(candidates, key=lambda row: row["rsr"]), columns)


def _fine_tune(out: Console, selected, seed: int, path: Path) -> None:
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    from rsr_trl.demo import STUDENT_PATH

    code = "SFTTrainer(student, args=args, train_dataset=best).train()"
    _headline(out, 5, "Fine-tuning the student on the chosen ones, with TRL", code)
    quiet = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    on_cpu = {"use_cpu": True, "bf16": False}
    on_cpu |= {"gradient_checkpointing": None}  # TRL's default for this deprecated option makes transformers warn
    rate = {"learning_rate": 5e-4, "lr_scheduler_type": "cosine", "warmup_steps": 4}
    size = {"num_train_epochs": 2, "per_device_train_batch_size": 8}
    args = SFTConfig(output_dir=str(path), seed=seed, **size, **rate, **on_cpu, **quiet)
    train, held_out = selected.train_test_split(test_size=0.15, seed=seed).values()
    trainer = SFTTrainer(str(STUDENT_PATH), args=args, train_dataset=train, eval_dataset=held_out)
    trainer.remove_callback(PrinterCallback)
    with out.status("fine-tuning"):
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        after = trainer.evaluate()["eval_loss"]
    trainer.save_model()
    trainer.end()
    out.print(
        f"{trainer.state.global_step} steps on {len(train)} trajectories. Loss on {len(held_out)} held-out ones: "
        f"{before:.3f} -> {after:.3f} nats per token.\n"
        "[bold]Look at[/] the loss: it should fall. That shows that training works, and nothing about the choice. To "
        "judge a choice, train on a random one too and compare both on the task itself."
    )


def _headline(out: Console, step: int, title: str, code: str = "") -> None:
    """Begin a step; `code` is what it does, as a user would write it."""
    out.print()
    out.rule(f"[bold]{step} of 6: {title}[/]", align="left")
    if code:
        out.print(Text("".join(f"    {line}\n" for line in code.split("\n")), style="cyan"))


def _show_problem(out: Console, which: str, row: dict) -> None:
    out.print(f"[dim]{which}:[/] {row['prompt'][0]['content']} [dim](answer: {row['gold']})[/]")


def _caution(out: Console, text: str) -> None:
    out.print(f"[yellow][bold]Careful:[/bold] {text}[/]")
