"""Small random students of many families, random rows for them, and the comparison of their scores with the truth."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rsr_trl.rsr import trajectory_rsr
from rsr_trl.scoring.tokens import TokenizedExample
from tests.scoring.truth import in_float64, truth_of


V = 203  # odd on purpose: no tile divides it
SHAPE = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # spreads the logits
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
DEEPSEEK = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
DEEPSEEK |= {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}
# Every family of causal language models that TRL ships a chat template for, and some more.
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
    "deepseek_v3": {**MOE, **DEEPSEEK, "num_key_value_heads": 4, "head_dim": 4},
    "gpt_oss": {**MOE, "sliding_window": 8},
    "smollm3": {},
    "granite": {"logits_scaling": 4.0},
    "falcon_h1": {"lm_head_multiplier": 0.5, **MAMBA},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_bigcode": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "olmo2": {},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16},  # positions from the mask; a projection before the head
    "mamba": {},  # no attention at all
    "bloom": {"n_layer": 2, "n_head": 4},  # no positions
}
DELTA_NET = {"layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4}
DELTA_NET |= {"linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}
# Recurrent and attention layers, or layers that share theirs.
HYBRIDS = {
    "qwen3_next": {**MOE, **DELTA_NET, "shared_expert_intermediate_size": 16},
    "granitemoehybrid": {**MOE, **MAMBA2, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 16},
    "bamba": {**MAMBA2, "mamba_n_groups": 1, "attn_layer_indices": [1]},
    "jamba": {**MOE, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4},
    "minimax": {**MOE, "layer_types": ["linear_attention", "full_attention"]},
    "gemma3n_text": {
        **{"num_kv_shared_layers": 1, "layer_types": ["full_attention"] * 2, "sliding_window": 8, "laurel_rank": 4},
        **{"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": V, "altup_num_inputs": 2},
        "activation_sparsity_pattern": [0.0, 0.0],
    },
}
NOT_GPT2S = {"hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "intermediate_size"}


def build(family: str, **config) -> PreTrainedModel:
    """A random student in fp32 and evaluation mode, always the same one."""
    model_type = family.split("-")[0]
    settings = {**SHAPE, **(FAMILIES | HYBRIDS)[family], **config}
    if model_type in ("gpt2", "gpt_bigcode"):
        settings = {name: value for name, value in settings.items() if name not in NOT_GPT2S}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings)).float().eval()


def examples_of(lengths: Sequence[int] = (40, 40, 33, 20, 7), seed: int = 0) -> list[TokenizedExample]:
    """Rows of random tokens; from a third on, two of three places are scored."""
    drawn, rows = np.random.default_rng(seed), []
    for n in lengths:
        scored = (np.arange(n) > n // 3) & (np.arange(n) % 3 > 0)
        rows.append(TokenizedExample(drawn.integers(3, V, n).astype(np.int32), scored))
    return rows


def rows_of(tokens) -> list[SimpleNamespace]:
    """The flat arrays of [`ScoredTokens`], row by row."""
    ends = np.cumsum(tokens.num_tokens)
    return [
        SimpleNamespace(
            **{
                name: getattr(tokens, name)[end - count : end]
                for name in ("token_ids", "ranks", "surprisals", "top1", "entropies", "sum_squares")
                if getattr(tokens, name) is not None
            }
        )
        for end, count in zip(ends, tokens.num_tokens, strict=True)
    ]


def rsr_of(tokens) -> list[float]:
    return [trajectory_rsr(row.ranks, row.surprisals) for row in rows_of(tokens)]


def assert_true(
    model: torch.nn.Module, examples: list[TokenizedExample], tokens, rounding: float = 2e-5, atol: float = 1e-5
) -> None:
    """Scores of all examples equal the definition; `rounding` is that of a logit in float32 after a few layers."""
    mixture = hasattr(model.config, "num_experts_per_tok")  # its kernels know no float64
    model64, rounding, atol = (model, 1e-4, 1e-4) if mixture else (in_float64(model), rounding, atol)
    assert tokens.num_tokens.tolist() == [int(example.scored.sum()) for example in examples]
    assert tokens.surprisals.std() > 0.1, "this model's logits say nothing: the comparison would prove nothing"
    for example, row in zip(examples, rows_of(tokens), strict=True):
        if example.error:
            continue
        truth = truth_of(model64, example.input_ids, np.flatnonzero(example.scored))
        truth.assert_ranks(row.ranks, rounding)
        np.testing.assert_array_equal(row.token_ids, truth.targets)
        np.testing.assert_allclose(row.surprisals, truth.surprisals, rtol=1e-4, atol=atol)
        assert trajectory_rsr(row.ranks, row.surprisals) == pytest.approx(truth.rsr(), rel=1e-5)
        if hasattr(row, "top1"):
            truth.assert_top1(row.top1, rounding)
            assert (row.ranks[row.top1 == row.token_ids] == 1).all()
