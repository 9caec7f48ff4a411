"""Scoring into a folder: the same rows as in memory, whatever was there before and however it is divided."""

import json
import shutil
from pathlib import Path

import pytest
from datasets import Dataset, IterableDataset, load_dataset

from rsr_trl import RSRScorer, data
from rsr_trl.scoring.job import Job, Share
from rsr_trl.scoring.locks import Lock
from rsr_trl.scoring.manifest import data_identity
from rsr_trl.scoring.parts import Parts, rows_of_part, sample


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
def other_scorer(tiny_student, tiny_tokenizer) -> RSRScorer:
    return RSRScorer(tiny_student(), tiny_tokenizer, r_max=3)


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


def test_another_folder_of_the_same_name_is_not_taken_for_this_one(make_job, other_scorer, tmp_path, expected):
    """`load_dataset` caches by the folder's own name and its card."""
    make_job(output_dir=tmp_path / "a" / "out").run(show_bar=False)
    make_job(output_dir=tmp_path / "b" / "out", scorer=other_scorer).run(show_bar=False)
    first, second = (load_dataset(str(tmp_path / name / "out"), split="train") for name in "ab")
    assert first["rsr"][:] == [row["rsr"] for row in expected] != second["rsr"][:]


class TestGoingOn:
    def test_what_is_done_stays(self, make_job, expected, tmp_path):
        make_job().run(show_bar=False)
        before = written(tmp_path)
        job = make_job()
        job.run(show_bar=False)
        assert written(tmp_path) == before and read(tmp_path) == expected
        assert job.totals().processes == {}

    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize("damage", ["cut in half", "one byte", "gone", "record gone", "record emptied"])
    def test_damaged_shard_is_redone_and_no_other(self, make_job, expected, tmp_path, damage, streaming):
        make_job(streaming).run(show_bar=False)
        shard, record = tmp_path / "out/data/train-000002.parquet", tmp_path / "out/.rsr/shards/000002.json"
        content = bytearray(shard.read_bytes())
        if damage == "cut in half":
            shard.write_bytes(content[: len(content) // 2])
        elif damage == "one byte":
            content[len(content) // 2] ^= 1
            shard.write_bytes(content)
        elif damage == "gone":
            shard.unlink()
        elif damage == "record gone":
            record.unlink()
        else:
            record.write_text("")
        before = written(tmp_path)
        make_job(streaming).run(show_bar=False)
        after = written(tmp_path)
        assert {name for name in after if after[name] != before.get(name)} == {"train-000002.parquet"}
        assert read(tmp_path) == expected

    @pytest.mark.parametrize("content", [None, "", "{", "[]", "{}"])
    def test_lost_manifest_is_made_again(self, make_job, expected, tmp_path, content):
        make_job().run(show_bar=False)
        manifest, before = tmp_path / "out/.rsr/manifest.json", written(tmp_path)
        was = manifest.read_text()
        manifest.unlink() if content is None else manifest.write_text(content)
        make_job().run(show_bar=False)
        assert (manifest.read_text(), written(tmp_path), read(tmp_path)) == (was, before, expected)

    def test_lost_manifest_and_another_student(self, make_job, other_scorer, tmp_path):
        make_job().run(show_bar=False)
        (tmp_path / "out/.rsr/manifest.json").write_text("")
        with pytest.raises(ValueError, match="holds results of another run"):
            make_job(scorer=other_scorer)

    def test_leftovers_of_killed_writers_go(self, make_job, expected, tmp_path):
        make_job().run(show_bar=False)
        leftovers = [tmp_path / "out/data/.000001-0123", tmp_path / "out/.rsr/shards/.000001.json-0123"]
        for leftover in leftovers:
            leftover.write_text("half")
        (tmp_path / "out/.rsr/shards/000001.json").unlink()
        make_job().run(show_bar=False)
        assert not any(leftover.exists() for leftover in leftovers) and read(tmp_path) == expected

    def test_unfinished_folder_is_not_read_as_if_it_were_whole(self, make_job, tmp_path):
        make_job(share=Share(0, 2, own_only=True)).run(show_bar=False)
        with pytest.raises(ValueError, match="isn't scored to its end"):
            data.load(str(tmp_path / "out"))


class TestAnotherRun:
    def test_what_differs_is_said_and_nothing_changes(self, make_job, other_scorer, source, tmp_path, expected):
        make_job().run(show_bar=False)
        before = written(tmp_path)
        with pytest.raises(ValueError, match="student.r_max: 100.* -> 3.*--overwrite"):
            make_job(scorer=other_scorer)
        with pytest.raises(ValueError, match="settings.shard_rows: 4 -> 5"):
            make_job(shard_rows=5)
        source.write_text(json.dumps(ROWS[0]))
        with pytest.raises(ValueError, match="files: rows.jsonl changed"):
            make_job()
        assert written(tmp_path) == before and read(tmp_path) == expected

    def test_other_weights_and_template(self, make_job, tiny_student, tiny_tokenizer):
        make_job().run(show_bar=False)
        with pytest.raises(ValueError, match="student.weights: "):
            make_job(scorer=RSRScorer(tiny_student(seed=1), tiny_tokenizer))
        tiny_tokenizer.chat_template += " "
        with pytest.raises(ValueError, match="student.tokenizer: "):
            make_job(scorer=RSRScorer(tiny_student(), tiny_tokenizer))

    def test_batch_size_and_place_of_the_data_make_no_other_run(self, make_job, source, scorer, tmp_path, expected):
        make_job().run(show_bar=False)
        before = written(tmp_path)
        scorer.student.max_batch_tokens = 50
        copy = tmp_path / "elsewhere" / "rows.jsonl"
        copy.parent.mkdir()
        shutil.move(source, copy)
        source.write_bytes(copy.read_bytes())  # the same bytes at another time
        make_job().run(show_bar=False)
        assert written(tmp_path) == before

    def test_overwrite_starts_anew_but_keeps_what_is_its_own(self, make_job, other_scorer, tmp_path):
        make_job().run(show_bar=False)
        make_job(scorer=other_scorer, shard_rows=10, overwrite=True).run(show_bar=False)
        before = written(tmp_path)
        assert len(before) == 3 and max(row["rsr_mean_clipped_rank"] or 0 for row in read(tmp_path)) <= 3
        make_job(scorer=other_scorer, shard_rows=10, overwrite=True).run(show_bar=False)
        assert written(tmp_path) == before

    def test_folder_in_which_nothing_is_done_is_free(self, make_job, other_scorer, tmp_path):
        make_job()
        make_job(scorer=other_scorer).run(show_bar=False)
        assert len(read(tmp_path)) == len(ROWS)

    def test_folder_with_anything_else_is_left_alone(self, make_job, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").touch()
        for overwrite in (False, True):
            with pytest.raises(ValueError, match="isn't empty|holds other things"):
                make_job(overwrite=overwrite)
        assert [file.name for file in (tmp_path / "out").iterdir()] == ["thesis.tex"]

    def test_folder_that_is_read_is_not_written(self, make_job, scorer, tmp_path):
        make_job().run(show_bar=False)
        name = str(tmp_path / "out")
        again = RSRScorer(scorer.student.model, scorer.processing_class, overwrite=True)
        with pytest.raises(ValueError, match="is read and lies in output_dir"):
            Job(again, data.load(name), name, data_identity(data.source_files(name)), 4, overwrite=True)
        assert len(read(tmp_path)) == len(ROWS)


class TestManyProcesses:
    """Here one after another; test_job_stops.py has real ones."""

    @pytest.mark.parametrize("streaming", [False, True])
    def test_parts_in_any_order_make_the_whole(self, make_job, expected, tmp_path, streaming):
        for number in (2, 0, 1):
            job = make_job(streaming, share=Share(number, 3, own_only=True))
            job.run(show_bar=False)
        assert job.totals().complete and read(tmp_path) == expected

    def test_part_takes_its_own_only(self, make_job, tmp_path):
        job = make_job(share=Share(1, 3, own_only=True))
        job.run(show_bar=False)
        assert sorted(written(tmp_path)) == ["train-000001.parquet", "train-000004.parquet"]
        assert (job.totals().shards_done, job.totals().shards, job.totals().complete) == (2, 6, False)

    def test_what_another_is_at_is_left_to_it(self, make_job, expected, tmp_path):
        job = make_job()
        lock = Lock(tmp_path / "out/.rsr/locks/000003")
        assert lock.acquire()
        job.run(show_bar=False)
        assert "train-000003.parquet" not in written(tmp_path)
        assert job.totals().held_by == [job.process]
        lock.release()
        make_job().run(show_bar=False)
        assert read(tmp_path) == expected

    def test_another_run_does_not_remove_what_is_being_written(self, make_job, other_scorer, tmp_path):
        make_job()
        lock = Lock(tmp_path / "out/.rsr/locks/000003")
        assert lock.acquire()
        with pytest.raises(ValueError, match="Another run is writing to"):
            make_job(scorer=other_scorer, overwrite=True)
        lock.release()

    def test_shard_finished_by_another_after_the_look_is_not_done_twice(self, make_job, tmp_path, expected):
        first, second = make_job(), make_job()
        first.run(show_bar=False)
        before = written(tmp_path)
        second.run(show_bar=False)
        assert written(tmp_path) == before and second.totals().complete


class TestRowsThatFail:
    def test_raise_names_the_row_before_anything_is_scored(self, make_job, tmp_path):
        with pytest.raises(ValueError, match="Row 5 can't be scored: completion is empty"):
            make_job().check_rows()
        assert written(tmp_path) == {}

    def test_student_that_gives_nan_names_the_row_of_the_dataset(self, make_job, scorer):
        with_nan = scorer.student.model
        with_nan.lm_head.weight.data.fill_(float("nan"))
        job = make_job(shard_rows=9)
        with pytest.raises(FloatingPointError, match=r"rows \[0, 1, 2"):
            job.run(show_bar=False)
        assert job.totals().rows == 0 and not list((job.state / "locks").iterdir())

    def test_stream_whose_types_change_names_the_row(self):
        class Stream(IterableDataset):
            def __iter__(self):
                yield from ({**row, "id": "seven"} if row["id"] == 7 else row for row in ROWS)

        typed = Dataset.from_list(ROWS).to_iterable_dataset()
        stream = Stream(typed._ex_iterable, info=typed.info)
        parts = list(Parts(stream, SHARD_ROWS))
        assert parts[0].load().to_list() == ROWS[:4]
        with pytest.raises(ValueError, match="Row 7, column 'id', doesn't have the type of the first rows"):
            parts[1].load()


def test_parts_are_measured_by_tokens(scorer):
    dataset = Dataset.from_list(ROWS)
    examples = [example for window in scorer.windows_of(sample(dataset)) for example in window.examples]
    mean = sum(len(example.input_ids) for example in examples) / len(examples)
    assert rows_of_part(dataset, examples) == round(2**20 / mean)
    assert rows_of_part(dataset.to_iterable_dataset(), examples) == round(2**22 / mean)


def test_other_scores_are_part_of_the_run(make_job, scorer, source, tmp_path):
    with_scores = RSRScorer(scorer.student.model, scorer.processing_class, scores=["lark", "casl", "lalp"])
    make_job(scorer=with_scores).run(show_bar=False)
    assert read(tmp_path) == with_scores.score(data.load(str(source))).to_list()
    with pytest.raises(ValueError, match="What differs: student.scores: score_drop, .* -> None"):
        make_job()
    more = RSRScorer(scorer.student.model, scorer.processing_class, scores=["lark"])
    with pytest.raises(ValueError, match="student.scores: score_drop, rsr_step_share, score_lark, .* -> score_lark"):
        make_job(scorer=more)
    make_job(scorer=more, overwrite=True).run(show_bar=False)
    assert read(tmp_path) == more.score(data.load(str(source))).to_list()
