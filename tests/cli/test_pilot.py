import json
import os
import subprocess
import sys
import time

import pytest
from datasets import Dataset

from rsr_trl.cli import pilot
from rsr_trl.cli.options import parse
from rsr_trl.data import load
from rsr_trl.demo import STUDENT_PATH
from rsr_trl.demo.teachers import make_pool
from rsr_trl.scoring.scorer import RSRScorer
from tests.pilot.test_run import rows_of, stats


QUICK = [
    *("--use_cpu", "--activation_checkpointing", "False", "--num_train_epochs", "2", "--learning_rate", "1e-2"),
    *("--per_device_train_batch_size", "2", "--max_new_tokens", "4", "--num_examples", "4", "--min_tokens", "0"),
]
ONE = ("--json", "--strategies", "rsr", "--num_seeds", "1")
RUN = (
    "import sys; from rsr_trl.cli import pilot; from rsr_trl.cli.options import parse; "
    "sys.exit(pilot.main(*parse(pilot.make_parser(), sys.argv[1:])))"
)


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """A pool and a held-out set, with a problem_id, an answer and a teacher each."""
    paths = {"pool": tmp_path / "pool.jsonl", "held_out": tmp_path / "held_out.jsonl"}
    for path, rows in zip(paths.values(), (rows_of(8, 0, 3), rows_of(5, 1, 1)), strict=True):
        path.write_text("\n".join(json.dumps(row) for row in rows))
    return {name: str(path) for name, path in paths.items()}


@pytest.fixture
def argv(files, tiny_student_path, tmp_path):
    """`argv(*more)`: the words of a quick pilot."""

    def words(*more, pool=files["pool"], held_out=files["held_out"], output_dir="out") -> list[str]:
        return [
            *("--model_name_or_path", tiny_student_path, "--dataset_name", pool, "--eval_dataset_name", held_out),
            *("--output_dir", str(tmp_path / output_dir), *QUICK, *more),
        ]

    return words


def run(argv: list[str]) -> int:
    return pilot.main(*parse(pilot.make_parser(), argv))


def result_of(folder) -> dict:
    return json.loads((folder / "pilot.json").read_text())


def test_json_is_the_result_and_nothing_else_and_nothing_else_can_be_changed(argv, files, capfd, tmp_path):
    assert run(argv(*ONE)) == 0
    result = json.loads(capfd.readouterr().out)
    assert result == result_of(tmp_path / "out")
    assert {(row["strategy"], row["metric"]) for row in result["table"]} == {("rsr", "loss"), ("rsr", "correct")}
    assert result["pool"] == {"trajectories": 24, "left_out": 0, "short": 0, "problems": 8}
    names = sorted(path.name for path in (tmp_path / "out").glob("[!.]*"))
    assert names == ["arms", "pilot.json", "scored", "settings.json"]
    for more, message in (
        (("--max_new_tokens", "5"), "max_new_tokens: 4 -> 5"),
        (("--checker", "line"), "held_out.checker: number -> line"),
        (("--use_peft", "--lora_target_modules", "q_proj"), "student.use_peft: None -> True"),
    ):
        with pytest.raises(ValueError, match=message):
            run(argv(*ONE, *more))
    with open(files["pool"], "a") as file:
        file.write("\n" + json.dumps(rows_of(9, 0, 1)[-1]))
    with pytest.raises(ValueError, match="pool.files: pool.jsonl changed"):
        run(argv(*ONE))


def test_people_see_the_cost_the_differences_and_what_they_are_worth(argv, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    words = argv("--strategies", "rsr_rescored", "--num_seeds", "2")
    assert run(words) == 0
    out, err = capfd.readouterr()
    assert out == ""
    text = " ".join(err.split())
    assert "…" not in err and "rsr_rescored vs" in text  # nothing of the table is cut off
    assert text.index("Estimated cost: 6 runs") < text.index("random, seed 42: loss")
    for part in ("lower = better", "difference", "all intervals are about these runs only"):
        assert part in text
    for word in ("warn", "deprecat", "traceback"):
        assert word not in text.lower()
    # Again: nothing is trained, and the same is said.
    assert run(words) == 0
    again = " ".join(capfd.readouterr().err.split())
    assert "7 of 7 arms are done already." in again and "Cost" not in again
    assert again[again.index("2 seeds") :] == text[text.index("2 seeds") :]


def test_a_pool_with_scores_of_this_student_is_taken_as_it_is_and_of_another_not(
    argv, tiny_student_path, tmp_path, capfd
):
    with pytest.raises(ValueError, match="--dry_run needs a scored pool"):
        run(argv("--dry_run"))
    scored, path = RSRScorer(tiny_student_path).score(Dataset.from_list(rows_of(8, 0, 3))), tmp_path / "pool.parquet"
    scored.to_parquet(path)
    capfd.readouterr()
    assert run(argv("--dry_run", "--json", "--strategies", "rsr", pool=str(path))) == 0
    assert json.loads(capfd.readouterr().out)["arms"] == 6
    assert not (tmp_path / "out").exists()
    assert run(argv(*ONE, pool=str(path))) == 0
    assert not (tmp_path / "out" / "scored").exists()
    other = scored.map(lambda row: {"rsr_student": "another"})
    other.to_parquet(path)
    with pytest.raises(ValueError, match="scores are from another student or template .another; this student"):
        run(argv(*ONE, pool=str(path), output_dir="other"))
    other.remove_columns("rsr_student").to_parquet(path)
    assert run(argv(*ONE, pool=str(path), output_dir="own")) == 0


def test_it_chooses_under_the_template_that_it_trains_on(argv, tiny_student_path, tmp_path):
    file = tmp_path / "student" / "chat_template.jinja"
    template = tmp_path / "other.jinja"
    template.write_text(file.read_text().replace("<|im_start|>", "<|im_start|>the "))
    file.unlink()  # a base student
    assert run(argv(*ONE, "--as_chat", "--chat_template_path", str(template))) == 0
    scored, scorer = (
        load(str(tmp_path / "out" / "scored")),
        RSRScorer(tiny_student_path, chat_template_path=str(template)),
    )
    texts = scored.select_columns(["prompt", "completion"])
    assert scored["rsr"] == pytest.approx(scorer.score(texts)["rsr"], rel=1e-5)
    assert scored["rsr_student"][0] == scorer.fingerprint
    template.write_text(template.read_text().replace("the ", "an "))
    with pytest.raises(ValueError, match="tokenizer"):
        run(argv(*ONE, "--as_chat", "--chat_template_path", str(template)))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--strategies", "rsrr"), "no strategy 'rsrr'"),
        (("--num_seeds", "0"), "num_seeds must be at least 1, got 0"),
        (("--num_examples", "0"), "--num_examples must be at least 1, got 0"),
        (("--num_tokens", "40"), "--num_examples or --num_tokens, not both"),
        (("--group_column", "problem"), "no column 'problem'"),
        (("--answer_column", "answer"), "no column 'answer'"),
        (("--max_new_tokens", "0"), "max_new_tokens must be at least 1"),
        (("--checker", "exact"), "--checker must be number, line, math or module:function"),
    ],
)
def test_wrong_options_are_found_before_any_work(argv, more, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(argv(*more))
    assert not (tmp_path / "out").exists()


def test_problems_in_both_sets_and_a_missing_folder_are_errors(argv, files):
    with pytest.raises(ValueError, match="24 of the 24 held-out rows have a prompt that is in the pool too"):
        run(argv(held_out=files["pool"]))
    words = argv()
    at = words.index("--output_dir")
    with pytest.raises(ValueError, match="--output_dir is required"):
        run(words[:at] + words[at + 2 :])


def start(words: list[str], *launcher: str) -> subprocess.Popen:
    env = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.getcwd()}
    script = list(launcher) or ["-c", RUN]
    return subprocess.Popen([sys.executable, *script, *words], env=env, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_and_started_again_it_repeats_no_finished_arm(argv, tmp_path):
    more, arms = ("--strategies", "rsr", "--num_seeds", "2"), tmp_path / "out" / "arms"
    process, deadline = start(argv(*more)), time.monotonic() + 300
    while len(list(arms.glob("[!.]*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    done = stats(arms)
    assert 2 <= len(done) < 5, "it was meant to be killed in the middle"
    assert not (tmp_path / "out" / "pilot.json").exists()
    process = start(argv(*more))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert f"{len(done)} of 5 arms are done already." in err
    assert {name: stats(arms)[name] for name in done} == done
    assert run(argv("--json", *more, output_dir="whole")) == 0
    cut, whole = result_of(tmp_path / "out"), result_of(tmp_path / "whole")
    assert cut["table"] == whole["table"] and cut["verdict"] == whole["verdict"]


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_give_what_one_gives(argv, tmp_path):
    more = ("--strategies", "rsr", "rsr_rescored", "--num_seeds", "1")
    assert run(argv("--json", *more)) == 0
    (tmp_path / "run.py").write_text(RUN)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "run.py"))
    process = start(argv(*more, "--per_device_train_batch_size", "1", output_dir="two"), *launcher)
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err[-4000:]
    one, two = (result_of(tmp_path / name)["arms"] for name in ("out", "two"))
    assert [arm["steps"] for arm in one] == [arm["steps"] for arm in two]
    assert [arm["loss"] for arm in two] == pytest.approx([arm["loss"] for arm in one], rel=1e-3)
    assert err.count("Estimated cost") == 1


@pytest.mark.slow
def test_on_the_demo_s_data(tmp_path):
    make_pool(24, seed=0).to_parquet(tmp_path / "pool.parquet")
    make_pool(12, seed=1).filter(lambda row: row["teacher"] == "plain").to_parquet(tmp_path / "held_out.parquet")
    words = ["--model_name_or_path", STUDENT_PATH, "--dataset_name", tmp_path / "pool.parquet", "--eval_dataset_name"]
    words += [tmp_path / "held_out.parquet", "--output_dir", tmp_path / "out", "--num_seeds", "1", "--json"]
    assert run([*map(str, words), "--max_new_tokens", "64"]) == 0
    result = result_of(tmp_path / "out")
    assert [one["name"] for one in result["strategies"]] == ["random", "rsr", "surprisal", "length"]
    assert all(0 < arm["loss"] < 5 for arm in result["arms"])
    tokens = {arm["strategy"]: arm["tokens"] for arm in result["arms"][1:]}
    assert tokens["length"] == max(tokens.values())
