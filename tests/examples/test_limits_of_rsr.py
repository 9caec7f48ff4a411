"""The negative control: teachers write what they are said to write, its figures are right, and it runs and resumes."""

import hashlib
import importlib
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from scipy.stats import spearmanr


EXAMPLES = Path(__file__).parents[2] / "examples"
PLAN = EXAMPLES / "data" / "limits_of_rsr_teachers.json"
MEASURED = "43ec153e422c5309b7f023bdd90ac82b2a15b4a7d50f450297715b0aba32a6b7"


@pytest.fixture
def plan():
    return json.loads(PLAN.read_text())


@pytest.fixture
def world(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("limits_of_rsr_world")


@pytest.fixture
def found(world):
    return importlib.import_module("limits_of_rsr_report")


@pytest.fixture
def problems(world):
    return world.make_problems(300, (3, 5), random.Random(0))


def total(problem):
    """The answer by Python's own arithmetic, from the prompt."""
    return eval(re.search(r"[-+0-9]+", problem.prompt)[0]) % 10


def test_problems_are_distinct_and_every_answer_is_as_likely(problems, world):
    assert len({problem.prompt for problem in problems}) == 300
    assert {len(problem.added) for problem in problems} == {3, 4, 5}
    answers = Counter(p.work()[-1].result for p in world.make_problems(5000, (3, 5), random.Random(1)))
    assert len(answers) == 10 and all(400 < times < 600 for times in answers.values())


def test_steps_slip_as_often_as_they_are_said_to(problems):
    rng = random.Random(0)
    slips = [(step.left + step.right) % 10 != step.result for problem in problems for step in problem.work(0.4, rng)]
    # A digit drawn at random is right once in ten times.
    assert np.mean(slips) == pytest.approx(0.4 * 0.9, abs=0.04)


def test_every_style_ends_in_the_answer_and_its_equations_hold(problems, world):
    for name, style in world.STYLES.items():
        for problem in problems:
            response = style(problem.work(), random.Random(0))
            digits = re.findall(r"\d", response)
            assert digits[-1] == str(total(problem)), name
            if name in ("plain", "checker", "rambler", "skipper"):
                equations = re.findall(r"(\d)((?:[-+]\d)+)=(\d)", response)
                assert len(equations) >= 2
                for value, moves, result in equations:
                    for operator, number in re.findall(r"([-+])(\d)", moves):
                        value = eval(f"({value}) {operator} {number}") % 10
                    assert int(result) == value, response


def test_the_plan_is_the_measured_one_and_names_styles_that_exist(plan, world, found):
    changed = "the docs' figures are of other teachers: measure again, and give docs/does-it-help.md the new ones"
    assert hashlib.sha256(PLAN.read_bytes()).hexdigest() == MEASURED, changed
    teachers = plan["teachers"]
    assert {teacher["style"] for teacher in teachers.values()} == set(world.STYLES)
    assert set(plan["student"]["dialects"]) < set(world.STYLES)
    assert sorted(name for name, one in teachers.items() if one["style"] == "answer") == sorted(found.BARE)


def test_a_fair_guess_has_the_ratio_of_its_definition(found):
    rng = np.random.default_rng(0)
    for k in range(2, 11):
        drawn = rng.integers(1, k + 1, 200_000)  # the rank of each of k words in some order
        rank, surprisal, ratio = found.fair_guess(k)
        assert rank == pytest.approx(drawn.mean(), rel=0.01) and surprisal == pytest.approx(-np.log(1 / k))
        assert 1.8 < ratio < 2.4 and ratio == rank / surprisal


def test_differences_are_of_the_same_problems(found):
    rng, shares = np.random.default_rng(0), {"plain": 0.9, "random": 0.5}
    runs = {x: ["".join(rng.choice(["0", "1"], 200, p=[1 - p, p])) for _ in range(2)] for x, p in shares.items()}
    results = {"runs": runs}
    gap, low, high = found.difference(results, "plain", "random")
    means = [np.array([list(map(int, run)) for run in results["runs"][name]]).mean() for name in ("plain", "random")]
    assert gap == pytest.approx(means[0] - means[1]) and low < gap < high and low > 0
    assert found.difference(results, "plain", "plain") == (0, 0, 0)


def test_correlations_are_over_teachers(found):
    rng = np.random.default_rng(0)
    scores = ("rsr", "mean_surprisal", "mean_rank", "mean_tokens", "correct", "student_after")
    teachers = pd.DataFrame({name: rng.random(12) for name in scores})
    table = found.correlation_table(teachers).set_index("score")["spearman"]
    for name in scores[:-1]:
        assert table[name] == pytest.approx(spearmanr(teachers[name], teachers["student_after"]).statistic)
    assert len(found.correlation_table(teachers.assign(student_after=0.1))) == 0


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((-0.9, -0.4), "right way round"),
        ((0.2, 0.8), "wrong way round"),
        ((-0.5, 0.3), "isn't significantly different"),
    ],
)
def test_the_words_follow_the_figures(found, interval, words):
    teachers = pd.DataFrame({"teacher": ["guesser", "plain"], "rsr": [2.4, 6.0]})
    columns = ["score", "spearman", "spearman_low", "spearman_high"]
    correlations = pd.DataFrame([("rsr", np.mean(interval), *interval)], columns=columns)
    rows = [
        ("lowest RSR", -0.3, -0.4, -0.2, 0.5, 0.4, "guesser 50%"),
        ("lowest RSR, no bare answers", 0.01, -0.05, 0.07, 0.0, 0.8, "plain 80%"),
    ]
    columns = ["strategy", "minus_random", "low", "high", "bare_answers", "correct", "most_from"]
    strategies = pd.DataFrame(rows, columns=columns)
    # Of the guesser's tokens, two have a rank of 2 to 10: 3 and 5 nats.
    scored = Dataset.from_dict(
        {
            "teacher": ["guesser", "plain", "guesser"],
            "rsr_token_ranks": [[1, 2], [2], [10, 11]],
            "rsr_token_surprisals": [[0.1, 3.0], [9.0], [5.0, 90.0]],
        }
    )
    said = found.in_words(teachers, correlations, strategies, scored)
    assert words in said[0]
    assert "worse than choosing at random: -30 points (-40 to -20). 50% of its choice are bare" in said[1]
    assert "not significantly different from choosing at random: +1 points" in said[2]
    assert "takes for news" in " ".join(said) and "of the favourite, guesser, have 4.0 nats" in " ".join(said)
    teachers, strategies = teachers.assign(rsr=[6.0, 2.4]), strategies.assign(most_from="guesser 50%")
    assert "takes for news" not in " ".join(found.in_words(teachers, correlations, strategies, scored))


def run(folder, *options):
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(EXAMPLES / "limits_of_rsr.py"), "--quick", "--output_dir", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.slow
def test_it_runs_and_resumes_with_what_is_missing(tmp_path, plan):
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "warning" not in done.stderr.lower(), done.stderr
    path = tmp_path / "results.json"
    results = json.loads(path.read_text())
    assert set(results["runs"]) == {"student before", *plan["teachers"], *plan["strategies"]}
    assert {len(right) for runs in results["runs"].values() for right in runs} == {20}
    for heading in ("most suitable first (RSR: lower", "Spearman", "trajectories of each problem", "fair guess"):
        assert heading in done.stdout
    for teacher in plan["teachers"]:
        (right,) = results["runs"][teacher]
        (shown,) = re.findall(rf"^ *{teacher} +\d.* (\d\.\d\d)$", done.stdout, flags=re.MULTILINE)
        assert float(shown) == round(right.count("1") / 20, 2)

    kept = {name: runs for name, runs in results["runs"].items() if name != "worded"}
    path.write_text(json.dumps(results | {"runs": kept}))
    again = run(tmp_path)
    assert again.returncode == 0, again.stderr[-4000:]
    assert re.findall(r"^(.+): \d+ s$", again.stdout, flags=re.MULTILINE) == ["worded"]
    assert json.loads(path.read_text())["runs"]["worded"] == results["runs"]["worded"]

    other = run(tmp_path, "--seed", "1")
    assert other.returncode != 0 and "Name another --output_dir" in other.stderr
