"""`make bench` measures the three ways over the same rows; the demo's student is pretrained as it is shipped."""

import json
import math
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import gpu
from benchmarks import pretrain_demo_student as pretraining
from benchmarks.bench import main as measure
from benchmarks.bench import make_parser
from rsr_trl.cli.options import parse
from rsr_trl.demo import STUDENT_PATH
from rsr_trl.demo.problems import split_of
from tests.demo.reading import answer_by_reading


SMALL = ["--vocab_size", "1290", "--hidden_size", "32", "--intermediate_size", "32", "--num_layers", "1"]
SMALL += ["--head_dim", "16", "--device", "cpu", "--repeats", "2", "--json"]


def bench(*options):
    measure(*parse(make_parser("bench"), [*SMALL, *options]))


@pytest.mark.slow
def test_ways_ratios_and_memory(capsys):
    bench("--num_rows", "3", "--lengths", "20,30")
    measured = json.loads(capsys.readouterr().out)
    assert (measured["rows"], measured["tokens"], measured["scored_tokens"]) == (3, 20 + 30 + 20, 15 + 23 + 15)
    assert set(measured["seconds"]) == {"reference", "rsr_trl", "alone", "floor", "shared floor"}
    assert all(len(times) == 2 and min(times) > 0 for times in measured["seconds"].values())
    first = measured["cpu_seconds"]["rsr_trl"][0] / measured["cpu_seconds"]["floor"][0]
    assert any(ratio == pytest.approx(first) for ratio in measured["time_ratio"]["floor"])
    assert set(measured["peak_bytes_above_weights"]) == set(measured["seconds"])


@pytest.mark.slow
def test_the_run_for_a_gpu_goes_through_in_small(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "PARTS", dict.fromkeys(gpu.PARTS, 300))
    parts = ["scoring-0.6b", "prefixes-8b", "trainer"]  # the head's would compile: tests/scoring has the folds
    gpu.run_all(tmp_path, toy=True, parts=[*parts, "tests-scoring"], minutes=20)
    rows = json.loads((tmp_path / "results.json").read_text())
    found = {part: {row["way"] for row in rows if row["part"] == part} for part in parts}
    assert found["scoring-0.6b"] == {"rsr_trl", "moments", "TRL fused", "floor"}
    assert found["prefixes-8b"] == {"shared", "floor"}
    assert found["trainer"] == {"sft", "no", "online", "rescore", "bare"}
    assert "skipped" in capsys.readouterr().out or torch.cuda.is_available()


@pytest.mark.slow
def test_trainer_overheads(capsys):
    bench("--trainer", "--repeats", "1", "--trainer_batch_size", "1")
    measured = json.loads(capsys.readouterr().out)
    seconds = measured["seconds"]
    assert set(seconds) == {"sft", "no", "online", "rescore", "bare"} and all(min(v) > 0 for v in seconds.values())
    assert len(seconds["no"]) == len(seconds["sft"]) > 1  # the same steps, compared one by one
    assert measured["ratios"]["full scoring pass / bare forward"] == [
        pytest.approx(seconds["rescore"][0] / seconds["bare"][0])
    ]


def test_real_rows_need_a_tokenizer(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(ValueError, match="--tokenizer"):
        bench("--dataset_name", str(tmp_path / "rows.jsonl"))


def test_pretraining_reads_only_correct_solutions_of_its_own_split():
    tokenizer = AutoTokenizer.from_pretrained(STUDENT_PATH)
    chats = pretraining.make_chats(300, 9, pretraining.DIALECTS)
    assert {split_of(messages[0]["content"]) for messages, _ in chats} == {"pretrain"}
    for messages, gold in chats:
        assert answer_by_reading(messages[0]["content"]) == int(gold)
        assert re.findall(r"\d+", messages[1]["content"])[-1] == gold
    # A small corpus gives other merges, but the same special tokens, template and treatment of digits.
    made = pretraining.train_tokenizer([message["content"] for messages, _ in chats for message in messages])
    assert made.chat_template == tokenizer.chat_template
    assert (made.eos_token_id, made.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert len(made("12345")["input_ids"]) == 5


def test_the_script_writes_a_student_that_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretraining, "NUM_HELD_OUT", 2)
    pretraining.pretrain(num_steps=3, output_dir=tmp_path / "made")
    made, shipped = (AutoModelForCausalLM.from_pretrained(path).config for path in (tmp_path / "made", STUDENT_PATH))
    assert made.to_diff_dict() == shipped.to_diff_dict()
    files, written = ({path.name for path in folder.iterdir()} for folder in (STUDENT_PATH, tmp_path / "made"))
    assert written == files - {"README.md"}
    losses = [float(loss) for loss in re.findall(r"held-out (?:nats/token )?(\d\.\d+)", capsys.readouterr().out)]
    assert losses[0] == pytest.approx(math.log(made.vocab_size), abs=0.3)  # untrained weights know nothing
    assert losses[-1] < losses[0]
