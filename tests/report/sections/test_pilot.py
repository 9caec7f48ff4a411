import json
import shutil

import pytest
from datasets import Dataset

from rsr_trl.pilot.run import RESULT as WRITTEN
from rsr_trl.report.page import write_report
from rsr_trl.report.sections.pilot import RESULT
from rsr_trl.rsr import RSRError
from rsr_trl.scoring.shards import digests_of


BETTER = {"control": "random", "better": True, "mean": 0.031, "low": 0.012, "high": 0.05, "seeds": 3, "problems": 200}


def test_the_verdict_and_its_numbers(write, rows, tmp_path):
    assert RESULT == WRITTEN  # the file that `rsr pilot` leaves
    with pytest.raises(RSRError, match="no pilot.json"):
        write(rows, pilot=tmp_path)
    rsr = BETTER | {"strategy": "rsr", "metric": "correct", "value": 0.5, "control_value": 0.469}
    loss = BETTER | {"strategy": "<b>own</b>", "metric": "loss", "value": 1.2, "control_value": 1.19}
    table = [rsr, loss | {"better": None, "mean": 0.01, "low": -0.02}]
    verdict, note = "rsr is better than random in accuracy.", "The loss didn't fall."
    result = {"table": table, "verdict": [verdict], "notes": [note], "confidence": 0.95}
    (tmp_path / RESULT).write_text(json.dumps(result))
    page = write(rows, pilot=tmp_path)
    words = page.words("pilot")
    assert verdict in words and note in words
    assert "rsr random 50.0 46.9 3.1 (better) 1.2 to 5.0 3 200" in words
    assert "<b>own</b> random 1.2000 1.1900 0.0100 -0.0200 to 0.0500 3 200" in words
    assert page.sections()["pilot"] and page.text["pilot"].count("excludes zero") == 2


def test_the_pilot_of_another_dataset_is_refused(rows, tmp_path):
    """By the bytes of its files: those of this one, or those that this one was scored from."""
    folder, row = tmp_path / "pilot", {"strategy": "rsr", "metric": "loss", "value": 1.2, "control_value": 1}
    folder.mkdir()
    page, own = tmp_path / "page.html", tmp_path / "own.parquet"
    Dataset.from_list(rows).to_parquet(own)

    def write(files, count=None, **more):
        found = {"settings": {"pool": {"files": files}}, "pool": {"trajectories": count or len(rows)}}
        rest = {"table": [BETTER | row], "verdict": [], "notes": [], "confidence": 0.95}
        (folder / RESULT).write_text(json.dumps(found | rest))
        write_report(**{"dataset": str(own), "output": page, "pilot": folder} | more)

    hashes = digests_of([str(own)])
    write({"renamed.parquet": hashes["own.parquet"]})
    with pytest.raises(RSRError, match="was run on another dataset, 'other.jsonl' with 9 trajectories"):
        write({"other.jsonl": "f00"}, count=9)
    state = tmp_path / "scored" / ".rsr"
    state.mkdir(parents=True)
    (state / "manifest.json").write_text(json.dumps({"data": {"files": {"raw.jsonl": "f00"}}}))
    shutil.copy(own, tmp_path / "scored")
    write({"raw.jsonl": "f00"}, dataset=Dataset.from_list(rows), source=str(tmp_path / "scored"))
    write({}, dataset=Dataset.from_list(rows))
    with pytest.raises(RSRError, match="another dataset"):
        write({}, count=9, dataset=Dataset.from_list(rows))
