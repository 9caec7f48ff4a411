"""A scorer that has been used reads the chat template that the tokenizer has now, not the one it had."""

import pytest
from datasets import Dataset

from rsr_trl import RSRScorer
from rsr_trl.scoring.tokens import ExampleTokenizer
from tests.scoring.conversations import SINGLE, TEMPLATES, scored_texts


BARE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|e|>{% endfor %}"
BARE += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
ENDS = BARE.replace("<|e|>", "{{ eos_token }}")


@pytest.mark.parametrize("assistant_only_loss", [False, True])
def test_spans_of_the_template_in_force(assistant_only_loss, qwen3):
    templates = [TEMPLATES[name] for name in ("qwen3", "qwen3_instruct_2507", "qwen3")]
    templates = templates if assistant_only_loss else [BARE, *templates]  # TRL has no training template of it
    tokenize = ExampleTokenizer(qwen3, assistant_only_loss=assistant_only_loss)
    rows = [{"messages": SINGLE}]
    for template in templates:
        qwen3.chat_template = template
        fresh = ExampleTokenizer(qwen3, assistant_only_loss=assistant_only_loss)(rows)[0]
        assert scored_texts(qwen3, tokenize(rows)[0]) == scored_texts(qwen3, fresh)


def test_special_tokens_that_the_template_writes(tiny_tokenizer):
    tiny_tokenizer.chat_template = ENDS
    tokenize = ExampleTokenizer(tiny_tokenizer)
    for eos in ("<|im_end|>", "<|endoftext|>"):
        tiny_tokenizer.eos_token = eos
        assert scored_texts(tiny_tokenizer, tokenize([{"messages": SINGLE}])[0]) == ["answer1"]


def test_scores_of_the_template_in_force(tiny_student, tiny_tokenizer):
    dataset = Dataset.from_list([{"messages": SINGLE}])
    tiny_tokenizer.chat_template = BARE
    used = RSRScorer(tiny_student(), tiny_tokenizer, token_stats=True)
    used.score(dataset)
    tiny_tokenizer.chat_template = TEMPLATES["qwen3"]
    fresh = RSRScorer(tiny_student(), tiny_tokenizer, token_stats=True).score(dataset)
    (again,) = used.score(dataset)
    assert again == fresh[0]
    assert tiny_tokenizer.decode(again["rsr_token_ids"]) == "<think>\n\n</think>\n\nanswer1"
