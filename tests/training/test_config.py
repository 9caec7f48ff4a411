import pytest
import torch
from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig, TrlParser

from rsr_trl.training.config import RSRSFTConfig


def test_defaults_are_those_of_sft_config_except_bf16_and_pinned_memory_without_a_gpu():
    ours, theirs = RSRSFTConfig("out"), SFTConfig("out", bf16=False)
    assert ours.bf16 == is_torch_bf16_gpu_available()
    assert ours.dataloader_pin_memory == torch.accelerator.is_available()
    names = theirs.to_dict().keys() - {"bf16", "dataloader_pin_memory", "logging_dir"}
    assert [name for name in names if ours.to_dict()[name] != theirs.to_dict()[name]] == []


@pytest.mark.filterwarnings("error")
def test_builds_without_a_warning():
    RSRSFTConfig("out")
    RSRSFTConfig("out", gradient_checkpointing=False)


def test_the_direction_is_the_scores_own():
    for score, prefer in {"rsr": "low", "surprisal": "low", "length": "high"}.items():
        assert RSRSFTConfig("out", rsr_score=score, rsr_rescore_strategy="no").rsr_prefer == prefer


@pytest.mark.parametrize(
    "settings",
    [
        *({"rsr_group_column": "problem"}, {"rsr_keep_fraction": 0.5}, {"rsr_score_threshold": 0.0}),
        *({"rsr_sampling": "weighted"}, {"rsr_rescore_strategy": "epoch"}, {"rsr_teacher_column": "teacher"}),
    ],
)
def test_by_default_scores_decide_nothing(settings):
    assert not RSRSFTConfig("out").needs_scores and RSRSFTConfig("out", **settings).needs_scores


def test_a_plain_sft_config_keeps_all_its_settings():
    own = {"eos_token": "</s>", "hub_token": "secret", "max_length": 77, "activation_checkpointing": False}
    plain = SFTConfig("out", bf16=False, dataloader_pin_memory=False, **own)
    ours = RSRSFTConfig.from_sft_config(plain)
    assert ours.hub_token == "secret" and ours.eos_token == "</s>"
    theirs = plain.to_dict()
    assert {name: value for name, value in ours.to_dict().items() if name in theirs} == theirs


def test_is_read_from_the_command_line():
    arguments = "--output_dir o --rsr_rescore_strategy steps --rsr_rescore_steps 0.1 --rsr_group_column problem_id"
    (config,) = TrlParser(RSRSFTConfig).parse_args_and_config(arguments.split())
    assert (config.rsr_rescore_strategy, config.rsr_rescore_steps) == ("steps", 0.1)
    assert config.rsr_group_column == "problem_id" and config.rsr_r_max == 100


def test_rescore_steps_may_be_a_ratio():
    for given, max_steps, steps in ((50, 1000, 50), (0.1, 1000, 100), (0.1, 1001, 101), (0.01, 5, 1)):
        config = RSRSFTConfig("out", rsr_rescore_strategy="steps", rsr_rescore_steps=given)
        assert config.rescore_every(max_steps) == steps


def test_every_option_is_explained_on_the_command_line():
    explained = {action.dest: action.help for action in TrlParser(RSRSFTConfig)._actions if "rsr_" in action.dest}
    assert len(explained) == 16 and all(text.endswith(".") and "`" not in text for text in explained.values())
    assert explained["rsr_r_max"] == "Token ranks are clipped at this value."


STATIC = ("lark", "length", "random")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"packing": True}, "set packing=False"),
        ({"eval_packing": True, "eval_strategy": "epoch"}, "set eval_packing=False"),
        ({"train_sampling_strategy": "group_by_length"}, "set rsr_sampling"),
        ({"train_sampling_strategy": "sequential"}, "leave it at 'random'"),
        ({"dataset_kwargs": {"skip_prepare_dataset": True}}, "before tokenization"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches"),
        ({"rsr_group_column": "p", "rsr_keep_fraction": 0.5}, "set one of them"),
        ({"rsr_keep_per_group": 2}, "needs rsr_group_column"),
        ({"rsr_min_tokens": 40}, "rsr_min_tokens=40 needs rsr_keep_fraction or groups"),
        ({"rsr_min_tokens": -1}, "rsr_min_tokens must be 0 or more"),
        ({"rsr_rescore_strategy": "steps"}, "needs rsr_rescore_steps"),
        ({"rsr_rescore_steps": 5}, "needs rsr_rescore_strategy='steps'"),
        ({"rsr_rescore_strategy": "online", "num_train_epochs": 1}, "there is only one"),
        ({"rsr_rescore_strategy": "online", "torch_compile": True}, "torch_compile=False"),
        ({"rsr_score": "judge", "rsr_rescore_strategy": "no"}, "Which end of the column 'judge'"),
        *(
            (
                {"rsr_score": s, "rsr_rescore_strategy": "epoch"},
                f"rsr_score='{s}' isn't measured.*: rsr, surprisal, rank",
            )
            for s in STATIC
        ),
        ({"rsr_prefer": "lower"}, "prefer must be 'low' or 'high', got 'lower'"),
        ({"rsr_sampling": "best"}, "rsr_sampling must be one of"),
        ({"rsr_rescore_strategy": "epochs"}, "rsr_rescore_strategy must be one of"),
        ({"rsr_keep_fraction": 0.0}, "rsr_keep_fraction"),
        ({"rsr_temperature": 0.0}, "rsr_sampling='ordered'"),
        ({"rsr_r_max": 0}, "rsr_r_max"),
        ({"rsr_max_batch_tokens": 0}, "rsr_max_batch_tokens"),
        ({"rsr_rescore_strategy": "steps", "rsr_rescore_steps": 1.5}, "whole number"),
        ({"rsr_rescore_strategy": "steps", "rsr_rescore_steps": -1}, "whole number"),
    ],
    ids=str,
)
def test_contradictions_say_what_to_set(settings, message):
    with pytest.raises(ValueError, match=message):
        RSRSFTConfig("out", **settings)


def test_keep_end_is_refused():
    with pytest.warns(FutureWarning), pytest.raises(ValueError, match="set truncation_mode='keep_start'"):
        RSRSFTConfig("out", truncation_mode="keep_end")
