"""Replay what the paper's printed tables allow: correlations, teacher choice, and the simulation of section 3.3.

    python examples/paper_tables.py

`data/teacher_student_metrics.csv` holds tables 25-29 of arXiv:2601.14249: 5 students x 11 teachers, metrics of the
trajectories under the student, and the student's accuracy after training on them. RSR: lower = more suitable, so its
correlation with accuracy is negative; the paper prints absolute values.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from rsr_trl.metrics.correlation import correlate
from rsr_trl.rsr import rsr_from_means


TABLES = Path(__file__).parent / "data" / "teacher_student_metrics.csv"
ACCURACY = "post_training_accuracy"
STEP = {ACCURACY: 0.1, "avg_token_length": 0.1}  # last digit printed; 0.001 in the other columns

# What the paper prints: the average |Spearman| of each column, and that of RSR for each student.
PRINTED = {
    "rsr": 0.856,
    "rsr_token_top30": 0.793,
    "grace": 0.59,
    "avg_rank": 0.59,
    "avg_rank_clipped": 0.552,
    "avg_surprisal": 0.49,
    "g_norm": 0.55,
    "rule_based_quality": 0.65,
    "llm_judged_quality": 0.52,
    "avg_token_length": 0.53,
    "verified_accuracy": 0.33,
}
PRINTED_RSR = {
    "Qwen-3-14B": 0.855,
    "LLaMA-3.1-8B": 0.845,
    "Qwen-2.5-7B": 0.918,
    "Qwen-3-4B": 0.818,
    "Qwen-2.5-3B": 0.845,
}
PRINTED_SIMULATION = {  # mean probability, surprisal, rank, token RSR
    "major mode (X_A)": (0.41, 1.38, 2.49, 1.69),
    "minor mode (X_B, preferred)": (0.10, 2.73, 4.31, 1.30),
    "mix (X_D)": (0.35, 1.67, 2.93, 1.62),
}
# One pair of accuracies that must have been the other way round where the printed correlations were computed: with it
# exchanged, every printed value is within rounding of ours; without it, some are not.
EXCHANGED = ("Qwen-2.5-7B", "DeepSeek-R1", "Magistral-Small")  # 47.3 and 47.6

# The strong all-rounders, which the teachers to choose from in the paper's experiment can't have contained.
ALL_ROUNDERS = ("QwQ-32B", "Qwen3-8B", "Qwen3-4B-Thinking")


def load() -> pd.DataFrame:
    """Tables 25-29, one row for each student and teacher."""
    return pd.read_csv(TABLES)


def exchange(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the two accuracies of `EXCHANGED` the other way round."""
    student, *teachers = EXCHANGED
    table, pair = table.copy(), (table["student"] == student) & table["teacher"].isin(teachers)
    table.loc[pair, ACCURACY] = table.loc[pair, ACCURACY].to_numpy()[::-1]
    return table


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """
    Average over students of the |Spearman| of each metric with accuracy, beside what is printed.

    `low` and `high` are the least and the most that the average can be for values that round to the printed ones.
    """
    rows = []
    for metric in table.columns.drop(["student", "teacher", ACCURACY]):
        found = correlate(table[metric], table[ACCURACY], groups=list(table["student"]))
        ranges = [rounding_range(group, metric) for _, group in table.groupby("student")]
        rows.append(
            {
                "metric": metric,
                "replay": np.mean(np.abs(list(found["spearman_by_group"].values()))),
                "low": np.mean([low for low, _ in ranges]),
                "high": np.mean([high for _, high in ranges]),
                "printed": PRINTED.get(metric, np.nan),
            }
        )
    return pd.DataFrame(rows).sort_values("replay", ascending=False, ignore_index=True)


def rsr_by_student(table: pd.DataFrame) -> pd.DataFrame:
    """|Spearman| of RSR with accuracy for each student, as in [`correlations`]."""
    rows = []
    for student, group in table.groupby("student", sort=False):
        value = abs(correlate(group["rsr"], group[ACCURACY], num_draws=1)["spearman"])
        low, high = rounding_range(group, "rsr")
        rows.append({"student": student, "replay": value, "low": low, "high": high, "printed": PRINTED_RSR[student]})
    return pd.DataFrame(rows)


def rounding_range(group: pd.DataFrame, metric: str, draws: int = 4000) -> tuple[float, float]:
    """Least and most |Spearman| with accuracy over random values that round to the printed ones."""
    rng = np.random.default_rng(0)
    ranks = []
    for column in (metric, ACCURACY):
        noise = rng.uniform(-0.5, 0.5, (draws, len(group))) * STEP.get(column, 0.001)
        ranks.append(rankdata(group[column].to_numpy() + noise, axis=1))
    size = len(group)
    spearman = 1 - 6 * ((ranks[0] - ranks[1]) ** 2).sum(axis=1) / (size * (size**2 - 1))
    return np.abs(spearman).min(), np.abs(spearman).max()


def cells_beyond_rounding(table: pd.DataFrame) -> pd.DataFrame:
    """Cells whose printed RSR isn't the printed clipped rank over the printed surprisal, within rounding."""
    half = 0.0005
    low = rsr_from_means(table["avg_rank_clipped"] - half, table["avg_surprisal"] + half)
    high = rsr_from_means(table["avg_rank_clipped"] + half, table["avg_surprisal"] - half)
    return table[(table["rsr"] + half < low) | (table["rsr"] - half > high)]


def teacher_choice(table: pd.DataFrame, metric: str = "rsr_200", without: tuple[str, ...] = ()) -> pd.DataFrame:
    """
    The teachers with the lowest `metric` for each student, and what training on them gave.

    Args:
        table (`pd.DataFrame`): As [`load`] returns it.
        metric (`str`, *optional*, defaults to `"rsr_200"`): RSR of 200 trajectories of each teacher.
        without (`tuple[str, ...]`, *optional*): Teachers that can't be chosen.
    """
    rows = []
    for student, group in table[~table["teacher"].isin(without)].groupby("student", sort=False):
        picks = group.nsmallest(2, metric)
        rows.append(
            {
                "student": student,
                "first": picks["teacher"].iloc[0],
                "second": picks["teacher"].iloc[1],
                "first_is_best": picks[ACCURACY].iloc[0] >= group[ACCURACY].max(),
                "picks": picks[ACCURACY].mean(),
                "oracle": group[ACCURACY].nlargest(2).mean(),
                "all": group[ACCURACY].mean(),
            }
        )
    return pd.DataFrame(rows)


def simulation(draws: int = 10_000, vocabulary: int = 50, exponent: float = 2.3, seed: int = 0) -> pd.DataFrame:
    """
    Section 3.3: a student that has seen two Zipf modes in proportion 0.8 to 0.2, and tokens drawn from either or both.

    The paper doesn't say how the two modes lie to each other; here the second is the first moved by half the
    vocabulary, so that what is frequent in one is rare in the other. X_C's distribution isn't specified, and isn't
    replayed.
    """
    major = np.arange(1, vocabulary + 1) ** -exponent
    major /= major.sum()
    minor = np.roll(major, vocabulary // 2)
    student = 0.8 * major + 0.2 * minor
    surprisal = -np.log(student)
    rank = 1 + (student[None, :] > student[:, None]).sum(axis=1)
    rng, rows = np.random.default_rng(seed), []
    for source, tokens in zip(PRINTED_SIMULATION, (major, minor, student), strict=True):
        drawn = rng.choice(vocabulary, draws, p=tokens)
        values = (student, surprisal, rank, rank / surprisal)
        rows.append(
            {
                "source": source,
                **{
                    name: value[drawn].mean()
                    for name, value in zip(("probability", "surprisal", "rank", "token_rsr"), values, strict=True)
                },
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    table = load()
    show = dict(index=False, float_format=lambda value: f"{value:.3f}", na_rep="-")

    print("Average |Spearman| with accuracy after training (low, high: what rounding of the printed values allows)")
    print(correlations(table).to_string(**show))
    print("\n... of RSR, by student")
    print(rsr_by_student(table).to_string(**show))
    print("\n... both again, with the accuracies of {1} and {2} for {0} exchanged".format(*EXCHANGED))
    print(correlations(exchange(table)).to_string(**show))
    print(rsr_by_student(exchange(table)).to_string(**show))
    print(
        f"\nCells where RSR isn't clipped rank / surprisal within rounding: {len(cells_beyond_rounding(table))} of 55"
    )

    print(
        "\nTeachers that 200 trajectories each would have picked (accuracy of the two picks, of the best two, of all)"
    )
    print(teacher_choice(table).to_string(**show))
    print(f"\n... without {', '.join(ALL_ROUNDERS)}")
    print(teacher_choice(table, without=ALL_ROUNDERS).to_string(**show))

    print("\nSimulation of section 3.3 (lower token RSR = more suitable)")
    replayed = simulation()
    printed = pd.DataFrame(
        [(source, *values) for source, values in PRINTED_SIMULATION.items()], columns=replayed.columns
    )
    print(pd.concat({"replay": replayed, "printed": printed}).droplevel(1).reset_index(names="").to_string(**show))


if __name__ == "__main__":
    main()
