"""Students in GGUF files: a tiny Llama is written into one, plain and quantized, beside the same weights live."""

import json

import pytest
import torch
from datasets import Dataset
from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quantize
from transformers import LlamaConfig, LlamaForCausalLM

from rsr_trl import RSRError, RSRScorer, RSRSFTConfig, RSRSFTTrainer
from rsr_trl.scoring import loading
from tests.conftest import CHATML


F32, Q4 = GGMLQuantizationType.F32, GGMLQuantizationType.Q4_1
FILE, HEADS, HIDDEN, LAYERS = "tiny.gguf", 2, 64, 2
NAMES = {  # of the weights in transformers -> in the file
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    **{
        f"model.layers.{layer}.{ours}": f"blk.{layer}.{theirs}"
        for layer in range(LAYERS)
        for ours, theirs in {
            "input_layernorm": "attn_norm",
            "post_attention_layernorm": "ffn_norm",
            **{f"self_attn.{x}_proj": f"attn_{x if x != 'o' else 'output'}" for x in "qkvo"},
            **{f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")},
        }.items()
    },
}
ROWS = [
    {
        "prompt": [{"role": "user", "content": f"{a} and {a}?"}],
        "completion": [{"role": "assistant", "content": answer}],
    }
    for a, answer in ((2, "That makes 4, as 2 + 2 = 4."), (3, "6"), (21, "Add 21 and 21: the answer is 42."))
]


def interleaved(weight: torch.Tensor) -> torch.Tensor:
    """Rows of a query or key projection as GGUF has them: a head's two rotary halves alternate."""
    return weight.view(HEADS, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


@pytest.fixture(params=[F32, Q4], ids=["float32", "4 bits"])
def student(request, tmp_path, tiny_tokenizer):
    """Folder with the file, and the same weights live, as gguf itself dequantizes them."""
    vocab = tiny_tokenizer.get_vocab()
    vocab["Th"] = len(vocab)
    torch.manual_seed(0)
    config = {"hidden_size": HIDDEN, "intermediate_size": 128, "num_hidden_layers": LAYERS, "initializer_range": 0.3}
    config |= {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "max_position_embeddings": 512}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(vocab), tie_word_embeddings=False, **config)).eval()
    out = GGUFWriter(tmp_path / FILE, "llama")
    out.add_context_length(512)
    out.add_embedding_length(HIDDEN)
    out.add_block_count(LAYERS)
    out.add_feed_forward_length(128)
    out.add_head_count(HEADS)
    out.add_head_count_kv(HEADS)
    out.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    out.add_rope_freq_base(10_000.0)
    out.add_rope_dimension_count(HIDDEN // HEADS)
    out.add_vocab_size(len(vocab))
    out.add_tokenizer_model("gpt2")
    out.add_token_list(sorted(vocab, key=vocab.get))
    special = set(tiny_tokenizer.all_special_tokens)
    out.add_token_types([3 if token in special else 1 for token in sorted(vocab, key=vocab.get)])
    out.add_token_merges(["T h"])
    out.add_eos_token_id(tiny_tokenizer.eos_token_id)
    out.add_pad_token_id(tiny_tokenizer.pad_token_id)
    out.add_chat_template(CHATML)
    for name, weight in model.state_dict().items():
        weight = weight.clone()
        layout = interleaved(weight) if "q_proj" in name or "k_proj" in name else weight
        kind = request.param if weight.dim() == 2 else F32
        stored = quantize(layout.numpy(), kind)
        out.add_tensor(f"{NAMES[name.removesuffix('.weight')]}.weight", stored, raw_dtype=kind)
        # Blocks lie within a row, so quantizing before or after rows change places is the same.
        model.state_dict()[name].copy_(torch.from_numpy(dequantize(quantize(weight.numpy(), kind), kind)))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return tmp_path, model, None if request.param == F32 else 4


def test_scores_are_those_of_the_same_weights_live_by_either_name(student, tiny_tokenizer):
    folder, model, bits = student
    rows = Dataset.from_list(ROWS)
    named, joined = RSRScorer(folder, gguf_file=FILE), RSRScorer(folder / FILE)
    tokenizer = named.processing_class
    assert tokenizer.convert_ids_to_tokens(tokenizer("That is").input_ids) == ["Th", "a", "t", "Ġ", "i", "s"]
    scored, live = named.score(rows), RSRScorer(model, tokenizer)
    assert scored["rsr"] == pytest.approx(live.score(rows)["rsr"], rel=1e-5)
    assert scored.to_list() == joined.score(rows).to_list()
    assert named.identity() == joined.identity() and named.fingerprint == joined.fingerprint
    assert tokenizer.chat_template == CHATML and tokenizer.eos_token == tiny_tokenizer.eos_token
    assert loading.weight_bits(joined.model_id) == bits
    before = named.identity()["weights"]
    with (folder / FILE).open("ab") as file:
        file.write(b"\0")
    assert RSRScorer(folder / FILE).identity()["weights"] != before


def test_is_trained_and_saved_and_starts_from_its_own_scores(student, tmp_path):
    folder, model, _ = student
    scored = RSRScorer(folder, gguf_file=FILE).score(Dataset.from_list(ROWS))
    how = {"model_init_kwargs": {"gguf_file": FILE}, "max_steps": 1, "use_cpu": True, "report_to": "none"}
    trainer = RSRSFTTrainer(str(folder), args=RSRSFTConfig(tmp_path / "out", **how), train_dataset=scored)
    assert sorted(trainer.table.rsr) == pytest.approx(sorted(scored["rsr"]))
    assert trainer.args.model_init_kwargs == how["model_init_kwargs"]
    trainer.train()
    trainer.save_model(tmp_path / "trained")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "trained").state_dict()
    assert not torch.equal(again["lm_head.weight"], model.state_dict()["lm_head.weight"])
    torch.testing.assert_close(again["lm_head.weight"], model.state_dict()["lm_head.weight"], atol=1e-4, rtol=0)


def test_an_adapter_finds_the_file_that_it_was_trained_on(student, tmp_path):
    from peft import LoraConfig

    folder, model, _ = student
    how = {"max_steps": 1, "use_cpu": True, "report_to": "none"}
    trainer = RSRSFTTrainer(
        str(folder / FILE),
        args=RSRSFTConfig(tmp_path / "out", **how),
        train_dataset=Dataset.from_list(ROWS),
        peft_config=LoraConfig(target_modules=["q_proj"]),
    )
    trainer.save_model(tmp_path / "adapter")
    base = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(folder / FILE)
    adapted, plain = (RSRScorer(path).score(Dataset.from_list(ROWS)) for path in (tmp_path / "adapter", folder / FILE))
    assert adapted["rsr"] == plain["rsr"]  # untrained, it adds nothing


def test_errors_say_what_to_do(tmp_path, monkeypatch, make_scorer):
    cases = {
        "There is no file": lambda: RSRScorer(tmp_path / FILE),
        "isn't the name of a .gguf file": lambda: RSRScorer(tmp_path, gguf_file="model.bin"),
        "is for loading a student by name": lambda: make_scorer(gguf_file=FILE),
    }
    for message, call in cases.items():
        with pytest.raises(RSRError, match=message):
            call()
    monkeypatch.setattr(loading, "is_gguf_available", lambda: False)
    with pytest.raises(RSRError, match="needs the package gguf: pip install gguf"):
        RSRScorer("someone/model", gguf_file=FILE)


@pytest.mark.parametrize(
    ("name", "parts"),
    [("me/model", ("me/model", {})), ("me/model/sub/q4.gguf", ("me/model", {"gguf_file": "sub/q4.gguf"}))],
)
def test_a_file_in_a_repository_is_named_as_one(name, parts):
    assert loading.split_gguf(name) == parts
