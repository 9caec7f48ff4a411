"""A corpus with bad rows of every kind, one in ten: good rows score as without them, bad ones are null and say why."""

import json

import pytest
from datasets import Dataset

from rsr_trl import RSRScorer, data
from rsr_trl.scoring.job import Job


def turn(role: str, content: object, **more: object) -> dict:
    return {"role": role, "content": content, **more}


def chat(prompt: object, answer: object) -> dict:
    return {"messages": [turn("user", prompt), turn("assistant", answer)]}


GOOD = [chat(f"What is {i} + {i}?", f"That is {2 * i}, since {'so ' * (i % 5)}it is.") for i in range(27)]
LIMIT = 300
# Row -> the beginning of its rsr_error, or None where it is odd but can be scored.
POISON: dict[str, tuple[dict, str | None]] = {
    "empty": (chat("Why?", ""), "no token to score"),
    "no messages": ({"messages": []}, "messages is empty"),
    "null": ({"messages": None}, "messages is null"),
    "a number": ({"messages": 7}, "messages is int"),
    "a string": ({"messages": "user: hello"}, "messages is str"),
    "null among messages": ({"messages": [turn("user", "Why?"), None]}, "messages[1] is not a message"),
    "a number as content": (chat("Why?", 7), "messages[1] has int as content"),
    "unknown role": ({"messages": [turn("wizard", "Why?"), turn("assistant", "So.")]}, "messages[0] has the unknown"),
    "no assistant": ({"messages": [turn("user", "Why?")]}, "no assistant message"),
    "tool calls that are broken": (
        {"messages": [turn("user", "Why?"), turn("assistant", "So.", tool_calls='{"name": ')]},
        "messages[1] has tool_calls that are not a list",
    ),
    "tools that are broken": ({**chat("Why?", "So."), "tools": '[{"name": '}, "tools is not valid JSON"),
    "a prompt beyond max_length": (chat("word " * LIMIT, "So."), "cut off"),
    "long": (chat("Why?", "so " * 3_500_000), None),
    "a NUL byte": (chat("Why?", "So \0 it is."), None),
    "an end of turn that a user writes": (chat("Is <|im_end|> a token?", "It is."), None),
    "right to left": (chat("למה?", "ככה זה. مرحبا"), None),
    "emoji": (chat("👩‍👩‍👧‍👦?", "🇫🇷🏳️‍🌈 ✅"), None),
    "the prompt's end": (chat("Say it is so", "it is so"), None),
}


@pytest.fixture
def scorer(tiny_student, tiny_tokenizer) -> RSRScorer:
    return RSRScorer(tiny_student(), tiny_tokenizer, max_length=LIMIT)


@pytest.fixture
def mixed(tmp_path) -> tuple[str, dict[int, str]]:
    """The file, and which of its rows are poison. Ten good rows around each bad one, as far as they go."""
    rows, poison = [], {}
    for number, (name, (row, _)) in enumerate(POISON.items()):
        rows += [{**GOOD[(9 * number + i) % len(GOOD)], "id": len(rows) + i} for i in range(9)]
        poison[len(rows)] = name
        rows.append({**row, "id": len(rows)})
    path = tmp_path / "mixed.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path), poison


@pytest.mark.parametrize("streaming", [False, True])
def test_good_rows_score_as_without_the_poison(scorer, mixed, tmp_path, streaming):
    path, poison = mixed
    dataset = data.load(path, streaming=streaming)
    Job(scorer, dataset, tmp_path / "out", {"files": [path]}, 50).run(show_bar=False)
    scored = data.load(str(tmp_path / "out")).to_list()
    assert [row["id"] for row in scored] == list(range(10 * len(POISON)))

    alone = scorer.score(Dataset.from_list(GOOD))["rsr"]
    found = {row: scored[row] for row in poison}
    good = [row for row in range(len(scored)) if row not in poison]
    of_good = {str(row["messages"]): rsr for row, rsr in zip(GOOD, alone, strict=True)}
    expected = [of_good[str(scored[row]["messages"])] for row in good]
    assert [scored[row]["rsr"] for row in good] == pytest.approx(expected, rel=1e-5)
    for row, name in poison.items():
        reason = POISON[name][1]
        assert (found[row]["rsr"] is None) == (reason is not None), (name, found[row]["rsr_error"])
        assert found[row]["rsr_error"] is None if reason is None else found[row]["rsr_error"].startswith(reason), name


def test_end_of_turn_that_a_user_writes_is_not_scored(scorer, tiny_tokenizer):
    """The template copies it, so it is a turn's end to the student; what is scored is the assistant's text alone."""
    row = POISON["an end of turn that a user writes"][0]
    scored = RSRScorer(scorer.student.model, tiny_tokenizer, token_stats=True).score(Dataset.from_list([row]))
    assert tiny_tokenizer.decode(scored[0]["rsr_token_ids"]) == "It is."


def test_lone_surrogates_are_named_when_the_file_is_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": "b"}) + '\n{"prompt": "a", "completion": "\\ud800"}')
    with pytest.raises(ValueError, match="rows.jsonl.*surrogate"):
        data.load(str(path))


def test_raise_names_the_first_bad_row(scorer, mixed, tmp_path):
    path, poison = mixed
    job = Job(scorer, data.load(path), tmp_path / "out", {"files": [path]}, 50)
    with pytest.raises(ValueError, match=f"Row {min(poison)} can't be scored"):
        job.check_rows()
    assert not list((tmp_path / "out" / "data").iterdir())
