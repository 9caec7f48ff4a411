"""Which tokens of an example are scored, and where it is cut."""

import copy
import pickle
import random
import re

import numpy as np
import pytest

from rsr_trl.scoring.tokens import ExampleTokenizer, TokenizedExample
from tests.scoring import renderers
from tests.scoring.awkward import Author
from tests.scoring.conversations import (
    MULTI,
    REASONING,
    SINGLE,
    SYSTEM,
    TEMPLATES,
    THINK,
    TOOLS,
    assistant,
    call,
    scored_texts,
    tool,
    user,
    with_tools,
)


def tokenize_one(tokenizer, example: dict, **settings) -> TokenizedExample:
    return ExampleTokenizer(tokenizer, **settings)([example])[0]


def said(tokenizer, example: dict, **settings) -> list[str]:
    """Texts of the scored runs of an example that has to be fine."""
    tokenized = tokenize_one(tokenizer, example, **settings)
    assert tokenized.error is None and tokenized.scored.any() and not tokenized.scored[0]
    assert tokenized.input_ids.dtype == np.int32 and tokenized.scored.dtype == bool
    return scored_texts(tokenizer, tokenized)


# ------------------------------------------------------------------------------------------------ plain text


def test_completion_without_the_end_of_sequence(tiny_tokenizer):
    assert said(tiny_tokenizer, {"prompt": "1+1=", "completion": "2"}) == ["2"]
    assert said(tiny_tokenizer, {"prompt": "1+1=", "completion": "2<|im_end|>"}) == ["2"]
    assert said(tiny_tokenizer, {"prompt": "1+1=", "completion": "2<|im_end|><|im_end|>"}) == ["2<|im_end|>"]


def test_completion_that_merges_with_the_prompt(gpt2_tokenizer):
    """Where a token spans the boundary, the completion starts with it, as in SFTTrainer."""
    assert said(gpt2_tokenizer, {"prompt": "say hel", "completion": "lo there"}) == [" hello there"]
    assert said(gpt2_tokenizer, {"prompt": "say", "completion": " hello"}) == [" hello"]


def test_empty_prompt(tiny_tokenizer):
    """Nothing comes before the first token: it has no surprisal."""
    assert said(tiny_tokenizer, {"prompt": "", "completion": "hello"}) == ["ello"]


def test_text(tiny_tokenizer):
    assert said(tiny_tokenizer, {"text": "hello"}) == ["ello"]
    assert said(tiny_tokenizer, {"story": "hello"}, dataset_text_field="story") == ["ello"]


def test_special_tokens_that_the_tokenizer_adds(mistral_tokenizer):
    """Mistral's tokenizer puts a token before plain text: it isn't scored, but gives the first word a context."""
    tokenized = tokenize_one(mistral_tokenizer, {"text": "hello there"})
    assert tokenized.input_ids[0] == mistral_tokenizer.bos_token_id
    assert tokenized.input_ids[-1] == mistral_tokenizer.eos_token_id
    assert tokenized.scored.tolist() == [False, *[True] * (len(tokenized.scored) - 2), False]
    assert said(mistral_tokenizer, {"prompt": "", "completion": "hello there"}) == ["hello there"]


def test_characters_of_several_tokens(gpt2_tokenizer):
    """An emoji is three or four tokens of GPT-2: all of them are on their own side of the boundary."""
    assert said(gpt2_tokenizer, {"prompt": "🙂", "completion": "🙃🙂"}) == ["🙃🙂"]
    assert said(gpt2_tokenizer, {"prompt": "x", "completion": "漢字é\x00שלום"}) == ["漢字é\x00שלום"]


# --------------------------------------------------------------------------------------------- conversations


def test_every_assistant_turn_of_messages(tiny_tokenizer):
    assert said(tiny_tokenizer, {"messages": MULTI}) == ["answer1", "answer2"]
    assert said(tiny_tokenizer, {"messages": SYSTEM}) == ["answer1"]
    assert said(tiny_tokenizer, {"messages": [*SINGLE, *SINGLE]}) == ["answer1", "answer1"]


def test_the_completion_alone(tiny_tokenizer):
    assert said(tiny_tokenizer, {"prompt": MULTI[:3], "completion": MULTI[3:]}) == ["answer2"]
    assert said(tiny_tokenizer, {"prompt": MULTI[:1], "completion": MULTI[1:]}) == ["answer1", "answer2"]


def test_conversations_from_value(tiny_tokenizer):
    example = {"conversations": [{"from": m["role"], "value": m["content"]} for m in MULTI]}
    before = copy.deepcopy(example)
    assert said(tiny_tokenizer, example) == ["answer1", "answer2"]
    assert example == before


def test_qwen3_tool_calls(qwen3):
    messages = with_tools()
    hermes = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "two"}}\n</tool_call>'
    empty, thought = "<think>\n\n</think>\n\n", "<think>\nthought2\n</think>\n\n"
    last_query_on = [thought + "words\n" + hermes, empty + "answer2"]
    assert said(qwen3, {"messages": messages, "tools": TOOLS}) == [hermes, "answer1", *last_query_on]
    every_turn_thinks = [empty + hermes, empty + "answer1", *last_query_on]
    assert said(qwen3, {"messages": messages, "tools": TOOLS}, assistant_only_loss=True) == every_turn_thinks


def test_context_that_a_later_turn_renders_otherwise(qwen3):
    """Qwen3 strips the thought of the prompt's turn only when the completion asks again: it's still the prompt's."""
    messages = [user("q"), assistant("", reasoning_content="why", tool_calls=[call({"a": 1})]), tool("result")]
    example = {"prompt": messages, "completion": [assistant("answer1"), user("q2"), assistant("answer2")]}
    assert said(qwen3, example) == ["answer1", "<think>\n\n</think>\n\nanswer2"]
    # Its training template gives every turn a think block, the prompt's too.
    empty = "<think>\n\n</think>\n\n"
    assert said(qwen3, example, assistant_only_loss=True) == [empty + "answer1", empty + "answer2"]


def test_thought_that_the_prompt_gives_away(qwen3):
    """With thinking off, the generation prompt holds the empty think block: the completion starts behind it."""
    example = {"prompt": SINGLE[:1], "completion": SINGLE[1:], "chat_template_kwargs": {"enable_thinking": False}}
    assert said(qwen3, example) == ["answer1"]
    example = {"prompt": SINGLE[:1], "completion": SINGLE[1:], "chat_template_kwargs": {"enable_thinking": True}}
    assert said(qwen3, example) == ["<think>\n\n</think>\n\nanswer1"]


def test_newlines_that_merge_with_the_header(qwen3):
    """Qwen3 makes one token of the header's newline and the content's: it is scored, since it holds own text."""
    qwen3.chat_template = TEMPLATES["qwen3_instruct_2507"]
    assert said(qwen3, {"messages": [user("q"), assistant("\nanswer\n")]}) == ["\n\nanswer\n"]


@pytest.mark.parametrize("name", ["qwen3", "qwen3_training", "llama3", "deepseek_r1_distill"])
def test_awkward_content_to_the_byte(name, tiny_tokenizer):
    """A token a byte: scored are the very bytes that a renderer written by hand calls the assistant's own."""
    tiny_tokenizer.chat_template = TEMPLATES[name]
    tiny_tokenizer.bos_token = "<|endoftext|>"
    render = getattr(renderers, name.removesuffix("_distill"))
    author, tokenize = Author(seed=3), ExampleTokenizer(tiny_tokenizer)
    conversations = [author.conversation(False, name.startswith("qwen3")) for _ in range(40)]
    for messages, example in zip(conversations, tokenize([{"messages": m} for m in conversations]), strict=True):
        pieces = render(messages, bos=tiny_tokenizer.bos_token, eos=tiny_tokenizer.eos_token)
        # Where a turn says nothing, the template's own empty think block isn't scored.
        own = "".join(piece for piece, own in pieces if own and re.sub("</?think>", "", piece).strip())
        assert tiny_tokenizer.decode(example.input_ids[example.scored]) == own
        assert (example.error is None) == bool(own)


@pytest.mark.parametrize("name", ["qwen3", "llama3"])
def test_awkward_content_in_real_tokens(name, qwen3):
    """Tokens of several characters: scored are those, and only those, that hold a character of the own text."""
    qwen3.chat_template = TEMPLATES[name]
    qwen3.bos_token = "<|endoftext|>"
    author, tokenize = Author(seed=4), ExampleTokenizer(qwen3)
    conversations = [author.conversation(False, name == "qwen3") for _ in range(40)]
    for messages, example in zip(conversations, tokenize([{"messages": m} for m in conversations]), strict=True):
        text, spans = renderers.text_and_spans(
            getattr(renderers, name)(messages, bos=qwen3.bos_token, eos=qwen3.eos_token)
        )
        offsets = qwen3(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        own = np.zeros(len(text), bool)
        for start, end in spans:
            own[start:end] = bool(re.sub("</?think>", "", text[start:end]).strip())
        expected = [own[start:end].any() for start, end in offsets]
        if example.error is None:
            assert example.scored.tolist() == expected


# ------------------------------------------------------------------------------------------------- truncation


def test_truncated_completion(tiny_tokenizer):
    example = {"prompt": "1+1=", "completion": "2, of course"}
    tokenized = tokenize_one(tiny_tokenizer, example, max_length=8)
    assert tokenized.truncated and tokenized.error is None
    assert scored_texts(tiny_tokenizer, tokenized) == ["2, o"] and len(tokenized.input_ids) == 8
    whole = len("1+1=2, of course") + 1
    assert tokenize_one(tiny_tokenizer, example, max_length=whole - 1).truncated  # the end of sequence is cut off
    assert not tokenize_one(tiny_tokenizer, example, max_length=whole).truncated
    assert not tokenize_one(tiny_tokenizer, example).truncated


def test_truncated_last_turn(tiny_tokenizer):
    whole = tokenize_one(tiny_tokenizer, {"messages": MULTI})
    cut = tokenize_one(tiny_tokenizer, {"messages": MULTI}, max_length=len(whole.input_ids) - 5)
    assert cut.truncated and scored_texts(tiny_tokenizer, cut) == ["answer1", "answ"]
    assert cut.input_ids.tolist() == whole.input_ids.tolist()[:-5]


def test_prompt_longer_than_max_length(tiny_tokenizer):
    tokenized = tokenize_one(tiny_tokenizer, {"prompt": "a long prompt", "completion": "2"}, max_length=5)
    assert tokenized.error == "cut off: the text before the response alone fills max_length=5 (whole: 15 tokens)"
    assert tokenized.truncated and not tokenized.scored.any()
    tokenized = tokenize_one(tiny_tokenizer, {"messages": SINGLE}, max_length=5)
    assert tokenized.error.startswith("cut off: the text before the response alone fills max_length=5")


@pytest.mark.parametrize("max_length", [1, 0, -3])
def test_max_length_too_small(max_length, tiny_tokenizer):
    with pytest.raises(ValueError, match=f"max_length must be at least 2 .* got {max_length}"):
        ExampleTokenizer(tiny_tokenizer, max_length=max_length)


def test_texts_beyond_the_limit_of_the_tokenizer_warn_of_nothing(tiny_tokenizer, recwarn, caplog):
    tiny_tokenizer.model_max_length = 4
    assert said(tiny_tokenizer, {"text": "longer than four"}) == ["onger than four"]
    assert not recwarn.list and not caplog.records


def test_order_and_company_do_not_matter(tiny_tokenizer):
    rows = [{"messages": m} for m in (SINGLE, MULTI, THINK, REASONING)] + [
        {"text": "a b"},
        {"prompt": "q", "completion": "a"},
    ]
    tokenize, order = ExampleTokenizer(tiny_tokenizer), list(range(len(rows)))
    alone = [tokenize([row])[0] for row in rows]
    random.Random(0).shuffle(order)
    for i, example in zip(order, tokenize([rows[i] for i in order]), strict=True):
        np.testing.assert_array_equal(example.input_ids, alone[i].input_ids)
        np.testing.assert_array_equal(example.scored, alone[i].scored)


def test_copies_in_other_processes(qwen3):
    """`Dataset.map` pickles it for its workers, before and after its first use."""
    tokenize = ExampleTokenizer(qwen3, max_length=40, assistant_only_loss=True)
    fresh = pickle.loads(pickle.dumps(tokenize))
    (example,) = tokenize([{"messages": THINK}])
    for copied in (fresh, pickle.loads(pickle.dumps(tokenize))):
        np.testing.assert_array_equal(copied([{"messages": THINK}])[0].scored, example.scored)
        np.testing.assert_array_equal(copied([{"messages": THINK}])[0].input_ids, example.input_ids)
