"""Provenance by its definition, from the teacher's model and from a server's log-probabilities in every dialect."""

import numpy as np
import pytest
from datasets import Dataset
from transformers.convert_slow_tokenizer import bytes_to_unicode

from rsr_trl import RSRScorer, select_trajectories
from rsr_trl.experimental import provenance as module
from rsr_trl.experimental.provenance import provenance, read_logprobs, score_provenance, step_sums
from rsr_trl.rsr import RSRError
from rsr_trl.scoring.tokens import ExampleTokenizer
from tests.scoring.truth import in_float64, truth_of


BYTE_OF = {letter: byte for byte, letter in bytes_to_unicode().items()}
PROMPT = "Q:\n2+3?\nA:"
RESPONSES = [  # a step begins at its first word
    ["First we add: 2+3=5. Right.\n\n", "Then 5*4=20.\n\t", "- and again\n", "So it is\n", "20, or\n", "twenty."],
    ["We add them. ", "It is 5. ", "Done"],
    ["No end and no line"],
    [" Später: 你好。🧎‍♀️ knies\n\n", "Über 5 €\n", "🙂\n"],
    [*(f"{i} more\n" for i in range(8)), "8 more"],
    ["<think>\n", "Hm, 2+3.\n", "</think>\n\n", "It is 5."],
]
TEXTS = ["".join(steps) for steps in RESPONSES]
TURNS = [["one.\ntwo", "three"], ["Well, 5.\nOr so", "4\n"], ["No.", "Yes.\nNo. Yes."]]
ASKED = {"role": "user", "content": "2+3?"}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.fixture
def teacher(tiny_student):
    return tiny_student(seed=3)


@pytest.fixture
def scored(tiny_student, tiny_tokenizer):
    """`scored(rows, model=None, **settings)`: with token statistics, by the student if not by another model."""

    def score(rows: list[dict], model=None, **settings) -> Dataset:
        scorer = RSRScorer(model or tiny_student(), tiny_tokenizer, token_stats=True, **settings)
        return scorer.score(Dataset.from_list(rows))

    return score


@pytest.fixture
def by_server(scored, tiny_tokenizer):
    """`by_server(rows)`: the shares, and for each row with one the teacher's sums of its steps."""
    return lambda rows, **settings: shares_and_sums(scored(rows, **settings), tiny_tokenizer, "logprobs")


@pytest.fixture
def by_model(scored, teacher, tiny_tokenizer):
    return lambda rows, **settings: shares_and_sums(
        scored(rows, **settings), tiny_tokenizer, scored(rows, teacher, **settings)
    )


def shares_and_sums(*args) -> tuple[list[float | None], list[np.ndarray]]:
    sums = []

    def recorded(student, teacher, num_tokens):
        sums.append(np.array(teacher))
        return provenance(student, teacher, num_tokens)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "provenance", recorded)
        return score_provenance(*args)["score_provenance"][:], sums


@pytest.fixture
def say(teacher, tiny_tokenizer):
    """`say(before, response)`: what a server returns for a response, from all logits of the teacher in float64."""
    model64 = in_float64(teacher)

    def said(before: str, response: str) -> list[dict]:
        first, own = (tiny_tokenizer(text)["input_ids"] for text in (before, response))
        nats = truth_of(model64, first + own, range(len(first), len(first) + len(own))).surprisals
        letters = tiny_tokenizer.convert_ids_to_tokens(own)
        raw = [bytes([BYTE_OF[w]]) if w in BYTE_OF else w.encode() for w in letters]
        return spoken(raw, nats)

    return said


def spoken(raw: list[bytes], nats: np.ndarray) -> list[dict]:
    return [
        {"token": r.decode(errors="replace"), "logprob": -n, "bytes": list(r), "top_logprobs": []}
        for r, n in zip(raw, nats, strict=True)
    ]


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


def assert_same(found: tuple, expected: tuple, rtol: float) -> None:
    assert found[0] == pytest.approx(expected[0])
    for sums, truth in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(sums, truth, rtol=rtol)


def test_the_share_of_steps_of_which_the_teacher_is_surer():
    assert provenance([1.0, 4.0, 1.0], [0.5, 3.9, 9.0], [2, 4, 1]) == pytest.approx(1 / 3)  # gaps 0.25, 0.025, -8
    assert provenance([1.0, 1.0], [0.8, np.nan], [1, 1]) == 1  # a step that isn't known is left out
    assert np.isnan(provenance([1.0], [np.nan], [1])) and np.isnan(provenance([], [], []))


def test_equals_its_definition(by_model, rows, tiny_student, teacher, tiny_tokenizer):
    """One row at a time: every byte is a token, so steps are plain slices."""
    expected = []
    for steps in RESPONSES:
        ids = tiny_tokenizer(PROMPT + "".join(steps))["input_ids"]
        lengths = [len(tiny_tokenizer(step)["input_ids"]) for step in steps]
        places = range(len(ids) - sum(lengths), len(ids))
        mine, theirs = (truth_of(in_float64(m), ids, places).surprisals for m in (tiny_student(), teacher))
        expected.append(np.mean([gap.mean() >= 0.1 for gap in np.split(mine - theirs, np.cumsum(lengths)[:-1])]))
    assert by_model(rows)[0] == pytest.approx(expected)
    assert 0 < np.mean(expected) < 1  # else the comparison would say little


@pytest.mark.parametrize("form", ["plain", "chat", "messages", "several turns"])
def test_a_server_says_the_same_as_a_pass_of_its_model(form, by_server, by_model, rows, chats):
    rows = {"plain": rows, **chats}[form]
    found = by_server(rows)
    assert_same(found, by_model(rows), rtol=1e-5)
    assert None not in found[0] and len(set(found[0])) > 1


def test_all_of_a_text(by_server, say, tiny_tokenizer):
    """Of a text without a prompt the first token is never scored."""
    rows = [{"text": text, "logprobs": say("?", text)} for text in TEXTS]
    shares, sums = by_server(rows)
    assert None not in shares
    for row, example, found in zip(rows, ExampleTokenizer(tiny_tokenizer, with_steps=True)(rows), sums, strict=True):
        nats = -np.array([token["logprob"] for token in row["logprobs"]])
        np.testing.assert_allclose(found, np.add.reduceat(nats, np.flatnonzero(example.step_starts)), rtol=1e-9)


@pytest.mark.parametrize("max_length", [14, 30, 60, 70, 85])
def test_a_student_that_sees_less_is_compared_on_what_it_sees(max_length, scored, by_server, by_model, rows, chats):
    rows = [row for row in rows if row["completion"].isascii()]  # else one may be cut within a character
    for each in (rows, chats["several turns"]):
        found = by_server(each, max_length=max_length)
        assert found[0] == pytest.approx(by_model(each, max_length=max_length)[0])
        errors = scored(each, max_length=max_length)["rsr_error"]
        assert [share is None for share in found[0]] == [error is not None for error in errors]


def test_a_cut_within_a_character(by_server, rows):
    for max_length in range(30, 50):
        assert 0 <= by_server(rows[3:4], max_length=max_length)[0][0] <= 1


def test_a_teacher_with_other_tokens(gsm8k_rows, gsm8k_student, stories260k):
    student, teacher = (RSRScorer(m, dtype="float32", token_stats=True) for m in (gsm8k_student, stories260k))
    tokenizer, model64, rows = teacher.processing_class, in_float64(teacher.student.model), []
    for row in gsm8k_rows[::300]:
        row = {"prompt": row["prompt"], "completion": row["completion"][:300].rstrip()}
        (example,) = ExampleTokenizer(tokenizer)([row])
        places = np.flatnonzero(example.scored)
        nats = truth_of(model64, example.input_ids, places).surprisals
        # Pieces as SentencePiece writes them, a byte or a word with a mark for its space.
        pieces = tokenizer.convert_ids_to_tokens(example.input_ids[places])
        raw = [bytes([int(p[3:5], 16)]) if p.startswith("<0x") else p.replace("▁", " ").encode() for p in pieces]
        rows.append(row | {"logprobs": spoken(raw, nats)})
    dataset, tokenizers = student.score(Dataset.from_list(rows)), (student.processing_class, tokenizer)
    of_teacher = teacher.score(dataset.select_columns(["prompt", "completion"]))
    found = score_provenance(dataset, tokenizers[0], "logprobs")["score_provenance"]
    of_model = score_provenance(dataset, tokenizers[0], of_teacher, tokenizers[1])["score_provenance"]
    assert None not in found
    compared = [(a, b) for a, b in zip(found, of_model, strict=True) if b is not None]
    assert len(compared) >= len(rows) - 2 and all(a == pytest.approx(b) for a, b in compared)


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


def steps(said: list[dict], response: str, starts: list[int], stop: int | None = None) -> list[float] | None:
    (turn,) = read_logprobs(said)
    found = step_sums(turn, response, np.array(starts), len(response) if stop is None else stop)
    return None if found is None else found.tolist()


THOUGHT = "<think>\nHm\n</think>\n\nYes"
TAGGED = ("<think>", "\n", "Hm", "\n", "</think>", "\n\n", "Yes")
EMPTY_BLOCK = ("<think>", "\n\n", "</think>", "\n\n", "Yes", "\n", "No")
CALL, CALLING = "Sure.\n<tool_call>\n{}\n</tool_call>", ("Sure.\n", "<tool_call>", "\n{}\n", "</tool_call>")
NAN = float("nan")
STEPS = {  # the server's tokens, the response, where its steps begin, where the last ends, the sum of each
    "a token is in the step where it ends": (("a", "b\n", "c", "\nd", "e"), "ab\nc\nde", [0, 3, 5], None, [3, 4, 24]),
    "what the student doesn't see is out": (("a", "b\n", "c", "\nd", "e"), "ab\nc\nde", [0, 3], 4, [3, 4]),
    "a step within a token has no sum": (("a", "b\nc\nd", "e"), "ab\nc\nde", [0, 3, 5], None, [1, NAN, 6]),
    "indentation is of the step before": (("a\n", "  ", "b"), "a\n  b", [0, 4], None, [3, 4]),
    "a thought begun by the prompt": (TAGGED[2:], THOUGHT, [0, 8, 11, 21], None, [NAN, 3, NAN, 16]),
    "and other space": (("Hm", "\n", "</think>", "\n", "Yes"), THOUGHT, [0, 8, 11, 21], None, [NAN, 3, NAN, 16]),
    "both tags taken out": (("Hm", "\n", "\n", "\n", "Yes"), THOUGHT, [0, 8, 11, 21], None, [NAN, 15, NAN, 16]),
    "tags that both have count": (TAGGED, THOUGHT, [0, 8, 11, 21], None, [3, 12, 48, 64]),
    "an empty block of the template": (EMPTY_BLOCK[4:], "".join(EMPTY_BLOCK), [0, 9, 19, 23], None, [NAN, NAN, 3, 4]),
    "an empty block of the server": (EMPTY_BLOCK, "Yes\nNo", [0, 4], None, [48, 64]),
    "a tool call isn't the end of the turn": (CALLING, CALL, [0, 7], None, [1, 14]),
    "a tool call and an end": ((*CALLING, "<|im_end|>"), CALL, [0, 7], None, [1, 14]),
    "the answer alone": (("Yes",), "<think>Hm</think>Yes", [0], None, None),
    "another answer": (("<think>", "Hm", "</think>", "No"), "<think>Hm</think>Yes", [0], None, None),
    "more text": (("<think>", "Hm", "</think>", "Yes", " indeed"), "<think>Hm</think>Yes", [0], None, None),
    "more and an end": (("<think>", "Hm", "</think>", "Yes", " in", "</s>"), "<think>Hm</think>Yes", [0], None, None),
    "nothing": ((), "<think>Hm</think>Yes", [0], None, None),
}


@pytest.mark.parametrize("what", STEPS)
def test_sums_of_steps(what):
    said, response, starts, stop, expected = STEPS[what]
    found = steps(tokens(*said), response, starts, stop)
    assert found == (None if expected is None else pytest.approx(expected, nan_ok=True))


@pytest.mark.parametrize("response", ["ab🧎c", "a🧎bc🧎", "🧎🧎", "你好a", "🧎"])
def test_replacement_characters_stand_for_others_only(response):
    raw = response.encode()
    said = tokens(*(bytes([byte]).decode(errors="replace") for byte in raw))
    assert steps(said, response, [0]) == [2 ** len(raw) - 1]
    assert steps(said, response.replace("🧎", "x").replace("好", "y"), [0]) is None
    assert steps(said, response + "z", [0]) is None


REASONED = "<think>\nHm, 2+3. 🧎‍♀️\nSo 5.\n</think>\n\nIt is 5.\nSure."
ANSWER = "It is 5.\nSure."
WIDE = REASONED.replace("\n</think>\n\n", "\n\n</think>\n\n\n")
LINES = ["<think>\n", "Hm, 2+3. 🧎‍♀️\n", "So 5.\n", "</think>\n\n", "It is 5.\n", "Sure."]
OF_QWEN3 = {  # turns of the conversation, what the server returned for each, the steps of the last or of all
    "as it was said": ([REASONED], [REASONED], LINES),
    "begun by the prompt": ([REASONED], [REASONED.removeprefix("<think>\n")], [None, *LINES[1:3], None, *LINES[4:]]),
    "other white space around the tags": ([WIDE], [WIDE], [*LINES[:2], "So 5.\n\n", "</think>\n\n\n", *LINES[4:]]),
    "an empty block that the template adds": ([ANSWER], [ANSWER], [None, None, *LINES[4:]]),
    "reasoning that the server lacks": ([REASONED], [ANSWER], None),
    "reasoning that the trajectory lacks": ([ANSWER], [REASONED], None),
    "reasoning that the template drops": ([REASONED, "Yes."], [REASONED, "Yes."], None),
    "reasoning that both drop": ([REASONED, "Yes."], [ANSWER, "Yes."], [*LINES[4:], None, None, "Yes."]),
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
    row |= {"rsr": 1.0, "rsr_token_ids": own, "rsr_token_surprisals": np.ones(len(own), np.float32)}
    _, sums = shares_and_sums(Dataset.from_list([row]), qwen3_tokenizer, "logprobs")
    counts = [np.nan if line is None else len(qwen3_tokenizer(line)["input_ids"]) for line in lines or []]
    assert [list(of_row) for of_row in sums] == ([pytest.approx(counts, nan_ok=True)] if lines else [])


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
    shares, _ = by_server([good, *bad])
    assert [share is None for share in shares] == [False, *[True] * len(bad)]
    assert "5 of 7 rows have no score_provenance" in caplog.text
    odd = [turns["logprobs"][1:], [None, turns["logprobs"][1]], [None, None]]
    assert by_server([turns, *({**turns, "logprobs": said} for said in odd)])[0][1:] == [None] * 3
    assert by_server([{**turns, "logprobs": turns["logprobs"][1]}])[0] == [None]  # of the last turn only
    caplog.clear()
    assert None not in by_server(rows)[0]
    assert not [said for said in caplog.messages if "provenance" in said]


@pytest.mark.parametrize("max_length", range(6, 40))
def test_steps_in_which_no_token_of_the_teacher_counts_are_unknown(by_server, scored, max_length):
    row = {"prompt": PROMPT, "completion": "<think>\nIt is 5.\n</think>\nIt is 5."}
    row["logprobs"] = tokens("It", " is", " 5.", "\n</think>\n", "It", " is", " 5.")
    empty = {"prompt": PROMPT, "completion": "<think>\n\n</think>\n\n", "logprobs": {"content": []}}
    for one in (row, empty):
        share, rsr = by_server([one], max_length=max_length)[0][0], scored([one], max_length=max_length)["rsr"][0]
        assert rsr is not None or share is None


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


def test_what_does_not_belong_together(scored, rows, tiny_tokenizer, gpt2_tokenizer):
    dataset = scored(rows)
    plain = Dataset.from_list(rows)
    for message, *args in (
        (r"no column 'logprob'\. Its columns", dataset, tiny_tokenizer, "logprob"),
        (r"student's dataset has no rsr_token_ids.*token_stats=True", plain, tiny_tokenizer, "logprobs"),
        (r"teacher's dataset has no rsr_token_ids", dataset, tiny_tokenizer, plain),
        (r"teacher's dataset has 5 rows instead of 6", dataset, tiny_tokenizer, dataset.select(range(5))),
        (r"Row 0: its rsr_token_ids aren't those of the student's tokenizer", dataset, gpt2_tokenizer, "logprobs"),
        (r"Row 0: .* of the teacher's tokenizer", dataset, tiny_tokenizer, dataset, gpt2_tokenizer),
    ):
        with pytest.raises(RSRError, match=message):
            score_provenance(*args)
    with pytest.raises(RSRError, match="already has the column score_provenance"):
        score_provenance(score_provenance(dataset, tiny_tokenizer, "logprobs"), tiny_tokenizer, "logprobs")


def test_it_is_chosen_by_its_high_end(scored, rows, tiny_tokenizer):
    dataset = score_provenance(scored(rows), tiny_tokenizer, "logprobs")
    values = dataset["score_provenance"]
    assert dataset["logprobs"][:] == [row["logprobs"] for row in rows]  # nothing else changes
    (best,) = select_trajectories(dataset, score="provenance", keep_fraction=0.1, min_tokens=0)["score_provenance"]
    assert best == max(values) > min(values)
