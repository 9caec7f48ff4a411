import json
import signal
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from rsr_trl import RSRScorer
from rsr_trl.data import as_trl_format
from rsr_trl.demo import STUDENT_PATH
from rsr_trl.rsr import RSRError
from tests.integrations.processes import run


pytest.importorskip("datatrove", reason="the extra [datatrove] is not installed")
pytestmark = pytest.mark.slow

from datatrove.data import Document  # noqa: E402
from datatrove.pipeline.writers import ParquetWriter  # noqa: E402

from rsr_trl.integrations.datatrove import ScoreRSR, as_example  # noqa: E402


STUDENT = str(STUDENT_PATH)
ROWS = [{"n": i, "prompt": f"What is {i} + 3?", "completion": f" {i} + 3 is {i + 3}."} for i in range(12)]


def expected(rows: list[dict], **settings) -> Dataset:
    return RSRScorer(STUDENT, dtype="float32", **settings).score(Dataset.from_list(rows))


def documents(rows: list[dict]) -> list[Document]:
    return [Document(row.get("text") or "-", str(i), metadata=dict(row)) for i, row in enumerate(rows)]


CHAT = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is 4."}]


@pytest.mark.parametrize(
    ("row", "adapter"),
    [
        ({"text": "Anna has 3 apples."}, None),
        ({"prompt": "2 + 2?", "completion": " 4"}, None),
        ({"messages": CHAT}, None),
        ({"prompt": None, "conversations": [{"from": "human", "value": "2?"}, {"from": "gpt", "value": "3!"}]}, None),
        ({"question": "2 + 2?", "answer": " 4"}, {"prompt": "question", "completion": "answer"}),
    ],
)
def test_every_format_is_scored_as_in_a_dataset(row, adapter):
    make = adapter and (lambda document: {name: document.metadata[column] for name, column in adapter.items()})
    (document,) = ScoreRSR(STUDENT, adapter=make, dtype="float32").run(documents([row]))
    given = {name: row[column] for name, column in adapter.items()} if adapter else row
    given = as_trl_format(Dataset.from_list([{name: value for name, value in given.items() if value is not None}]))
    (truth,) = expected(list(given))
    assert document.metadata["rsr"] == pytest.approx(truth["rsr"], rel=1e-5)
    assert document.metadata["rsr_content"] == truth["rsr_content"]


def test_windows_nulls_stats_and_parquet(tmp_path):
    rows = [*ROWS[:5], {**ROWS[5], "completion": ""}, ROWS[6]]
    step = ScoreRSR(STUDENT, dtype="float32", window=3)
    schema = step.schema(n=pa.int64(), prompt=pa.string(), completion=pa.string())
    with ParquetWriter(str(tmp_path), expand_metadata=True, schema=schema, batch_size=2) as writer:
        list(writer.run(step.run(documents(rows))))
    (file,) = tmp_path.glob("*.parquet")
    scored, truth = pq.read_table(file), expected(rows)
    for name in ("n", "rsr_num_tokens", "rsr_error", "rsr_student", "rsr_content"):
        assert scored[name].to_pylist() == list(truth[name])
    found, right = (np.array(x, dtype=float) for x in (scored["rsr"].to_pylist(), list(truth["rsr"])))
    np.testing.assert_allclose(found, right, rtol=1e-5)
    counts = {name: value.total for name, value in step.stats.stats.items()}
    assert counts == {"scored": 6, "unscored": 1, "scored_tokens": sum(truth["rsr_num_tokens"])}


def test_what_is_wrong_shows_at_once():
    with pytest.raises(RSRError, match="no score 'surprise'"):
        ScoreRSR(STUDENT, scores=["surprise"])
    with pytest.raises(RSRError, match="a hub id or a path"):
        ScoreRSR(None)
    scored = [{**ROWS[0], "rsr": 1.0, "rsr_student": "old", "score_rank": 2.0}]
    with pytest.raises(RSRError, match="Document '0'.*already has the columns.*'rsr'"):
        list(ScoreRSR(STUDENT).run(documents(scored)))
    (document,) = ScoreRSR(STUDENT, overwrite=True).run(documents(scored))
    assert document.metadata["rsr"] != 1.0 and "score_rank" not in document.metadata
    assert as_example(Document("4", "0", metadata={"prompt": "2 + 2?"})) == {"prompt": "2 + 2?", "completion": "4"}


@pytest.mark.distributed
def test_a_killed_pipeline_goes_on_with_the_tasks_that_are_left(tmp_path):
    (tmp_path / "pool").mkdir()
    for part in range(2):
        lines = map(json.dumps, ROWS[part::2])
        (tmp_path / "pool" / f"{part}.jsonl").write_text("\n".join(lines))
    command = [sys.executable, Path(__file__).parent / "datatrove_job.py", tmp_path, STUDENT]
    code, _ = run(tmp_path, *command, "1", "1")
    assert code == -signal.SIGKILL
    done = [path.name for path in (tmp_path / "logs" / "completions").iterdir()]
    assert done == ["00000"]
    first = (tmp_path / "scored" / "00000.jsonl").stat().st_mtime_ns
    code, said = run(tmp_path, *command, "2")
    assert code == 0, said
    assert "Skipping 1 already completed tasks" in said
    assert "Scoring" not in said and "Loading weights" not in said  # no bars in the logs
    assert (tmp_path / "scored" / "00000.jsonl").stat().st_mtime_ns == first
    scored = [json.loads(line) for part in (tmp_path / "scored").iterdir() for line in part.read_text().splitlines()]
    assert sorted(row["n"] for row in scored) == list(range(len(ROWS)))
    truth = RSRScorer(STUDENT).score(Dataset.from_list(ROWS))
    for row in scored:  # in the checkpoint's bfloat16, where the batch changes a score
        assert row["rsr"] == pytest.approx(truth["rsr"][row["n"]], rel=0.05)
