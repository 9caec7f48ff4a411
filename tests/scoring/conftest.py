"""The Qwen3 tokenizer, loaded once for the many tests that set templates on it; and no progress bars of `datasets`."""

import pytest
from datasets import disable_progress_bars, enable_progress_bars


@pytest.fixture(scope="session")
def _qwen3(shared):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(shared / "tokenizers" / "qwen3"))


@pytest.fixture
def qwen3(_qwen3):
    """The Qwen3 tokenizer with its own chat template; what a test sets on it is undone behind it."""
    template = _qwen3.chat_template
    yield _qwen3
    _qwen3.chat_template = template
    _qwen3.bos_token = None


@pytest.fixture
def quiet():
    """No progress bars of `datasets`."""
    disable_progress_bars()
    yield
    enable_progress_bars()
