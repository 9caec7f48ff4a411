import numpy as np
import pytest
from datasets import Dataset

from rsr_trl.data import Columns
from rsr_trl.pilot.strategies import Pool, Strategy, parse_strategies


@pytest.fixture
def rows() -> list[dict]:
    """Four trajectories of each of ten problems, shuffled."""
    rng = np.random.default_rng(0)
    columns = {
        "problem": [f"p{i // 4}" for i in range(40)],
        "rsr": rng.uniform(1, 5, 40),
        "rsr_mean_surprisal": rng.uniform(0.2, 2, 40),
        "rsr_num_tokens": rng.integers(5, 50, 40),
        "mine": rng.normal(size=40),
    }
    return Dataset.from_dict(columns).shuffle(seed=0).to_list()


@pytest.fixture
def choose(rows):
    """`choose(name, seed=0, grouped=True, **budget)`: the rows that a strategy trains on, a list for each choice."""

    def act(name, seed=0, num_epochs=1, grouped=True, **budget) -> list[list[dict]]:
        strategies = parse_strategies([name, "rsr"])
        pool = Pool(
            Dataset.from_list(rows),
            Columns(problem="problem" if grouped else None),
            strategies,
            min_tokens=0,
            **budget,
        )
        strategy = next(one for one in strategies if one.name == name)
        return [pool.dataset.select(chosen).to_list() for chosen in pool.choose(strategy, seed, num_epochs)]

    return act


@pytest.mark.parametrize(
    ("name", "best"),
    [
        ("rsr", lambda row: row["rsr"]),
        ("surprisal", lambda row: row["rsr_mean_surprisal"]),
        ("length", lambda row: -row["rsr_num_tokens"]),
        ("mine:low", lambda row: row["mine"]),
        ("mine:high", lambda row: -row["mine"]),
    ],
)
def test_the_best_of_each_problem(choose, rows, name, best):
    (chosen,) = choose(name, num_examples=7)
    assert len({row["problem"] for row in chosen}) == 7
    for row in chosen:
        assert row == min((other for other in rows if other["problem"] == row["problem"]), key=best)


def test_all_strategies_of_a_seed_get_the_same_problems_in_the_same_order_and_other_seeds_others(choose):
    first, second = (
        [[row["problem"] for row in choose(name, seed)[0]] for name in ("rsr", "length", "random")] for seed in (0, 1)
    )
    assert first[0] == first[1] == first[2] and second[0] == second[1] == second[2]
    assert set(first[0]) != set(second[0])
    assert len(first[0]) == 5  # half of the problems, where no budget is given


def test_random_is_uniform_within_a_problem_and_the_same_for_the_same_seed(rows):
    (random, _), counts = parse_strategies(["rsr"]), np.zeros(40)
    pool = Pool(Dataset.from_list(rows), Columns(problem="problem"), [], num_examples=10, min_tokens=0)
    for seed in range(100):
        (chosen,) = pool.choose(random, seed)
        counts[chosen] += 1
    assert np.all(abs(counts - 25) < 5 * np.sqrt(100 * 0.25 * 0.75))
    assert pool.choose(random, 99)[0].tolist() == chosen.tolist()


def test_ordered_is_the_same_choice_in_the_order_of_the_score(choose):
    (shuffled,), (ordered,) = (choose(name, num_examples=6) for name in ("length", "length_ordered"))
    lengths = [row["rsr_num_tokens"] for row in ordered]
    assert lengths == sorted(lengths, reverse=True)
    assert sorted(shuffled, key=str) == sorted(ordered, key=str) and shuffled != ordered


def test_renewed_draws_again_each_epoch_and_rescored_may_choose_from_all_of_the_same_problems(choose):
    epochs = choose("random_renewed", num_epochs=3, num_examples=6)
    problems = [[row["problem"] for row in epoch] for epoch in epochs]
    assert problems[0] == problems[1] == problems[2]
    assert len({str(epoch) for epoch in epochs}) == 3
    (candidates,) = choose("rsr_rescored", num_examples=6)
    assert len(candidates) == 24
    assert {row["problem"] for row in candidates} == set(problems[0])


def test_a_budget_of_tokens_takes_the_fewest_problems_that_hold_it(choose):
    (short,), (long,) = (choose(name, num_tokens=100) for name in ("rsr_num_tokens:low", "length"))
    for chosen in (short, long):
        tokens = [row["rsr_num_tokens"] for row in chosen]
        assert sum(tokens) >= 100 > sum(tokens[:-1])
    assert len(short) > len(long)


def test_without_groups_the_best_of_all(choose, rows):
    (lowest,) = choose("rsr", grouped=False, num_examples=9)
    assert [row["rsr"] for row in lowest] == sorted(row["rsr"] for row in rows)[:9]
    highest = [row["mine"] for row in choose("mine:high", grouped=False, num_tokens=60)[0]]
    assert highest == sorted((row["mine"] for row in rows), reverse=True)[: len(highest)]
    assert len({row["problem"] for row in choose("random", grouped=False, num_examples=9)[0]}) > 1
    assert len(choose("rsr_rescored", grouped=False, num_examples=9)[0]) == len(rows)


def test_rows_without_a_score_are_left_out_for_all(choose, rows):
    for row in rows[:5]:
        row |= {"rsr": None, "rsr_mean_surprisal": None, "rsr_num_tokens": 0}
    taken = [row for seed in range(20) for row in choose("random", seed, num_examples=9)[0]]
    assert not any(row in taken for row in rows[:5])
    pool = Pool(Dataset.from_list(rows), Columns(problem="problem"), [])  # the same rule as in selection
    short = sum(0 < row["rsr_num_tokens"] < 32 for row in rows)
    assert (pool.left_out, pool.short, len(pool.table)) == (5, short, 35 - short) and short > 0
    with pytest.raises(ValueError, match="isn't made for bare answers.*min_tokens=0"):
        Pool(Dataset.from_list([row | {"rsr_num_tokens": 9} for row in rows]), Columns(problem="problem"), [])


def test_controls_are_added_before_what_they_control():
    assert [one.name for one in parse_strategies(["rsr"])] == ["random", "rsr"]
    by_name = {one.name: one for one in parse_strategies(["x:high_ordered", "rsr_rescored", "rsr"])}
    assert list(by_name) == ["random", "x:high", "x:high_ordered", "random_renewed", "rsr_rescored", "rsr"]
    assert by_name["x:high_ordered"] == Strategy("x:high_ordered", "x", "high", ordered=True, control="x:high")
    assert by_name["rsr_rescored"].control == "random_renewed"
    assert by_name["random"].control is by_name["random_renewed"].control is None
    with pytest.raises(ValueError, match="--strategies needs at least one"):
        parse_strategies(["random"])


@pytest.mark.parametrize(
    ("name", "budget", "message"),
    [
        ("rsrr", {}, "no strategy 'rsrr'.*rsrr:low or rsrr:high"),
        ("rsr", {"num_examples": 11}, "more than the pool has: 10 problems in 'problem'"),
        ("rsr", {"num_tokens": 10**6}, "more than can be chosen by 'rsr'"),
        ("other:low", {"num_examples": 2}, "no column 'other'"),
        ("rsr_rescored", {"num_tokens": 20}, "needs a budget in examples"),
        ("mine:low", {"num_examples": 2}, "1 of the pool's 10 problems have no finite score in 'mine': 'p3'"),
    ],
)
def test_errors(choose, rows, name, budget, message):
    for row in rows:
        row["mine"] = None if row["problem"] == "p3" else row["mine"]
    with pytest.raises(ValueError, match=message):
        choose(name, **budget)
