from types import SimpleNamespace

import numpy as np
import pytest

from rsr_trl.pilot.strategies import parse_strategies
from rsr_trl.pilot.verdict import compare, notes, sentences


STRATEGIES = parse_strategies(["rsr", "length"])


def records(loss, correct=None, tokens=100, teachers=None) -> list[dict]:
    """Records of one strategy's arms from arrays of shape (seeds, problems)."""
    correct = np.full(np.shape(loss), None) if correct is None else correct
    return [
        {
            "problems": [{"loss": one, "correct": right, "cut": False} for one, right in zip(*of_seed, strict=True)],
            "loss": np.mean(of_seed[0]),
            "correct": None if of_seed[1][0] is None else np.mean(of_seed[1]),
            "tokens": tokens,
            "teachers": teachers,
        }
        for of_seed in zip(loss, correct, strict=True)
    ]


@pytest.fixture
def three() -> dict[str, list[dict]]:
    """Random; rsr, better on every problem in every seed; and length, which differs by noise."""
    rng = np.random.default_rng(0)
    random = rng.uniform(1, 2, size=(3, 40))
    return {
        "random": records(random, rng.random((3, 40)) < 0.5),
        "rsr": records(random - 0.1 + 0.01 * rng.normal(size=(3, 40)), np.ones((3, 40))),
        "length": records(random + 0.1 * rng.normal(size=(3, 40)), rng.random((3, 40)) < 0.5),
    }


def test_a_row_for_each_strategy_and_metric_with_its_direction(three):
    rows = {(row["strategy"], row["metric"]): row for row in compare(three, STRATEGIES)}
    assert set(rows) == {(name, metric) for name in ("rsr", "length") for metric in ("loss", "correct")}
    loss, correct = rows["rsr", "loss"], rows["rsr", "correct"]
    # A lower loss is better, and so is a higher accuracy.
    assert loss["mean"] == pytest.approx(-0.1, abs=0.01) and loss["significant"] and loss["better"]
    assert correct["mean"] > 0.3 and correct["significant"] and correct["better"]
    assert not rows["length", "loss"]["significant"] and rows["length", "loss"]["better"] is None
    worse = compare({"random": three["rsr"], "rsr": three["random"]}, STRATEGIES[:2])
    assert [row["better"] for row in worse] == [False, False]
    loss_alone = {name: records(np.ones((2, 3))) for name in three}
    assert {row["metric"] for row in compare(loss_alone, STRATEGIES)} == {"loss"}


def test_sentences_say_what_is_significant_what_is_unclear_and_what_it_would_take(three):
    clear, unclear, *rest = sentences([row for row in compare(three, STRATEGIES) if row["metric"] == "loss"])
    assert clear.startswith("rsr is better than random in loss on held-out references: -0.1")
    assert unclear.startswith("No significant difference from random in loss on held-out references (length). With")
    assert "would likely go undetected" in unclear and ("held-out problems" in unclear or "seeds" in unclear)
    assert rest == ["These are 2 comparisons, and each interval on its own excludes zero by chance in 5% of pilots "
                    "without any difference."]  # fmt: skip


def test_below_three_seeds_it_speaks_of_these_runs(three):
    text = " ".join(sentences(compare({name: some[:2] for name, some in three.items()}, STRATEGIES)))
    assert "In these runs, rsr is better than random in loss on held-out references" in text
    assert "With 2 seeds, all intervals are about these runs only" in text


@pytest.mark.parametrize(
    ("tokens", "teachers", "expected"),
    [
        (180, {"A": 9, "B": 1}, ["rsr trained on 1.8 times the tokens", "90% of what rsr chose comes from A: read"]),
        (110, {"A": 6, "B": 4}, []),
        (None, None, []),
    ],
)
def test_what_makes_the_verdict_worth_less_is_noted(tokens, teachers, expected):
    arms = {"random": records(np.ones((2, 3)), teachers={"A": 5, "B": 5})}
    arms["rsr"] = records(np.ones((2, 3)), tokens=tokens, teachers=teachers)
    pool = SimpleNamespace(left_out=0, short=0, num_problems=9, num_examples=4)

    def starts(before: float, expected: list[str]) -> bool:
        lines = notes(records([[before] * 3])[0], arms, STRATEGIES[:2], pool)
        return all(line.startswith(start) for line, start in zip(lines, expected, strict=True))

    assert starts(2.0, expected)
    for arm in arms["rsr"]:
        arm["problems"][0]["cut"] = True
    before = ["Training on random choices didn't lower the held-out loss (0.5000 -> 1.0000)", "13% of the responses"]
    pool.left_out, pool.num_problems = 2, 4
    assert starts(0.5, [*before, *expected, "Left out of the pool, without a score: 2", "Every seed trains on all of"])
    pool.num_problems = None
    assert starts(
        0.5,
        [*before, *expected, "Left out of the pool, without", "Without --group_column a strategy chooses the same"],
    )
