"""One student: batches don't matter, what it refuses, little memory, loading; and it comes back unchanged."""

import logging
import random
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from rsr_trl import RSRScorer
from rsr_trl.scoring import student as student_module
from rsr_trl.scoring.architecture import best_layout, length_border, num_positions
from rsr_trl.scoring.loading import load_model
from rsr_trl.scoring.student import Student
from rsr_trl.scoring.tokens import TokenizedExample
from tests.scoring.students import SHAPE, V, assert_true, build, examples_of, rows_of
from tests.scoring.truth import in_float64, truth_of


def test_only_what_is_asked_for():
    student, examples = Student(build("llama")), examples_of()
    plain = student.score(examples)
    assert plain.top1 is plain.entropies is plain.sum_squares is None
    more, places = rows_of(student.score(examples, with_moments=True))[3], np.flatnonzero(examples[3].scored)
    truth_of(in_float64(student.model), examples[3].input_ids, places).assert_moments(more)
    for nothing in ([], [TokenizedExample.failed("no")]):
        tokens = student.score(nothing, with_top1=True, with_moments=True)
        assert tokens.num_tokens.tolist() == [0] * len(nothing) and tokens.top1.size == tokens.entropies.size == 0


def test_longest_first(monkeypatch):
    monkeypatch.setattr(student_module, "HEAD_POSITIONS", 1)
    done = []
    Student(build("llama")).score(examples_of(lengths=(5, 40, 7, 5)), progress=lambda *numbers: done.append(numbers))
    assert done == [(1, 40, 40), (1, 7, 7), (2, 10, 10)]


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
    config = getattr(transformers, f"{name}Config")(**SHAPE, **config)
    with torch.device("meta"):
        model = getattr(transformers, f"{name}ForCausalLM")(config)
    gpu = torch.device("cuda")
    assert best_layout(model, gpu) == "padded"
    model.config._attn_implementation_internal = "flash_attention_2"  # which isn't installed everywhere
    assert best_layout(model, gpu) == ("packed" if packs else "padded")
    assert best_layout(model, torch.device("cpu")) == "equal"


@pytest.mark.parametrize("layout", ["equal", "padded", "packed"])
def test_longrope_rows_have_the_factors_of_their_own_length(layout):
    """Phi-3's: transformers takes the long factors for a whole batch whose longest row is beyond the border."""
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    model = build("phi3", original_max_position_embeddings=32, rope_parameters=rope)
    assert length_border(model) == 32 and length_border(build("llama")) is None
    examples = examples_of(lengths=(60, 20, 25, 33, 32))
    student = Student(model, max_batch_tokens=10_000)
    student.layout = layout
    assert_true(model, examples, student.score(examples))


class TestRefuses:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize(
        "change", [lambda z: z * 0.98, lambda z: 15 * torch.tanh(z / 15)], ids=["scale", "soft cap"]
    )
    def test_an_unknown_way_to_logits(self, change, dtype):
        """Logits spread by 1.7 here, so the cap bends them as little as one at 30 bends those of a usual model."""
        model = build("llama").to(dtype)
        model.lm_head.register_forward_hook(lambda module, inputs, output: change(output))
        with pytest.raises(ValueError, match="LlamaForCausalLM doesn't compute its logits in a way that is known"):
            Student(model).score(examples_of())

    def test_attention_to_later_tokens(self):
        model = build("qwen3")
        backbone = model.model.forward

        def both_ways(input_ids, **kwargs):
            length = input_ids.shape[1]
            kwargs["attention_mask"] = {"full_attention": torch.zeros(1, 1, length, length)}
            return backbone(input_ids=input_ids, **kwargs)

        model.model.forward = both_ways
        with pytest.raises(ValueError, match="Only causal language models"):
            Student(model).score(examples_of())

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("BertForMaskedLM", "Only causal language models"),
            ("BertModel", "BertModel has no LM head"),
            ("Qwen3ForSequenceClassification", "has no LM head"),
            ("T5ForConditionalGeneration", "must be a decoder-only causal language model"),
            ("Llama4ForCausalLM", "whose backbone stands apart"),
            ("RecurrentGemmaForCausalLM", "doesn't compute its logits in a way that is known"),  # capped at 30
            ("xLSTMForCausalLM", "doesn't compute its logits in a way that is known"),
        ],
    )
    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_models_that_are_not_causal_or_not_known(self, name, message):
        kind = getattr(transformers, name)
        small = {
            "Llama4ForCausalLM": {"num_local_experts": 2},
            "T5ForConditionalGeneration": {"d_kv": 8},
            "RecurrentGemmaForCausalLM": {"lru_width": 32, "num_hidden_layers": 3},
            "xLSTMForCausalLM": {"num_heads": 4, "embedding_dim": 32, "num_blocks": 2},
        }
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = kind(kind.config_class(**SHAPE | small.get(name, {}))).eval()
        if "ForCausalLM" in name:  # as widely spread as the logits of trained models
            model.get_output_embeddings().weight.data.mul_(2 / model.get_output_embeddings().weight.std() / 32**0.5)
        with pytest.raises(ValueError, match=message):
            Student(model).score(examples_of())

    def test_something_else(self):
        with pytest.raises(TypeError, match="must be a transformers model, got Linear"):
            Student(torch.nn.Linear(2, 2))

    def test_token_ids_beyond_the_vocabulary(self):
        examples = examples_of()
        examples[2].input_ids[5] = V
        with pytest.raises(ValueError, match=f"Row 2 has token id {V}, but the student's vocabulary has {V} entries"):
            Student(build("llama")).score(examples)

    def test_weights_left_on_another_device(self):
        with torch.device("meta"):
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
        with pytest.raises(ValueError, match="Part of the student's weights was left on the CPU or on disk"):
            Student(model)

    def test_a_batch_without_tokens(self):
        with pytest.raises(ValueError, match="max_batch_tokens must be at least 1, got 0"):
            Student(build("llama"), max_batch_tokens=0).score(examples_of())


def test_nan_names_the_rows():
    model, examples = build("llama-untied"), examples_of()
    for i, example in enumerate(examples):
        example.input_ids[example.input_ids == 100] = 101
        if i in (0, 3):
            example.input_ids[1] = 100
    with torch.no_grad():
        model.get_input_embeddings().weight[100] = torch.nan
    with pytest.raises(FloatingPointError, match=r"NaN or infinite logits on rows \[7, 10\].*try dtype='float32'"):
        Student(model).score(examples, first_row=7)


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

    @pytest.fixture
    def mixed(self) -> torch.nn.Module:
        model = build("llama", attention_dropout=0.5)
        model.train()
        model.model.layers[0].eval()  # as someone does who freezes a part
        model.model.embed_tokens.weight.requires_grad_(False)
        model.config.use_cache = model.generation_config.use_cache = True
        return model

    def test_after_scoring_and_after_an_error(self, mixed):
        examples, before = examples_of(), self.state(mixed)
        tokens = Student(mixed).score(examples)
        assert self.state(mixed) == before
        assert_true(mixed, examples, tokens)  # in evaluation mode: dropout had no part in it
        broken = Student(mixed)
        broken.hidden_states = lambda *args, **given: 1 / 0
        with pytest.raises(ZeroDivisionError):
            broken.score(examples)
        assert self.state(mixed) == before

    def test_by_two_threads(self, mixed):
        """Both would find the other's evaluation mode and bring that back."""
        before, meeting, student = self.state(mixed)["modes"], Barrier(2), Student(mixed)

        def score(_):
            meeting.wait()
            return student.score(examples_of()).ranks.tolist()

        with ThreadPoolExecutor(2) as threads:
            first, second = threads.map(score, range(2))
        assert first == second and self.state(mixed)["modes"] == before

    def test_gradients_of_a_step_under_way(self, mixed):
        model, ids = mixed.eval(), torch.arange(10, 30)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        Student(model).score(examples_of())
        after = [p.grad for p in model.parameters()]
        assert all(a is b if b is None else torch.equal(a, b) for a, b in zip(after, before, strict=True))

    def test_a_head_that_was_replaced_meanwhile(self):
        """Resizing the vocabulary puts other modules in place of embeddings and head."""
        model, examples = build("llama-untied"), examples_of()
        student = Student(model)
        student.score(examples)
        model.resize_token_embeddings(V + 5, mean_resizing=False)
        assert student.vocab_size == V + 5
        with torch.no_grad():
            model.lm_head.weight.mul_(0.5)
        assert_true(model, examples, student.score(examples))


def test_loading_with_dtype_device_and_map(tmp_path):
    model, examples = build("llama"), examples_of()
    model.save_pretrained(tmp_path)
    for arguments in ({}, {"device": "cpu"}, {"device_map": "cpu"}, {"device_map": {"": "cpu"}}):
        assert_true(model, examples, Student(load_model(str(tmp_path), **arguments)).score(examples))
    narrow = load_model(str(tmp_path), dtype="bfloat16")
    assert narrow.dtype == torch.bfloat16 and not narrow.training

    def test_a_language_model_inside_a_model_of_images(self, tmp_path, tiny_tokenizer):
        """Mistral 3 and its kin: `AutoModelForCausalLM` doesn't know their checkpoints."""
        text = {"model_type": "mistral", **SHAPE, "vocab_size": 262}
        vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
        vision |= {"model_type": "pixtral", "image_size": 28, "patch_size": 14, "head_dim": 16}
        config = transformers.Mistral3Config(text_config=text, vision_config=vision)
        model = transformers.Mistral3ForConditionalGeneration(config).eval()
        model.save_pretrained(tmp_path)
        tiny_tokenizer.save_pretrained(tmp_path)
        row = {"prompt": "2+3=", "completion": " five"}
        by_path, live = RSRScorer(str(tmp_path)), RSRScorer(model, tiny_tokenizer)
        assert by_path(row) == live(row) and by_path.max_length == 128
        tokens = tiny_tokenizer("2+3= five")["input_ids"]
        truth = truth_of(model.double(), tokens, range(4, len(tokens)))
        assert by_path(row)["rsr"] == pytest.approx(truth.rsr(), rel=1e-5)


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}, 128),  # raised already
        ({"rope_type": "linear", "factor": 4.0}, 128),  # nothing says that it wasn't raised, as Gemma 3's is
        ({"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 128}, 128),
        ({"rope_type": "default"}, 128),
    ],
    ids=str,
)
def test_positions_that_rope_scaling_gives(rope, positions):
    model = build("llama", rope_parameters={"rope_theta": 10_000.0, **rope})
    assert num_positions(model.config) == positions
    if positions > 128:
        examples = examples_of((200, 150))
        assert_true(model, examples, Student(model).score(examples))


class TestOutOfMemory:
    """Running out of GPU memory halves the budget and goes on; a stand-in raises what CUDA raises."""

    @pytest.fixture
    def student(self) -> Student:
        student = Student(build("llama"), max_batch_tokens=64)
        student.layout = "padded"
        student.score(examples_of((4,)))  # the comparison with the model's own logits needs memory too
        return student

    @staticmethod
    def limit_memory(student: Student, tokens: int) -> list[int]:
        """From now on a forward of more than `tokens` tokens runs out of memory. Returns the sizes that were tried."""
        forward, tried = student.hidden_states, []

        def limited(input_ids, **given):
            tried.append(input_ids.numel())
            if input_ids.numel() > tokens:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return forward(input_ids, **given)

        student.hidden_states = limited
        return tried

    def test_every_row_is_scored_once_with_the_same_numbers(self, student, caplog):
        examples = examples_of((12, 10, 9, 8, 8, 3, 3))
        expected = student.score(examples)
        tried = self.limit_memory(student, tokens=20)
        with caplog.at_level(logging.WARNING, logger="rsr_trl"):
            tokens = student.score(examples)
        np.testing.assert_allclose(tokens.surprisals, expected.surprisals, rtol=1e-5, atol=1e-6)
        assert (tokens.ranks == expected.ranks).all() and (tokens.num_tokens == expected.num_tokens).all()
        assert max(tried) > 20, "the first batch was meant to fail"
        assert [record.args[0] for record in caplog.records] == [32, 16], "one warning for each halving"

    def test_a_row_that_does_not_fit_alone_is_named_with_what_to_do(self, student):
        self.limit_memory(student, tokens=20)
        with pytest.raises(torch.OutOfMemoryError, match="One trajectory of 30 tokens .* device_map"):
            student.score(examples_of((30, 5)))


def test_a_student_that_was_trained_in_mixed_precision_is_scored_as_its_weights_say():
    """accelerate leaves autocast in the model's forward; scoring is without it, and so is the truth."""
    model, rows = build("llama", num_hidden_layers=8), examples_of()  # rounding adds up over the layers
    expected = Student(model).score(rows)
    try:
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        prepared = accelerator.prepare_model(model)
        ids = torch.from_numpy(rows[3].input_ids[:16]).long()[None]
        own, plain = prepared(input_ids=ids).logits.float(), prepared._original_forward(input_ids=ids).logits
        error = (own - plain).square().mean().sqrt() / plain.square().mean().sqrt()
        assert error > torch.finfo(torch.bfloat16).eps / 2  # more than what is taken for another head
        found = Student(prepared).score(rows)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    np.testing.assert_array_equal(found.ranks, expected.ranks)
    np.testing.assert_array_equal(found.surprisals, expected.surprisals)
