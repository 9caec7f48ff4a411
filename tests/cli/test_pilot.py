import json
import os
import signal
import subprocess
import sys
import time

import pytest
from datasets import Dataset

from rsr_trl.cli import pilot
from rsr_trl.cli.options import parse
from rsr_trl.scoring.scorer import RSRScorer
from tests.pilot.test_run import rows_of


QUICK = [
    *("--use_cpu", "--activation_checkpointing", "False", "--num_train_epochs", "2", "--learning_rate", "1e-2"),
    *("--per_device_train_batch_size", "2", "--max_new_tokens", "4", "--num_examples", "4"),
]


@pytest.fixture
def argv(tiny_student_path, tmp_path):
    """`argv(*more)`: the words of a quick pilot, on files with a problem_id, an answer and a teacher in each row."""
    files = {name: tmp_path / f"{name}.jsonl" for name in ("pool", "held_out")}
    for path, *what in ((files["pool"], 8, 0, 3), (files["held_out"], 5, 1, 1)):
        path.write_text("\n".join(map(json.dumps, rows_of(*what))))
    pool, held_out = map(str, files.values())

    def words(*more, pool=pool, held_out=held_out, output_dir=str(tmp_path / "out")) -> list[str]:
        return [
            *("--model_name_or_path", tiny_student_path, "--dataset_name", pool, "--eval_dataset_name", held_out),
            *("--output_dir", output_dir, *QUICK, *more),
        ]

    words.pool = pool
    return words


def run(argv: list[str]) -> int:
    return pilot.main(*parse(pilot.make_parser(), argv))


QUIET = ("--json", "--strategies", "rsr", "--num_seeds", "1")


def test_json_is_the_result_and_nothing_else_and_other_settings_in_the_folder_are_an_error(argv, capfd, tmp_path):
    assert run(argv(*QUIET)) == 0
    result = json.loads(capfd.readouterr().out)
    assert result == json.loads((tmp_path / "out" / "pilot.json").read_text())
    assert {(row["strategy"], row["metric"]) for row in result["table"]} == {("rsr", "loss"), ("rsr", "correct")}
    assert result["pool"] == {"trajectories": 24, "left_out": 0, "problems": 8}
    names = sorted(path.name for path in (tmp_path / "out").glob("[!.]*"))
    assert names == ["arms", "pilot.json", "scored", "settings.json"]
    for more, message in (
        (("--max_new_tokens", "5"), "max_new_tokens: 4 -> 5"),
        (("--checker", "line"), "held_out.checker: number -> line"),
        (("--use_peft", "--lora_target_modules", "q_proj"), "student.use_peft: None -> True"),
    ):
        with pytest.raises(ValueError, match=message):
            run(argv(*QUIET, *more))
    with open(argv.pool, "a") as file:
        file.write("\n" + json.dumps(rows_of(9, 0, 1)[-1]))
    with pytest.raises(ValueError, match="pool.files: pool.jsonl changed"):
        run(argv(*QUIET))


def test_people_see_the_cost_the_differences_and_what_they_are_worth(argv, capfd):
    words = argv("--strategies", "rsr", "--num_seeds", "2")
    assert run(words) == 0
    out, err = capfd.readouterr()
    assert out == ""
    text = " ".join(err.split())
    assert text.index("Cost: 4 trainings") < text.index("random, seed 42: loss")
    assert "lower = better" in text and "difference" in text
    assert "all intervals are about these runs only" in text
    for word in ("warn", "deprecat", "traceback"):
        assert word not in text.lower()
    # Again: nothing is trained, and the same is said.
    assert run(words) == 0
    again = " ".join(capfd.readouterr().err.split())
    assert "5 of 5 arms are done already." in again and "Cost" not in again
    assert again[again.index("2 seeds") :] == text[text.index("2 seeds") :]


def test_a_pool_with_scores_of_this_student_is_taken_as_it_is_and_of_another_not(
    argv, tiny_student_path, tmp_path, capfd
):
    with pytest.raises(ValueError, match="--dry_run needs a pool with scores"):
        run(argv("--dry_run"))
    scored = RSRScorer(tiny_student_path).score(Dataset.from_list(rows_of(8, 0, 3)))
    path, own = str(tmp_path / "scored.parquet"), str(tmp_path / "own.parquet")
    scored.to_parquet(path)
    capfd.readouterr()
    assert run(argv("--dry_run", "--json", "--strategies", "rsr", pool=path)) == 0
    assert json.loads(capfd.readouterr().out)["arms"] == 6
    assert not (tmp_path / "out").exists()
    assert run(argv(*QUIET, pool=path)) == 0
    assert not (tmp_path / "out" / "scored").exists()
    other = scored.map(lambda row: {"rsr_student": "another"})
    other.to_parquet(path)
    with pytest.raises(ValueError, match="scores are of another student, dtype or template .another; this student"):
        run(argv("--num_seeds", "1", pool=path, output_dir=str(tmp_path / "other")))
    other.remove_columns("rsr_student").to_parquet(own)
    assert run(argv(*QUIET, pool=own, output_dir=str(tmp_path / "own"))) == 0


def test_problems_in_both_sets_are_an_error(argv):
    with pytest.raises(ValueError, match="24 of the 24 held-out rows have a prompt that is in the pool too"):
        run(argv(held_out=argv.pool))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--strategies", "rsrr"), "no strategy 'rsrr'"),
        (("--num_seeds", "0"), "num_seeds must be at least 1, got 0"),
        (("--num_examples", "0"), "num_examples must be at least 1, got 0"),
        (("--num_tokens", "40"), "Give one budget"),
        (("--group_column", "problem"), "no column 'problem'"),
        (("--answer_column", "answer"), "no column 'answer'"),
        (("--max_new_tokens", "0"), "max_new_tokens must be at least 1"),
        (("--checker", "exact"), "checker must be number, line, math or module:function"),
        (("--output_dir", None), "Say where the results go: output_dir"),
    ],
)
def test_wrong_options_are_found_before_any_work(argv, more, message, tmp_path):
    words = argv(*more)
    if more[1] is None:
        at = words.index(more[0])
        words = words[:at] + words[at + 2 : -2]
    with pytest.raises(ValueError, match=message):
        run(words)
    assert not (tmp_path / "out").exists()


def start(words: list[str], *launcher: str) -> subprocess.Popen:
    env = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, *launcher, "-m", "rsr_trl", "pilot", *words]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def result_in(folder) -> dict:
    return json.loads((folder / "pilot.json").read_text())


@pytest.mark.slow
def test_killed_and_started_again_it_repeats_no_finished_arm(argv, tmp_path):
    words = argv("--strategies", "rsr", "--num_seeds", "2")
    arms = tmp_path / "out" / "arms"
    process = start(words)
    deadline = time.monotonic() + 300
    while len(list(arms.glob("[!.]*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    done = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in arms.glob("[!.]*.json")}
    assert 2 <= len(done) < 5, "it was meant to be killed in the middle"
    assert not (tmp_path / "out" / "pilot.json").exists()
    process = start(words)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert f"{len(done)} of 5 arms are done already." in err
    for name, stat in done.items():
        assert ((arms / name).stat().st_ino, (arms / name).stat().st_mtime_ns) == stat
    result = result_in(tmp_path / "out")
    process = start(argv("--strategies", "rsr", "--num_seeds", "2", output_dir=str(tmp_path / "whole")))
    assert process.communicate(timeout=300) and process.returncode == 0
    whole = result_in(tmp_path / "whole")
    assert result["table"] == whole["table"] and result["verdict"] == whole["verdict"]


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_give_what_one_gives(argv, tmp_path):
    more = ("--strategies", "rsr", "rsr_rescored", "--num_seeds", "1")
    assert run(argv("--json", *more)) == 0
    words = argv(*more, "--per_device_train_batch_size", "1", output_dir=str(tmp_path / "two"))
    process = start(words, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err[-4000:]
    one, two = (result_in(tmp_path / name) for name in ("out", "two"))
    assert [arm["steps"] for arm in one["arms"]] == [arm["steps"] for arm in two["arms"]]
    assert [arm["loss"] for arm in two["arms"]] == pytest.approx([arm["loss"] for arm in one["arms"]], rel=1e-3)
    assert err.count("Cost:") == 1


@pytest.mark.slow
def test_on_the_demo_s_data(tmp_path):
    from rsr_trl.demo import STUDENT_PATH
    from rsr_trl.demo.teachers import make_pool

    make_pool(24, seed=0).to_parquet(str(tmp_path / "pool.parquet"))
    held_out = make_pool(12, seed=1)
    held_out.filter(lambda row: row["teacher"] == "plain").to_parquet(str(tmp_path / "held_out.parquet"))
    words = ["--model_name_or_path", str(STUDENT_PATH), "--dataset_name", str(tmp_path / "pool.parquet")]
    words += ["--eval_dataset_name", str(tmp_path / "held_out.parquet"), "--output_dir", str(tmp_path / "out")]
    process = start([*words, "--num_seeds", "1", "--max_new_tokens", "64"])
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    result = result_in(tmp_path / "out")
    assert [one["name"] for one in result["strategies"]] == ["random", "rsr", "surprisal", "length"]
    assert all(0 < arm["loss"] < 5 for arm in result["arms"])
    tokens = {arm["strategy"]: arm["tokens"] for arm in result["arms"][1:]}
    assert tokens["length"] == max(tokens.values())
