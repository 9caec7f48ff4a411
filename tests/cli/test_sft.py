import json
import os
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rsr_trl.cli import sft
from rsr_trl.cli.main import main as cli
from rsr_trl.cli.options import parse
from rsr_trl.rsr import RSRError, dataset_rsr
from rsr_trl.training.live_scores import LiveScores
from tests.training.runs import REPOSITORY, examples


@pytest.fixture
def raw(tmp_path) -> str:
    path = tmp_path / "raw.jsonl"
    rows = [{"q": r["prompt"], "a": r["completion"], "problem": r["problem"]} for r in examples(12)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


QUICK = [
    *("--use_cpu", "--activation_checkpointing", "False", "--num_train_epochs", "2", "--learning_rate", "1e-2"),
    *("--per_device_train_batch_size", "2", "--disable_tqdm", "True", "--report_to", "none", "--logging_steps", "1"),
]


@pytest.fixture
def train(tiny_student_path, tmp_path):
    """`train(*more)` runs `rsr sft` and returns the folder of the trained student."""

    def run(*more, output_dir=str(tmp_path / "out"), student=("--model_name_or_path", tiny_student_path)):
        argv = [*student, "--output_dir", output_dir, *QUICK, *more]
        assert sft.main(*parse(sft.make_parser(), argv)) == 0
        return output_dir

    return run


COLUMNS = ("--prompt_column", "q", "--completion_column", "a")


def test_trains_on_a_local_file_and_saves_the_student(train, raw, tiny_student_path):
    out = train("--dataset_name", raw, *COLUMNS, "--rsr_group_column", "problem", "--rsr_sampling", "ordered")
    before, after = (load_file(f"{path}/model.safetensors") for path in (tiny_student_path, out))
    assert any(not before[name].equal(after[name]) for name in after)
    AutoModelForCausalLM.from_pretrained(out)
    history = pd.read_parquet(f"{out}/rsr_history")
    assert len(history) == 24 and history["rsr"].notna().all()
    with open(f"{out}/README.md") as card:
        assert "| rsr_sampling | `ordered` |" in card.read()


def test_trains_on_what_rsr_select_writes(train, raw, tiny_student_path, tmp_path, capsys):
    scored, chosen = str(tmp_path / "scored"), str(tmp_path / "chosen")
    student = ["--model_name_or_path", tiny_student_path]
    assert cli(["score", "--dataset_name", raw, *COLUMNS, *student, "--output_dir", scored]) == 0
    assert cli(["select", "--dataset_name", scored, "--group_column", "problem", "--output_dir", chosen]) == 0
    capsys.readouterr()
    out = train("--dataset_name", chosen, "--rsr_rescore_strategy", "no")
    assert (
        f"Next: rsr report --dataset_name {chosen} --run {out} --output {out}-report.html" in capsys.readouterr().err
    )
    history = pd.read_parquet(f"{out}/rsr_history")
    assert sorted(history["row"]) == [0, 1, 2, 3]
    # The chosen rows carry this student's scores, so nothing was scored again.
    assert os.listdir(f"{out}/rsr_history") == ["step-00000000-dataset.parquet"]


def test_summary_shows_how_the_scores_moved(train, raw, capsys):
    out = train("--dataset_name", raw, *COLUMNS, "--rsr_keep_fraction", "0.5")
    captured = capsys.readouterr()
    assert captured.out == ""  # the trainer's logs too are for people
    text = " ".join(captured.err.split())
    assert "Trained 6 steps on 6 (50%) of 12 trajectories per epoch, mean loss " in text
    assert "(lower = more suitable)" in text and "same at first" in text
    history = [pd.read_parquet(f"{out}/rsr_history/step-0000000{step}-pass.parquet") for step in (0, 3)]
    first, last = (dataset_rsr(one["rsr_mean_clipped_rank"], one["rsr_mean_surprisal"]) for one in history)
    assert f"0 12 {first:.3f} {first:.3f}" in text and f"3 12 {last:.3f} {first:.3f}" in text
    assert f"Next: rsr score --model_name_or_path {out} --dataset_name {raw} --prompt_column q" in text


def test_json(train, raw, capsys):
    options = ("--rsr_rescore_strategy", "steps", "--rsr_rescore_steps", "2", "--rsr_sampling", "ordered")
    out = train("--dataset_name", raw, *COLUMNS, *options, "--json")
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert "it/s" not in captured.err and "loss" not in captured.err
    assert (result["steps"], result["trajectories"], result["kept_per_epoch"]) == (12, 12, 12)
    assert result["output_dir"] == out and result["direction"] == "lower = more suitable"
    assert [one["step"] for one in result["passes"]] == [0, 2, 4, 6, 8, 10]
    # In the middle of an epoch only the rest of it is scored: it is compared with its own first scores.
    first = pd.read_parquet(f"{out}/rsr_history/step-00000000-pass.parquet").set_index("row")
    for one in result["passes"]:
        rows = pd.read_parquet(f"{out}/rsr_history/step-{one['step']:08d}-pass.parquet").set_index("row")
        then = first.loc[rows.index]
        assert one["scored"] == len(rows)
        assert one["rsr"] == pytest.approx(rows["rsr_mean_clipped_rank"].sum() / rows["rsr_mean_surprisal"].sum())
        assert one["rsr_at_first"] == pytest.approx(
            then["rsr_mean_clipped_rank"].sum() / then["rsr_mean_surprisal"].sum()
        )
        assert one["spearman_with_first"] == pytest.approx(then["rsr"].corr(rows["rsr"], method="spearman"))


def test_options_from_a_config_file_lora_evaluation_and_resuming(train, raw, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    options = {
        "dataset_name": raw,
        "dataset_test_split": "train[:3]",
        "prompt_column": "q",
        "completion_column": "a",
        "use_peft": True,
        "lora_r": 4,
        "lora_target_modules": ["q_proj", "v_proj"],
        "eval_strategy": "epoch",
        "save_strategy": "steps",
        "save_steps": 4,
        "rsr_rescore_strategy": "steps",
        "rsr_rescore_steps": 0.25,
    }
    config.write_text(yaml.safe_dump(options))
    whole = train("--config", str(config))
    assert os.path.isfile(f"{whole}/adapter_model.safetensors")
    with open(f"{whole}/checkpoint-12/trainer_state.json") as file:
        assert any("eval_loss" in log for log in json.load(file)["log_history"])
    resumed = train(
        *("--config", str(config), "--resume_from_checkpoint", f"{whole}/checkpoint-4"),
        output_dir=str(tmp_path / "resumed"),
    )
    first, second = (load_file(f"{path}/adapter_model.safetensors") for path in (whole, resumed))
    assert all(first[name].equal(second[name]) for name in first)
    text = " ".join(capsys.readouterr().err.split())
    assert "Trained 12 steps (8 of them now, from step 4 on) on all 12" in text and ", mean loss of these " in text
    train("--config", str(config), "--resume_from_checkpoint", "True")  # the last one: nothing is left to do
    text = " ".join(capsys.readouterr().err.split())
    assert "Trained 12 steps (0 of them now, from step 12 on)" in text and "mean loss" not in text


def test_a_second_run_does_not_mix_its_checkpoints_with_those_of_the_first(train, raw, monkeypatch):
    options = ("--dataset_name", raw, *COLUMNS, "--max_steps", "1")
    out = train(*options)
    before = sorted(os.listdir(out))
    monkeypatch.setattr(sft, "_load", None)  # it is said before anything is read
    for more in ((), ("--resume_from_checkpoint", "False")):
        with pytest.raises(RSRError, match="out/checkpoint-1 is the last .* --resume_from_checkpoint True"):
            train(*options, *more)
    assert sorted(os.listdir(out)) == before


def test_nothing_to_resume_from_is_said_before_anything_is_loaded(train, raw, tmp_path, monkeypatch):
    monkeypatch.setattr(sft, "_load", None)
    with pytest.raises(RSRError, match="no checkpoint in --output_dir .*out to go on from"):
        train("--resume_from_checkpoint", "True")
    (tmp_path / "out" / "checkpoint-3").mkdir(parents=True)  # one that was being written when the run was killed
    for checkpoint, missing in (("nowhere", "nowhere"), ("True", "out/checkpoint-3")):
        with pytest.raises(RSRError, match=f"no complete checkpoint: .*{missing}/trainer_state.json is missing"):
            train("--resume_from_checkpoint", checkpoint)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--save_steps", "2"), "at step 3. To go on from {out}/checkpoint-2, add --resume_from_checkpoint True."),
        ((), "Stopped at step 3, and no checkpoint was saved yet (save_strategy='steps' and save_steps=500): "),
        (("--save_strategy", "no"), "no checkpoint was saved yet (save_strategy='no'): with --save_strategy steps "),
    ],
)
def test_an_interrupted_training_says_how_to_go_on(
    train, raw, tmp_path, tiny_student_path, monkeypatch, capsys, options, told
):
    out, on_step_end = str(tmp_path / "out"), LiveScores.on_step_end

    def interrupted(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt
        on_step_end(self, args, state, control, **kwargs)

    monkeypatch.setattr(LiveScores, "on_step_end", interrupted)
    argv = ["--model_name_or_path", tiny_student_path, "--dataset_name", raw, *COLUMNS, *QUICK, "--output_dir", out]
    assert cli(["sft", *argv, *options]) == 130
    assert told.format(out=out) in capsys.readouterr().err


def test_a_threshold_is_told_by_what_it_lets_through(train, raw, tmp_path, capsys):
    static = ("--dataset_name", raw, *COLUMNS, "--rsr_score", "length", "--rsr_rescore_strategy", "no")
    lengths = sorted(len(row["a"]) for row in map(json.loads, open(raw)))
    within = sum(length >= lengths[8] for length in lengths)  # the score length prefers the longest
    train(*static, "--rsr_score_threshold", str(lengths[8]), "--max_steps", "2")
    text = " ".join(capsys.readouterr().err.split())
    share = f"{within} ({within / 12:.0%}) of 12 trajectories per epoch"
    assert f"on {share} (within --rsr_score_threshold {float(lengths[8])} by their last scores) -> " in text
    out = str(tmp_path / "none")
    with pytest.raises(RSRError, match="threshold=0.5 lets scores 'rsr' of 0.5 and lower.* 12 examples the lowest"):
        train("--dataset_name", raw, *COLUMNS, "--rsr_score_threshold", "0.5", output_dir=out)
    assert not os.path.exists(f"{out}/model.safetensors")


def test_a_mixture_of_datasets(train, raw, tmp_path):
    config = tmp_path / "config.yaml"
    source = {"path": "json", "data_files": raw}
    config.write_text(
        yaml.safe_dump({"datasets": [source, source], "test_split_size": 0.25, "eval_strategy": "epoch"})
    )
    out = train("--config", str(config), *COLUMNS)
    assert pd.read_parquet(f"{out}/rsr_history")["row"].nunique() == 18


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset_name", "RAW", "--model_name_or_path", "./nowhere"], "no folder './nowhere'"),
        ([], "either --dataset_name, or a mixture"),
        (["--dataset_name", "x.jsonl", "--dataset_streaming"], "don't set --dataset_streaming"),
        (["--dataset_name", "./nowhere.jsonl"], "no file or folder"),
        (["--dataset_name", "RAW", "--prompt_column", "question"], "prompt_column='question'"),
    ],
)
def test_bad_options_are_one_clear_sentence(train, raw, options, message):
    with pytest.raises(RSRError, match=message):
        train(*(raw if option == "RAW" else option for option in options))


def test_a_missing_student_is_said(train, raw):
    with pytest.raises(RSRError, match="which student to train: --model_name_or_path"):
        train("--dataset_name", raw, *COLUMNS, student=())


def test_a_misspelt_option_is_an_error(capsys):
    with pytest.raises(SystemExit):
        parse(sft.make_parser(), ["--rsr_keep_fractoin", "0.5"])
    assert "did you mean --rsr_keep_fraction?" in capsys.readouterr().err


@pytest.mark.distributed
def test_two_processes_through_accelerate_launch(raw, tiny_student_path, tmp_path):
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "rsr_trl", "sft"),
        *("--model_name_or_path", tiny_student_path, "--dataset_name", raw, *COLUMNS, *QUICK),
        *("--output_dir", str(tmp_path / "two")),
    ]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    with open(tmp_path / "two" / "README.md") as card:
        assert "Rank-Surprisal Ratio" in card.read()
    assert pd.read_parquet(tmp_path / "two" / "rsr_history").groupby("step").size().tolist() == [12, 12]
    assert done.stderr.count("Trained 6 steps") == 1
    Dataset.from_parquet(str(tmp_path / "two" / "rsr_history" / "step-00000000-pass.parquet"))
