"""`rsr_student`: equal for equal students and settings, different for anything that changes a score."""

import copy
import re
from itertools import combinations

import pytest
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from rsr_trl import RSRScorer
from rsr_trl.scoring.fingerprint import checkpoint_fingerprint, dtype_of, same_student, weights_fingerprint


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_live_and_by_path(tiny_student_path, tiny_student, tiny_tokenizer, dtype):
    by_path = RSRScorer(tiny_student_path, dtype=dtype).fingerprint
    loaded = AutoModelForCausalLM.from_pretrained(tiny_student_path, dtype=dtype)
    for model in (loaded, tiny_student().to(getattr(torch, dtype))):
        assert RSRScorer(model, tiny_tokenizer).fingerprint == by_path
    assert re.fullmatch(rf"[0-9a-f]{{16}}-{dtype}", by_path)


def test_same_student_in_another_dtype_where_that_holds_its_weights(tiny_student, tiny_tokenizer):
    def fingerprint(*dtypes) -> str:
        model = tiny_student()
        for dtype in dtypes:
            model = model.to(dtype)
        return RSRScorer(model, tiny_tokenizer).fingerprint

    own = {dtype: fingerprint(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    assert not any(same_student(*pair) for pair in combinations(own.values(), 2)), "rounding makes another student"
    for dtype in (torch.bfloat16, torch.float16):
        loaded = fingerprint(dtype, torch.float32)
        assert same_student(own[dtype], loaded) and own[dtype] != loaded
        assert (dtype_of(own[dtype]), dtype_of(loaded)) == (str(dtype)[6:], "float32")
    old = "0123456789abcdef"  # of an earlier version: without a dtype
    assert not same_student(old, old) and not same_student(None, None)


def test_differs_with_everything_that_changes_scores(tiny_student_path, tiny_student, tiny_tokenizer):
    def fingerprint(model=None, tokenizer=tiny_tokenizer, **settings) -> str:
        return RSRScorer(model or tiny_student(), tokenizer, **settings).fingerprint

    settings = [{}, {"r_max": 50}, {"assistant_only_loss": True}, {"logits_dtype": "model"}]
    prints = {str(setting): fingerprint(**setting) for setting in settings}
    prints["dtype"] = fingerprint(tiny_student_path, dtype="bfloat16")
    model = tiny_student()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] += 1e-6
    prints["one weight"] = fingerprint(model)
    for config in (
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}},
        {"rms_norm_eps": 1e-3},
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
    ):  # the same weights computed otherwise
        prints[str(config)] = fingerprint(tiny_student(**config))
    tokenizers = [copy.deepcopy(tiny_tokenizer) for _ in range(3)]
    tokenizers[0].chat_template += " "
    tokenizers[1].eos_token = "<|endoftext|>"
    tokenizers[2].add_tokens(["makes"])
    prints |= {str(i): fingerprint(tokenizer=tokenizer) for i, tokenizer in enumerate(tokenizers)}
    assert len(set(prints.values())) == len(prints), prints


@pytest.mark.parametrize("name", ["output_multiplier", "output_logit_soft_cap"])
def test_numbers_of_the_output_count(tiny_student, name):
    plain, other = tiny_student(), tiny_student()
    setattr(other.config, name, 0.25)
    assert weights_fingerprint(plain) != weights_fingerprint(other)


def test_does_not_differ_with_anything_else(scorer, tiny_student, tiny_tokenizer):
    expected = scorer.fingerprint
    model = tiny_student(attention_dropout=0.5).train()
    model.config.use_cache = False
    model.config.output_hidden_states = model.config.output_router_logits = True
    model.config.pad_token_id = 0  # as trainers set it
    model.requires_grad_(False)
    tiny_tokenizer.pad_token = "<|unused|>"
    tiny_tokenizer.padding_side = tiny_tokenizer.truncation_side = "left"
    tiny_tokenizer.model_max_length = 77
    tiny_tokenizer(["some text", "b"], padding=True, truncation=True, max_length=3)
    other = RSRScorer(model, tiny_tokenizer, max_length=100, max_batch_tokens=7, token_stats=True, overwrite=True)
    assert other.fingerprint == expected


def test_adapters_count_from_when_they_add_something(tiny_student, tiny_tokenizer):
    from peft import LoraConfig, get_peft_model

    def fingerprint(change=lambda model: None, **config):
        config = {"target_modules": ["q_proj", "embed_tokens"], **config}
        model = get_peft_model(tiny_student(tie_word_embeddings=False), LoraConfig(**config))
        change(model)
        return RSRScorer(model, tiny_tokenizer).fingerprint

    def add(place):
        def change(model):
            dict(model.named_parameters())[f"base_model.model.model.{place}"].data[0, 0] = 1e-3

        return change

    base = RSRScorer(tiny_student(tie_word_embeddings=False), tiny_tokenizer).fingerprint
    assert fingerprint() == fingerprint(r=2, lora_alpha=5) == base
    assert fingerprint(add("layers.0.self_attn.q_proj.lora_A.default.weight")) == base, "A alone adds nothing"
    others = [
        fingerprint(add("layers.0.self_attn.q_proj.lora_B.default.weight")),
        fingerprint(add("embed_tokens.lora_embedding_A.default")),
        fingerprint(add("layers.0.self_attn.q_proj.base_layer.weight")),
        fingerprint(use_dora=True, target_modules=["q_proj"]),
        fingerprint(init_lora_weights="pissa", target_modules=["q_proj"]),
        fingerprint(modules_to_save=["norm"]),
    ]
    assert base not in others


def test_is_computed_anew_only_when_weights_change(scorer):
    hashed, compute = [], scorer.student.weights_fingerprint
    scorer.student.weights_fingerprint = lambda: hashed.append(1) or compute()
    first = scorer.fingerprint
    assert scorer.fingerprint == first and len(hashed) == 1  # map asks for it at every row
    with torch.no_grad():
        scorer.student.model.model.norm.weight.add_(1)
    assert scorer.fingerprint != first and len(hashed) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_change_through_data_is_another_student(tiny_student, tiny_tokenizer, dtype):
    model = tiny_student().to(dtype)
    scorer, row = RSRScorer(model, tiny_tokenizer), {"prompt": "2+2=", "completion": "4, of course"}
    first = scorer(row)
    model.model.layers[1].mlp.down_proj.weight.data.mul_(1.5)
    second = scorer(row)
    assert second == RSRScorer(model, tiny_tokenizer)(row)
    assert second["rsr"] != first["rsr"] and second["rsr_student"] != first["rsr_student"]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_of_a_live_scorer_scores(tiny_student, tiny_tokenizer, copied):
    model, row = tiny_student(), {"prompt": "2+2=", "completion": "4, of course"}
    scorer = RSRScorer(model, tiny_tokenizer, r_max=50)
    first, other = scorer(row), copied(scorer)
    assert other(row) == first
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    assert (other(row) == first) == (copied is copy.deepcopy)


def test_follows_a_template_that_is_set_later(scorer, make_scorer, tiny_tokenizer):
    row = {"messages": [{"role": "user", "content": "2+2="}, {"role": "assistant", "content": "4"}]}
    first = scorer(row)
    tiny_tokenizer.chat_template = tiny_tokenizer.chat_template.replace("<|im_start|>", "<|im_start|>the ")
    second = scorer(row)
    assert second == make_scorer()(row)
    assert second["rsr"] != first["rsr"] and second["rsr_student"] != first["rsr_student"]


def test_checkpoints_by_their_bytes_or_their_commit(tmp_path):
    def written(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return checkpoint_fingerprint(str(tmp_path), None)

    prints = [written("model.safetensors", "a"), written("model.safetensors", "b"), written("config.json", "{}")]
    prints += [written("modeling_own.py", "pass"), written("config.json", "{ }")]
    assert len(set(prints)) == len(prints)
    assert written("README.md", "nothing to do with it") == prints[-1]
    assert checkpoint_fingerprint(str(tmp_path), "abc") == prints[-1]
    assert checkpoint_fingerprint("org/model", "abc") != checkpoint_fingerprint("org/model", "abd")


def test_tensors_that_are_made_of_others_count_by_those():
    """torchao's quantized weights, for one."""
    from torch.testing._internal.two_tensor import TwoTensor

    def fingerprint(numbers, scales):
        model = torch.nn.Linear(2, 2, bias=False)
        model.config = PretrainedConfig()
        model.weight = torch.nn.Parameter(TwoTensor(numbers, scales), requires_grad=False)
        return weights_fingerprint(model)

    ones, twos = torch.ones(2, 2), torch.full((2, 2), 2.0)
    assert fingerprint(ones, twos) == fingerprint(ones.clone(), twos.clone())
    assert len({fingerprint(a, b) for a in (ones, twos) for b in (ones, twos)}) == 4
