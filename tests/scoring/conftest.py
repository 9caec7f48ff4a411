"""Scorers of tiny students, tokenizers with templates, and no progress bars of `datasets`."""

from collections.abc import Callable

import pytest
from datasets import disable_progress_bars, enable_progress_bars

from rsr_trl import RSRScorer
from rsr_trl.scoring.chat_spans import ChatSpans


@pytest.fixture(autouse=True)
def quiet():
    disable_progress_bars()
    yield
    enable_progress_bars()


@pytest.fixture
def make_scorer(tiny_student, tiny_tokenizer) -> Callable[..., RSRScorer]:
    """`make_scorer(seed=0, **settings)`: of a live student."""
    return lambda seed=0, **settings: RSRScorer(tiny_student(seed=seed), tiny_tokenizer, **settings)


@pytest.fixture
def scorer(make_scorer) -> RSRScorer:
    return make_scorer()


@pytest.fixture(scope="session")
def _qwen3(shared):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(shared / "tokenizers" / "qwen3"))


@pytest.fixture
def qwen3(_qwen3):
    """The Qwen3 tokenizer, loaded once, with its own chat template; what a test sets on it is undone behind it."""
    template = _qwen3.chat_template
    yield _qwen3
    _qwen3.chat_template, _qwen3.bos_token = template, None


@pytest.fixture
def chat_of(tiny_tokenizer) -> Callable[..., ChatSpans]:
    """`chat_of(template)` sets it on the tiny tokenizer, with a beginning of sequence."""

    def make(template: str | dict[str, str]) -> ChatSpans:
        tiny_tokenizer.bos_token, tiny_tokenizer.chat_template = "<|endoftext|>", template
        return ChatSpans(tiny_tokenizer)

    return make
