"""The tables and pictures of docs/does-it-help.md, from results/*.json:

python evidence/page.py           # writes them into the page
python evidence/page.py --check   # fails if the page has others
"""

import argparse
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from common import HERE, RESULTS


PAGE = HERE.parent / "docs" / "does-it-help.md"
IMAGES = HERE.parent / "docs" / "images"
NAMES = {"smollm2": "SmolLM2", "gsm8k_6m": "5.9M"}
KINDS = {
    "step": "a step",
    "per_token": "a step, per token",
    "in_batch": "in a batch",
    "unit_step": "a step of fixed length",
}
WITH_BARE, WITHOUT = "12 teachers and the bare answer", "12 teachers"


def share(found: list) -> str:
    """A mean and its interval in percent."""
    return "{:.0f}% ({:.0f}-{:.0f})".format(*(100 * x for x in found))


def signed(found: list, digits: int = 2) -> str:
    """A mean and its interval with signs."""
    return f"{found[0]:+.{digits}f} ({found[1]:+.{digits}f} to {found[2]:+.{digits}f})"


def rows(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def choices_table(found: dict, student: str) -> str:
    """What each score chooses: with the guard from the 12 teachers, and without it where there are bare answers."""
    usual, bare = found["students"][student][WITHOUT]["guard"], found["students"][student][WITH_BARE]["no guard"]
    body = []
    for name, of in sorted(usual["scores"].items(), key=lambda item: -item[1]["correct"][0]):
        other = bare["scores"][name]
        most = f"{of['most_from']}, {of['most_share'][0]:.0%}" if "most_from" in of else ""
        line = [
            name,
            share(of["correct"]),
            f"{of['tokens'][0]:.0f}",
            most,
            share(other["bare"]),
            share(other["correct"]),
        ]
        body.append(line)
    head = ["one of each problem by ...", "right", "tokens", "most from", "bare, no guard", "right, no guard"]
    return rows(head, body)


def agreement_table(found: dict) -> str:
    of, body = found["agreement"][WITHOUT]["guard"], []
    for name, one in of["between_students"].items():
        if name in ("random", "length"):
            continue
        body.append(
            [name, share(one["same_choice"]), signed(one["spearman_within"]), signed(one["spearman_of_teachers"])]
        )
    return rows(["score", "same choice", "Spearman within problems", "Spearman of teachers"], body)


def steps_table(found: dict) -> str:
    body = []
    for name in found["utilities"]["step"]["scores"]:
        line = [signed(found["utilities"][kind]["scores"][name]["within"]) for kind in KINDS]
        body.append([name, *line, signed(found["utilities"]["step"]["scores"][name]["teachers"])])
    return rows(["score", *KINDS.values(), "a step, between teachers"], body)


def order_table(found: dict) -> str:
    body = []
    for student, seeds in found.items():
        for part in ("trained", "unseen"):
            for epoch in ("1", "2", "3"):
                of = [seed[part]["epochs"][epoch] for seed in seeds.values()]
                means = {
                    "overall": np.mean([one["spearman_overall"]["rsr"] for one in of]),
                    "within": np.mean([one["spearman_within"]["rsr"] for one in of], axis=0),
                    "surprisal": np.mean([one["spearman_within"]["surprisal"] for one in of], axis=0),
                    "changed": np.mean([one["best_changed"] for one in of], axis=0),
                    "regret": np.mean([one["regret"] for one in of]),
                }
                start = [f"{NAMES[student]}, {part}", epoch] if epoch == "1" else ["", epoch]
                line = [
                    f"{means['overall']:.2f}",
                    signed(means["within"].tolist()),
                    signed(means["surprisal"].tolist()),
                ]
                body.append([*start, *line, share(means["changed"].tolist()), f"{means['regret']:.0%}"])
    head = ["student, problems", "epoch", "RSR, all rows", "RSR, within problems", "surprisal, within problems"]
    return rows([*head, "best of 12 is another", "what the old choice costs"], body)


def pilot_table(found: dict) -> str:
    body = []
    for student, of in found.items():
        lines = [(f"{one['strategy']} - {one['control']}", one) for one in of["table"]]
        for name, one in [*lines, *of["pairs"].items()]:
            size = f"{one['seeds']} x {one['problems']}"
            body.append([NAMES[student], name, signed([one["mean"], one["low"], one["high"]], 4), size])
    return rows(["student", "arms", "difference in held-out loss, nats per token", "seeds x problems"], body)


def plot_steps(found: dict, path: Path) -> None:
    """Within-problem correlations of every score with the utility of a step, as dots with intervals."""
    names = sorted(
        found["utilities"]["step"]["scores"], key=lambda n: found["utilities"]["step"]["scores"][n]["within"][0]
    )
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for shift, (kind, marker) in zip((0.15, -0.15), (("step", "o"), ("unit_step", "s")), strict=True):
        middle, low, high = np.array([found["utilities"][kind]["scores"][name]["within"] for name in names], float).T
        places = np.arange(len(names)) + shift
        axes.errorbar(middle, places, xerr=[middle - low, high - middle], fmt=marker, ms=4, lw=1, label=KINDS[kind])
    axes.axvline(0, color="0.6", lw=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("Spearman within problems: what the score prefers, and what a step on it brings (95%)")
    axes.legend(loc="upper right", frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_order(found: dict, path: Path) -> None:
    """How far the order within problems is that of before, by epoch."""
    size = {"figsize": (1.5 + 4 * len(found), 3.2), "layout": "constrained", "sharey": True, "squeeze": False}
    figure, (axes,) = plt.subplots(1, len(found), **size)
    for ax, (student, seeds) in zip(axes, found.items(), strict=True):
        for score, marker in (("rsr", "o"), ("surprisal", "s")):
            for part, style in (("trained", "-"), ("unseen", "--")):
                of = [
                    [s[part]["epochs"][str(e)]["spearman_within"][score][0] for e in range(4)] for s in seeds.values()
                ]
                ax.plot(range(4), np.mean(of, axis=0), marker=marker, ls=style, ms=4, label=f"{score}, {part}")
        ax.set(xlabel="epochs of training", xticks=range(4), title=NAMES[student], ylim=(0, 1.03))
    axes[0].set_ylabel("Spearman with the first scores")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def read(name: str) -> dict | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--check", action="store_true", help="Write nothing; fail where the page has other tables.")
    args = options.parse_args()
    plt.style.use("tableau-colorblind10")
    choices, steps = read("choices"), read("one_step")
    order = {name: found for name in NAMES if (found := read(f"order-{name}"))}
    pilot = {name: found for name in NAMES if (found := read(f"pilot-{name}"))}
    tables = {
        "choices": choices_table(choices, "smollm2"),
        "choices of the small student": choices_table(choices, "gsm8k_6m"),
        "agreement": agreement_table(choices),
        "steps": steps_table(steps),
        "order": order_table(order),
        "pilot": pilot_table(pilot),
    }
    text = PAGE.read_text()
    for name, table in tables.items():
        marks = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(marks[0])}\n.*?{re.escape(marks[1])}", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{PAGE.name} has no place for the table {name!r}.")
        text = pattern.sub(lambda _, table=table, marks=marks: f"{marks[0]}\n{table}\n{marks[1]}", text)
    if args.check:
        if text != PAGE.read_text():
            raise SystemExit(f"The tables of {PAGE.name} aren't those of the results: python evidence/page.py")
        return
    PAGE.write_text(text)
    plot_steps(steps, IMAGES / "evidence_steps.png")
    plot_order(order, IMAGES / "evidence_order.png")
    print(f"Wrote the tables of {PAGE.name}, and two pictures.")


if __name__ == "__main__":
    main()
