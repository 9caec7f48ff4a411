"""What limits_of_rsr.py found, as tables, in words and as a picture: whatever came out."""

import math
from collections import Counter
from textwrap import fill

import numpy as np
import pandas as pd
from datasets import Dataset

from rsr_trl import rank_teachers
from rsr_trl.metrics.correlation import correlate
from rsr_trl.rsr import TOKEN_RANKS, TOKEN_SURPRISALS


BARE = ("oracle", "guesser")  # teachers that write an answer without a step
DRAWS = 5000


def accuracy(results: dict, name: str) -> np.ndarray:
    """Share of its runs in which each held-out problem was solved: shape `(held_out,)`."""
    return np.mean([[c == "1" for c in right] for right in results["runs"][name]], axis=0)


def difference(results: dict, name: str, other: str) -> tuple[float, float, float]:
    """Accuracy of one minus the other's, with a 95% bootstrap interval over held-out problems (not over runs)."""
    gaps = accuracy(results, name) - accuracy(results, other)
    drawn = np.random.default_rng(0).choice(gaps, (DRAWS, len(gaps))).mean(axis=1)
    return gaps.mean(), *np.quantile(drawn, [0.025, 0.975])


def teacher_table(results: dict, scored: Dataset) -> pd.DataFrame:
    """Teachers, the most suitable by RSR first, with what training on each gave."""
    ranking = rank_teachers(
        scored, teacher_column="teacher", problem_column="problem_id", correctness_column="correct"
    )
    table = ranking.to_pandas()[["teacher", "rsr", "mean_rank", "mean_surprisal", "mean_tokens", "accuracy"]]
    table = table.rename(columns={"accuracy": "correct"})
    return table.assign(student_after=[accuracy(results, name).mean() for name in table["teacher"]])


def correlation_table(teachers: pd.DataFrame) -> pd.DataFrame:
    """Spearman of each score with the student's accuracy over teachers; empty where all students end alike."""
    rows = []
    if teachers["student_after"].nunique() > 1:
        for score in ("rsr", "mean_surprisal", "mean_rank", "mean_tokens", "correct"):
            found = correlate(teachers[score], teachers["student_after"])
            rows.append({"score": score, **{k: found[k] for k in ("spearman", "spearman_low", "spearman_high")}})
    bounds = {"spearman_low": float, "spearman_high": float}  # nan where no interval is defined
    return pd.DataFrame(rows, columns=["score", "spearman", *bounds]).astype(bounds)


def strategy_table(results: dict, chosen: dict[str, Dataset]) -> pd.DataFrame:
    """What training on one trajectory of each problem gave, and whose they are; `random` as its first run chose."""
    rows = []
    for name, trajectories in chosen.items():
        gap, low, high = difference(results, name, "random")
        (favourite, times), *_ = Counter(trajectories["teacher"]).most_common()
        bare = np.mean(np.isin(trajectories["teacher"], BARE))
        rows.append(
            {
                "strategy": name,
                "student_after": accuracy(results, name).mean(),
                "minus_random": gap,
                "low": low,
                "high": high,
                "correct": np.mean(trajectories["correct"]),
                "bare_answers": bare,
                "most_from": f"{favourite} {times / len(trajectories):.0%}",
            }
        )
    return pd.DataFrame(rows)


def fair_guess(words: int) -> tuple[float, float, float]:
    """Mean rank, surprisal in nats and their ratio, of a token that is equally likely to be any of so many words."""
    rank, surprisal = (words + 1) / 2, math.log(words)
    return rank, surprisal, rank / surprisal


def verdict(low: float, high: float, below: str, above: str, unclear: str) -> str:
    """What an interval says of zero; `nan` for one that isn't defined."""
    if high < 0:
        return below
    return above if low > 0 else unclear


def nats_of_near_tokens(scored: Dataset, teacher: str) -> float:
    """Mean surprisal of a teacher's tokens of rank 2 to 10; a fair guess among ten words has 2.3."""
    rows = scored.select(np.flatnonzero(np.array(scored["teacher"]) == teacher))
    ranks, nats = (np.concatenate(rows[name]) for name in (TOKEN_RANKS, TOKEN_SURPRISALS))
    return nats[(ranks > 1) & (ranks <= 10)].mean()


def in_words(
    teachers: pd.DataFrame, correlations: pd.DataFrame, strategies: pd.DataFrame, scored: Dataset
) -> list[str]:
    """What the tables say, as sentences that follow from their figures."""
    said = []
    if len(correlations):
        rsr = correlations.set_index("score").loc["rsr"]
        what = verdict(
            rsr["spearman_low"],
            rsr["spearman_high"],
            below="orders these teachers the right way round",
            above="orders these teachers the wrong way round",
            unclear="isn't significantly different from a score that ignores these teachers",
        )
        said.append(f"RSR {what} (Spearman {rsr['spearman']:+.2f}, near -1 if it is useful).")
    strategies = strategies.set_index("strategy")
    for name in ("lowest RSR", "lowest RSR, no bare answers"):
        one = strategies.loc[name]
        what = verdict(
            one["low"],
            one["high"],
            below="worse than",
            above="better than",
            unclear="not significantly different from",
        )
        said.append(
            f"Choosing by {name} is {what} choosing at random: {100 * one['minus_random']:+.0f} points "
            f"({100 * one['low']:+.0f} to {100 * one['high']:+.0f}). {one['bare_answers']:.0%} of its choice are bare "
            f"answers, {one['correct']:.0%} are right; most are from {one['most_from']}."
        )
    ratio = teachers.set_index("teacher")["rsr"]
    said.append(
        "Why: a fair guess among k words has mean rank (k + 1) / 2 and surprisal ln k: a ratio of 1.8 to 2.4 for k of "
        f"2 to 10. The guesser's random digits have {ratio['guesser']:.2f}, the plain teacher's right steps "
        f"{ratio['plain']:.2f}."
    )
    if ratio["guesser"] < ratio["plain"]:
        said.append(
            "Most tokens of reasoning that the student can follow are nearly certain: rank 1, hardly any surprisal. "
            "So its ratio is higher than that of what can't be known, which RSR takes for news."
        )
    favourite = strategies.loc["lowest RSR", "most_from"].split()[0]
    nats = nats_of_near_tokens(scored, favourite)
    if nats > math.log(10):
        said.append(
            f"Tokens of rank 2 to 10 of the favourite, {favourite}, have {nats:.1f} nats on average; a fair guess "
            "among ten words has 2.3. What a student that is sure of itself puts second, with hardly any probability, "
            "has a low rank and a high surprisal too."
        )
    said.append("A toy with designed teachers: it says nothing against the paper's results on language models.")
    return said


def report(results: dict, scored: Dataset, chosen: dict[str, Dataset]) -> None:
    """Print what came out, whatever it is."""
    show = dict(index=False, float_format=lambda value: f"{value:.2f}", na_rep="-")
    teachers = teacher_table(results, scored)
    correlations, strategies = correlation_table(teachers), strategy_table(results, chosen)
    before = accuracy(results, "student before").mean()

    print(f"\nTeachers, most suitable first (RSR: lower = more suitable). The student before: {before:.2f}")
    print(teachers.to_string(**show))
    print(f"\nSpearman with the student's accuracy after training, over {len(teachers)} teachers")
    print(correlations.to_string(**show) if len(correlations) else "Not defined: all students end alike.")
    print(f"\nOne of {len(teachers)} trajectories of each problem (intervals: held-out problems, these runs only)")
    print(strategies.to_string(**show))
    guesses = pd.DataFrame([(k, *fair_guess(k)) for k in range(2, 11)], columns=["k", "rank", "surprisal", "ratio"])
    print("\nA fair guess among k words")
    print(guesses.to_string(**show))
    print()
    for sentence in in_words(teachers, correlations, strategies, scored):
        print(fill(sentence, 110, initial_indent="- ", subsequent_indent="  "))


def plot(results: dict, scored: Dataset, path: str) -> None:
    """The student's accuracy after training on each teacher, by RSR and by mean surprisal."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    plt.style.use("tableau-colorblind10")
    teachers = teacher_table(results, scored)
    figure, both = plt.subplots(1, 2, figsize=(10, 4.5), sharey=True, layout="constrained")
    for axes, (score, label) in zip(
        both, [("rsr", "RSR (lower = more suitable)"), ("mean_surprisal", "mean surprisal, nats")], strict=True
    ):
        markers = "osD^vPX<>*hd"  # never colour alone
        for marker, (_, row) in zip(markers, teachers.sort_values("teacher").iterrows(), strict=True):
            axes.scatter(row[score], row["student_after"], s=45, marker=marker, label=row["teacher"])
        axes.set(xscale="log", xlabel=label)
        axes.margins(0.12)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}" if score == "rsr" else NullFormatter())
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    both[0].set_ylabel("student's accuracy after training on the teacher")
    figure.suptitle("A negative control: designed teachers, a toy student")
    figure.savefig(path, dpi=130)
