"""Windows of rows: every row once, in source order, with the next window tokenized ahead."""

import json
import threading

import numpy as np
import pytest
from datasets import Dataset, enable_progress_bars

from rsr_trl.data import load
from rsr_trl.rsr import RSRError
from rsr_trl.scoring import rows as rows_module
from rsr_trl.scoring.batches import TOKENIZED_ROWS
from rsr_trl.scoring.rows import TokenBar, next_rows, windows
from rsr_trl.scoring.tokens import TokenizedExample


LENGTHS = [int(n) for n in np.random.default_rng(0).integers(1, 50, 5 * TOKENIZED_ROWS + 7)]


def tokenize(rows: list[dict]) -> list[TokenizedExample]:
    return [TokenizedExample(np.arange(row["n"], dtype=np.int32), np.arange(row["n"]) > 0) for row in rows]


@pytest.fixture
def dataset() -> Dataset:
    return Dataset.from_dict({"n": LENGTHS})


@pytest.mark.parametrize("window_tokens", [1, 3000, 10**9])
def test_every_row_once_in_order(dataset, window_tokens):
    found = list(windows(dataset, tokenize, window_tokens))
    assert [len(example.input_ids) for window in found for example in window.examples] == LENGTHS
    starts = np.cumsum([0, *(len(window.examples) for window in found)])
    assert [window.first_row for window in found] == starts[:-1].tolist()
    assert all(window.num_tokens >= window_tokens for window in found[:-1])
    assert len(found) == {1: 6, 10**9: 1}.get(window_tokens, len(found))


def test_a_stream_whose_types_change_says_where_and_what_to_do(tmp_path):
    """`datasets` takes those of the first 10 MB."""
    rows = [{"completion": "a" * 4000, "note": None}] * 2800 + [{"completion": "a", "note": "late"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stream = iter(load(str(tmp_path / "rows.jsonl"), streaming=True))
    assert len(next_rows(stream, 1000)) == 1000
    with pytest.raises(RSRError, match="Row 1000 or a later one doesn't have the types.*without --dataset_streaming"):
        next_rows(stream, 5000, 1000)


def test_next_window_is_tokenized_while_one_is_looked_at(dataset):
    calls, ahead = [], threading.Event()

    def watched(rows):
        calls.append(threading.current_thread().name)
        if len(calls) == 2:
            ahead.set()
        return tokenize(rows)

    found = windows(dataset, watched, 1)
    next(found)
    assert ahead.wait(20)
    found.close()
    assert len(calls) < 6 and threading.current_thread().name not in calls


def test_scores_are_the_same_in_small_windows(make_scorer, monkeypatch):
    dataset = Dataset.from_list([{"prompt": f"{n}? ", "completion": "so " * (n % 40)} for n in LENGTHS])
    scorer = make_scorer(token_stats=True)
    whole = scorer.score(dataset)
    monkeypatch.setattr(rows_module.windows, "__defaults__", (1000,))
    parts = scorer.score(dataset)
    found, expected = (np.array(scored["rsr"][:], dtype=float) for scored in (parts, whole))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for name in ("rsr_token_ids", "rsr_error"):
        assert parts[name][:] == whole[name][:]


def test_bar_estimates_the_total_from_the_rows_seen(capsys):
    enable_progress_bars()
    with TokenBar(num_rows=100) as bar:
        bar.expect(10, 500)
        assert bar._bar.total == 5000
        bar.update(10, 500)
        bar.expect(10, 100)
        assert bar._bar.total == 3000
        bar.found_done(80, 2400)
        assert (bar._bar.total, bar._bar.n, bar.rows, bar.tokens) == (3000, 2900, 90, 2900)
    assert "trajectories" in capsys.readouterr().err
