"""Scoring into a folder: the same rows as in memory, whatever was there before and however it is divided."""

import json
import shutil
from pathlib import Path

import pytest
from datasets import Dataset, load_dataset

from rsr_trl import RSRScorer, data
from rsr_trl.scoring.job import Job, Share
from rsr_trl.scoring.locks import Lock
from rsr_trl.scoring.manifest import data_identity
from rsr_trl.scoring.parts import Parts, rows_of_part, sample, with_features


ROWS = [
    {"id": i, "prompt": f"What is {i} + {i * 7 % 10}? ", "completion": "It is " * (i * 5 % 7) + str(i + i * 7 % 10)}
    for i in range(23)
]
ROWS[5]["completion"] = ""
SHARD_ROWS = 4


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


@pytest.fixture
def scorer(tiny_student, tiny_tokenizer) -> RSRScorer:
    return RSRScorer(tiny_student(), tiny_tokenizer)


@pytest.fixture
def make_job(scorer, source, tmp_path):
    """`make_job(streaming=False, scorer=scorer, **options)`: a [`Job`] over the rows."""

    def make(streaming=False, scorer=scorer, **options) -> Job:
        dataset = data.load(str(source), streaming=streaming)
        identity = data_identity(data.source_files(str(source)), split="train")
        options = {"output_dir": tmp_path / "out", "shard_rows": SHARD_ROWS, "card": "# Rows", **options}
        return Job(scorer, dataset, data=identity, **options)

    return make


@pytest.fixture
def expected(scorer, source) -> list[dict]:
    return scorer.score(data.load(str(source))).to_list()


def read(tmp_path) -> list[dict]:
    return data.load(str(tmp_path / "out")).to_list()


def written(tmp_path) -> dict[str, tuple[int, int]]:
    """Inode and time of each shard: what is written anew has others."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (tmp_path / "out" / "data").iterdir()}


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_are_those_of_the_scorer_in_memory(make_job, expected, tmp_path, streaming):
    job = make_job(streaming)
    job.run(show_bar=False)
    assert read(tmp_path) == expected
    totals = job.totals()
    assert totals.complete and (totals.shards, totals.rows, totals.scored) == (6, 23, 22)
    assert (dict(totals.reasons), totals.failed_rows) == ({"completion is empty": 1}, [5])
    assert totals.processes[job.process]["rows"] == 23
    assert sorted(written(tmp_path)) == [f"train-{i:06d}.parquet" for i in range(6)]


def test_other_readers_read_it_and_see_no_manifest(make_job, expected, tmp_path):
    make_job().run(show_bar=False)
    assert load_dataset(str(tmp_path / "out"), split="train").to_list() == expected
    files = str(tmp_path / "out" / "data" / "*.parquet")
    assert load_dataset("parquet", data_files=files, split="train").to_list() == expected


def test_another_folder_of_the_same_name_is_not_taken_for_this_one(make_job, tmp_path, expected):
    """`load_dataset` caches by the folder's own name and its card."""
    make_job(output_dir=tmp_path / "a" / "out").run(show_bar=False)
    make_job(output_dir=tmp_path / "b" / "out", scorer=None or make_job.__closure__ and _other(make_job)).run(
        show_bar=False
    )
    first, second = (load_dataset(str(tmp_path / name / "out"), split="train") for name in "ab")
    assert first["rsr"][:] == [row["rsr"] for row in expected] != second["rsr"][:]


def _other(make_job) -> RSRScorer:
    scorer = make_job(output_dir=None or Path("unused")).scorer
    return RSRScorer(scorer.student.model, scorer.processing_class, r_max=3)
