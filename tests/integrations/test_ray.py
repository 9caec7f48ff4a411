import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from rsr_trl import RSRScorer
from rsr_trl.demo import STUDENT_PATH
from rsr_trl.rsr import RSRError
from tests.integrations.processes import run


pytest.importorskip("ray", reason="the extra [ray] is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.distributed]

STUDENT = str(STUDENT_PATH)
ROWS = [{"n": i, "prompt": f"What is {i} + 3?", "completion": f" {i} + 3 is {i + 3}."} for i in range(48)]
ROWS[7]["completion"] = ""


def test_a_batch_keeps_its_columns_and_types():
    from rsr_trl.integrations.ray import ScoreRSR

    add = ScoreRSR(STUDENT, dtype="float32", overwrite=True)
    batch = pa.Table.from_pylist([{**row, "rsr": 0.0, "rsr_error": "old", "other": [1]} for row in ROWS[:8]])
    scored = add(batch)
    truth = RSRScorer(STUDENT, dtype="float32").score(Dataset.from_list(ROWS[:8]))
    assert scored.column_names == ["n", "prompt", "completion", "other", *add.scorer.schema]
    assert {name: scored.schema.field(name).type for name in add.scorer.schema} == add.scorer.schema
    assert scored["rsr_error"].to_pylist() == [None] * 7 + ["completion is empty"]
    found, right = (np.array(x, dtype=float) for x in (scored["rsr"].to_pylist(), list(truth["rsr"])))
    np.testing.assert_allclose(found, right, rtol=1e-5)
    assert add(batch[:0]).schema == scored.schema


def test_two_actors_and_a_resume_score_each_row_once(tmp_path):
    """The second run finds the first's rows in the checkpoint. A kill in a block's middle is Ray's own affair."""
    (tmp_path / "pool").mkdir()
    command = [sys.executable, Path(__file__).parent / "ray_job.py", tmp_path, STUDENT]
    for part in (ROWS[:20], ROWS[20:]):
        pq.write_table(pa.Table.from_pylist(part), tmp_path / "pool" / f"{part[0]['n']:02}.parquet")
        code, said = run(tmp_path, *command)
        assert code == 0, said[-2000:]
    scored = pq.read_table(tmp_path / "scored").sort_by("n")
    assert scored["n"].to_pylist() == list(range(len(ROWS)))
    truth = RSRScorer(STUDENT).score(Dataset.from_list(ROWS))
    assert scored["rsr_error"].to_pylist() == list(truth["rsr_error"])
    found, right = (np.array(x, dtype=float) for x in (scored["rsr"].to_pylist(), list(truth["rsr"])))
    np.testing.assert_allclose(found, right, rtol=0.05)  # in bfloat16, where the batch changes a score


@pytest.mark.parametrize(
    ("resume", "there", "asked", "message"),
    [
        (True, {"CPU": 2, "memory": 2**33}, {"actors": 1}, "has 2 CPUs, but 3 are needed: .*checkpoint filter"),
        (True, {"CPU": 8, "memory": 2**29}, {"actors": 1}, "has 0.5 GiB of memory, but 1 are needed"),
        (False, {"CPU": 8, "memory": 2**33}, {"actors": 2, "num_gpus": 1}, "has 0 GPUs, but 2 are needed"),
        (False, {"CPU": 2}, {"actors": 1}, None),
    ],
)
def test_too_few_resources_are_said_instead_of_waited_for(resume, there, asked, message, monkeypatch, tmp_path):
    import ray
    from ray.data import DataContext
    from ray.data.checkpoint import CheckpointConfig

    from rsr_trl.integrations.ray import check_resources

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    config = CheckpointConfig(id_column="n", checkpoint_path=str(tmp_path)) if resume else None
    monkeypatch.setattr(DataContext.get_current(), "_checkpoint_config", config)
    if message is None:
        check_resources(**asked)
        return
    with pytest.raises(RSRError, match=message):
        check_resources(**asked)
