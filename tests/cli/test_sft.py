import json
import os
import re
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rsr_trl.cli import sft
from rsr_trl.rsr import dataset_rsr
from rsr_trl.training.live_scores import LiveScores
from tests.training.runs import REPOSITORY, examples


QUICK = [
    *("--use_cpu", "--activation_checkpointing", "False", "--num_train_epochs", "2", "--learning_rate", "1e-2"),
    *("--per_device_train_batch_size", "2", "--disable_tqdm", "True", "--report_to", "none", "--logging_steps", "1"),
    *("--rsr_min_tokens", "0"),  # the examples are short
]
BY_SCORE = ("--rsr_sampling", "weighted", "--rsr_rescore_strategy", "epoch")
COLUMNS = ("--prompt_column", "q", "--completion_column", "a")
CHECKPOINT = "--resume_from_checkpoint"


@pytest.fixture
def raw(tmp_path) -> str:
    path = tmp_path / "raw.jsonl"
    rows = [{"q": r["prompt"], "a": r["completion"], "problem": r["problem"]} for r in examples(12)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


@pytest.fixture
def train(rsr, raw, tiny_student_path, tmp_path):
    """`train(*more, code=0)` runs `rsr sft` into the folder `train.out`, which has to end with this exit code."""

    its_student, its_data = ("--model_name_or_path", tiny_student_path), ("--dataset_name", raw, *COLUMNS)

    def run(*more, code=0, data=its_data, student=its_student):
        done = rsr("sft", *student, *data, "--output_dir", run.out, *QUICK, *more)
        assert done.code == code, done.err
        return done

    run.out = str(tmp_path / "out")
    return run


def history_of(out: str, step: int) -> pd.DataFrame:
    return pd.read_parquet(f"{out}/rsr_history/step-{step:08d}-pass.parquet").set_index("row")


def test_trains_on_a_local_file_and_saves_the_student(train, tiny_student_path):
    train("--rsr_group_column", "problem", "--rsr_sampling", "ordered", "--rsr_rescore_strategy", "epoch")
    before, after = (load_file(f"{path}/model.safetensors") for path in (tiny_student_path, train.out))
    assert any(not before[name].equal(after[name]) for name in after)
    AutoModelForCausalLM.from_pretrained(train.out)
    history = pd.read_parquet(f"{train.out}/rsr_history")
    assert len(history) == 24 and history["rsr"].notna().all()
    with open(f"{train.out}/README.md") as card:
        assert "| rsr_sampling | `ordered` |" in card.read()


def test_trains_on_what_rsr_select_writes(rsr, train, raw, tiny_student_path, tmp_path):
    scored, chosen, out = tmp_path / "scored", tmp_path / "chosen", train.out
    student = ["--model_name_or_path", tiny_student_path]
    assert rsr("score", "--dataset_name", raw, *COLUMNS, *student, "--output_dir", scored).code == 0
    by_problem = ["--group_column", "problem", "--output_dir", chosen, "--min_tokens", "0"]
    assert rsr("select", "--dataset_name", scored, *by_problem).code == 0
    text = train(data=("--dataset_name", chosen)).text
    assert "on all 4 trajectories per epoch, in random order, mean loss " in text
    assert "RSR of the 4 scored trajectories before training (lower = more suitable): " in text
    assert "Next:" not in text, "there is no change to show"
    assert sorted(pd.read_parquet(f"{out}/rsr_history")["row"]) == [0, 1, 2, 3]
    # The chosen rows carry this student's scores, so nothing was scored again.
    assert os.listdir(f"{out}/rsr_history") == ["step-00000000-dataset.parquet"]


def test_summary_shows_how_the_scores_moved(train, raw):
    text = train("--rsr_keep_fraction", "0.5", *BY_SCORE).text  # the trainer's logs too are for people
    assert "Trained 6 steps on 6 (50%) of 12 trajectories per epoch, the best mostly first, mean loss " in text
    assert "(lower = more suitable)" in text and "RSR at step 0" in text
    assert text.count("plain text: the student's chat template") == 1 and "with --as_chat." in text
    history = [history_of(train.out, step) for step in (0, 3)]
    first, last = (dataset_rsr(one["rsr_mean_clipped_rank"], one["rsr_mean_surprisal"]) for one in history)
    assert f"0 12 {first:.3f} {first:.3f}" in text and f"3 12 {last:.3f} {first:.3f}" in text
    assert f"Next: rsr score --model_name_or_path {train.out} --dataset_name {raw} --prompt_column q" in text


def test_json(train):
    options = ("--rsr_rescore_strategy", "steps", "--rsr_rescore_steps", "2", "--rsr_sampling", "ordered")
    done = train(*options, "--json")
    result = done.json
    assert "it/s" not in done.err and "loss" not in done.err
    assert (result["steps"], result["trajectories"], result["kept_per_epoch"]) == (12, 12, 12)
    assert result["output_dir"] == train.out and result["direction"] == "lower = more suitable"
    assert [one["step"] for one in result["passes"]] == [0, 2, 4, 6, 8, 10]
    # In the middle of an epoch only the rest of it is scored: it is compared with its own first scores.
    for one in result["passes"]:
        now = history_of(train.out, one["step"])
        then = history_of(train.out, 0).loc[now.index]
        assert one["scored"] == len(now)
        for name, rows in (("rsr", now), ("rsr_at_first", then)):
            expected = rows["rsr_mean_clipped_rank"].sum() / rows["rsr_mean_surprisal"].sum()
            assert one[name] == pytest.approx(expected)
        assert one["spearman_with_first"] == pytest.approx(then["rsr"].corr(now["rsr"], method="spearman"))


def test_options_from_a_config_file_lora_evaluation_and_resuming(train, raw, tmp_path):
    config = tmp_path / "config.yaml"
    options = {"dataset_name": raw, "dataset_test_split": "train[:3]", "prompt_column": "q", "completion_column": "a"}
    options |= {"use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"]}
    options |= {"eval_strategy": "epoch", "save_strategy": "steps", "save_steps": 4}
    options |= {"rsr_rescore_strategy": "steps", "rsr_rescore_steps": 0.25}
    config.write_text(yaml.safe_dump(options))
    argv, whole = {"data": ("--config", config)}, train.out
    train(**argv)
    assert os.path.isfile(f"{whole}/adapter_model.safetensors")
    with open(f"{whole}/checkpoint-12/trainer_state.json") as file:
        assert any("eval_loss" in log for log in json.load(file)["log_history"])
    train.out = str(tmp_path / "resumed")
    text = train(CHECKPOINT, f"{whole}/checkpoint-4", **argv).text
    first, second = (load_file(f"{path}/adapter_model.safetensors") for path in (whole, train.out))
    assert all(first[name].equal(second[name]) for name in first)
    assert "Trained 12 steps (8 of them now, from step 4 on) on all 12" in text and ", mean loss of these " in text
    text = train(CHECKPOINT, "True", **argv).text  # the last one: nothing is left to do
    assert "Trained 12 steps (0 of them now, from step 12 on)" in text and "mean loss" not in text


def test_a_second_run_does_not_mix_its_checkpoints_with_those_of_the_first(train, monkeypatch):
    train("--max_steps", "1")
    before = sorted(os.listdir(train.out))
    monkeypatch.setattr(sft, "_load", None)  # it is said before anything is read
    for more in ((), (CHECKPOINT, "False")):
        err = train("--max_steps", "1", *more, code=1).err
        assert re.search("of an earlier run, .*out/checkpoint-1.* add --resume_from_checkpoint True", err)
    assert sorted(os.listdir(train.out)) == before


def test_nothing_to_resume_from_is_said_before_anything_is_loaded(train, tmp_path, monkeypatch):
    monkeypatch.setattr(sft, "_load", None)
    err = train(CHECKPOINT, "True", code=1).err
    assert re.search("no checkpoint in --output_dir .*out. To start over", err)
    (tmp_path / "out" / "checkpoint-3").mkdir(parents=True)  # one that was being written when the run was killed
    for checkpoint, missing in (("nowhere", "nowhere"), ("True", "out/checkpoint-3")):
        err = train(CHECKPOINT, checkpoint, code=1).err
        assert re.search(f"isn't a complete checkpoint: .*{missing}/trainer_state.json is missing", err)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--save_steps", "2"), "at step 3. To resume from {out}/checkpoint-2, add --resume_from_checkpoint True."),
        ((), "Stopped at step 3, before the first checkpoint (one is saved every 500 steps). Pass --save_"),
        (("--save_strategy", "no"), "before the first checkpoint (none is saved). Pass --save_strategy steps "),
    ],
)
def test_an_interrupted_training_says_how_to_go_on(train, monkeypatch, options, said):
    on_step_end = LiveScores.on_step_end

    def interrupted(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt
        on_step_end(self, args, state, control, **kwargs)

    monkeypatch.setattr(LiveScores, "on_step_end", interrupted)
    assert said.format(out=train.out) in train(*options, code=130).err


def test_a_threshold_is_told_by_what_it_lets_through(train, raw, tmp_path):
    static = ("--rsr_score", "length")
    lengths = sorted(len(row["a"]) for row in map(json.loads, open(raw)))
    within = sum(length >= lengths[8] for length in lengths)  # the score length prefers the longest
    text = train(*static, "--rsr_score_threshold", str(lengths[8]), "--max_steps", "2").text
    share = f"{within} ({within / 12:.0%}) of 12 trajectories per epoch"
    assert (
        f"on {share} (within --rsr_score_threshold {float(lengths[8])} by their last scores), in random order -> "
        in text
    )
    train.out = str(tmp_path / "none")
    err = train("--rsr_score_threshold", "0.5", code=1).err
    assert re.search("threshold 0.5 lets scores 'rsr' of 0.5 and lower.* 12 examples the lowest", err)
    assert not os.path.exists(f"{train.out}/model.safetensors")


def test_a_mixture_of_datasets(train, raw, tmp_path):
    config = tmp_path / "config.yaml"
    source = {"path": "json", "data_files": raw}
    options = {"datasets": [source, source], "test_split_size": 0.25, "eval_strategy": "epoch"}
    config.write_text(yaml.safe_dump(options))
    train(*BY_SCORE, data=("--config", config, *COLUMNS))
    assert pd.read_parquet(f"{train.out}/rsr_history")["row"].nunique() == 18


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        (["--model_name_or_path", "./nowhere"], {}, "no folder './nowhere'"),
        ([], {"data": ()}, "either --dataset_name, or a mixture"),
        (["--dataset_streaming"], {}, "drop --dataset_streaming"),
        (["--dataset_name", "./nowhere.jsonl"], {}, "no file or folder"),
        (["--prompt_column", "question"], {}, "--prompt_column question: the dataset has no such column"),
        ([], {"student": ()}, "--model_name_or_path is required"),
    ],
)
def test_bad_options_are_one_clear_sentence(train, options, changes, message):
    assert message in train(*options, **changes, code=1).err


def test_a_misspelt_option_is_an_error(train, capsys):
    with pytest.raises(SystemExit):
        train("--rsr_keep_fractoin", "0.5")
    assert "did you mean --rsr_keep_fraction?" in capsys.readouterr().err


@pytest.mark.distributed
def test_two_processes_through_accelerate_launch(raw, tiny_student_path, tmp_path):
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "rsr_trl", "sft"),
        *("--model_name_or_path", tiny_student_path, "--dataset_name", raw, *COLUMNS, *QUICK),
        *("--output_dir", str(tmp_path / "two"), *BY_SCORE),
    ]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    with open(tmp_path / "two" / "README.md") as card:
        assert "Rank-Surprisal Ratio" in card.read()
    assert pd.read_parquet(tmp_path / "two" / "rsr_history").groupby("step").size().tolist() == [12, 12]
    assert done.stderr.count("Trained 6 steps") == 1
    Dataset.from_parquet(str(tmp_path / "two" / "rsr_history" / "step-00000000-pass.parquet"))
