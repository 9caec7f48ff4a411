"""The assistant's own text under every chat template that TRL ships, written down by hand, family by family."""

import pytest

from rsr_trl.scoring.derived_spans import ChatTemplateError
from tests.scoring import conversations as talk
from tests.scoring.conversations import TEMPLATES, TOOLS, as_parts, assistant, call, tool, user
from tests.scoring.ways import WAYS, own_texts, turn_by_turn, without_markers


BLOCK = "<think>\nthought{}\n</think>\n\n"
DEEPSEEK_CALL = (
    '<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{"a": 1, "b": "two"}\n```'
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
HERMES = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "two"}}\n</tool_call>'
XML = (
    "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\ntwo\n</parameter>\n</function>\n"
    "</tool_call>"
)
PYTHONIC = "<|tool_call_start|>[add(a=1, b='two')]<|tool_call_end|>"
GEMMA_CALL = '<|tool_call>call:add{a:1,b:<|"|>two<|"|>}<tool_call|>'
LLAMA_CALL = '{"name": "add", "parameters": {"a": 1, "b": "two"}}'
GLM_CALL = (
    "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n<arg_key>b</arg_key>\n<arg_value>two</arg_value>\n"
    "</tool_call>"
)
OSS_CALL = ' to=functions.add<|channel|>commentary json<|message|>{"a": 1, "b": "two"}'
OSS_FINAL = "<|channel|>final<|message|>"
OSS_ANALYSIS = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant"
MUSE_CALL = (
    ' to=add<|message|><atem:function_calls>\n<atem:invoke name="add">\n<atem:parameter name="a">1</atem:parameter>\n'
    '<atem:parameter name="b">two</atem:parameter>\n</atem:invoke>\n</atem:function_calls>'
)
EMPTY = "<think>\n\n</think>\n\n"
ANSWERS = ["answer1", "answer2"]
VERBATIM = [BLOCK.format(1) + "answer1", BLOCK.format(2) + "answer2"]  # think blocks as the content has them
LAST_ONLY = ["answer1", BLOCK.format(2) + "answer2"]  # of earlier turns stripped
AFTER_THOUGHT = ["\n\nanswer1", "\n\nanswer2"]
CHANNELS = ["answer1", "<|channel>thought\nthought2\n<channel|>answer2"]
NO_CALLS = ["answer1", "words", "answer2"]  # the template knows none
GEMMA_CALLS = [GEMMA_CALL, "answer1", "<|channel>thought\nthought2\n<channel|>" + GEMMA_CALL, "words", "answer2"]
HERMES_CALLS = [HERMES, "answer1", "words\n" + HERMES, "answer2"]
THINKS_AND_CALLS = [[BLOCK.format(2) + "words\n" + said, EMPTY + "answer2"] for said in (HERMES, "\n" + XML)]
TWIN_CALLS = [EMPTY + HERMES, EMPTY + "answer1", *THINKS_AND_CALLS[0]]
XML_CALLS = [EMPTY + XML, EMPTY + "answer1", *THINKS_AND_CALLS[1]]
REFUSED = "refused"

# The assistant's own text in SINGLE, THINK, REASONING and with_tools(), by name of template or the beginning of it.
FAMILIES = {
    "cohere": (["answer1"], VERBATIM, ANSWERS, REFUSED),
    "deepseek_r1_distill": (["answer1"], AFTER_THOUGHT, ANSWERS, NO_CALLS),
    "deepseek_r1_distill_training": (["answer1"], VERBATIM, ANSWERS, NO_CALLS),
    "deepseekv3": (["answer1"], AFTER_THOUGHT, ANSWERS, REFUSED),  # wants arguments as JSON text
    "deepseekv3_training": (
        ["answer1"],
        AFTER_THOUGHT,
        ANSWERS,
        # The template opens the calls of a conversation only once, and writes no header before later ones.
        ["<｜tool▁calls▁begin｜>" + DEEPSEEK_CALL, "answer1", "\n" + DEEPSEEK_CALL, "answer2"],
    ),
    "diffusion_gemma": (["answer1"], VERBATIM, CHANNELS, GEMMA_CALLS),
    "gemma": (["answer1"], VERBATIM, ANSWERS, REFUSED),
    "gemma4": (["answer1"], VERBATIM, ANSWERS, GEMMA_CALLS),
    "gemma4_v2": (["answer1"], VERBATIM, ANSWERS, [GEMMA_CALL, "answer1", GEMMA_CALL + "words", "answer2"]),
    "gemma4_v5": (["answer1"], VERBATIM, CHANNELS, GEMMA_CALLS),
    "glm4moe": (
        ["\n<think></think>\nanswer1"],
        ["\n<think></think>\nanswer1", "\n<think>thought2</think>\nanswer2"],
        ["\n<think></think>\nanswer1", "\n<think>thought2</think>\nanswer2"],
        [
            "\n<think></think>\n" + GLM_CALL,
            "\n<think></think>\nanswer1",
            "\n<think>thought2</think>\nwords\n" + GLM_CALL,
            "\n<think></think>\nanswer2",
        ],
    ),
    "gptoss": (
        [OSS_FINAL + "answer1"],
        [OSS_FINAL + text for text in VERBATIM],
        [OSS_FINAL + "answer1", OSS_ANALYSIS.format("thought2") + OSS_FINAL + "answer2"],
        REFUSED,  # words and thought beside a call
    ),
    "lfm2": (["answer1"], VERBATIM, ANSWERS, NO_CALLS),
    "lfm2_2_5": (
        ["answer1"],
        LAST_ONLY,
        ["answer1", "<think>thought2</think>answer2"],
        [PYTHONIC, "answer1", "<think>thought2</think>words" + PYTHONIC, "answer2"],
    ),
    "lfm2_v2": (["answer1"], VERBATIM, ANSWERS, [PYTHONIC, "answer1", "words" + PYTHONIC, "answer2"]),
    "llama3": (["answer1"], VERBATIM, ANSWERS, NO_CALLS),
    "llama3_1": (["answer1"], VERBATIM, ANSWERS, [LLAMA_CALL, "answer1", LLAMA_CALL, "answer2"]),
    "llama3_2": (["answer1"], VERBATIM, ANSWERS, [LLAMA_CALL, "answer1", LLAMA_CALL, "answer2"]),
    "muse_glimmer": (
        [" to=user<|message|>answer1"],
        [" to=user<|message|>" + text for text in VERBATIM],
        [f" to=self<|message|>thought{n}<|eom|><|start|>assistant to=user<|message|>answer{n}" for n in (1, 2)],
        [
            MUSE_CALL,
            " to=user<|message|>answer1",
            " to=self<|message|>thought2<|eom|><|start|>assistant" + MUSE_CALL,
            " to=user<|message|>answer2",
        ],
    ),
    "nemotron_3": (
        ["<think></think>answer1"],
        ["<think></think>\n\nanswer1", BLOCK.format(2) + "answer2"],
        ["<think></think>\nanswer1", "<think>\nthought2\n</think>\nanswer2"],
        [
            "<think></think>\n" + XML + "\n",
            "<think></think>answer1",
            "<think>\nthought2\n</think>\nwords\n" + XML + "\n",
            "<think></think>answer2",
        ],
    ),
    "phi3": (["answer1"], VERBATIM, ANSWERS, NO_CALLS),
    "qwen2_5": (["answer1"], VERBATIM, ANSWERS, HERMES_CALLS),
    "qwen2_5_vl": (["answer1"], VERBATIM, ANSWERS, NO_CALLS),
    "qwen3": ([EMPTY + "answer1"], LAST_ONLY, LAST_ONLY, [HERMES, "answer1", *THINKS_AND_CALLS[0]]),
    "qwen3_training": ([EMPTY + "answer1"], VERBATIM, VERBATIM, TWIN_CALLS),
    "qwen3_5": ([EMPTY + "answer1"], LAST_ONLY, LAST_ONLY, [XML, "answer1", *THINKS_AND_CALLS[1]]),
    "qwen3_8": ([EMPTY + "answer1"], [EMPTY + text for text in VERBATIM], VERBATIM, XML_CALLS),
    "qwen3_instruct_2507": (["answer1"], VERBATIM, ANSWERS, HERMES_CALLS),
    "qwen3_vl": (["answer1"], VERBATIM, ANSWERS, HERMES_CALLS),
}
for _name in ("gemma4_v3", "gemma4_v4"):
    FAMILIES[_name] = FAMILIES["gemma4"]
for _name in ("qwen3_5_nothink_training", "qwen3_5_think_training", "qwen3_6_training"):
    FAMILIES[_name] = ([EMPTY + "answer1"], VERBATIM, VERBATIM, XML_CALLS)
FAMILIES["qwen3_6"] = FAMILIES["qwen3_5"]
for _name in ("nemotron_3_5_lightning", "nemotron_3_ultra"):  # no newline around the thought's end
    FAMILIES[_name] = tuple(
        [text.replace("</think>\na", "</think>a").replace("2\n</think>\nw", "2</think>w") for text in texts]
        for texts in FAMILIES["nemotron_3"]
    )
    FAMILIES[_name][2][1] = "<think>\nthought2</think>answer2"
OF_PARTS = ("idefics3", "llava_next", "smolvlm")


@pytest.mark.parametrize("template", [name for name in TEMPLATES if not name.startswith(OF_PARTS)])
def test_own_text_by_hand(template, chat_of):
    chat = chat_of(TEMPLATES[template])
    family = FAMILIES[max((name for name in FAMILIES if template.startswith(name)), key=len)]
    conversations = (talk.SINGLE, talk.THINK, talk.REASONING, talk.with_tools())
    for messages, expected in zip(conversations, family, strict=True):
        kwargs = {"tools": TOOLS} if len(messages) > 4 else {}
        if expected is REFUSED:
            with pytest.raises(ChatTemplateError, match="the chat template can't render it"):
                chat(messages, kwargs)
        else:
            assert own_texts(chat, messages, **kwargs) == expected


@pytest.mark.parametrize("template", [name for name in TEMPLATES if name.startswith(OF_PARTS)])
def test_templates_that_want_parts(template, chat_of):
    chat = chat_of(TEMPLATES[template])
    space = " "  # between "Assistant:" and the text, or behind "[/INST]"
    assert own_texts(chat, as_parts(talk.THINK)) == [space + text for text in VERBATIM]
    with pytest.raises(ChatTemplateError, match=r"content of message 0 is a string"):
        chat(talk.THINK, {})


@pytest.mark.parametrize("template", TEMPLATES)
def test_ways_agree(template, chat_of):
    """Markers, all turns in one rendering, small conversations and turn by turn: the same spans, or none found."""
    ways = [way(chat_of(TEMPLATES[template])) for way in WAYS.values()]
    conversations = [talk.SINGLE, talk.THINK, talk.REASONING]
    conversations += [talk.with_tools(), talk.with_tools('{"a": 1, "b": "two"}')]
    if template.startswith(OF_PARTS):
        conversations = [as_parts(talk.SINGLE), as_parts(talk.THINK)]
    agreed = 0
    for messages in conversations:
        found = []
        for chat in ways:
            try:
                found.append(chat(messages, {"tools": TOOLS}))
            except ChatTemplateError as error:
                # Phi-3 renders no tool calls and has no header to go by.
                assert "can't render it" in str(error) or (chat is not ways[0] and template.startswith("phi3"))
        assert all(result == found[0] for result in found)
        agreed += len(found) == len(ways)
    assert agreed >= 2


@pytest.mark.parametrize("template", ["gptoss", "gptoss_training"])
def test_calls_of_gptoss(template, chat_of):
    """A call is a message of its own behind the thought and ends in `<|call|>`."""
    calling = [user("q"), assistant("", thinking="why", tool_calls=[call({"a": 1, "b": "two"})])]
    for way in (WAYS["markers"], turn_by_turn):
        chat = way(chat_of(TEMPLATES[template]))
        assert own_texts(chat, calling, tools=TOOLS) == [OSS_ANALYSIS.format("why") + OSS_CALL]
        answered = [*calling, tool("result"), assistant("answer")]
        assert own_texts(chat, answered, tools=TOOLS) == [OSS_CALL, OSS_FINAL + "answer"]


@pytest.mark.parametrize("content", [None, "", "words"])
@pytest.mark.parametrize("template", ["gemma4", "gemma4_v3", "gemma4_v4", "gemma4_v5", "diffusion_gemma"])
def test_gemma_goes_on_in_the_turn_of_the_call(template, content, chat_of):
    """Gemma 4 writes tool results inside the assistant's turn, and what it says beside the call behind them."""
    calling = assistant(content, tool_calls=[call({"a": 1, "b": "two"})])
    messages = [user("q"), calling, tool("result1"), calling, tool("result2"), assistant("answer")]
    said = [GEMMA_CALL, *(["words"] if content else [])]
    assert own_texts(chat_of(TEMPLATES[template]), messages, tools=TOOLS) == [*said, *said, "answer"]


@pytest.mark.parametrize("template", ["deepseekv3", "deepseekv3_training"])
def test_calls_of_deepseek(template, chat_of):
    """What closes the tool's results belongs to the generation prompt, not to the assistant."""
    arguments = {"a": 1, "b": "two"}
    calls = [call('{"a": 1, "b": "two"}' if template == "deepseekv3" else arguments)]
    messages = [user("q"), assistant("words", tool_calls=calls), tool("result"), assistant("answer")]
    for way in (WAYS["markers"], without_markers):
        chat = way(chat_of(TEMPLATES[template]))
        assert own_texts(chat, messages) == ["words<｜tool▁calls▁begin｜>" + DEEPSEEK_CALL, "answer"]
        assert own_texts(chat, messages, first=3) == ["answer"]
