"""Provenance from a server's log-probabilities: as from a pass of its model, in every dialect."""

import numpy as np
import pytest
from datasets import Dataset
from transformers.convert_slow_tokenizer import bytes_to_unicode

from rsr_trl import RSRScorer
from rsr_trl.experimental.logprobs import places_and_surprisals
from rsr_trl.experimental.provenance import score_provenance
from rsr_trl.rsr import RSRError
from rsr_trl.scoring.tokens import ExampleTokenizer
from tests.scoring.truth import in_float64, truth_of


BYTE_OF = {letter: byte for byte, letter in bytes_to_unicode().items()}
PROMPT = "Q:\n2+3?\nA:"
TEXTS = [
    "First we add: 2+3=5. Right.\n\nThen 5*4=20.\n\t- and again\n20, or\ntwenty.",
    "We add them. It is 5. Done",
    "No end and no line",
    " Später: 你好。🧎‍♀️ knies\n\nÜber 5 €\n🙂\n",
    "<think>\nHm, 2+3.\n</think>\n\nIt is 5.",
]
TURNS = [["one.\ntwo", "three"], ["Well, 5.\nOr so", "4\n"], ["No.", "Yes.\nNo. Yes."]]
ASKED = {"role": "user", "content": "2+3?"}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.fixture
def teacher(tiny_student):
    return tiny_student(seed=3)


@pytest.fixture
def scored(tiny_student, tiny_tokenizer):
    def score(rows: list[dict], model=None, **settings) -> Dataset:
        scorer = RSRScorer(model or tiny_student(), tiny_tokenizer, token_stats=True, **settings)
        return scorer.score(Dataset.from_list(rows))

    return score


@pytest.fixture
def by_server(scored, tiny_tokenizer):
    """`by_server(rows)`: of each row the probability that the teacher gives each sentence; `None` if unknown."""
    return lambda rows, **settings: p_of(score_provenance(scored(rows, **settings), tiny_tokenizer, "logprobs"))


@pytest.fixture
def by_model(scored, teacher, tiny_tokenizer):
    def score(rows, **settings):
        student, others = scored(rows, **settings), scored(rows, teacher, **settings)
        return p_of(score_provenance(student, tiny_tokenizer, others))

    return score


def p_of(dataset: Dataset) -> list[list[float] | None]:
    return [row and [one["p_teacher"] for one in row] for row in dataset["provenance_sentences"]]


@pytest.fixture
def say(teacher, tiny_tokenizer):
    """`say(before, response)`: what a server returns for a response, from all logits of the teacher in float64."""
    model64 = in_float64(teacher)

    def said(before: str, response: str) -> list[dict]:
        first, own = (tiny_tokenizer(text)["input_ids"] for text in (before, response))
        nats = truth_of(model64, first + own, range(len(first), len(first) + len(own))).surprisals
        letters = tiny_tokenizer.convert_ids_to_tokens(own)
        raw = [bytes([BYTE_OF[w]]) if w in BYTE_OF else w.encode() for w in letters]
        return [
            {"token": r.decode(errors="replace"), "logprob": -n, "bytes": list(r), "top_logprobs": []}
            for r, n in zip(raw, nats, strict=True)
        ]

    return said


@pytest.fixture
def rows(say) -> list[dict]:
    """Prompt and completion, plain."""
    return [{"prompt": PROMPT, "completion": text, "logprobs": say(PROMPT, text)} for text in TEXTS]


@pytest.fixture
def chats(say, tiny_tokenizer) -> dict[str, list[dict]]:
    """The other formats, by name."""

    def answered(turns: list[str]) -> tuple[list[dict], list[list[dict]]]:
        messages, logprobs = [], []
        for turn in turns:
            messages.append(ASKED)
            before = tiny_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            messages.append(answer(turn))
            logprobs.append(say(before, turn))
        return messages, logprobs

    single = [answered([text]) for text in TEXTS]
    return {
        "chat": [{"prompt": m[:1], "completion": m[1:], "logprobs": said[0]} for m, said in single],
        "messages": [{"messages": m, "logprobs": said[0]} for m, said in single],
        "several turns": [{"messages": m, "logprobs": said} for m, said in map(answered, TURNS)],
    }


def assert_same(found: list, expected: list, rtol: float) -> None:
    assert None not in found and len(found) == len(expected)
    for one, truth in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, truth, rtol=rtol)


@pytest.mark.parametrize("form", ["plain", "chat", "messages", "several turns"])
def test_a_server_says_the_same_as_a_pass_of_its_model(form, by_server, by_model, rows, chats):
    rows = {"plain": rows, **chats}[form]
    assert_same(by_server(rows), by_model(rows), rtol=1e-4)


@pytest.mark.parametrize("max_length", [30, 60, 85])
def test_a_student_that_sees_less_is_compared_on_what_it_sees(max_length, by_server, by_model, rows, chats):
    for each in (rows, chats["several turns"]):
        found, expected = by_server(each, max_length=max_length), by_model(each, max_length=max_length)
        assert [one is None for one in found] == [one is None for one in expected]
        known = [pair for pair in zip(found, expected, strict=True) if pair[0] is not None]
        assert known
        assert_same(*zip(*known, strict=True), rtol=1e-4)


def lossy(tokens: list[dict]) -> list[dict]:
    """A replacement character for each token of a character that takes several."""
    return [{**token, "bytes": list(token["token"].encode())} for token in tokens]


def late(tokens: list[dict]) -> list[dict]:
    """Nothing for all tokens of a character but the last, which has it all."""
    found, waiting = [], b""
    for token in tokens:
        waiting += bytes(token["bytes"])
        try:
            text, waiting = waiting.decode(), b""
        except UnicodeDecodeError:
            text = ""
        found.append({"token": text, "bytes": list(text.encode()), "logprob": token["logprob"]})
    return found


def then(text: str):
    return lambda tokens: [*tokens, {"token": text, "logprob": -0.2, "bytes": None}]


DIALECTS = {
    "as an object": lambda tokens: {"content": tokens, "refusal": None},
    "alternatives": lambda tokens: [token | {"top_logprobs": tokens[:2]} for token in tokens],
    "end of turn": then("<|im_end|>"),
    "end of sentence": then("<｜end▁of▁sentence｜>"),
    "end without a name": then(""),
    "late characters": late,
    "late characters and an end": lambda tokens: then("</s>")(late(tokens)),
    "replacement characters": lossy,
    "replacement characters and an end": lambda tokens: then("</s>")(lossy(tokens)),
    "a space after all": then(" "),
    "a line end before all": lambda tokens: [{"token": "\n\n", "logprob": -0.3, "bytes": [10, 10]}, *tokens],
    "no bytes, ascii": lambda tokens: [{key: token[key] for key in ("token", "logprob")} for token in tokens],
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_servers_differ(dialect, by_server, rows):
    if " all" in dialect:  # white space that isn't the response's own; its own at the ends doesn't count then
        rows = [row for row in rows if row["completion"] == row["completion"].strip()]
    if "ascii" in dialect:
        rows = [row for row in rows if row["completion"].isascii()]
    found = by_server([{**row, "logprobs": DIALECTS[dialect](row["logprobs"])} for row in rows])
    assert_same(found, by_server(rows), rtol=1e-9)


def tokens(*pieces: str) -> list[dict]:
    """One nat for the first, two for the second, four for the third and so on: sums tell which are in them."""
    return [{"token": piece, "logprob": -float(2**i)} for i, piece in enumerate(pieces)]


def sums(said: list[dict], response: str, starts: list[int], cut: bool = False) -> list[float] | None:
    """Of the nats of the tokens that begin in each stretch of a response; 0 where there is none."""
    found = places_and_surprisals(said, [response], cut, "here")
    if found is None:
        return None
    return np.bincount(np.searchsorted(starts, found[0], side="right") - 1, found[1], len(starts)).tolist()


THOUGHT = "<think>\nHm\n</think>\n\nYes"
TAGGED = ("<think>", "\n", "Hm", "\n", "</think>", "\n\n", "Yes")
EMPTY_BLOCK = ("<think>", "\n\n", "</think>", "\n\n", "Yes", "\n", "No")
CALL, CALLING = "Sure.\n<tool_call>\n{}\n</tool_call>", ("Sure.\n", "<tool_call>", "\n{}\n", "</tool_call>")
SUMS = {  # the server's tokens, the response, where stretches of it begin, the sum of each
    "a token is where it begins": (("a", "b\n", "c", "\nd", "e"), "ab\nc\nde", [0, 3, 5], [3, 12, 16]),
    "a stretch within a token has none": (("a", "b\nc\nd", "e"), "ab\nc\nde", [0, 3, 5], [3, 0, 4]),
    "a thought begun by the prompt": (TAGGED[2:], THOUGHT, [0, 8, 11, 21], [0, 3, 0, 16]),
    "and other space": (("Hm", "\n", "</think>", "\n", "Yes"), THOUGHT, [0, 8, 11, 21], [0, 3, 0, 16]),
    "both tags taken out": (("Hm", "\n", "\n", "\n", "Yes"), THOUGHT, [0, 8, 11, 21], [0, 15, 0, 16]),
    "tags that both have count": (TAGGED, THOUGHT, [0, 8, 11, 21], [3, 12, 48, 64]),
    "an empty block of the template": (EMPTY_BLOCK[4:], "".join(EMPTY_BLOCK), [0, 9, 19, 23], [0, 0, 3, 4]),
    "an empty block of the server": (EMPTY_BLOCK, "Yes\nNo", [0, 4], [48, 64]),
    "a tool call isn't the end of the turn": (CALLING, CALL, [0, 6], [1, 14]),
    "a tool call and an end": ((*CALLING, "<|im_end|>"), CALL, [0, 6], [1, 14]),
    "the answer alone": (("Yes",), "<think>Hm</think>Yes", [0], None),
    "another answer": (("<think>", "Hm", "</think>", "No"), "<think>Hm</think>Yes", [0], None),
    "more text": (("<think>", "Hm", "</think>", "Yes", " indeed"), "<think>Hm</think>Yes", [0], None),
    "more and an end": (("<think>", "Hm", "</think>", "Yes", " in", "</s>"), "<think>Hm</think>Yes", [0], None),
    "nothing": ((), "<think>Hm</think>Yes", [0], None),
}


@pytest.mark.parametrize("what", SUMS)
def test_which_tokens_are_where(what):
    said, response, starts, expected = SUMS[what]
    assert sums(tokens(*said), response, starts) == expected


@pytest.mark.parametrize("response", ["ab🧎c", "a🧎bc🧎", "🧎🧎", "你好a", "🧎"])
def test_replacement_characters_stand_for_others_only(response):
    raw = response.encode()
    said = tokens(*(bytes([byte]).decode(errors="replace") for byte in raw))
    assert sums(said, response, [0]) == [2 ** len(raw) - 1]
    assert sums(said, response.replace("🧎", "x").replace("好", "y"), [0]) is None
    assert sums(said, response + "z", [0]) is None
    for stop in range(1, len(response)):  # a student that has read less
        counted = sums(said, response[:stop], [0], cut=True)
        within = not response[stop].isascii() and not response[stop - 1].isascii()
        assert counted == (None if within else [2 ** len(response[:stop].encode()) - 1])


REASONED = "<think>\nHm, 2+3. 🧎‍♀️\nSo 5.\n</think>\n\nIt is 5.\nSure."
ANSWER = "It is 5.\nSure."
WIDE = REASONED.replace("\n</think>\n\n", "\n\n</think>\n\n\n")
LINES = ["<think>\n", "Hm, 2+3.", " 🧎‍♀️\n", "So 5.\n", "</think>\n\n", "It is 5.\n", "Sure."]
OF_QWEN3 = {  # turns of the conversation, what the server returned for each, the sentences of the last or of all
    "as it was said": ([REASONED], [REASONED], LINES),
    "begun by the prompt": ([REASONED], [REASONED.removeprefix("<think>\n")], [None, *LINES[1:4], None, *LINES[5:]]),
    "other white space around the tags": ([WIDE], [WIDE], [*LINES[:3], "So 5.\n\n", "</think>\n\n\n", *LINES[5:]]),
    "an empty block that the template adds": ([ANSWER], [ANSWER], [None, None, *LINES[5:]]),
    "reasoning that the server lacks": ([REASONED], [ANSWER], None),
    "reasoning that the trajectory lacks": ([ANSWER], [REASONED], None),
    "reasoning that the template drops": ([REASONED, "Yes."], [REASONED, "Yes."], None),
    "reasoning that both drop": ([REASONED, "Yes."], [ANSWER, "Yes."], [*LINES[5:], None, None, "Yes."]),
}


@pytest.mark.parametrize("what", OF_QWEN3)
def test_a_template_that_rewrites_think_blocks(what, qwen3_tokenizer):
    """A nat per token, each decoded alone, and the end of the turn."""
    turns, said, lines = OF_QWEN3[what]
    ids = [qwen3_tokenizer(text + "<|im_end|>")["input_ids"] for text in said]
    decoded = [[qwen3_tokenizer.decode(i) for i in turn] for turn in ids]
    assert ("🧎" in said[0]) == ("\N{REPLACEMENT CHARACTER}" in "".join(decoded[0]))
    logprobs = [[{"token": t, "bytes": list(t.encode()), "logprob": -1.0} for t in turn] for turn in decoded]
    row = {"messages": [message for turn in turns for message in (ASKED, answer(turn))]}
    row["logprobs"] = logprobs if len(turns) > 1 else logprobs[0]
    (example,) = ExampleTokenizer(qwen3_tokenizer)([row])
    own = example.input_ids[example.scored]
    row |= {"rsr": 1.0, "rsr_token_ids": own, "rsr_token_ranks": np.ones(len(own), np.int32)}
    row["rsr_token_surprisals"] = np.ones(len(own), np.float32)
    (found,) = score_provenance(Dataset.from_list([row]), qwen3_tokenizer, "logprobs")["provenance_sentences"]
    assert (found is None) == (lines is None)
    for one, line in zip(found or [], lines or [], strict=True):
        assert one["class"] == ("" if line is None else "common")
        assert line is None or (one["text"].strip() == line.strip() and one["p_teacher"] == pytest.approx(np.exp(-1)))


def test_another_text_or_none_is_null_and_counted(by_server, rows, chats, caplog):
    good, turns = rows[0], chats["several turns"][0]
    bad = [
        {**good, "logprobs": rows[1]["logprobs"]},
        {**good, "completion": good["completion"] + " And more."},
        {**good, "logprobs": good["logprobs"][:-1]},
        {**good, "logprobs": None},
        {**good, "logprobs": []},
        {**good, "completion": "", "logprobs": tokens("a") + [{"token": "b", "logprob": 1.0}]},  # not scored, not read
    ]
    found = by_server([good, *bad])
    assert [one is None for one in found] == [False, *[True] * len(bad)]
    assert "5 of 7 rows have no provenance" in caplog.text
    odd = [turns["logprobs"][1:], [None, turns["logprobs"][1]], [None, None]]
    assert by_server([turns, *({**turns, "logprobs": said} for said in odd)])[1:] == [None] * 3
    assert by_server([{**turns, "logprobs": turns["logprobs"][1]}]) == [None]  # of the last turn only


A = {"token": "a", "logprob": -1.0}
MALFORMED = {
    "token 1 has null as its logprob": [A, {"token": "b", "logprob": None}],
    "token 0 has null as its text": [{"token": None, "logprob": -1.0}],
    "token 0 has the logprob nan": [{"token": "a", "logprob": float("nan")}],
    "token 0 has the logprob 0.5": [{"token": "a", "logprob": 0.5}],
    "token 0 has str as its logprob": [{"token": "a", "logprob": "-1"}],
    "token 0 has `bytes` that": [{**A, "bytes": [256]}],
    "token 0 is float": [-1.0, -2.0],
    "str instead of a list": "-1.0 -2.0",
    "dict instead of a list": {"tokens": ["a"], "token_logprobs": [-1.0]},
    "turn 1, token 0 has null as its logprob": [[A], [{"token": "a", "logprob": None}]],
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_value_is_an_error(what, by_server):
    rows = [{"prompt": PROMPT, "completion": "5", "logprobs": value} for value in (None, None, MALFORMED[what])]
    with pytest.raises(RSRError, match=r"^Row 2, column 'logprobs': ") as error:
        by_server(rows)
    assert what in str(error.value) and "Expected is what the chat completions API" in str(error.value)
