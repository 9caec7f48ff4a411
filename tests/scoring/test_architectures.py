"""Every family of causal language models that TRL ships a chat template for (and some more), built small and random:
our rank and surprisal against those of the model's own `logits`."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rsr_trl.scoring.student import Student
from rsr_trl.scoring.tokens import TokenizedExample


VOCAB = 101  # odd on purpose: no tile divides it
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,  # spreads the logits
}
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES = {
    "llama": {},
    "llama-untied": {"tie_word_embeddings": False},
    "llama-tied": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 8},
    "qwen2": {},
    "qwen3": {"tie_word_embeddings": True},
    "qwen2_moe": {**MOE, "shared_expert_intermediate_size": 16},
    "qwen3_moe": MOE,
    "mixtral": MOE,
    "gemma": {},
    "gemma2": {"final_logit_softcapping": 5.0, "sliding_window": 8},
    "gemma3_text": {"sliding_window": 8},
    "phi": {"tie_word_embeddings": False},  # a head with bias
    "phi3": {"pad_token_id": 0, "sliding_window": None},
    "glm": {"partial_rotary_factor": 0.5},
    "glm4": {"partial_rotary_factor": 0.5},
    "glm4_moe": {**MOE, "n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "cohere": {"logit_scale": 0.3},
    "cohere2": {"logit_scale": 0.3, "sliding_window": 8},
    "deepseek_v3": {
        **MOE,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
        "head_dim": 4,
    },
    "gpt_oss": {**MOE, "sliding_window": 8},
    "smollm3": {},
    "granite": {"logits_scaling": 4.0},
    "falcon_h1": {
        "lm_head_multiplier": 0.5,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "olmo2": {},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
}
GPT2_NAMES = {
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "intermediate_size",
}


def build(family: str):
    settings = {**COMMON, **FAMILIES[family]}
    model_type = family.removesuffix("-tied").removesuffix("-untied")
    if model_type == "gpt2":
        settings = {name: value for name, value in settings.items() if name not in GPT2_NAMES}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings)).float().eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["equal", "padded"])
def test_rank_and_surprisal_are_those_of_the_models_own_logits(family, layout):
    model = build(family)
    student = Student(model, max_batch_tokens=64)
    student.layout = layout
    random = np.random.default_rng(0)
    examples = []
    for length in (13, 20, 7):
        scored = np.arange(length) >= 3
        examples.append(TokenizedExample(random.integers(3, VOCAB, length, dtype=np.int32), scored))

    found = dict(student.score(examples, with_top1=True))

    assert set(found) == {0, 1, 2}
    for i, example in enumerate(examples):
        ids = torch.from_numpy(example.input_ids).long()[None]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].double()[example.scored[1:]]
        targets = ids[0, 1:][example.scored[1:]]
        own = logits.gather(1, targets[:, None])
        surprisal = (logits.logsumexp(-1) - own[:, 0]).numpy()
        np.testing.assert_allclose(found[i].surprisals, surprisal, rtol=1e-4, atol=1e-4)
        # Ranks may differ only where logits differ by rounding.
        others = logits.scatter(1, targets[:, None], -torch.inf)
        low, high = (1 + (others > own + margin).sum(-1).numpy() for margin in (1e-4, -1e-4))
        assert (low <= found[i].ranks).all() and (found[i].ranks <= high).all()
        assert (found[i].top1 == logits.argmax(-1).numpy()).mean() > 0.9
        assert surprisal.std() > 0.1, "the logits of this model say nothing: the comparison would prove nothing"


def test_the_scales_of_these_configurations_matter():
    """Cohere, Granite and Falcon-H1 scale their logits, Gemma 2 caps them: without that, surprisals would differ."""
    for family, unscaled in (
        ("cohere", {"scale": 1.0}),
        ("granite", {"scale": 1.0}),
        ("falcon_h1", {"scale": 1.0}),
        ("gemma2", {"softcap": None}),
    ):
        head = Student(build(family)).head
        hidden, targets = torch.randn(5, 32) * 3, torch.arange(5)
        plain = type(head)(head.module, **{"scale": head.scale, "softcap": head.softcap, **unscaled})
        assert not torch.allclose(
            head.score(hidden, targets).surprisals, plain.score(hidden, targets).surprisals, rtol=1e-2
        )
