"""Which text of a conversation is the assistant's own, whatever the content; what is said where it can't be told."""

import pytest

from rsr_trl.scoring.derived_spans import ChatTemplateError
from tests.conftest import CHATML
from tests.scoring import renderers
from tests.scoring.conversations import SINGLE, TEMPLATES, TOOLS, Author, as_parts, assistant, call, tool, user
from tests.scoring.ways import WAYS, block_by_block, own_texts


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
def test_awkward_content(name, way, chat_of):
    """All spans, and with `first` those of later messages alone, even where earlier ones equal them."""
    template, render = RENDERED[name]
    chat, author, num_spans = WAYS[way](chat_of(template)), Author(seed=0), 0
    for _ in range(60):
        messages = author.conversation(alternating=name == "gemma3", with_calls=name.startswith("qwen3"))
        pieces = render(messages, bos="<|endoftext|>", eos="<|im_end|>")
        text, spans = renderers.text_and_spans(pieces)
        assert chat(messages, {}) == (text, spans)
        num_spans += len(spans)
        if name in ("chatml", "no_generation_prompt", "llama3", "qwen3", "qwen3_training"):
            first = author.random.randrange(1, len(messages))
            turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
            spoken = [turn for turn, piece in zip(turns, [p for p, own in pieces if own], strict=True) if piece]
            expected = [span for turn, span in zip(spoken, spans, strict=True) if turn >= first]
            assert chat(messages, {}, first)[1] == expected
    assert num_spans > 60


@pytest.mark.parametrize("way", WAYS)
def test_answer_that_quotes_the_conversation(way, chat_of):
    """The first answer holds, word for word, all that stands between it and the second one."""
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    between = "<|eot_id|>" + header.format("user") + "q2<|eot_id|>" + header.format("assistant")
    messages = [user("q1"), assistant(f"quote{between}end"), user("q2"), assistant(f"again{between}")]
    own = own_texts(WAYS[way](chat_of(TEMPLATES["llama3"])), messages)
    assert own == [f"quote{between}end", f"again{between}".strip()]


@pytest.mark.parametrize("way", WAYS)
def test_headers_in_words_where_the_template_writes_none(way, chat_of):
    """DeepSeek writes no header behind a tool's result: one in the result or in the answer is only quoted."""
    chat = WAYS[way](chat_of(TEMPLATES["deepseek_r1_distill"]))
    for result, answer in (("the result says <｜Assistant｜>so", "answer"), ("result", "<｜Assistant｜>answer")):
        messages = [user("q"), assistant("words"), tool(result), assistant(answer)]
        assert own_texts(chat, messages) == ["words", answer]


OPENED = "{% generation %}<|im_start|>assistant\n{{ m.content }}"
HEADER_INSIDE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}" + OPENED + "<|im_end|>\n{% endgeneration %}"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADER_ACROSS = HEADER_INSIDE.replace(OPENED, "<|im_start|>assistant{% generation %}{{ '\n' + m.content }}")
IN_PIECES = HEADER_INSIDE.replace(
    OPENED, "<|im_start|>assistant\n{% generation %}{{ m.content }}{% endgeneration %}{% generation %}"
)
CONTENT_ONLY = HEADER_INSIDE.replace(OPENED, "<|im_start|>assistant\n{%- generation %}{{ m.content }}")
CONTENT_ONLY = CONTENT_ONLY.replace("<|im_end|>\n{% endgeneration %}", "{% endgeneration %}<|im_end|>\n")


@pytest.mark.parametrize("template", [HEADER_INSIDE, HEADER_ACROSS, IN_PIECES])
def test_markers_around_more_than_the_own_text(template, chat_of):
    """Wherever a template sets its markers, the header and the end of turn are cut off, and only once each."""
    chat, author = chat_of(template), Author(seed=2)
    assert chat._marked == template
    for _ in range(60):
        messages = author.conversation(alternating=False, with_calls=False)
        assert chat(messages, {}) == renderers.text_and_spans(renderers.chatml(messages))


CALLS_MARKED_ELSEWHERE = (  # in the way of Qwen2.5, the header's newline is marked before calls, but not before words
    "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.tool_calls %}{% generation %}{{ '\n[' }}"
    "{{ m.tool_calls[0].function.arguments | tojson }}]<|im_end|>\n{% endgeneration %}"
    "{% elif m.role == 'assistant' %}{{ '\n' }}{% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}"
    "{% else %}{{ '\n' + m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DROPS_RESULTS = (  # those without a call: none of their text is taken for the assistant's
    "{% for m in messages %}{% if m.role != 'tool' or messages[loop.index0 - 1].tool_calls %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls %}[{{ c.function.name }}]"
    "{{ c.function.arguments | tojson }}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENS_THINK = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")  # the block isn't the header's
CALLING, THOUGHT = assistant("", tool_calls=[call({"a": 1})]), "<think>\nwhy\n</think>\n\nanswer"
END, HEADER = "quote <|im_end|>\n", "<|im_start|>assistant\n"  # isn't cut where the markers leave the end of turn out


@pytest.mark.parametrize(
    ("template", "messages", "own"),
    [
        (CALLS_MARKED_ELSEWHERE, [CALLING, tool("r"), assistant("\n\nanswer")], ['[{"a": 1}]', "\n\nanswer"]),
        (DROPS_RESULTS, [CALLING, tool("result"), assistant("answer")], ['[add]{"a": 1}', "answer"]),
        (OPENS_THINK, [assistant(THOUGHT)], [THOUGHT]),
        (CONTENT_ONLY, [assistant(END), user("q"), assistant(HEADER)], [END, HEADER]),
    ],
    ids=["calls marked elsewhere", "dropped results", "opened thought", "content alone"],
)
def test_templates_of_odd_ways(template, messages, own, chat_of):
    assert own_texts(chat_of(template), [user("q"), *messages]) == own


def test_named_templates(chat_of):
    """A tokenizer may have a template of its own for conversations with tools."""
    chat = chat_of({"default": CHATML, "tool_use": TEMPLATES["qwen3"]})
    assert own_texts(chat, SINGLE) == ["answer1"]
    assert own_texts(chat, SINGLE, tools=[]) == ["<think>\n\n</think>\n\nanswer1"]


WRITES_LENGTHS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content if loop.last else m.content | length }}{% endfor %}"
)
SYSTEM_FIRST = CHATML + "{{ raise_exception('system first') if messages[0].role != 'system' }}"
RESPONSE = {"name": "add", "response": {"value": 3}}
RESPONDED = [user("q"), assistant("a", tool_calls=[call({"a": 1})], tool_responses=[RESPONSE])]
ERRORS = {  # the template, the conversation, its keyword arguments
    "multiple chat templates with no default": ({"tool_use": CHATML}, SINGLE, {}),
    "the chat template can't render it": ("{% for %}", SINGLE, {}),
    "multiple values for keyword argument 'tokenize'": (CHATML, SINGLE, {"tokenize": True}),
    "refuses a plain conversation": (SYSTEM_FIRST, [{"role": "system", "content": "s"}, *SINGLE], {}),
    # It writes an answer twice: before the question and behind it.
    "can't tell where the chat template writes message 1": (
        "Answer: {{ messages[-1].content }}\n" + CHATML,
        SINGLE,
        {},
    ),
    "leaves its contents out": (WRITES_LENGTHS, [*SINGLE, *SINGLE], {}),
    "message 1 holds tool_responses: give them as messages of the role 'tool'": (TEMPLATES["gemma4"], RESPONDED, {}),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors(message, chat_of):
    template, messages, kwargs = ERRORS[message]
    with pytest.raises(ChatTemplateError, match=message):
        chat_of(template)(messages, kwargs)


def test_template_that_raises(chat_of):
    chat = chat_of(CHATML + "{{ 1 // 0 if messages[0].content == 'zero' }}")
    with pytest.raises(ChatTemplateError, match="the chat template can't render it: integer division"):
        chat([user("zero"), assistant("a")], {})
    assert own_texts(chat, SINGLE) == ["answer1"]


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATES["qwen3"],  # writes nothing for them; scored would be its empty think block alone
        CHATML,  # writes them as Python does
        CHATML.replace("message.content", "message.content + ''"),  # stops: can only concatenate str
    ],
    ids=["left out", "as data", "concatenated"],
)
def test_content_in_parts_that_the_template_cannot_write(template, chat_of):
    chat = chat_of(template)
    for messages, at in ((as_parts(SINGLE), "01"), ([*SINGLE, user("q"), *as_parts(SINGLE)[1:]], "3")):
        with pytest.raises(ChatTemplateError, match=rf"content of message [{at}] is a list of parts.*: give a string"):
            chat(messages, {})
    assert own_texts(chat, [*SINGLE, *SINGLE], first=2)


def test_parts_of_users_only(chat_of):
    """Some templates take parts of users, and strings of the assistant; others lose the question then."""
    messages = [*as_parts(SINGLE)[:1], SINGLE[1]]
    takes = (
        "{% if message.content is string %}{{ message.content }}{% elif message.role == 'user' %}"
        "{{ message.content[0].text }}{% endif %}"
    )
    assert own_texts(chat_of(CHATML.replace("{{ message.content }}", takes)), messages) == ["answer1"]
    for template in (TEMPLATES["qwen3"], CHATML):
        with pytest.raises(ChatTemplateError, match="content of message 0 is a list of parts"):
            chat_of(template)(messages, {})


@pytest.mark.parametrize("template", ["gemma4", "gemma4_v5", "deepseekv3_training", "glm4moe_training"])
def test_time_is_linear_in_the_turns(template, chat_of):
    """Twice as many turns, twice as many messages to render, though some are written without header."""
    chat, rendered = block_by_block(chat_of(TEMPLATES[template])), []
    render = chat.render
    chat.render = lambda messages, kwargs: rendered.append(len(messages)) or render(messages, kwargs)
    work = []
    for exchanges in (4, 8):
        messages = [user("q"), assistant("words"), user("q")]
        for i in range(exchanges):
            messages += [assistant("", tool_calls=[call({"a": i})]), tool(f"r{i}")] * 2
            messages += [assistant(f"a{i}"), user("q")]
        own = own_texts(chat, [*messages, assistant("end")], tools=TOOLS)
        assert len(own) == 3 * exchanges + 2
        work.append(sum(rendered))
        rendered.clear()
    assert work[1] < 2.2 * work[0]
