"""Which text of a conversation is the assistant's own, whatever the content; what is said where it can't be told."""

import pytest

from rsr_trl.scoring.chat_spans import ChatSpans, ChatTemplateError
from tests.conftest import CHATML
from tests.scoring import renderers
from tests.scoring.awkward import Author
from tests.scoring.conversations import SINGLE, TEMPLATES, as_parts, assistant, call, tool, user
from tests.scoring.ways import WAYS, own_texts


RENDERED = {
    "chatml": (CHATML, renderers.chatml),
    "no_generation_prompt": (renderers.NO_PROMPT, renderers.no_prompt),
    "inst": (renderers.INST, renderers.inst),
    "llama3": (TEMPLATES["llama3"], renderers.llama3),
    "gemma3": (TEMPLATES["gemma3"], renderers.gemma3),
    "deepseek_r1": (TEMPLATES["deepseek_r1_distill"], renderers.deepseek_r1),
    "qwen3": (TEMPLATES["qwen3"], renderers.qwen3),
    "qwen3_training": (TEMPLATES["qwen3_training"], renderers.qwen3_training),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", RENDERED)
def test_awkward_content(name, way, tiny_tokenizer):
    template, render = RENDERED[name]
    tiny_tokenizer.bos_token = "<|endoftext|>"
    tiny_tokenizer.chat_template = template
    chat, author, num_spans = WAYS[way](ChatSpans(tiny_tokenizer)), Author(seed=0), 0
    for _ in range(60):
        messages = author.conversation(alternating=name == "gemma3", with_calls=name.startswith("qwen3"))
        pieces = render(messages, bos=tiny_tokenizer.bos_token, eos=tiny_tokenizer.eos_token)
        text, spans = chat(messages, {})
        assert (text, spans) == renderers.text_and_spans(pieces)
        num_spans += len(spans)
    assert num_spans > 60


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["chatml", "no_generation_prompt", "llama3", "qwen3", "qwen3_training"])
def test_context_is_left_out(name, way, tiny_tokenizer):
    """With `first`, spans of earlier messages are left out even where they equal later ones."""
    template, render = RENDERED[name]
    tiny_tokenizer.bos_token = "<|endoftext|>"
    tiny_tokenizer.chat_template = template
    chat, author = WAYS[way](ChatSpans(tiny_tokenizer)), Author(seed=1)
    for _ in range(40):
        messages = author.conversation(alternating=False, with_calls=name.startswith("qwen3"))
        first = author.random.randrange(1, len(messages))
        pieces = render(messages, bos=tiny_tokenizer.bos_token, eos=tiny_tokenizer.eos_token)
        _, spans = renderers.text_and_spans(pieces)
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        own = [piece for piece, own in pieces if own]
        spoken = [turn for turn, piece in zip(turns, own, strict=True) if piece]
        expected = [span for turn, span in zip(spoken, spans, strict=True) if turn >= first]
        assert chat(messages, {}, first)[1] == expected


@pytest.mark.parametrize("way", WAYS)
def test_answer_that_quotes_the_conversation(way, tiny_tokenizer):
    """The first answer holds, word for word, all that stands between it and the second one."""
    tiny_tokenizer.chat_template = TEMPLATES["llama3"]
    tiny_tokenizer.bos_token = "<bos>"
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    between = "<|eot_id|>" + header.format("user") + "q2<|eot_id|>" + header.format("assistant")
    messages = [user("q1"), assistant(f"quote{between}end"), user("q2"), assistant(f"again{between}")]
    assert own_texts(WAYS[way](ChatSpans(tiny_tokenizer)), messages) == [
        f"quote{between}end",
        f"again{between}".strip(),
    ]


@pytest.mark.parametrize("way", WAYS)
def test_headers_in_words_where_the_template_writes_none(way, tiny_tokenizer):
    """DeepSeek writes no header behind a tool's result: one in the result or in the answer is only quoted."""
    tiny_tokenizer.chat_template = TEMPLATES["deepseek_r1_distill"]
    tiny_tokenizer.bos_token = "<bos>"
    chat = WAYS[way](ChatSpans(tiny_tokenizer))
    messages = [user("q"), assistant("words"), tool("the result says <｜Assistant｜>so"), assistant("answer")]
    assert own_texts(chat, messages) == ["words", "answer"]
    messages = [user("q"), assistant("words"), tool("result"), assistant("<｜Assistant｜>answer")]
    assert own_texts(chat, messages) == ["words", "<｜Assistant｜>answer"]


# ------------------------------------------------------------------------------- templates with markers of their own

HEADER_INSIDE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}<|im_start|>assistant\n{{ m.content }}"
    "<|im_end|>\n{% endgeneration %}{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADER_ACROSS = HEADER_INSIDE.replace(
    "{% generation %}<|im_start|>assistant\n{{ m.content }}",
    "<|im_start|>assistant{% generation %}{{ '\n' + m.content }}",
)
IN_PIECES = HEADER_INSIDE.replace(
    "{% generation %}<|im_start|>assistant\n{{ m.content }}",
    "<|im_start|>assistant\n{% generation %}{{ m.content }}{% endgeneration %}{% generation %}",
)
CONTENT_ONLY = HEADER_INSIDE.replace(
    "{% generation %}<|im_start|>assistant\n", "<|im_start|>assistant\n{%- generation %}"
)
CONTENT_ONLY = CONTENT_ONLY.replace("<|im_end|>\n{% endgeneration %}", "{% endgeneration %}<|im_end|>\n")


@pytest.mark.parametrize("template", [HEADER_INSIDE, HEADER_ACROSS, IN_PIECES])
def test_markers_around_more_than_the_own_text(template, tiny_tokenizer):
    """Wherever a template sets its markers, the header and the end of turn are cut off, and only once each."""
    tiny_tokenizer.chat_template = template
    chat, author = ChatSpans(tiny_tokenizer), Author(seed=2)
    assert chat._marked == template
    for _ in range(60):
        messages = author.conversation(alternating=False, with_calls=False)
        assert chat(messages, {}) == renderers.text_and_spans(renderers.chatml(messages))


def test_markers_that_begin_elsewhere_before_calls(tiny_tokenizer):
    """In the way of Qwen2.5, the header's newline is marked before calls, but here not before words."""
    tiny_tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.tool_calls %}{% generation %}{{ '\n[' }}"
        "{{ m.tool_calls[0].function.arguments | tojson }}]<|im_end|>\n{% endgeneration %}"
        "{% elif m.role == 'assistant' %}{{ '\n' }}{% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}"
        "{% else %}{{ '\n' + m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    messages = [user("q"), assistant("", tool_calls=[call({"a": 1})]), tool("r"), assistant("\n\nanswer")]
    assert own_texts(ChatSpans(tiny_tokenizer), messages) == ['[{"a": 1}]', "\n\nanswer"]


def test_markers_around_the_content_alone(tiny_tokenizer):
    """Content that ends like a turn isn't cut where the markers leave the end of turn out."""
    tiny_tokenizer.chat_template = CONTENT_ONLY
    messages = [user("q"), assistant("quote <|im_end|>\n"), user("q"), assistant("<|im_start|>assistant\n")]
    assert own_texts(ChatSpans(tiny_tokenizer), messages) == ["quote <|im_end|>\n", "<|im_start|>assistant\n"]


def test_named_templates(tiny_tokenizer):
    """A tokenizer may have a template of its own for conversations with tools."""
    tiny_tokenizer.chat_template = {"default": CHATML, "tool_use": TEMPLATES["qwen3"]}
    chat = ChatSpans(tiny_tokenizer)
    assert own_texts(chat, SINGLE) == ["answer1"]
    assert own_texts(chat, SINGLE, tools=[]) == ["<think>\n\n</think>\n\nanswer1"]


def test_named_templates_without_a_default(tiny_tokenizer):
    tiny_tokenizer.chat_template = {"tool_use": CHATML}
    with pytest.raises(ChatTemplateError, match="multiple chat templates with no default"):
        ChatSpans(tiny_tokenizer)(SINGLE, {})


def test_thought_that_the_prompt_opens(tiny_tokenizer):
    """A generation prompt that opens the think block doesn't make the block part of the header."""
    tiny_tokenizer.chat_template = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    messages = [user("q"), assistant("<think>\nwhy\n</think>\n\nanswer")]
    assert own_texts(ChatSpans(tiny_tokenizer), messages) == ["<think>\nwhy\n</think>\n\nanswer"]


# -------------------------------------------------------------------------------------------------- errors


def test_template_that_raises(tiny_tokenizer):
    tiny_tokenizer.chat_template = CHATML + "{{ 1 // 0 if messages[0].content == 'zero' }}"
    chat = ChatSpans(tiny_tokenizer)
    with pytest.raises(ChatTemplateError, match="the chat template can't render it: integer division"):
        chat([user("zero"), assistant("a")], {})
    assert own_texts(chat, SINGLE) == ["answer1"]


def test_broken_template(tiny_tokenizer):
    tiny_tokenizer.chat_template = "{% for %}"
    with pytest.raises(ChatTemplateError, match="the chat template can't render it"):
        ChatSpans(tiny_tokenizer)(SINGLE, {})


def test_keyword_argument_that_the_template_does_not_take(tiny_tokenizer):
    with pytest.raises(ChatTemplateError, match="multiple values for keyword argument 'tokenize'"):
        ChatSpans(tiny_tokenizer)(SINGLE, {"tokenize": True})


def test_template_that_takes_no_plain_conversation(tiny_tokenizer):
    tiny_tokenizer.chat_template = CHATML + "{{ raise_exception('system first') if messages[0].role != 'system' }}"
    with pytest.raises(ChatTemplateError, match="refuses a plain conversation"):
        ChatSpans(tiny_tokenizer)([{"role": "system", "content": "s"}, *SINGLE], {})


def test_content_that_the_template_leaves_out(tiny_tokenizer):
    """Qwen3 writes nothing for content in parts; scored would be its empty think block alone."""
    tiny_tokenizer.chat_template = TEMPLATES["qwen3"]
    with pytest.raises(
        ChatTemplateError, match=r"leaves out content that is a list of parts \(message 1\): give a str"
    ):
        ChatSpans(tiny_tokenizer)(as_parts(SINGLE), {})
    # What the prompt loses isn't scored anyway.
    assert own_texts(ChatSpans(tiny_tokenizer), [*as_parts(SINGLE), *SINGLE], first=2)


def test_turn_that_can_not_be_located(tiny_tokenizer):
    """A template that writes an answer twice: before the question and behind it."""
    tiny_tokenizer.chat_template = "Answer: {{ messages[-1].content }}\n" + CHATML
    with pytest.raises(ChatTemplateError, match="can't tell where the chat template writes message 1"):
        ChatSpans(tiny_tokenizer)(SINGLE, {})


def test_contents_that_the_template_hides(tiny_tokenizer):
    """A template that writes only the last content in full."""
    tiny_tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content if loop.last else m.content | length }}{% endfor %}"
    )
    with pytest.raises(ChatTemplateError, match="leaves its contents out"):
        ChatSpans(tiny_tokenizer)([*SINGLE, *SINGLE], {})


def test_tool_responses_inside_an_assistant_message(tiny_tokenizer):
    tiny_tokenizer.bos_token = "<bos>"
    tiny_tokenizer.chat_template = TEMPLATES["gemma4"]
    response = {"name": "add", "response": {"value": 3}}
    messages = [user("q"), assistant("a", tool_calls=[call({"a": 1})], tool_responses=[response])]
    with pytest.raises(
        ChatTemplateError, match="message 1 holds tool_responses: give them as messages of the role 'tool'"
    ):
        ChatSpans(tiny_tokenizer)(messages, {})


def test_results_that_vanish_with_their_call(tiny_tokenizer):
    """A template that drops results without a call: none of their text is taken for the assistant's."""
    tiny_tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role != 'tool' or messages[loop.index0 - 1].tool_calls %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls %}[{{ c.function.name }}]"
        "{{ c.function.arguments | tojson }}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    messages = [user("q"), assistant("", tool_calls=[call({"a": 1})]), tool("result"), assistant("answer")]
    assert own_texts(ChatSpans(tiny_tokenizer), messages) == ['[add]{"a": 1}', "answer"]
