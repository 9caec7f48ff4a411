"""What `rsr pilot` says at its end."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from rsr_trl.cli.summary import add_row, number, plain_table
from rsr_trl.pilot.folder import RESULT
from rsr_trl.pilot.verdict import CORRECT, LOSS


def show(out: Console, result: dict, output_dir: str) -> None:
    before, seeds = result["arms"][0], len(result["seeds"])
    level = f"{result['confidence']:.0%}"
    first = result["table"][0]
    out.print(
        Text.assemble(
            "\n",
            (f"{seeds} seed{'s' if seeds > 1 else ''}, {first['problems']:,} held-out problems", "bold"),
            "; each strategy beside its control, trained with the same seeds on the same problems",
        )
    )
    for metric in (CORRECT, LOSS):
        rows = [row for row in result["table"] if row["metric"] == metric.name]
        if not rows:
            continue
        direction = "%, higher = better" if metric is CORRECT else "nats per token, lower = better"
        was = metric.number(before[metric.name], "")
        out.print(Text(f"\n{metric.label} ({direction}); before training {was}"))
        table = plain_table("strategy", "result", "control", "difference", level, "told")
        for row in rows:
            mean, low, high = (metric.number(row[name]) for name in ("mean", "low", "high"))
            told = "no" if not row["told"] else "better" if row["better"] else "worse"
            ours, theirs = (metric.number(row[name], "") for name in ("value", "control_value"))
            add_row(table, row["strategy"], ours, f"{row['control']} {theirs}", mean, f"{low} to {high}", told)
        out.print(table)
    out.print(Text(f"Scored tokens trained on, mean of the seeds: {_tokens(result)}."))
    for sentence in result["verdict"]:
        out.print(Text(sentence))
    for note in result["notes"]:
        out.print(Text(f"Note: {note}"))
    out.print(Text(f"All of it: {Path(output_dir, RESULT)}"), soft_wrap=True)


def _tokens(result: dict) -> str:
    """How many tokens the arms of each strategy trained on; "-" where it chose while it trained."""
    found = []
    for strategy in result["strategies"]:
        counts = [arm["tokens"] for arm in result["arms"] if arm["strategy"] == strategy["name"]]
        mean = None if None in counts else sum(counts) / len(counts)
        found.append(f"{strategy['name']} {number(mean, 0)}")
    return ", ".join(found)
