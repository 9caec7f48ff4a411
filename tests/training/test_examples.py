"""Every example of training runs, on a tiny student, as a user starts it."""

import json
import os
import runpy

import pandas as pd
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from safetensors.torch import load_file

from tests.training.runs import REPOSITORY, examples, launch


EXAMPLES = REPOSITORY / "examples"


@pytest.fixture
def start(tiny_student_path, tmp_path):
    """`start(name, *options)` runs an example as a user does: the folder of its output, and what it printed."""

    def long(row: dict) -> str:
        return row["completion"] + " and so on" * 4  # bare answers aren't chosen

    rows = [{"problem_id": r["problem"], "prompt": r["prompt"], "completion": long(r)} for r in examples(12)]
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))

    def run(name, *options, processes=1):
        given = ["--model", tiny_student_path, "--data", "data.jsonl", "--output_dir", "out"]
        return str(tmp_path / "out"), launch(str(EXAMPLES / name), *given, *options, processes=processes, cwd=tmp_path)

    return run


def history(out: str) -> pd.DataFrame:
    return pd.read_parquet(f"{out}/rsr_history")


def test_raw_to_student(start):
    out, printed = start("raw_to_student.py", "--max_steps", "1")
    assert "Kept 4 of 12 trajectories" in printed
    assert os.path.isfile(f"{out}/model.safetensors") and len(history(out)) == 4


def test_best_of_n_lora(start):
    out, _ = start("best_of_n_lora.py", "--num_train_epochs", "2")
    assert os.path.isfile(f"{out}/adapter_model.safetensors")
    assert history(out).groupby("step").size().tolist() == [12, 12]


@pytest.mark.slow
def test_curriculum_online_and_its_resuming(start):
    out, _ = start("curriculum_online.py", "--use_cpu")
    assert history(out).groupby("train_mode").size().to_dict() == {False: 12, True: 36}
    before = load_file(f"{out}/model.safetensors")
    start("curriculum_online.py", "--use_cpu")  # nothing is left to do
    after = load_file(f"{out}/model.safetensors")
    assert all(before[name].equal(after[name]) for name in before)


@pytest.mark.distributed
def test_curriculum_online_on_processes(start):
    out, _ = start("curriculum_online.py", "--use_cpu", processes=2)
    assert history(out).groupby("train_mode").size().to_dict() == {False: 12, True: 36}


def test_plain_sft_trainer(start):
    _, printed = start("plain_sft_trainer.py", "--bf16", "0")
    assert "6 of 12 trajectories were left out" in printed


@pytest.fixture
def command():
    return runpy.run_path(str(EXAMPLES / "launch_sft.py"))["command"]


@pytest.mark.parametrize("name", ["single_gpu", "multi_gpu", "fsdp1", "fsdp2", "zero1", "zero2", "zero3"])
def test_predefined_configurations_are_understood_by_accelerate(name, command):
    parts = command(name, ["--num_processes", "2"], ["--model_name_or_path", "student", "--bf16"])
    launch = launch_command_parser().parse_args(parts[3:])
    assert launch.num_processes == 2 and launch.module and launch.training_script == "rsr_trl"
    assert launch.training_script_args == ["sft", "--model_name_or_path", "student", "--bf16"]
    config = load_config_from_file(launch.config_file)
    with open(launch.config_file) as file:
        assert config.distributed_type == yaml.safe_load(file)["distributed_type"]
    if name.startswith("fsdp"):
        assert config.fsdp_config["fsdp_version"] == int(name[-1])
    if name.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(name[-1])


def test_an_unknown_configuration_names_those_there_are(command):
    with pytest.raises(SystemExit, match="fsdp1, fsdp2, multi_gpu, single_gpu, zero1, zero2, zero3"):
        command("fsdp3", [], [])
