"""The scripts behind docs/does-it-help.md: what they compute is what they say, they resume, and the page has it."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.stats import spearmanr

from rsr_trl import RSRScorer
from rsr_trl.demo import STUDENT_PATH
from rsr_trl.demo.teachers import make_pool
from rsr_trl.scoring.loading import load_model


EVIDENCE = Path(__file__).parents[2] / "evidence"


@pytest.fixture
def common(monkeypatch):
    monkeypatch.syspath_prepend(EVIDENCE)
    return importlib.import_module("common")


@pytest.fixture
def one_step(common):
    return importlib.import_module("one_step")


@pytest.fixture(scope="module")
def model():
    return load_model(str(STUDENT_PATH), dtype="float32", device="cpu")


def loss_of(scorer, rows) -> np.ndarray:
    return np.array(scorer.score(rows)["rsr_mean_surprisal"])


def test_the_product_of_gradients_is_what_a_small_step_gives(one_step, model, tmp_path):
    """The loss after a step, measured by the scorer, falls as far as the product of the gradients says."""
    pool = make_pool(4, seed=3).filter(lambda row: row["teacher"] in ("careful", "terse") or row["correct"])
    scorer = RSRScorer(model, processing_class=RSRScorer(str(STUDENT_PATH)).processing_class, max_batch_tokens=256)
    examples = scorer.tokenize(pool)
    by_teacher = {}
    for row, example in zip(pool, examples, strict=True):
        if row["problem_id"] != pool[0]["problem_id"]:
            by_teacher.setdefault(row["teacher"], []).append(example)
    gradients = one_step.ProbeGradients(tmp_path / "probe", model, by_teacher)
    teacher = pool[0]["teacher"]
    assert teacher in by_teacher and len(by_teacher) > 2
    step = [part.clone() for part in one_step.gradient(model, examples[0])]
    expected, norm = one_step.products(step, gradients.without(teacher))
    assert norm == pytest.approx(sum(float(part.square().sum()) for part in step) ** 0.5, rel=1e-5)

    others = [name for name in by_teacher if name != teacher]

    def probe_loss() -> float:
        rows = [
            pool.filter(lambda r, t=t: r["teacher"] == t and r["problem_id"] != pool[0]["problem_id"]) for t in others
        ]
        return float(np.mean([loss_of(scorer, part).mean() for part in rows]))

    kept, before, eta = {name: value.clone() for name, value in model.state_dict().items()}, probe_loss(), 1e-4
    own = loss_of(scorer, pool.select([0]))[0]
    assert one_step.mean_loss(model, examples[0]).item() == pytest.approx(own, rel=1e-5)
    with torch.no_grad():
        for parameter, part in zip(model.parameters(), step, strict=True):
            parameter -= eta * part
    found = before - probe_loss()
    model.load_state_dict(kept)
    assert found == pytest.approx(eta * expected, rel=0.03)
    again = one_step.ProbeGradients(tmp_path / "probe", None, by_teacher)  # from the disk: no model is needed
    assert one_step.products(step, again.without(teacher))[0] == pytest.approx(expected, rel=1e-6)


def test_correlations_choices_and_intervals(common):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 7)), rng.normal(size=(40, 7))
    x[0, 2], x[1] = np.nan, 1.0
    found = common.spearman_rows(x, y)
    assert found[0] == pytest.approx(spearmanr(np.delete(x[0], 2), np.delete(y[0], 2)).statistic)
    assert np.isnan(found[1])
    assert found[2:] == pytest.approx([spearmanr(a, b).statistic for a, b in zip(x[2:], y[2:], strict=True)])
    assert common.spearman_rows(x, y, y > 10).tolist() == pytest.approx([np.nan] * 40, nan_ok=True)

    allowed = np.ones_like(x, bool)
    allowed[2, np.argmin(x[2])] = False
    places = common.choice(x, allowed)
    assert places[0] == np.nanargmin(x[0]) and places[2] == np.argsort(x[2])[1]
    assert common.taken(y, places)[3] == y[3].min() or places[3] == np.argmin(x[3])
    with pytest.raises(common.RSRError, match="no row that may be chosen"):
        common.choice(x, np.zeros_like(x, bool))

    # An interval of 95% holds the true mean, 0, about as often; teachers' levels are seen
    # through the noise of problems.
    means = [common.interval(rng.normal(size=60)) for _ in range(100)]
    assert 85 <= sum(low <= 0 <= high for _, low, high in means) <= 100
    middle, low, high = common.ratio_interval(2 * (one := rng.uniform(1, 2, 50)), one)
    assert (middle, low, high) == pytest.approx((2, 2, 2))
    level = np.arange(7.0)
    middle, low, high = common.spearman_of_means(level + rng.normal(size=(60, 7)), level + rng.normal(size=(60, 7)))
    assert middle > 0.85 and low <= middle <= high <= 1


def test_what_the_old_choice_costs(common, monkeypatch):
    regret = importlib.import_module("order").regret
    cost, allowed = np.array([[1.0, 2.0, 6.0], [4.0, 2.0, 9.0]]), np.array([[1, 1, 1], [1, 1, 0]], bool)
    assert regret(cost, np.array([0, 1]), allowed) == 0
    # 1 and 1 above the best; on average 2 and 1.
    assert regret(cost, np.array([1, 1]), allowed) == pytest.approx(1 / 3)


def test_the_page_has_the_tables_of_the_results():
    command = [sys.executable, str(EVIDENCE / "page.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_plan_came_before_the_results():
    """What was measured is what the plan says: problems, rows, steps and seeds."""
    plan = json.loads((EVIDENCE / "plan.json").read_text())
    read = {path.stem: json.loads(path.read_text()) for path in (EVIDENCE / "results").glob("*.json")}
    assert read["choices"]["problems"] == 200
    assert read["one_step"]["rows"] == 2400 and read["one_step"]["etas"] == plan["one_step"]["etas"]
    assert read["one_step"]["exact"]["rows"] == 24 * plan["one_step"]["exact_problems"]
    for student in (name.removeprefix("order-") for name in read if name.startswith("order-")):
        found, of = read[f"order-{student}"], plan["order"]["students"][student]
        assert list(found) == [str(seed) for seed in of["seeds"]]
        for one in found.values():
            assert one["trained"]["problems"] == of["trained_problems"]
            assert one["unseen"]["problems"] == of["unseen_problems"]


def run(script, *options):
    environment = os.environ | {"PYTHONPATH": str(EVIDENCE.parent), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EVIDENCE / script), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


@pytest.mark.slow
def test_the_scripts_run_and_resume(tmp_path):
    """All three on the demo's student and pool; what is done isn't done again, and half a line isn't read."""
    pool, plan, results = tmp_path / "pool.jsonl", tmp_path / "plan.json", tmp_path / "results"
    rows = [
        {**row, "prompt": row["prompt"][0]["content"], "completion": row["completion"][0]["content"]}
        for row in make_pool(10, seed=1)
    ]
    Dataset.from_list(rows).to_json(pool)
    smaller = {
        "statistics": {"draws": 100},
        "choices": {"min_tokens": 0},
        "one_step": {"probe_responses": 2, "exact_problems": 1, "exact_probe_solved": 2, "etas": [1e-4]},
        "order": {
            "students": {
                "gsm8k_6m": {"trained_problems": 4, "unseen_problems": 3, "learning_rate": 1e-3, "seeds": [0]},
            }
        },
        "pilot": {"problems": {"gsm8k_6m": [6, 3]}, "num_examples": {"gsm8k_6m": 4}, "seeds": 2},
    }
    plan.write_text(json.dumps(smaller))
    options = ["--pool", pool, "--gsm8k_6m", STUDENT_PATH, "--smollm2", STUDENT_PATH, "--plan", plan]
    options += ["--results", results, "--output_dir", tmp_path / "out"]
    run("choices.py", *options)
    found = json.loads((results / "choices.json").read_text())
    teachers = found["agreement"]["12 teachers"]["no guard"]["between_students"]
    assert teachers["rsr"]["same_choice"][0] == teachers["rsr"]["spearman_within"][0] == 1  # one student twice

    run("one_step.py", *options)
    first = json.loads((results / "one_step.json").read_text())
    exact = first["exact"]["etas"]["0.0001"]
    assert exact["ratio_to_first_order"] == pytest.approx(1, abs=0.1)
    assert first["rows"] == len(rows) and first["exact"]["rows"] == 14
    lines = tmp_path / "out" / "one_step-0" / "first_order.jsonl"
    kept = lines.read_text().splitlines(keepends=True)
    lines.write_text("".join(kept[:-1]) + kept[-1][:7])
    done = run("one_step.py", *options)
    assert "1 rows" in done.stdout
    assert json.loads((results / "one_step.json").read_text()) == first

    run("order.py", *options, "--students", "gsm8k_6m")
    order = json.loads((results / "order-gsm8k_6m.json").read_text())["0"]["trained"]["epochs"]
    assert order["0"]["spearman_overall"]["rsr"] == 1 > order["3"]["spearman_overall"]["rsr"]
    assert order["3"]["loss_of_right_rows"][0] < order["0"]["loss_of_right_rows"][0]
    pilot = json.loads((results / "pilot-gsm8k_6m.json").read_text())
    means = {name: np.mean(of) for name, of in pilot["loss"].items()}
    assert pilot["pairs"]["rsr_rescored - rsr"]["mean"] == pytest.approx(
        means["rsr_rescored"] - means["rsr"], abs=1e-4
    )
