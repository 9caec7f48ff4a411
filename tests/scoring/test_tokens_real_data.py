"""Real trajectories with real tokenizers: the scored tokens spell what the assistant said, and nothing else."""

import re

import pytest

from rsr_trl.scoring.tokens import ExampleTokenizer
from tests.scoring import renderers
from tests.scoring.conversations import assistant, scored_texts, user


def own_pieces(pieces) -> list[str]:
    """What the assistant says; where it says nothing, the template's own empty think block isn't scored."""
    return [piece for piece, own in pieces if own and re.sub("</?think>", "", piece).strip()]


def spelled(tokenizer, example) -> str:
    assert example.error is None and not example.truncated
    return tokenizer.decode(example.input_ids[example.scored])


@pytest.mark.parametrize("assistant_only_loss", [False, True])
def test_airline_agents(assistant_only_loss, qwen3, airline_rows, airline_tools):
    """Many turns with thoughts, calls and results between them, under Qwen3's own template and its training twin."""
    render = renderers.qwen3_training if assistant_only_loss else renderers.qwen3
    tokenize = ExampleTokenizer(qwen3, assistant_only_loss=assistant_only_loss)
    rows = [{"messages": row["messages"], "tools": airline_tools} for row in airline_rows]
    num_turns = num_tokens = 0
    for row, example in zip(rows, tokenize(rows), strict=True):
        own = own_pieces(render(row["messages"]))
        assert spelled(qwen3, example) == "".join(own)
        num_turns += len(own)
        num_tokens += example.scored.sum()
    assert num_turns > 1_000 and num_tokens > 100_000


def test_airline_agents_as_prompt_and_completion(qwen3, airline_rows, airline_tools):
    """The last user's question and all before it as the prompt: the same ids, and only what follows is scored."""
    tokenize = ExampleTokenizer(qwen3)
    for row in airline_rows[::4]:
        messages = row["messages"]
        last = max(i for i, message in enumerate(messages[:-1]) if message["role"] == "user")  # that is answered
        asked = {"prompt": messages[: last + 1], "completion": messages[last + 1 :], "tools": airline_tools}
        example, whole = tokenize([asked, {"messages": messages, "tools": airline_tools}])
        answers = len([message for message in messages[last + 1 :] if message["role"] == "assistant"])
        pieces = [(piece, own) for piece, own in renderers.qwen3(messages) if own]
        if not own_pieces(pieces[-answers:]):
            assert example.error == "the response is empty"
            continue
        assert example.input_ids.tolist() == whole.input_ids.tolist()
        assert spelled(qwen3, example) == "".join(own_pieces(pieces[-answers:]))


@pytest.mark.parametrize("data", ["gsm8k_rows", "math500_rows"])
@pytest.mark.parametrize("as_messages", [False, True])
def test_chat(as_messages, data, qwen3, request):
    """Of MATH-500 the thoughts are long; truly truncated ones have no end of their think block."""
    rows = request.getfixturevalue(data)[::3]
    assert data == "gsm8k_rows" or any(not row["complete"] for row in rows)
    chats = [[user(row["prompt"]), assistant(row["completion"])] for row in rows]
    as_rows = [{"messages": chat} if as_messages else {"prompt": chat[:1], "completion": chat[1:]} for chat in chats]
    for chat, example in zip(chats, ExampleTokenizer(qwen3)(as_rows), strict=True):
        assert spelled(qwen3, example) == "".join(piece for piece, own in renderers.qwen3(chat) if own)


@pytest.mark.parametrize("name", ["gpt2_tokenizer", "qwen3"])
@pytest.mark.parametrize("data", ["gsm8k_rows", "math500_rows"])
def test_plain_prompt_and_completion(data, name, request):
    """Where no token spans the boundary, the scored tokens spell the completion; else that token's start besides."""
    tokenizer, rows = request.getfixturevalue(name), request.getfixturevalue(data)[::7]
    rows = [{"prompt": row["prompt"] + "\n", "completion": row["completion"]} for row in rows]
    num_exact = 0
    for row, example in zip(rows, ExampleTokenizer(tokenizer)(rows), strict=True):
        text = spelled(tokenizer, example)
        assert (row["prompt"] + row["completion"]).endswith(text)
        assert len(row["completion"]) <= len(text) <= len(row["completion"]) + 1
        num_exact += text == row["completion"]
    assert num_exact > 0.9 * len(rows)


def test_mistral_chat(mistral_tokenizer, gsm8k_rows):
    """A template in the way of Mistral, without assistant headers."""
    mistral_tokenizer.chat_template = renderers.INST
    answers = [row["completion"] for row in gsm8k_rows[::9]]
    rows = [{"messages": [user("How?"), assistant(answer), user("Sure?"), assistant("Yes.")]} for answer in answers]
    not_own = mistral_tokenizer("<s>[INST] How? [/INST]</s>[INST] Sure? [/INST]</s>", add_special_tokens=False)
    for answer, example in zip(answers, ExampleTokenizer(mistral_tokenizer)(rows), strict=True):
        assert [text.strip() for text in scored_texts(mistral_tokenizer, example)] == [answer.strip(), "Yes."]
        assert example.input_ids[~example.scored].tolist() == not_own["input_ids"]
