"""A corpus with bad rows of every kind, one in ten: good rows score as without them, bad ones are null and say why."""

import json

import pytest
from datasets import Dataset

from rsr_trl import data
from rsr_trl.scoring.job import Job
from tests.scoring.conversations import assistant, user


def chat(prompt: object, answer: object) -> dict:
    return {"messages": [user(prompt), assistant(answer)]}


GOOD = [chat(f"What is {i} + {i}?", f"That is {2 * i}, since {'so ' * (i % 5)}it is.") for i in range(27)]
LIMIT = 300
# Row -> the beginning of its rsr_error, or None where it is odd but can be scored.
POISON: dict[str, tuple[dict, str | None]] = {
    "empty": (chat("Why?", ""), "the response is empty"),
    "no messages": ({"messages": []}, "messages is empty"),
    "null": ({"messages": None}, "messages is null"),
    "a number": ({"messages": 7}, "messages is int"),
    "a string": ({"messages": "user: hello"}, "messages is str"),
    "null among messages": ({"messages": [user("Why?"), None]}, "messages[1] is not a message"),
    "a number as content": (chat("Why?", 7), "messages[1] has int as content"),
    "unknown role": ({"messages": [{"role": "wizard", "content": "?"}]}, "messages[0] has the unknown"),
    "no assistant": ({"messages": [user("Why?")]}, "no assistant message"),
    "broken calls": ({"messages": [assistant("So.", tool_calls='{"name": ')]}, "messages[0] has tool_calls that are"),
    "broken tools": ({**chat("Why?", "So."), "tools": '[{"name": '}, "tools is not valid JSON"),
    "a prompt beyond max_length": (chat("word " * LIMIT, "So."), "cut off"),
    "long": (chat("Why?", "so " * 3_500_000), None),
    "a NUL byte": (chat("Why?", "So \0 it is."), None),
    "an end of turn that a user writes": (chat("Is <|im_end|> a token?", "It is."), None),
    "right to left": (chat("למה?", "ככה זה. مرحبا"), None),
    "emoji": (chat("👩‍👩‍👧‍👦?", "🇫🇷🏳️‍🌈 ✅"), None),
    "the prompt's end": (chat("Say it is so", "it is so"), None),
}


@pytest.mark.parametrize("streaming, one_by_one", [(False, True), (True, False)])
@pytest.mark.slow
def test_good_rows_score_as_without_the_poison(make_scorer, tmp_path, streaming, one_by_one):
    """Nine good rows before each bad one."""
    rows = []
    for number, (row, _) in enumerate(POISON.values()):
        rows += [{**GOOD[(9 * number + i) % len(GOOD)], "id": len(rows) + i} for i in range(9)]
        rows.append({**row, "id": len(rows)})
    path = tmp_path / "mixed.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    alone = {"max_batch_tokens": 1, "share_prefixes": False} if one_by_one else {}
    scorer, dataset = make_scorer(max_length=LIMIT, **alone), data.load(str(path), streaming=streaming)
    Job(scorer, dataset, tmp_path / "out", {"files": [str(path)]}, 50).run(show_bar=False)
    scored = data.load(str(tmp_path / "out")).to_list()
    assert [row["id"] for row in scored] == list(range(10 * len(POISON)))

    good = [row for row in scored if row["id"] % 10 != 9]
    clean = scorer.score(Dataset.from_list(GOOD))["rsr"]
    of_good = {str(row["messages"]): rsr for row, rsr in zip(GOOD, clean, strict=True)}
    expected = [of_good[str(row["messages"])] for row in good]
    # The same bits where rows share no batch; else which rows do moves the last ones.
    assert [row["rsr"] for row in good] == (expected if one_by_one else pytest.approx(expected, rel=1e-5))
    for found, (name, (_, reason)) in zip(scored[9::10], POISON.items(), strict=True):
        assert (found["rsr"] is None) == (reason is not None), (name, found["rsr_error"])
        assert found["rsr_error"] is None if reason is None else found["rsr_error"].startswith(reason), name


def test_lone_surrogates_are_named_when_the_file_is_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": "b"}) + '\n{"prompt": "a", "completion": "\\ud800"}')
    with pytest.raises(ValueError, match="rows.jsonl.*surrogate"):
        data.load(str(path))
