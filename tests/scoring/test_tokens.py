"""Which tokens of an example are scored, and where it is cut."""

import copy
import re

import numpy as np
import pytest

from rsr_trl.scoring.tokens import ExampleTokenizer, TokenizedExample
from tests.scoring import conversations as talk
from tests.scoring import renderers
from tests.scoring.conversations import MULTI, SINGLE, TEMPLATES, assistant, scored_texts, user


def tokenize_one(tokenizer, example: dict, **settings) -> TokenizedExample:
    return ExampleTokenizer(tokenizer, **settings)([example])[0]


def said(tokenizer, example: dict, **settings) -> list[str]:
    """Texts of the scored runs of an example that has to be fine."""
    tokenized = tokenize_one(tokenizer, example, **settings)
    assert tokenized.error is None and tokenized.scored.any() and not tokenized.scored[0]
    assert tokenized.input_ids.dtype == np.int32 and tokenized.scored.dtype == bool
    return scored_texts(tokenizer, tokenized)


CONVERSATIONS = {"conversations": [{"from": m["role"], "value": m["content"]} for m in MULTI]}
SAID = [
    # Without the end of sequence; nothing comes before the first token of a row, so it has no surprisal.
    ({"prompt": "1+1=", "completion": "2"}, ["2"]),
    ({"prompt": "1+1=", "completion": "2<|im_end|>"}, ["2"]),
    ({"prompt": "1+1=", "completion": "2<|im_end|><|im_end|>"}, ["2<|im_end|>"]),
    ({"prompt": "", "completion": "hello"}, ["ello"]),
    ({"text": "hello"}, ["ello"]),
    ({"messages": MULTI}, ["answer1", "answer2"]),
    ({"messages": talk.SYSTEM}, ["answer1"]),
    ({"messages": [*SINGLE, *SINGLE]}, ["answer1", "answer1"]),
    ({"prompt": MULTI[:3], "completion": MULTI[3:]}, ["answer2"]),
    ({"prompt": MULTI[:1], "completion": MULTI[1:]}, ["answer1", "answer2"]),
    (CONVERSATIONS, ["answer1", "answer2"]),
]


@pytest.mark.parametrize(("row", "texts"), SAID)
def test_which_text_is_scored(row, texts, tiny_tokenizer):
    before = copy.deepcopy(row)
    assert said(tiny_tokenizer, row) == texts and row == before


@pytest.mark.parametrize(
    ("prompt", "completion", "texts"),
    [
        # Where a token spans the boundary, the completion starts with it, as in SFTTrainer.
        ("say hel", "lo there", [" hello there"]),
        ("say", " hello", [" hello"]),
        # An emoji is three or four tokens of GPT-2: all of them are on their own side of the boundary.
        ("🙂", "🙃🙂", ["🙃🙂"]),
        ("x", "漢字é\x00שלום", ["漢字é\x00שלום"]),
    ],
)
def test_tokens_at_the_boundary(prompt, completion, texts, gpt2_tokenizer):
    assert said(gpt2_tokenizer, {"prompt": prompt, "completion": completion}) == texts


def test_special_tokens_that_the_tokenizer_adds(mistral_tokenizer):
    """Mistral's tokenizer puts a token before plain text: it isn't scored, but gives the first word a context."""
    tokenized = tokenize_one(mistral_tokenizer, {"text": "hello there"})
    assert tokenized.input_ids[0] == mistral_tokenizer.bos_token_id
    assert tokenized.input_ids[-1] == mistral_tokenizer.eos_token_id
    assert tokenized.scored.tolist() == [False, *[True] * (len(tokenized.scored) - 2), False]
    assert said(mistral_tokenizer, {"prompt": "", "completion": "hello there"}) == ["hello there"]


EMPTY = "<think>\n\n</think>\n\n"
HERMES = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "two"}}\n</tool_call>'
CALLS = {"messages": talk.with_tools(), "tools": talk.TOOLS}
FROM_LAST_QUERY = ["<think>\nthought2\n</think>\n\nwords\n" + HERMES, EMPTY + "answer2"]
CALLING = [user("q"), assistant("", reasoning_content="why", tool_calls=[talk.call({"a": 1})]), talk.tool("result")]
ASKED_AGAIN = {"prompt": CALLING, "completion": [assistant("answer1"), user("q2"), assistant("answer2")]}
ANSWERED = {"prompt": SINGLE[:1], "completion": SINGLE[1:]}
OTHER_TEMPLATE = {"chat_template": TEMPLATES["qwen3_instruct_2507"]}
MERGING = {"messages": [user("q"), assistant("\nanswer\n")], "chat_template_kwargs": OTHER_TEMPLATE}
DEVELOPER = {"messages": [{"role": "developer", "content": "be kind"}, user("q"), assistant("a")]}


@pytest.mark.parametrize(
    ("row", "settings", "texts"),
    [
        (CALLS, {}, [HERMES, "answer1", *FROM_LAST_QUERY]),
        (CALLS, {"assistant_only_loss": True}, [EMPTY + HERMES, EMPTY + "answer1", *FROM_LAST_QUERY]),
        # Qwen3 strips the thought of the prompt's turn only when the completion asks again: it's still the prompt's.
        (ASKED_AGAIN, {}, ["answer1", EMPTY + "answer2"]),
        # Its training template gives every turn a think block, the prompt's too.
        (ASKED_AGAIN, {"assistant_only_loss": True}, [EMPTY + "answer1", EMPTY + "answer2"]),
        # With thinking off, the generation prompt holds the empty think block: the completion starts behind it.
        ({**ANSWERED, "chat_template_kwargs": {"enable_thinking": False}}, {}, ["answer1"]),
        ({**ANSWERED, "chat_template_kwargs": {"enable_thinking": True}}, {}, [EMPTY + "answer1"]),
        # Qwen3 makes one token of the header's newline and the content's: it is scored, since it holds own text.
        (MERGING, {}, ["\n\nanswer\n"]),
        (DEVELOPER, {}, [EMPTY + "a"]),
    ],
)
def test_conversations_of_qwen3(row, settings, texts, qwen3):
    assert said(qwen3, row, **settings) == texts


AWKWARD = [(name, "tiny_tokenizer") for name in ("qwen3", "qwen3_training", "llama3", "deepseek_r1_distill")]
AWKWARD += [(name, "qwen3") for name in ("qwen3", "llama3")]


@pytest.mark.parametrize(("name", "fixture"), AWKWARD)
def test_awkward_content_token_by_token(name, fixture, request):
    """Scored are those tokens, and only those, that hold a character of what a renderer by hand calls the own text."""
    tokenizer = request.getfixturevalue(fixture)
    tokenizer.chat_template, tokenizer.bos_token = TEMPLATES[name], "<|endoftext|>"
    author, tokenize = talk.Author(seed=3), ExampleTokenizer(tokenizer)
    conversations = [author.conversation(False, name.startswith("qwen3")) for _ in range(40)]
    for messages, example in zip(conversations, tokenize([{"messages": m} for m in conversations]), strict=True):
        render = getattr(renderers, name.removesuffix("_distill"))
        pieces = render(messages, bos=tokenizer.bos_token, eos=tokenizer.eos_token)
        text, spans = renderers.text_and_spans(pieces)
        # Where a turn says nothing, the template's own empty think block isn't scored.
        spans = [(start, end) for start, end in spans if re.sub("</?think>", "", text[start:end]).strip()]
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        expected = [any(start < stop and end > begin for begin, stop in spans) for start, end in offsets]
        if example.error is None:
            assert example.scored.tolist() == expected
        if fixture == "tiny_tokenizer":  # a token a byte
            own = "".join(text[start:stop] for start, stop in spans)
            assert tokenizer.decode(example.input_ids[example.scored]) == own
            assert (example.error is None) == bool(own)


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


def test_texts_beyond_the_limit_of_the_tokenizer_warn_of_nothing(tiny_tokenizer, recwarn, caplog):
    tiny_tokenizer.model_max_length = 4
    assert said(tiny_tokenizer, {"text": "longer than four"}) == ["onger than four"]
    assert not recwarn.list and not caplog.records
