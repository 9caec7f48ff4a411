"""Fixtures that several rooms of tests share: real data beside the project, and tiny students made on the spot."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path


# Both are read when huggingface_hub and datasets are imported. No test may ask a hub; none may see or leave a cache.
os.environ["HF_HUB_OFFLINE"] = "1"
_datasets_cache = tempfile.TemporaryDirectory(prefix="rsr-trl-tests-")
os.environ["HF_DATASETS_CACHE"] = _datasets_cache.name
# Read by torch, here and in processes that tests start. The models are tiny: a second thread costs more than it
# brings, and it rounds sums by the shape of a batch, where tests ask for the same bits.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest  # noqa: E402


SHARED = Path(__file__).resolve().parents[2] / "shared"


def _shared(*parts: str) -> Path:
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{Path('../shared', *parts)} is not beside the project: real data and models are not part of it")
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data, tokenizers and models beside the project; skips where it is absent."""
    return _shared()


@pytest.fixture(scope="session")
def gsm8k_rows() -> list[dict]:
    """200 GSM8K problems x 12 teachers: `problem_id`, `prompt`, `teacher`, `completion`, `correct`, ..."""
    return _read_jsonl("gsm8k_12_teachers.jsonl")


@pytest.fixture(scope="session")
def math500_rows() -> list[dict]:
    """150 MATH-500 problems x 5 teachers, long; `complete` is false where a row is truly truncated."""
    return _read_jsonl("math500_5_teachers.jsonl")


@pytest.fixture(scope="session")
def airline_rows() -> list[dict]:
    """20 airline tasks x 5 agents: `messages` of many turns with tool calls, tool results and reasoning_content."""
    return _read_jsonl("airline_tools_5_agents.jsonl")


@pytest.fixture(scope="session")
def airline_tools() -> list[dict]:
    """Schemas of the tools that the airline agents call."""
    return json.loads(_shared("data", "airline_tools_schema.json").read_text())


def _read_jsonl(name: str) -> list[dict]:
    return [json.loads(line) for line in _shared("data", name).read_text().splitlines()]


@pytest.fixture(scope="session")
def gsm8k_student() -> str:
    """Path of a real maths student: 5.9M parameters, vocabulary 4,096, chat template, 1,024 positions."""
    return str(_shared("models", "gsm8k_6m"))


@pytest.fixture(scope="session")
def stories260k() -> str:
    """Path of a real pretrained Llama of 260k parameters: vocabulary 512, 512 positions, no chat template."""
    return str(_shared("models", "stories260K"))


def _tokenizer_fixture(name: str):
    @pytest.fixture
    def tokenizer():
        # A fresh one for every test, because tests set templates, padding sides and special tokens on it.
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(_shared("tokenizers", name)))

    return tokenizer


qwen3_tokenizer = _tokenizer_fixture("qwen3")  # with its chat template
gpt2_tokenizer = _tokenizer_fixture("gpt2")  # no chat template, no pad token
mistral_tokenizer = _tokenizer_fixture("mistral-v3")


# ChatML without {% generation %}, as most published templates are.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def tiny_tokenizer():
    """A byte-level tokenizer without merges (262 ids: one for each byte, and special tokens), with a ChatML template.

    Needs no file, so tests with it run everywhere; any text has ids, and every byte is a token.
    """
    from tests.byte_tokenizer import byte_tokenizer

    return byte_tokenizer(["<think>", "</think>", "<|unused|>"], chat_template=CHATML, model_max_length=2048)


@pytest.fixture
def tiny_student() -> Callable:
    """`tiny_student(vocab_size, seed=0, **config)` makes a random Qwen3-shaped student in fp32, in eval mode.

    Hidden 32, 2 layers, 2,048 positions. Weights are spread widely (0.3), so that its scores differ from row to row.
    """

    def make(vocab_size: int = 262, seed: int = 0, **config):
        import torch
        from transformers import Qwen3Config, Qwen3ForCausalLM

        shape = {
            "vocab_size": vocab_size,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 2048,
            "initializer_range": 0.3,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": None,
        }
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return Qwen3ForCausalLM(Qwen3Config(**shape | config)).eval()

    return make


@pytest.fixture
def tiny_student_path(tmp_path, tiny_student, tiny_tokenizer) -> str:
    """Folder with a saved `tiny_student` and its tokenizer, to load by path as a user does."""
    path = tmp_path / "student"
    tiny_student().save_pretrained(path)
    tiny_tokenizer.save_pretrained(path)
    return str(path)
