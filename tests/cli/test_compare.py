from pathlib import Path

import numpy as np
import pytest

from rsr_trl.data import write_scored
from rsr_trl.selection.compare import compare_scores
from tests.selection.pools import clean_pool, column


COLUMNS = {"teacher_column": "teacher", "problem_column": "problem_id", "correctness_column": "correct"}


@pytest.fixture
def compare(rsr, tmp_path, monkeypatch):
    """`compare(dataset, ...)` runs `rsr compare` on it in a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    path = str(tmp_path / "scored.parquet")

    def run(dataset, *options):
        dataset.to_parquet(path)
        return rsr("compare", "--dataset_name", path, *options)

    run.path = path
    return run


def test_shows_what_the_comparison_finds(compare):
    dataset = clean_pool(problems=40).add_column("quality", np.arange(240).tolist())
    text = compare(dataset, "--own_scores", "quality:high").text
    truth = compare_scores(dataset, own_scores={"quality": "high"}, **COLUMNS)
    assert "5 scores of 240 trajectories of 40 problems" in text
    assert "None of RSR's known failure modes was found here" in text
    rsr, surprisal, *_, quality = truth.scores
    assert f"surprisal (low) {surprisal['rank_correlation']:+.2f} {surprisal['overlap']:.0%}" in text
    assert "quality (high)" in text and "length (high)" in text and "by chance: 17%" in text
    assert f"{rsr['correct_first']:.0%} ({rsr['correct_first_low']:.0%}-{rsr['correct_first_high']:.0%})" in text
    chosen = f"rsr {rsr['chosen_tokens']:.0f} {rsr['chosen_accuracy']:.0%} "
    assert f"{chosen}{rsr['chosen_balance']:.3f} {rsr['chosen_top_teacher']} " in text
    best = truth.teachers[0]
    places = " ".join(str(best["places"][name]) for name in ("surprisal", "length", "rank", "quality"))
    assert f"{best['teacher']} {best['values']['rsr']:.3f} {places}" in text
    output = Path(compare.path).with_suffix("")
    said = f"Next: rsr select --dataset_name {compare.path} --group_column problem_id --output_dir {output}-selected"
    assert said in text


def test_findings_come_first_with_what_to_do(compare):
    dataset = clean_pool()
    tokens = np.where(column(dataset, "teacher") == "t2", 7, column(dataset, "rsr_num_tokens"))
    text = compare(dataset.remove_columns("rsr_num_tokens").add_column("rsr_num_tokens", tokens.tolist())).text
    assert "1 known failure mode of RSR found here: short responses: 100 trajectories" in text
    assert text.index("short responses") < text.index("--min_tokens") < text.index("surprisal (low)")


def test_nothing_is_wider_than_the_terminal(compare):
    dataset = clean_pool(teacher=[f"Nemotron-4-340B-Instruct-{i % 6}" for i in range(600)])
    own = {f"rank_entropy_{i}": np.random.default_rng(i).random(600) for i in range(8)}
    for name, values in own.items():
        dataset = dataset.add_column(name, values.tolist())
    done = compare(dataset, "--own_scores", ",".join(f"{name}:high" for name in own))
    said = done.err[done.err.index("\n12 scores of ") :]  # after the progress bars
    lines = [line for line in said.splitlines() if not line.startswith("Next: ")]
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert not any("…" in line for line in lines)


def test_json(compare):
    done = compare(clean_pool(), "--scores", "surprisal,length", "--json")
    truth = compare_scores(clean_pool(), scores=["surprisal", "length"], **COLUMNS)
    assert done.json == {"direction": "lower = more suitable", **truth.to_dict()} and done.err == ""


def test_without_teachers_problems_and_correctness(compare):
    text = compare(clean_pool().remove_columns(["teacher", "problem_id", "correct"])).text
    assert "4 scores of 600 trajectories None of" in text and "--keep_fraction 0.5" in text
    assert "Teachers" not in text and "correct first" not in text and "most from" not in text


def test_a_correct_column_that_is_no_boolean_is_used_only_if_asked_for(compare):
    dataset = clean_pool(correct=["yes"] * 600)
    assert "correct first" not in compare(dataset).text
    assert "true or false" in compare(dataset, "--correctness_column", "correct").err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--own_scores", "rsr"], "write rsr:low or rsr:high"),
        (["--own_scores", "rsr:up"], "must be 'low' or 'high'"),
        (["--scores", "grape"], "There is no score 'grape'"),
        (["--problem_column", "question"], "no column 'question'"),
        (["--teacher_column", "author"], "no column 'author'"),
    ],
)
def test_wrong_options_are_one_message(compare, options, message):
    done = compare(clean_pool(), *options)
    assert done.code == 1 and message in done.err


@pytest.mark.parametrize("command", ["select", "score"])
def test_a_selection_says_that_teachers_cannot_be_ranked_on_it(rsr, tmp_path, command):
    write_scored(clean_pool(), tmp_path / "dataset", "Scored.", facts={"command": command})
    text = rsr("compare", "--dataset_name", tmp_path / "dataset").text
    assert ("don't tell which teacher suits" in text) == (command == "select")
