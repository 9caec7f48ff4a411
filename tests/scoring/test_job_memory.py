"""Resident memory doesn't grow with the rows of a stream."""

import json
import re

import pytest

from tests.scoring import job_process


@pytest.mark.slow
@pytest.mark.distributed
def test_ten_times_the_rows_take_the_same_memory(tmp_path, tiny_student, tiny_tokenizer):
    tiny_student(num_hidden_layers=1, hidden_size=16, intermediate_size=16).save_pretrained(tmp_path / "student")
    tiny_tokenizer.save_pretrained(tmp_path / "student")
    peaks = []
    for num_rows in (20_000, 200_000):
        source = tmp_path / f"{num_rows}.jsonl"
        with source.open("w") as file:
            for i in range(num_rows):
                file.write(json.dumps({"prompt": f"{i % 10}?", "completion": "y", "note": f"{i:0100d}"}) + "\n")
        argv = ["--model_name_or_path", str(tmp_path / "student"), "--dataset_name", str(source), "--json"]
        argv += ["--dataset_streaming", "--output_dir", str(tmp_path / f"out-{num_rows}"), "--shard_rows", "4000"]
        log = tmp_path / "log"
        process = job_process.start(argv, log=log)
        process.join()
        assert process.exitcode == 0, log.read_text()
        assert json.loads(re.search(r"^{.*}$", log.read_text(), re.MULTILINE)[0])["scored"] == num_rows
        peaks.append(int(re.search(r"^peak (\d+)$", log.read_text(), re.MULTILINE)[1]))
    assert peaks[1] < 1.2 * peaks[0], peaks
