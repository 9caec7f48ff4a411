"""The teacher's own log-probabilities in a column: the same as a pass of its model, in every dialect of servers."""

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from datasets.fingerprint import Hasher
from transformers.convert_slow_tokenizer import bytes_to_unicode

from rsr_trl import RSRScorer
from rsr_trl.rsr import ERROR
from rsr_trl.scoring.rows import SlimRows
from rsr_trl.scoring.second_pass import teacher_steps
from rsr_trl.scoring.teacher_logprobs import read_generations, surprisals_of_steps
from rsr_trl.scoring.tokens import ExampleTokenizer
from tests.scoring.truth import in_float64, truth_of


pytestmark = pytest.mark.usefixtures("quiet")

BYTE_OF = {letter: byte for byte, letter in bytes_to_unicode().items()}
PROMPT = "Q:\n2+3?\nA:"
RESPONSES = [
    "First we add: 2+3=5. Right.\n\nThen 5*4=20.\n\t- and again\nSo it is\n20, or\ntwenty.",
    "We add them. It is 5. Done",
    "No end and no line",
    " Später: 你好。🧎‍♀️ knies\n\nÜber 5 €\n🙂\n",
    "\n".join(f"{i} more" for i in range(9)),
    "<think>\nHm, 2+3.\n</think>\n\nIt is 5.",
]
TURNS = [["one.\ntwo", "three"], ["Well, 5.\nOr so", "4\n"], ["No.", "Yes.\nNo. Yes."]]


@pytest.fixture
def student(tiny_student):
    return tiny_student()


@pytest.fixture
def teacher(tiny_student):
    """Another one, in no way better, but with other probabilities."""
    return tiny_student(seed=3)


@pytest.fixture
def scorer(student, tiny_tokenizer) -> RSRScorer:
    return RSRScorer(student, tiny_tokenizer, scores="provenance", teacher_logprobs_column="logprobs")


@pytest.fixture
def by_model(student, teacher, tiny_tokenizer) -> RSRScorer:
    return RSRScorer(student, tiny_tokenizer, scores="provenance", teacher=RSRScorer(teacher, tiny_tokenizer))


@pytest.fixture
def say(teacher, tiny_tokenizer):
    """`say(before, response)`: what a server says of a response, from all logits of the teacher in float64."""
    model64 = in_float64(teacher)

    def answer(before: str, response: str) -> list[dict]:
        first, own = (tiny_tokenizer(text)["input_ids"] for text in (before, response))
        nats = truth_of(model64, first + own, range(len(first), len(first) + len(own))).surprisals
        letters = tiny_tokenizer.convert_ids_to_tokens(own)
        assert [tiny_tokenizer.decode([i]) for i in own if i < 6] == [w for w in letters if w not in BYTE_OF]
        raw = [bytes([BYTE_OF[w]]) if w in BYTE_OF else w.encode() for w in letters]
        return [
            {"token": r.decode(errors="replace"), "logprob": -n, "bytes": list(r), "top_logprobs": []}
            for r, n in zip(raw, nats, strict=True)
        ]

    return answer


@pytest.fixture
def rows(say) -> list[dict]:
    """Prompt and completion, plain."""
    return [{"prompt": PROMPT, "completion": text, "logprobs": say(PROMPT, text)} for text in RESPONSES]


@pytest.fixture
def chats(say, tiny_tokenizer) -> dict[str, list[dict]]:
    """The other formats, by name."""
    user = {"role": "user", "content": "2+3?"}
    before = tiny_tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    found = {"chat": [], "messages": [], "several turns": []}
    for text in RESPONSES:
        answer, logprobs = {"role": "assistant", "content": text}, say(before, text)
        found["chat"].append({"prompt": [user], "completion": [answer], "logprobs": logprobs})
        found["messages"].append({"messages": [user, answer], "logprobs": logprobs})
    for turns in TURNS:
        messages, logprobs = [], []
        for turn in turns:
            messages.append(user)
            before = tiny_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            messages.append({"role": "assistant", "content": turn})
            logprobs.append(say(before, turn))
        found["several turns"].append({"messages": messages, "logprobs": logprobs})
    return found


def provenance(scorer: RSRScorer, rows: list[dict]) -> list[float | None]:
    return scorer.score(Dataset.from_list(rows))["score_provenance"][:]


def sums_by_model(by_model: RSRScorer, rows: list[dict]) -> list[np.ndarray]:
    """The teacher's surprisal of each step, from a pass of its model."""
    examples = by_model._tokenized(rows)
    others = [example.for_teacher for example in examples]
    return teacher_steps(by_model.teacher.student, others, [int(e.step_starts.sum()) for e in examples])


# ------------------------------------------------------------------------------------------ the same as a pass


@pytest.mark.parametrize("form", ["plain", "chat", "messages", "several turns"])
def test_equals_a_pass_of_the_teacher(form, scorer, by_model, rows, chats):
    rows = {"plain": rows, **chats}[form]
    expected, found = sums_by_model(by_model, rows), scorer._tokenize(rows)
    for row, sums, example in zip(rows, expected, found, strict=True):
        np.testing.assert_allclose(example.teacher_steps, sums, rtol=1e-5, err_msg=str(row))
    shares = provenance(scorer, rows)
    assert shares == pytest.approx(provenance(by_model, rows)) and None not in shares
    assert len(set(shares)) > 1  # else the comparison would say little


def test_all_of_a_text(scorer, by_model, say):
    """Of a text without a prompt the first token is never scored."""
    rows = [{"text": text, "logprobs": say("?", text)} for text in RESPONSES]
    for row, example in zip(rows, scorer._tokenize(rows), strict=True):
        places = np.flatnonzero(example.step_starts)
        nats = -np.array([token["logprob"] for token in row["logprobs"]])
        expected = np.add.reduceat(nats, places)  # every byte is a token; the first is left out of the first step
        np.testing.assert_allclose(example.teacher_steps, expected, rtol=1e-9)
    assert None not in provenance(scorer, rows)


@pytest.mark.parametrize("max_length", [14, 30, 60, 70, 85])
def test_a_student_that_sees_less_is_compared_on_what_it_sees(
    max_length, student, teacher, tiny_tokenizer, rows, chats
):
    settings = dict(scores="provenance", max_length=max_length)
    cut = RSRScorer(student, tiny_tokenizer, teacher_logprobs_column="logprobs", **settings)
    teacher = RSRScorer(teacher, tiny_tokenizer, max_length=max_length)
    both_cut = RSRScorer(student, tiny_tokenizer, teacher=teacher, **settings)
    rows = [row for row in rows if row["completion"].isascii()]  # else one may be cut within a character
    for each in (rows, chats["several turns"]):
        scored = cut.score(Dataset.from_list(each))
        assert scored["score_provenance"][:] == pytest.approx(provenance(both_cut, each))
        known = [share is not None for share in scored["score_provenance"]]
        assert known == [error is None for error in scored["rsr_error"]]
    assert any(cut.score(Dataset.from_list(rows))["rsr_truncated"])


def test_a_cut_within_a_character(student, tiny_tokenizer, rows):
    for max_length in range(30, 50):
        scorer = RSRScorer(
            student, tiny_tokenizer, scores="provenance", teacher_logprobs_column="logprobs", max_length=max_length
        )
        assert 0 <= provenance(scorer, rows[3:4])[0] <= 1


def test_a_teacher_with_other_tokens(gsm8k_rows, gsm8k_student, stories260k):
    teacher = RSRScorer(stories260k)
    scorer = RSRScorer(gsm8k_student, dtype="float32", scores="provenance", teacher_logprobs_column="logprobs")
    by_model = RSRScorer(gsm8k_student, dtype="float32", scores="provenance", teacher=teacher)
    rows, tokenizer = [], teacher.processing_class
    model64 = in_float64(teacher.student.model)
    for row in gsm8k_rows[::300]:
        row = {"prompt": row["prompt"], "completion": row["completion"][:300].rstrip()}
        (example,) = teacher._tokenize([row])
        places = np.flatnonzero(example.scored)
        nats = truth_of(model64, example.input_ids, places).surprisals
        # Pieces as SentencePiece writes them, a byte or a word with a mark for its space.
        pieces = tokenizer.convert_ids_to_tokens(example.input_ids[places])
        raw = [bytes([int(p[3:5], 16)]) if p.startswith("<0x") else p.replace("▁", " ").encode() for p in pieces]
        row["logprobs"] = [
            {"token": r.decode(errors="replace"), "logprob": -n, "bytes": list(r)}
            for r, n in zip(raw, nats, strict=True)
        ]
        rows.append(row)
    compared = 0
    assert None not in provenance(scorer, rows)
    for sums, example in zip(sums_by_model(by_model, rows), scorer._tokenize(rows), strict=True):
        if np.isfinite(sums).all():
            np.testing.assert_allclose(example.teacher_steps, sums, rtol=1e-5)
            compared += 1
    assert compared >= len(rows) - 2


# ------------------------------------------------------------------------------------------------- the servers' ways


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


def behind(text: str):
    return lambda tokens: [*tokens, {"token": text, "logprob": -0.2, "bytes": None}]


DIALECTS = {
    "as an object": lambda tokens: {"content": tokens, "refusal": None},
    "end of turn": behind("<|im_end|>"),
    "end of sentence": behind("<｜end▁of▁sentence｜>"),
    "end without a name": behind(""),
    "late characters": late,
    "late characters and an end": lambda tokens: behind("</s>")(late(tokens)),
    "replacement characters": lossy,
    "replacement characters and an end": lambda tokens: behind("</s>")(lossy(tokens)),
    "a space behind all": behind(" "),
    "a line end before all": lambda tokens: [{"token": "\n\n", "logprob": -0.3, "bytes": [10, 10]}, *tokens],
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_servers_differ(dialect, scorer, rows):
    if " all" in dialect:  # white space that isn't the response's own; its own at the ends doesn't count then
        rows = [row for row in rows if row["completion"] == row["completion"].strip()]
    expected = [example.teacher_steps for example in scorer._tokenize(rows)]
    spoken = [{**row, "logprobs": DIALECTS[dialect](row["logprobs"])} for row in rows]
    for row, sums, example in zip(rows, expected, scorer._tokenize(spoken), strict=True):
        np.testing.assert_allclose(example.teacher_steps, sums, rtol=1e-9, err_msg=row["completion"])
    assert provenance(scorer, spoken) == provenance(scorer, rows)


def test_without_bytes_the_text_counts(scorer, rows):
    rows = [row for row in rows if row["completion"].isascii()]
    spoken = [{**row, "logprobs": [{k: t[k] for k in ("token", "logprob")} for t in row["logprobs"]]} for row in rows]
    assert provenance(scorer, spoken) == provenance(scorer, rows)


def tokens(*pieces: str) -> list[dict]:
    """One nat for the first, two for the second, four for the third and so on: sums tell which are in them."""
    return [{"token": piece, "logprob": -float(2**i)} for i, piece in enumerate(pieces)]


def steps(said: list[dict], response: str, starts: list[int], stop: int | None = None) -> list[float] | None:
    (generation,) = read_generations(said)
    stop = len(response) if stop is None else stop
    found = surprisals_of_steps([generation], response, [(0, len(response))], np.array(starts), stop)
    return None if found is None else found.tolist()


class TestSteps:
    def test_a_token_is_in_the_step_in_which_it_ends(self):
        assert steps(tokens("a", "b\n", "c", "\nd", "e"), "ab\nc\nde", [0, 3, 5]) == [3, 4, 24]

    def test_tokens_behind_what_the_student_sees_are_out(self):
        assert steps(tokens("a", "b\n", "c", "\nd", "e"), "ab\nc\nde", [0, 3], 4) == [3, 4]

    def test_a_step_within_a_token_has_no_probability_of_its_own(self):
        assert steps(tokens("a", "b\nc\nd", "e"), "ab\nc\nde", [0, 3, 5]) == pytest.approx([1, np.nan, 6], nan_ok=True)

    def test_indentation_is_of_the_step_before(self):
        assert steps(tokens("a\n", "  ", "b"), "a\n  b", [0, 4]) == [3, 4]

    @pytest.mark.parametrize(
        "said, hm",
        [
            (tokens("Hm", "\n", "</think>", "\n\n", "Yes"), 3),  # begun by the prompt
            (tokens("Hm", "\n", "</think>", "\n", "Yes"), 3),
            (tokens("Hm", "\n", "\n", "\n", "Yes"), 15),  # both taken out
        ],
    )
    def test_think_tags_that_one_side_lacks(self, said, hm):
        response = "<think>\nHm\n</think>\n\nYes"
        assert steps(said, response, [0, 8, 11, 21]) == pytest.approx([np.nan, hm, np.nan, 16], nan_ok=True)

    def test_an_empty_block_of_the_template(self):
        found = steps(tokens("Yes", "\n", "No"), "<think>\n\n</think>\n\nYes\nNo", [0, 9, 19, 23])
        assert found == pytest.approx([np.nan, np.nan, 3, 4], nan_ok=True)
        assert steps(tokens("<think>", "\n\n", "</think>", "\n\n", "Yes", "\n", "No"), "Yes\nNo", [0, 4]) == [48, 64]

    def test_tags_that_both_have_count(self):
        said = tokens("<think>", "\n", "Hm", "\n", "</think>", "\n\n", "Yes")
        assert steps(said, "<think>\nHm\n</think>\n\nYes", [0, 8, 11, 21]) == [3, 12, 48, 64]

    @pytest.mark.parametrize(
        "said",
        [
            tokens("Yes"),  # without its reasoning
            tokens("<think>", "Hm", "</think>", "No"),
            tokens("<think>", "Hm", "</think>", "Yes", " indeed"),
            tokens("<think>", "Hm", "</think>", "Yes", " indeed", "</s>"),
            tokens(),
        ],
    )
    def test_another_text(self, said):
        assert steps(said, "<think>Hm</think>Yes", [0]) is None

    @pytest.mark.parametrize("response", ["ab🧎c", "a🧎bc🧎", "🧎🧎", "你好a", "🧎"])
    def test_replacement_characters_stand_for_others_only(self, response):
        raw = response.encode()
        said = tokens(*(bytes([byte]).decode(errors="replace") for byte in raw))
        assert steps(said, response, [0]) == [2 ** len(raw) - 1]
        assert steps(said, response.replace("🧎", "x").replace("好", "y"), [0]) is None
        assert steps(said, response + "z", [0]) is None


class TestQwen3:
    """Its template writes think blocks anew, adds empty ones, and drops those of earlier turns."""

    REASONED = "<think>\nHm, 2+3. 🧎‍♀️\nSo 5.\n</think>\n\nIt is 5.\nSure."

    @pytest.fixture
    def teacher_steps(self, qwen3):
        """`teacher_steps(content, *said)`: the example of a conversation, with the teacher's steps."""
        tokenize = ExampleTokenizer(qwen3, with_steps=True, teacher_logprobs_column="logprobs")

        def of(content: str, *said: str, earlier: str | None = None) -> list[float] | None:
            user = {"role": "user", "content": "2+3?"}
            turns = [content] if earlier is None else [earlier, content]
            messages = [m for turn in turns for m in (user, {"role": "assistant", "content": turn})]
            logprobs = [self.spoken(qwen3, text) for text in said]
            row = {"messages": messages, "logprobs": logprobs if len(logprobs) > 1 else logprobs[0]}
            (example,) = tokenize([row])
            assert example.error is None
            return None if example.teacher_steps is None else example.teacher_steps.tolist()

        return of

    def spoken(self, qwen3, text: str) -> list[dict]:
        """A nat a token, and the end of the turn; each token decoded alone."""
        ids = qwen3(text + "<|im_end|>")["input_ids"]
        return [{"token": t, "bytes": list(t.encode()), "logprob": -1.0} for t in map(qwen3.decode, ids)]

    def count(self, qwen3, *texts: str) -> list[float]:
        return [float(len(qwen3(text)["input_ids"])) for text in texts]

    def test_as_it_was_said(self, teacher_steps, qwen3):
        lines = ["<think>\n", "Hm, 2+3. 🧎‍♀️\n", "So 5.\n", "</think>\n\n", "It is 5.\n", "Sure."]
        assert "�" in "".join(token["token"] for token in self.spoken(qwen3, self.REASONED))
        assert teacher_steps(self.REASONED, self.REASONED) == self.count(qwen3, *lines)

    def test_begun_by_the_prompt(self, teacher_steps, qwen3):
        _, *whole = teacher_steps(self.REASONED, self.REASONED)
        first, *found = teacher_steps(self.REASONED, self.REASONED.removeprefix("<think>\n"))
        assert np.isnan(first) and np.isnan(found[2])
        assert found[:2] == whole[:2] and found[3:] == whole[3:]

    def test_other_white_space_around_the_tags(self, teacher_steps, qwen3):
        rewritten = self.REASONED.replace("\n</think>\n\n", "\n\n</think>\n\n\n")
        assert np.isfinite(teacher_steps(rewritten, rewritten)).all()

    def test_an_empty_block_that_the_template_adds(self, teacher_steps, qwen3):
        found = teacher_steps("It is 5.\nSure.", "It is 5.\nSure.")
        assert found == pytest.approx([np.nan, np.nan, *self.count(qwen3, "It is 5.\n", "Sure.")], nan_ok=True)

    def test_reasoning_that_one_side_lacks(self, teacher_steps):
        assert teacher_steps(self.REASONED, "It is 5.\nSure.") is None
        assert teacher_steps("It is 5.\nSure.", self.REASONED) is None
        assert teacher_steps("Yes.", self.REASONED, "Yes.", earlier=self.REASONED) is None  # the template drops it
        assert teacher_steps("Yes.", "It is 5.\nSure.", "Yes.", earlier=self.REASONED) is not None


# ---------------------------------------------------------------------------------------------------- rows without it


def test_another_text_or_none_is_null_and_told(scorer, rows, chats, caplog):
    good = rows[0]
    bad = [
        {**good, "logprobs": rows[1]["logprobs"]},
        {**good, "completion": good["completion"] + " And more."},
        {**good, "logprobs": good["logprobs"][:-1]},
        {**good, "logprobs": None},
        {**good, "logprobs": []},
        {**good, "completion": ""},
    ]
    scored = scorer.score(Dataset.from_list([good, *bad]))
    assert [share is None for share in scored["score_provenance"]] == [False, *[True] * len(bad)]
    assert [rsr is None for rsr in scored["rsr"]] == [False] * len(bad) + [True]
    assert "5 of 7 rows have no score_provenance" in caplog.text
    turns = chats["several turns"][0]
    odd = [{**turns, "logprobs": turns["logprobs"][1:]}, {**turns, "logprobs": [None, turns["logprobs"][1]]}]
    assert provenance(scorer, [*odd, turns])[:2] == [None, None]
    flat = {**turns, "logprobs": turns["logprobs"][1]}  # of the last turn only
    assert provenance(scorer, [flat]) == [None]


def test_nothing_is_told_where_all_is_well(scorer, rows, caplog):
    scorer.score(Dataset.from_list(rows))
    assert not caplog.records


MALFORMED = {
    "token 1 has null as its logprob": [{"token": "a", "logprob": -1.0}, {"token": "b", "logprob": None}],
    "token 0 has null as its text": [{"token": None, "logprob": -1.0}],
    "token 0 has the logprob nan": [{"token": "a", "logprob": float("nan")}],
    "token 0 has the logprob 0.5": [{"token": "a", "logprob": 0.5}],
    "token 0 has str as its logprob": [{"token": "a", "logprob": "-1"}],
    "token 0 has `bytes` that": [{"token": "a", "logprob": -1.0, "bytes": [256]}],
    "token 0 is float": [-1.0, -2.0],
    "str instead of a list": "-1.0 -2.0",
    "dict instead of a list": {"tokens": ["a"], "token_logprobs": [-1.0]},
    "turn 1, token 0 has null as its logprob": [[{"token": "a", "logprob": -1.0}], [{"token": "a", "logprob": None}]],
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_value_is_an_error(what, scorer):
    rows = [{"prompt": PROMPT, "completion": "5", "logprobs": value} for value in (None, None, MALFORMED[what])]
    with pytest.raises(ValueError, match=r"^Row 2, column 'logprobs': ") as error:
        scorer.score(Dataset.from_list(rows))
    assert what in str(error.value) and "Expected is what the chat completions API" in str(error.value)
    with pytest.raises(ValueError, match=r"^Row 1, column 'logprobs': ") as error:
        scorer({name: [row[name] for row in rows[1:]] for name in rows[0]})
    assert "within the 2 that map passed" in error.value.__notes__[0]


# ---------------------------------------------------------------------------------------------------------- contract


ENTRIES = {
    "map": lambda scorer, dataset: dataset.map(scorer),
    "batched map": lambda scorer, dataset: dataset.map(scorer, batched=True, batch_size=2),
    "stream": lambda scorer, dataset: Dataset.from_list(list(scorer.score(dataset.to_iterable_dataset()))),
    "splits": lambda scorer, dataset: scorer.score(DatasetDict(only=dataset))["only"],
    "numpy": lambda scorer, dataset: scorer.score(dataset.with_format("numpy")).with_format(None),
    "numpy map": lambda scorer, dataset: dataset.with_format("numpy").map(scorer, batched=True).with_format(None),
    "one row": lambda scorer, dataset: Dataset.from_list([row | scorer(row) for row in dataset]),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("form", ["plain", "several turns"])
def test_the_same_by_every_entry(entry, form, scorer, rows, chats):
    rows = {"plain": rows, **chats}[form]
    dataset = Dataset.from_list([*rows, {**rows[0], "logprobs": None}])
    expected, found = scorer.score(dataset), ENTRIES[entry](scorer, dataset)
    assert found["score_provenance"][:] == pytest.approx(expected["score_provenance"][:])
    assert found["logprobs"][:] == dataset["logprobs"][:]


def test_the_column_is_part_of_what_is_cached(tiny_student_path, student, tiny_tokenizer):
    for model, tokenizer in ((tiny_student_path, None), (student, tiny_tokenizer)):
        one, same, other = (
            RSRScorer(model, tokenizer, scores="provenance", teacher_logprobs_column=name) for name in ("a", "a", "b")
        )
        assert Hasher.hash(one) == Hasher.hash(same) != Hasher.hash(other)
        assert one.fingerprint == other.fingerprint
        assert [name for name, value in one.identity.items() if other.identity[name] != value] == [
            "teacher_logprobs_column"
        ]


def test_a_column_that_is_not_there(scorer):
    dataset = Dataset.from_list([{"prompt": PROMPT, "completion": "5"}])
    for score in (scorer.score, lambda dataset: dataset.map(scorer)):
        with pytest.raises(ValueError, match=r"no column 'logprobs' \(teacher_logprobs_column\)"):
            score(dataset)


def test_a_failed_row_needs_no_logprobs(scorer):
    rows = [{"prompt": PROMPT, "completion": "", "logprobs": [{"token": "a", "logprob": 1.0}]}]
    scored = scorer.score(Dataset.from_list(rows))
    assert scored[ERROR] == ["completion is empty"] and scored["score_provenance"] == [None]


def test_a_tool_call_at_the_end_is_not_taken_for_the_end_of_the_turn():
    response = "Sure.\n<tool_call>\n{}\n</tool_call>"
    said = tokens("Sure.\n", "<tool_call>", "\n{}\n", "</tool_call>", "<|im_end|>")
    assert steps(said, response, [0, 7]) == steps(said[:-1], response, [0, 7]) == [1, 14]


@pytest.mark.parametrize("max_length", range(6, 40))
def test_steps_in_which_no_token_of_the_teacher_counts_are_unknown(student, tiny_tokenizer, max_length):
    row = {"prompt": PROMPT, "completion": "<think>\nIt is 5.\n</think>\nIt is 5."}
    row["logprobs"] = tokens("It", " is", " 5.", "\n</think>\n", "It", " is", " 5.")
    empty = {"prompt": PROMPT, "completion": "<think>\n\n</think>\n\n", "logprobs": {"content": []}}
    scorer = RSRScorer(
        student, tiny_tokenizer, scores="provenance", teacher_logprobs_column="logprobs", max_length=max_length
    )
    for one in (row, empty):
        scored = scorer.score(Dataset.from_list([one]))
        assert (scored["rsr"][0] is None) == (scored["rsr_error"][0] is not None)
        assert scored["rsr"][0] is not None or scored["score_provenance"][0] is None


def test_several_turns_without_any_are_null(scorer, chats):
    row = chats["several turns"][0]
    assert provenance(scorer, [row, row | {"logprobs": [None, None]}])[1] is None


def test_alternatives_change_nothing_and_are_not_read(scorer, rows, chats):
    for given, wrap in ((rows, lambda said: {"content": said}), (chats["several turns"], lambda said: said)):
        more = [{"token": "a", "logprob": -1.0, "bytes": [97]}, {"token": "b", "logprob": -2.0, "bytes": None}]

        def with_alternatives(said):
            if isinstance(said[0], list):
                return [with_alternatives(turn) for turn in said]
            return [token | {"top_logprobs": more} for token in said]  # noqa: B023 - called at once

        full = [row | {"logprobs": wrap(with_alternatives(row["logprobs"]))} for row in given]
        assert provenance(scorer, full) == provenance(scorer, given)
        dataset = Dataset.from_list(full)
        slim = SlimRows(dataset, "logprobs")
        assert len(slim) == len(dataset) and set(slim[0:2]) == set(dataset.column_names)
        assert "top_logprobs" in str(dataset[0:2]) and "top_logprobs" not in str(slim[0:2])
