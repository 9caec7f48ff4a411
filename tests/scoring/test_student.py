"""Students against their own logits in float64; what they refuse; and that they come back unchanged."""

import random

import numpy as np
import pytest
import torch
import transformers

from rsr_trl.rsr import trajectory_rsr
from rsr_trl.scoring.student import Student, best_layout, length_border, load_model
from rsr_trl.scoring.tokens import TokenizedExample
from tests.scoring.truth import in_float64, truth_of


V = 203
ROUNDING = 2e-5  # of a logit in float32, after a few layers
SHAPE = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES = {
    "Llama": {},
    "Qwen3": {"head_dim": 8, "tie_word_embeddings": True},
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 16},  # positions from the mask; a projection before the head
    "Mamba": {},  # no attention at all
    "Bloom": {"n_layer": 2, "n_head": 4},  # no positions
}


def model_of(name: str, **config) -> transformers.PreTrainedModel:
    config = getattr(transformers, f"{name}Config")(**SHAPE | ARCHITECTURES.get(name, {}) | config)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config).eval()


def examples_of(lengths=(40, 40, 33, 20, 7), seed: int = 0) -> list[TokenizedExample]:
    """Rows of random tokens; from a third on, two of three places are scored."""
    drawn, rows = np.random.default_rng(seed), []
    for n in lengths:
        scored = (np.arange(n) > n // 3) & (np.arange(n) % 3 > 0)
        rows.append(TokenizedExample(drawn.integers(3, V, n).astype(np.int32), scored))
    return rows


def assert_true(model: torch.nn.Module, examples: list[TokenizedExample], scores: dict) -> None:
    """Scores of all examples equal the definition."""
    model64 = in_float64(model)
    assert sorted(scores) == [i for i, example in enumerate(examples) if not example.error]
    for i, score in scores.items():
        truth = truth_of(model64, examples[i].input_ids, np.flatnonzero(examples[i].scored))
        truth.assert_ranks(score.ranks, rounding=ROUNDING)
        np.testing.assert_array_equal(score.token_ids, truth.targets)
        np.testing.assert_allclose(score.surprisals, truth.surprisals, rtol=1e-4, atol=1e-5)
        assert trajectory_rsr(score.ranks, score.surprisals) == pytest.approx(truth.rsr(), rel=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name):
    model, examples = model_of(name), examples_of()
    student = Student(model)
    for layout in ("equal", "padded"):  # the CPU never pads by itself
        student.layout = layout
        assert_true(model, examples, dict(student.score(examples)))


@pytest.mark.parametrize("max_batch_tokens", [1, 64, 100, 10_000])
@pytest.mark.parametrize("layout", ["equal", "padded"])
def test_batches_do_not_matter(layout, max_batch_tokens):
    model = model_of("Qwen3")
    examples = examples_of(lengths=(5, 40, 21, 40, 12, 5, 33, 40, 2, 4))
    examples.insert(3, TokenizedExample.failed("nothing there"))
    student = Student(model, max_batch_tokens=max_batch_tokens)
    student.layout = layout
    scores = dict(student.score(examples))
    reverse = dict(student.score(examples[::-1]))
    assert_true(model, examples, scores)
    for i, score in scores.items():
        again = reverse[len(examples) - 1 - i]
        assert trajectory_rsr(again.ranks, again.surprisals) == pytest.approx(
            trajectory_rsr(score.ranks, score.surprisals), rel=1e-5
        )


def test_most_likely_tokens():
    model, examples = model_of("Llama"), examples_of()
    student = Student(model)
    for i, score in student.score(examples, with_top1=True):
        truth = truth_of(in_float64(model), examples[i].input_ids, np.flatnonzero(examples[i].scored))
        truth.assert_top1(score.top1, rounding=ROUNDING)
        assert (score.ranks[score.top1 == score.token_ids] == 1).all()
    assert next(student.score(examples))[1].top1 is None


@pytest.mark.parametrize(
    ("name", "config", "packs"),
    [
        ("Qwen3", {}, True),
        ("Qwen3", {"use_sliding_window": True, "max_window_layers": 1}, True),
        ("Lfm2", {"layer_types": ["conv", "full_attention"]}, False),
        ("Mamba", {}, False),
        ("FalconH1", {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8}, False),
    ],
)
def test_rows_are_packed_only_where_every_layer_keeps_them_apart(name, config, packs):
    config = getattr(transformers, f"{name}Config")(**SHAPE, head_dim=8, **config)
    with torch.device("meta"):
        model = getattr(transformers, f"{name}ForCausalLM")(config)
    gpu = torch.device("cuda")
    assert best_layout(model, gpu) == "padded"
    model.config._attn_implementation_internal = "flash_attention_2"  # which isn't installed everywhere
    assert best_layout(model, gpu) == ("packed" if packs else "padded")
    assert best_layout(model, torch.device("cpu")) == "equal"


def test_sorted_longest_first_and_nothing_to_do():
    student, examples = Student(model_of("Llama")), examples_of(lengths=(5, 40, 7))
    assert [i for i, _ in student.score(examples)] == [1, 2, 0]
    assert list(student.score([])) == []
    assert list(student.score([TokenizedExample.failed("no")])) == []


class TestRefuses:
    def test_an_unknown_way_to_logits(self):
        model = model_of("Llama")
        model.lm_head.register_forward_hook(lambda module, inputs, output: output * 0.8)
        with pytest.raises(ValueError, match="LlamaForCausalLM doesn't compute its logits in a way that is known"):
            list(Student(model).score(examples_of()))

    def test_attention_to_later_tokens(self):
        model = model_of("Qwen3")
        backbone = model.model.forward

        def both_ways(input_ids, **kwargs):
            length = input_ids.shape[1]
            kwargs["attention_mask"] = {"full_attention": torch.zeros(1, 1, length, length)}
            return backbone(input_ids=input_ids, **kwargs)

        model.model.forward = both_ways
        with pytest.raises(ValueError, match="Only causal language models"):
            list(Student(model).score(examples_of()))

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("BertForMaskedLM", "Only causal language models"),
            ("BertModel", "BertModel has no LM head"),
            ("Qwen3ForSequenceClassification", "has no LM head"),
            ("T5ForConditionalGeneration", "must be a decoder-only causal language model"),
            ("Llama4ForCausalLM", "whose backbone stands apart"),
        ],
    )
    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_models_that_are_not_causal_or_not_known(self, name, message):
        kind = getattr(transformers, name)
        small = {
            "Llama4ForCausalLM": {"head_dim": 8, "num_local_experts": 2},
            "T5ForConditionalGeneration": {"d_kv": 8},
        }
        config = kind.config_class(**SHAPE | small.get(name, {}))
        with pytest.raises(ValueError, match=message):
            list(Student(kind(config)).score(examples_of()))

    def test_something_else(self):
        with pytest.raises(TypeError, match="must be a transformers model, got Linear"):
            Student(torch.nn.Linear(2, 2))

    def test_token_ids_beyond_the_vocabulary(self):
        examples = examples_of()
        examples[2].input_ids[5] = V
        with pytest.raises(ValueError, match=f"Row 2 has token id {V}, but the student's vocabulary has {V} entries"):
            list(Student(model_of("Llama")).score(examples))

    def test_weights_left_on_another_device(self):
        with torch.device("meta"):
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
        with pytest.raises(ValueError, match="Part of the student's weights was left on the CPU or on disk"):
            Student(model)

    def test_a_batch_without_tokens(self):
        with pytest.raises(ValueError, match="max_batch_tokens must be at least 1, got 0"):
            list(Student(model_of("Llama"), max_batch_tokens=0).score(examples_of()))


class TestBrokenWeights:
    def test_nan_names_the_rows(self):
        model, examples = model_of("Llama", tie_word_embeddings=False), examples_of()
        for row in (0, 3):
            examples[row].input_ids[1] = 100
        for row in (1, 2, 4):
            examples[row].input_ids[examples[row].input_ids == 100] = 101
        with torch.no_grad():
            model.get_input_embeddings().weight[100] = torch.nan
        with pytest.raises(FloatingPointError, match=r"NaN or infinite logits on rows \[0, 3\].*try dtype='float32'"):
            list(Student(model).score(examples))

    def test_all_of_it(self):
        model = model_of("Llama")
        with torch.no_grad():
            model.lm_head.weight.fill_(torch.nan)
        with pytest.raises(FloatingPointError, match=r"rows \[0, 1, 2, 3, 4\]"):
            list(Student(model).score(examples_of()))


class TestLeftAsFound:
    @staticmethod
    def state(model: torch.nn.Module) -> dict:
        return {
            "modes": [module.training for module in model.modules()],
            "gradients": [(p.requires_grad, p.grad) for p in model.parameters()],
            "weights": [(p.data_ptr(), p._version) for p in model.parameters()],
            "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
            "forwards": [module.forward.__func__ for module in model.modules() if hasattr(module.forward, "__func__")],
            "config": model.config.to_dict(),
            "generation": model.generation_config.to_dict(),
            "torch": torch.get_rng_state().tolist(),
            "numpy": np.random.get_state()[1].tolist(),
            "python": random.getstate(),
            "grad": torch.is_grad_enabled(),
        }

    def mixed(self) -> torch.nn.Module:
        model = model_of("Llama", attention_dropout=0.5)
        model.train()
        model.model.layers[0].eval()  # as someone does who freezes a part
        model.model.embed_tokens.weight.requires_grad_(False)
        model.config.use_cache = True
        model.generation_config.use_cache = True
        return model

    def test_after_scoring(self):
        model, examples = self.mixed(), examples_of()
        before = self.state(model)
        scores = dict(Student(model).score(examples))
        assert self.state(model) == before
        assert_true(model, examples, scores)  # in evaluation mode: dropout had no part in it

    def test_after_an_error_and_after_giving_up(self):
        model, examples = self.mixed(), examples_of()
        before = self.state(model)
        for _ in Student(model, max_batch_tokens=1).score(examples):
            break
        assert self.state(model) == before
        examples[4].input_ids[:] = V + 1
        with pytest.raises(ValueError, match="Row 4"):
            list(Student(model).score(examples))
        assert self.state(model) == before

    def test_gradients_of_a_step_under_way(self):
        model = self.mixed().eval()
        ids = torch.arange(10, 30)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        list(Student(model).score(examples_of()))
        after = [p.grad for p in model.parameters()]
        assert all(a is b if b is None else torch.equal(a, b) for a, b in zip(after, before, strict=True))

    def test_a_head_that_was_replaced_meanwhile(self):
        """Resizing the vocabulary puts other modules in place of embeddings and head."""
        model, examples = model_of("Llama", tie_word_embeddings=False), examples_of()
        student = Student(model)
        list(student.score(examples))
        model.resize_token_embeddings(V + 5, mean_resizing=False)
        assert student.vocab_size == V + 5
        with torch.no_grad():
            model.lm_head.weight.mul_(0.5)
        assert_true(model, examples, dict(student.score(examples)))


class TestLoading:
    def test_dtype_device_and_map(self, tmp_path):
        model, examples = model_of("Llama"), examples_of()
        model.save_pretrained(tmp_path)
        for arguments in ({}, {"device": "cpu"}, {"device_map": "cpu"}, {"device_map": {"": "cpu"}}):
            assert_true(model, examples, dict(Student(load_model(str(tmp_path), **arguments)).score(examples)))
        narrow = load_model(str(tmp_path), dtype="bfloat16")
        assert narrow.dtype == torch.bfloat16 and not narrow.training
        with pytest.raises(ValueError, match="either device='cpu' or device_map='auto', not both"):
            load_model(str(tmp_path), device="cpu", device_map="auto")

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_reduced_precision_scores_its_own_rounded_weights(self, tmp_path, dtype):
        model, examples = model_of("Llama", initializer_range=0.1), examples_of()
        model.save_pretrained(tmp_path)
        for i, score in Student(load_model(str(tmp_path), dtype=dtype)).score(examples):
            truth = truth_of(in_float64(model), examples[i].input_ids, np.flatnonzero(examples[i].scored))
            assert trajectory_rsr(score.ranks, score.surprisals) == pytest.approx(truth.rsr(), rel=0.02)


@pytest.mark.parametrize("layout", ["equal", "padded", "packed"])
def test_longrope_rows_have_the_factors_of_their_own_length(layout):
    """Phi-3's: transformers takes the long factors for a whole batch whose longest row is beyond the border."""
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    own = {"original_max_position_embeddings": 32, "sliding_window": None, "rope_parameters": rope}
    model, examples = model_of("Phi3", **own), examples_of(lengths=(60, 20, 25, 33, 32))
    assert length_border(model) == 32 and length_border(model_of("Llama")) is None
    student = Student(model, max_batch_tokens=10_000)
    student.layout = layout
    assert_true(model, examples, dict(student.score(examples)))
