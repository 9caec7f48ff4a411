"""`make bench` measures the three ways over the same rows, and says so for programs too."""

import json

import pytest

from benchmarks.bench import main as measure
from benchmarks.bench import make_parser
from rsr_trl.cli.options import parse


SMALL = ["--vocab_size", "1290", "--hidden_size", "32", "--intermediate_size", "32", "--num_layers", "1"]
SMALL += ["--head_dim", "16", "--device", "cpu", "--repeats", "2", "--json"]


def bench(*options):
    measure(*parse(make_parser("bench"), [*SMALL, *options]))


@pytest.mark.slow
def test_ways_ratios_and_memory(capsys):
    bench("--num_rows", "3", "--lengths", "20,30")
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["tokens"], found["scored_tokens"]) == (3, 20 + 30 + 20, 15 + 23 + 15)
    assert set(found["seconds"]) == {"reference", "rsr_trl", "floor"}
    assert all(len(times) == 2 and min(times) > 0 for times in found["seconds"].values())
    first = found["seconds"]["rsr_trl"][0] / found["seconds"]["floor"][0]
    assert any(ratio == pytest.approx(first) for ratio in found["time_ratio"]["floor"])
    assert set(found["peak_bytes_above_weights"]) == set(found["seconds"])


@pytest.mark.slow
def test_trainer_overheads(capsys):
    bench("--trainer", "--repeats", "1", "--trainer_batch_size", "1")
    found = json.loads(capsys.readouterr().out)
    seconds = found["seconds"]
    assert set(seconds) == {"sft", "no", "online", "rescore", "bare"} and all(min(v) > 0 for v in seconds.values())
    assert len(seconds["no"]) == len(seconds["sft"]) > 1  # the same steps, compared one by one
    assert found["ratios"]["full scoring pass / bare forward"] == [
        pytest.approx(seconds["rescore"][0] / seconds["bare"][0])
    ]


def test_real_rows_need_a_tokenizer(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(ValueError, match="--tokenizer"):
        bench("--dataset_name", str(tmp_path / "rows.jsonl"))
