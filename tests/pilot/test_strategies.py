import numpy as np
import pytest
from datasets import Dataset

from rsr_trl.pilot.strategies import Budget, Pool, Strategy, parse_strategies


NUM_PROBLEMS, EACH = 10, 4


@pytest.fixture
def rows() -> list[dict]:
    rng = np.random.default_rng(0)
    rows = [
        {
            "problem": f"p{i // EACH}",
            "rsr": float(rng.uniform(1, 5)),
            "rsr_mean_surprisal": float(rng.uniform(0.2, 2)),
            "rsr_num_tokens": int(rng.integers(5, 50)),
            "mine": float(rng.normal()),
        }
        for i in range(NUM_PROBLEMS * EACH)
    ]
    return [rows[i] for i in rng.permutation(len(rows))]


@pytest.fixture
def pool(rows) -> Pool:
    return Pool(Dataset.from_list(rows), "problem")


def chosen(pool, name, budget, seed=0, **more) -> list[dict]:
    strategy = next(one for one in parse_strategies([name, "rsr"]) if one.name == name)
    (found,) = pool.choose(strategy, budget, seed, **more)
    return [pool.dataset[int(row)] for row in found]


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
def test_the_best_of_each_problem(pool, rows, name, best):
    found = chosen(pool, name, Budget(examples=7))
    assert len({row["problem"] for row in found}) == 7
    for row in found:
        assert row == min((other for other in rows if other["problem"] == row["problem"]), key=best)


def test_all_strategies_of_a_seed_get_the_same_problems_in_the_same_order_and_other_seeds_others(pool):
    of = {
        (name, seed): [row["problem"] for row in chosen(pool, name, Budget(examples=5), seed)]
        for name in ("rsr", "length", "random")
        for seed in (0, 1)
    }
    assert of["rsr", 0] == of["length", 0] == of["random", 0]
    assert of["rsr", 1] == of["random", 1]
    assert set(of["rsr", 0]) != set(of["rsr", 1])


def test_random_is_uniform_within_a_problem_and_the_same_for_the_same_seed(pool):
    counts = np.zeros(len(pool.dataset))
    random = parse_strategies(["rsr"])[0]
    for seed in range(100):
        (found,) = pool.choose(random, Budget(examples=NUM_PROBLEMS), seed)
        counts[found] += 1
    assert np.all(abs(counts - 25) < 5 * np.sqrt(100 * 0.25 * 0.75))
    first, second = (pool.choose(random, Budget(examples=5), 3)[0].tolist() for _ in range(2))
    assert first == second


def test_ordered_is_the_same_choice_in_the_order_of_the_score(pool):
    shuffled, ordered = (chosen(pool, name, Budget(examples=6)) for name in ("length", "length_ordered"))
    lengths = [row["rsr_num_tokens"] for row in ordered]
    assert lengths == sorted(lengths, reverse=True)
    key = str
    assert sorted(shuffled, key=key) == sorted(ordered, key=key) and shuffled != ordered


def test_renewed_draws_anew_each_epoch_and_rescored_may_choose_from_all_of_the_same_problems(pool):
    rescored, renewed = (
        next(one for one in parse_strategies(["rsr_rescored"]) if one.name == name)
        for name in ("rsr_rescored", "random_renewed")
    )
    epochs = pool.choose(renewed, Budget(examples=6), 0, num_epochs=3)
    problems = [[pool.dataset[int(row)]["problem"] for row in epoch] for epoch in epochs]
    assert problems[0] == problems[1] == problems[2]
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3
    (candidates,) = pool.choose(rescored, Budget(examples=6), 0)
    assert len(candidates) == 6 * EACH
    assert {pool.dataset[int(row)]["problem"] for row in candidates} == set(problems[0])


def test_a_budget_of_tokens_takes_the_fewest_problems_that_hold_it(pool):
    short, long = (chosen(pool, name, Budget(tokens=100)) for name in ("rsr_num_tokens:low", "length"))
    for found in (short, long):
        tokens = [row["rsr_num_tokens"] for row in found]
        assert sum(tokens) >= 100 > sum(tokens[:-1])
    assert len(short) > len(long)


def test_without_groups_the_best_of_all(rows):
    pool = Pool(Dataset.from_list(rows), None)
    assert [row["rsr"] for row in chosen(pool, "rsr", Budget(examples=9))] == sorted(row["rsr"] for row in rows)[:9]
    highest = [row["mine"] for row in chosen(pool, "mine:high", Budget(tokens=60))]
    assert highest == sorted((row["mine"] for row in rows), reverse=True)[: len(highest)]
    assert len({row["problem"] for row in chosen(pool, "random", Budget(examples=9))}) > 1


def test_rows_without_a_score_are_left_out_for_all(rows):
    for row in rows[:5]:
        row |= {"rsr": None, "rsr_mean_surprisal": None, "rsr_num_tokens": 0}
    pool = Pool(Dataset.from_list(rows), "problem")
    assert pool.left_out == 5
    taken = {str(row) for seed in range(20) for row in chosen(pool, "random", Budget(examples=9), seed)}
    assert not taken & {str(row) for row in rows[:5]}


def test_controls_are_added_before_what_they_control():
    assert [one.name for one in parse_strategies(["rsr"])] == ["random", "rsr"]
    names = [one.name for one in parse_strategies(["x:high_ordered", "rsr_rescored", "rsr"])]
    assert names == ["random", "x:high", "x:high_ordered", "random_renewed", "rsr_rescored", "rsr"]
    by_name = {one.name: one for one in parse_strategies(["x:high_ordered", "rsr_rescored"])}
    assert by_name["x:high_ordered"] == Strategy("x:high_ordered", "x", "high", ordered=True, control="x:high")
    assert by_name["rsr_rescored"].control == "random_renewed"
    assert by_name["random"].control is by_name["random_renewed"].control is None


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda pool: parse_strategies(["rsrr"]), "no strategy 'rsrr'.*rsrr:low or rsrr:high"),
        (lambda pool: parse_strategies(["random"]), "name one to compare"),
        (lambda pool: Budget(), "one budget"),
        (lambda pool: Budget(3, 4), "one budget"),
        (lambda pool: Budget(tokens=0), "1 or more, got 0"),
        (lambda pool: chosen(pool, "rsr", Budget(examples=11)), "more than the pool has: 10 problems in 'problem'"),
        (lambda pool: chosen(pool, "rsr", Budget(tokens=10**6)), "more than can be chosen by 'rsr'"),
        (lambda pool: chosen(pool, "other:low", Budget(examples=2)), "no column 'other'"),
        (lambda pool: chosen(pool, "rsr_rescored", Budget(tokens=20)), "needs a budget in examples"),
    ],
)
def test_errors(pool, act, message):
    with pytest.raises(ValueError, match=message):
        act(pool)


def test_a_problem_without_a_score_of_the_user_s_is_an_error(rows):
    for row in rows:
        row["mine"] = None if row["problem"] == "p3" else row["mine"]
    pool = Pool(Dataset.from_list(rows), "problem")
    with pytest.raises(ValueError, match="1 of the pool's 10 problems have no finite score in 'mine': 'p3'"):
        chosen(pool, "mine:low", Budget(examples=2))
