"""Chat templates written a second time, by hand in Python: each piece of text says whether it's the assistant's own.

An independent truth for `ChatSpans`: what a template writes, and which of it lies between an assistant header and its
end of turn. Without tools and system prompts of the template's own.
"""

import json


Piece = tuple[str, bool]  # text, whether it's the assistant's own

INST = (  # in the way of Mistral: no assistant header, an end-of-sequence token behind each turn
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'assistant' %} {{ message.content | trim }}{{ eos_token }}"
    "{% elif message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
NO_PROMPT = (  # an old template that knows no generation prompt
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"
)


def _framed(messages: list[dict], header: str, end: str, names: dict[str, str], strip: bool) -> list[Piece]:
    pieces = []
    for message in messages:
        role, content = message["role"], message["content"]
        said = (content.strip() if strip else content, role == "assistant")
        pieces += [(header.format(names.get(role, role)), False), said, (end, False)]
    return pieces


def chatml(messages: list[dict], **_) -> list[Piece]:
    return _framed(messages, "<|im_start|>{}\n", "<|im_end|>\n", {}, strip=False)


def no_prompt(messages: list[dict], **_) -> list[Piece]:
    return _framed(messages, "<|{}|>\n", "<|end|>\n", {}, strip=False)


def llama3(messages: list[dict], bos: str, **_) -> list[Piece]:
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    return [(bos, False), *_framed(messages, header, "<|eot_id|>", {}, strip=True)]


def gemma3(messages: list[dict], bos: str, **_) -> list[Piece]:
    header, names = "<start_of_turn>{}\n", {"assistant": "model"}
    return [(bos, False), *_framed(messages, header, "<end_of_turn>\n", names, strip=True)]


def inst(messages: list[dict], bos: str, eos: str) -> list[Piece]:
    pieces = [(bos, False)]
    for message in messages:
        if message["role"] == "assistant":
            pieces += [(" " + message["content"].strip(), True), (eos, False)]
        else:
            pieces += [(f"[INST] {message['content']} [/INST]", False)]
    return pieces


def deepseek_r1(messages: list[dict], bos: str, **_) -> list[Piece]:
    pieces = [(bos, False)]
    for message in messages:
        if message["role"] == "assistant":
            said = message["content"].split("</think>")[-1]
            pieces += [("<｜Assistant｜>", False), (said, True), ("<｜end▁of▁sentence｜>", False)]
        else:
            pieces += [(f"<｜User｜>{message['content']}", False)]
    return pieces


def _calls(message: dict, content: str) -> str:
    """Tool calls as Qwen2.5 and Qwen3 write them."""
    text = ""
    for i, call in enumerate(message.get("tool_calls") or []):
        function = call["function"]
        arguments = function["arguments"]
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        text += "\n" if i or content else ""
        text += f'<tool_call>\n{{"name": "{function["name"]}", "arguments": {arguments}}}\n</tool_call>'
    return text


def _qwen3(messages: list[dict], always_think: bool) -> list[Piece]:
    def asks(message: dict) -> bool:
        content = message["content"]
        answers_tool = content.startswith("<tool_response>") and content.endswith("</tool_response>")
        return message["role"] == "user" and not answers_tool

    last_query = max((i for i, message in enumerate(messages) if asks(message)), default=len(messages) - 1)
    pieces = []
    for i, message in enumerate(messages):
        role, content = message["role"], message["content"] or ""
        if role == "assistant":
            thought = message.get("reasoning_content")
            if thought is None:
                thought = ""
                if "</think>" in content:
                    thought = content.split("</think>")[0].rstrip("\n").split("<think>")[-1].lstrip("\n")
                    content = content.split("</think>")[-1].lstrip("\n")
            block = f"<think>\n{thought.strip(chr(10))}\n</think>\n\n"
            last = i == len(messages) - 1
            said = block + content.lstrip("\n") if always_think or (i > last_query and (last or thought)) else content
            said += _calls(message, content)
            pieces += [("<|im_start|>assistant\n", False), (said, True), ("<|im_end|>\n", False)]
        elif role == "tool":
            if i == 0 or messages[i - 1]["role"] != "tool":
                pieces += [("<|im_start|>user", False)]
            pieces += [(f"\n<tool_response>\n{content}\n</tool_response>", False)]
            if i + 1 == len(messages) or messages[i + 1]["role"] != "tool":
                pieces += [("<|im_end|>\n", False)]
        else:
            pieces += [(f"<|im_start|>{role}\n{content}<|im_end|>\n", False)]
    return pieces


def qwen3(messages: list[dict], **_) -> list[Piece]:
    return _qwen3(messages, always_think=False)


def qwen3_training(messages: list[dict], **_) -> list[Piece]:
    return _qwen3(messages, always_think=True)


def text_and_spans(pieces: list[Piece]) -> tuple[str, list[tuple[int, int]]]:
    """The whole text, and the spans of the assistant's own pieces that aren't empty."""
    text, spans = "", []
    for piece, own in pieces:
        if own and piece:
            spans.append((len(text), len(text) + len(piece)))
        text += piece
    return text, spans
