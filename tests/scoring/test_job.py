"""Scoring into a folder: the same rows as in memory, whatever was there before and however it is divided."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, IterableDataset, load_dataset

from rsr_trl import RSRScorer, data
from rsr_trl.rsr import RSRError
from rsr_trl.scoring.batches import rows_of_shard
from rsr_trl.scoring.job import Job, default_shard_rows, tokenized_sample
from rsr_trl.scoring.rows import typed_rows


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
def other_scorer(make_scorer) -> RSRScorer:
    return make_scorer(r_max=3)


@pytest.fixture
def make_job(scorer, source, tmp_path):
    """`make_job(streaming=False, scorer=scorer, **options)`: a [`Job`] over the rows."""

    def make(streaming=False, scorer=scorer, **options) -> Job:
        dataset = data.load(str(source), streaming=streaming)
        identity = {"files": data.source_files(str(source)), "split": "train"}
        options = {"output_dir": tmp_path / "out", "shard_rows": SHARD_ROWS, "card": "# Rows", **options}
        return Job(scorer, dataset, identity=identity, **options)

    return make


@pytest.fixture
def run(make_job):
    """`run(...)` makes such a job and runs it to its end."""

    def run(*args, **options) -> Job:
        job = make_job(*args, **options)
        job.run(show_bar=False)
        return job

    return run


@pytest.fixture
def scorer(make_scorer):
    """Without shared prefixes a row's bits don't depend on the rows beside it in its shard."""
    return make_scorer(share_prefixes=False)


@pytest.fixture
def expected(scorer, source) -> list[dict]:
    return scorer.score(data.load(str(source))).to_list()


def read(tmp_path) -> list[dict]:
    return data.load(str(tmp_path / "out")).to_list()


def written(tmp_path) -> dict[str, tuple[int, int]]:
    """Inode and time of each shard: what is written again has others."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (tmp_path / "out" / "data").iterdir()}


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_are_those_of_the_scorer_in_memory(run, expected, tmp_path, streaming):
    job = run(streaming)
    assert read(tmp_path) == expected
    totals = job.totals()
    assert totals["complete"] and (totals["shards"], totals["rows_done"]) == (6, 23)
    assert (totals["failed_rows"], totals["at_work"]) == ([5], [])
    assert totals["processes"]["1-of-1"]["rows"] == 23
    assert sorted(written(tmp_path)) == [f"train-{i:06d}.parquet" for i in range(6)]
    # Other readers see no manifest.
    files = str(tmp_path / "out" / "data" / "*.parquet")
    assert load_dataset("parquet", data_files=files, split="train").to_list() == expected


def test_another_folder_of_the_same_name_is_not_taken_for_this_one(run, other_scorer, tmp_path, expected):
    """`load_dataset` caches by the folder's own name and its card."""
    run(output_dir=tmp_path / "a" / "out")
    run(output_dir=tmp_path / "b" / "out", scorer=other_scorer)
    first, second = (load_dataset(str(tmp_path / name / "out"), split="train") for name in "ab")
    assert first.to_list() == expected and first["rsr"][:] != second["rsr"][:]


class TestGoingOn:
    def test_what_is_done_stays(self, make_job, run, expected, tmp_path):
        assert make_job().run(show_bar=False)
        before = written(tmp_path)
        job = make_job()
        assert job.was_complete and not job.run(show_bar=False)
        assert written(tmp_path) == before and read(tmp_path) == expected
        assert job.totals()["processes"] == {}

    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize("damage", ["cut in half", "one byte", "gone", "record gone", "record emptied"])
    def test_damaged_shard_is_redone_and_no_other(self, run, make_job, expected, tmp_path, damage, streaming):
        run(streaming)
        shard, record = tmp_path / "out/data/train-000002.parquet", tmp_path / "out/.rsr/shards/000002.json"
        content = shard.read_bytes()
        half = len(content) // 2
        {
            "cut in half": lambda: shard.write_bytes(content[:half]),
            "one byte": lambda: shard.write_bytes(content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]),
            "gone": shard.unlink,
            "record gone": record.unlink,
            "record emptied": lambda: record.write_text(""),
        }[damage]()
        before = written(tmp_path)
        job = make_job(streaming)
        assert not job.was_complete and job.run(show_bar=False)
        after = written(tmp_path)
        assert {name for name in after if after[name] != before.get(name)} == {"train-000002.parquet"}
        assert read(tmp_path) == expected

    @pytest.mark.parametrize("content", [None, "", "{", "[]", "{}"])
    def test_lost_manifest_is_written_again(self, run, make_job, other_scorer, expected, tmp_path, content):
        run()
        manifest, before = tmp_path / "out/.rsr/manifest.json", written(tmp_path)
        was = manifest.read_text()
        manifest.unlink() if content is None else manifest.write_text(content)
        with pytest.raises(RSRError, match="holds results of another run"):
            make_job(scorer=other_scorer)
        run()
        assert (manifest.read_text(), written(tmp_path), read(tmp_path)) == (was, before, expected)

    def test_leftovers_of_killed_writers_go(self, run, expected, tmp_path):
        run()
        names = ("data/.train-000001.parquet", ".rsr/shards/.000001.json", ".rsr/.complete.json", ".README.md")
        leftovers = [tmp_path / "out" / f"{name}-0123.unfinished" for name in names]
        for leftover in leftovers:
            leftover.write_text("half")
        (tmp_path / "out/.rsr/shards/000001.json").unlink()
        run()
        assert not any(leftover.exists() for leftover in leftovers) and read(tmp_path) == expected

    def test_unfinished_folder_is_not_read_as_if_it_were_whole(self, run, tmp_path):
        run(process=0, num_processes=2)
        with pytest.raises(RSRError, match="isn't fully scored yet"):
            data.load(str(tmp_path / "out"))


class TestAnotherRun:
    def test_what_differs_is_named_and_nothing_changes(
        self, run, make_job, make_scorer, other_scorer, tiny_tokenizer, source, tmp_path, expected
    ):
        run()
        before = written(tmp_path)
        for message, options in {
            "student.r_max: 100.* -> 3.*--overwrite": {"scorer": other_scorer},
            "settings.shard_rows: 4 -> 5": {"shard_rows": 5},
            "student.weights: ": {"scorer": make_scorer(seed=1)},
        }.items():
            with pytest.raises(RSRError, match=message):
                make_job(**options)
        template = tiny_tokenizer.chat_template
        tiny_tokenizer.chat_template += " "
        with pytest.raises(RSRError, match="student.tokenizer: "):
            make_job(scorer=make_scorer())
        tiny_tokenizer.chat_template = template
        source.write_text(json.dumps(ROWS[0]))
        with pytest.raises(RSRError, match="files: rows.jsonl changed"):
            make_job()
        assert written(tmp_path) == before and read(tmp_path) == expected

    def test_batch_size_and_place_of_the_data_make_no_other_run(self, run, source, scorer, tmp_path):
        run()
        before = written(tmp_path)
        scorer.student.max_batch_tokens = 50
        copy = tmp_path / "elsewhere" / "rows.jsonl"
        copy.parent.mkdir()
        shutil.move(source, copy)
        source.write_bytes(copy.read_bytes())  # the same bytes at another time
        run()
        assert written(tmp_path) == before

    def test_overwrite_starts_again_but_keeps_what_is_its_own(self, run, other_scorer, tmp_path):
        run()
        written_by = []
        for _ in range(2):
            run(scorer=other_scorer, shard_rows=10, overwrite=True)
            written_by.append(written(tmp_path))
        assert len(written_by[0]) == 3 and max(row["rsr_mean_clipped_rank"] or 0 for row in read(tmp_path)) <= 3
        assert written_by[1] == written_by[0]

    def test_folder_in_which_nothing_is_done_is_free(self, make_job, run, other_scorer, tmp_path):
        make_job().folder.lock.release()
        run(scorer=other_scorer)
        assert len(read(tmp_path)) == len(ROWS)

    def test_folder_with_anything_else_is_left_alone(self, make_job, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").touch()
        for overwrite in (False, True):
            with pytest.raises(RSRError, match="isn't empty|contains files"):
                make_job(overwrite=overwrite)
        assert [file.name for file in (tmp_path / "out").iterdir()] == ["thesis.tex"]

    def test_folder_that_is_read_is_not_written(self, run, make_scorer, tmp_path):
        run()
        name = str(tmp_path / "out")
        with pytest.raises(RSRError, match="is the input and lies in output_dir"):
            again, files = make_scorer(overwrite=True), {"files": data.source_files(name)}
            Job(again, data.load(name), name, files, 4, overwrite=True)
        assert len(read(tmp_path)) == len(ROWS)


class TestManyProcesses:
    """Here one after another; test_job_stops.py has real ones."""

    @pytest.mark.parametrize("streaming", [False, True])
    def test_any_number_in_any_order_gives_the_same_bytes(self, run, make_job, expected, tmp_path, streaming):
        files = {}
        for world in (1, 2, 3):
            jobs = []
            for process in reversed(range(world)):
                job = make_job(streaming, process=process, num_processes=world, output_dir=tmp_path / "w" / str(world))
                jobs.append((job, job.run(show_bar=False)))
            assert [done for _, done in jobs] == [False] * (world - 1) + [True] and job.totals()["complete"]
            paths = [*sorted(job.folder.data.iterdir()), job.folder.path / "README.md"]
            files[world] = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]
        assert files[1] == files[2] == files[3]
        assert data.load(str(tmp_path / "w" / "3")).to_list() == expected

    def test_a_process_scores_its_own_shards_only_and_another_number_goes_on(self, run, make_job, expected, tmp_path):
        totals = run(process=1, num_processes=3).totals()
        before = written(tmp_path)
        assert sorted(before) == ["train-000001.parquet", "train-000004.parquet"]
        assert (totals["shards_done"], totals["shards"], totals["complete"]) == (2, 6, False)
        assert make_job().run(show_bar=False) and read(tmp_path) == expected
        assert before.items() <= written(tmp_path).items()

    def test_what_one_launch_did_counts_together(self, make_job):
        first, second = (make_job(process=process, num_processes=2) for process in range(2))
        assert second.totals()["at_work"] == ["1-of-2", "2-of-2"]
        assert (first.run(show_bar=False), second.run(show_bar=False)) == (False, True)
        totals = second.totals()
        assert {name: one["rows"] for name, one in totals["processes"].items()} == {"1-of-2": 12, "2-of-2": 11}
        seconds = [one["seconds"] for one in totals["processes"].values()]
        assert totals["balance"] == min(seconds) / max(seconds)


class TestLock:
    """One run at a time: what isn't a process of the same launch is kept out, and says why."""

    @pytest.mark.parametrize("other", [{}, {"process": 1, "num_processes": 2}, {"overwrite": True}])
    def test_the_same_process_or_another_number_of_them(self, make_job, expected, tmp_path, other):
        job = make_job()
        with pytest.raises(RSRError, match=r"Another run is writing to .* \(process 1-of-1\)"):
            make_job(**other)
        assert job.run(show_bar=False) and read(tmp_path) == expected
        make_job(**other)

    def test_another_student_even_with_overwrite(self, make_job, run, other_scorer):
        run(process=0, num_processes=2)
        job = make_job(process=1, num_processes=2)
        for overwrite in (False, True):
            with pytest.raises(RSRError, match="Another run is writing to .* What differs: student.r_max: 100 -> 3"):
                make_job(scorer=other_scorer, overwrite=overwrite, process=0, num_processes=2)
        assert job.run(show_bar=False)

    def test_it_ends_with_an_error_of_the_run_and_leftovers_of_others_stay(self, make_job, scorer, tmp_path):
        scorer.student.model.lm_head.weight.data.fill_(float("nan"))
        others = make_job(process=1, num_processes=2)
        unfinished = tmp_path / "out/data/.train-000001.parquet-0.unfinished"
        unfinished.write_text("half")
        job = make_job(process=0, num_processes=2)
        with pytest.raises(FloatingPointError, match=r"rows \[0, 1, 2"):
            job.run(show_bar=False)
        assert job.totals()["rows_done"] == 0 and job.totals()["at_work"] == ["2-of-2"]
        assert unfinished.exists()
        others.folder.lock.release()


def test_raise_names_the_row_before_anything_is_scored(make_job, run, tmp_path):
    with pytest.raises(RSRError, match="Row 5 can't be scored: completion is empty"):
        make_job().check_rows()
    assert written(tmp_path) == {}
    run()


def test_stream_whose_types_change_names_the_row(scorer, tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            yield from ({**row, "id": "seven"} if row["id"] == 7 else row for row in ROWS)

    typed = Dataset.from_list(ROWS).to_iterable_dataset()
    stream = Stream(typed._ex_iterable, info=typed.info)
    job = Job(scorer, stream, tmp_path / "out", {"files": []}, SHARD_ROWS)
    with pytest.raises(RSRError, match="Row 7, column 'id', doesn't have the type of the first rows"):
        job.run(show_bar=False)
    assert sorted(written(tmp_path)) == ["train-000000.parquet"]
    assert typed_rows(ROWS[4:8], typed.features, 4).to_list() == ROWS[4:8]


def test_shards_are_measured_by_tokens_and_many(scorer):
    dataset = Dataset.from_list(ROWS)
    examples = tokenized_sample(scorer, dataset)
    mean = sum(len(example.input_ids) for example in examples) / len(ROWS)
    assert default_shard_rows(scorer, dataset.to_iterable_dataset(), examples, examples) == round(2**20 / mean)
    many = {23: 2**16, 10**6: 10**6 * mean / 160, 10**7: 2**20, 10**9: 10**9 * mean / 2000}
    for num_rows, tokens in many.items():
        large = type("Many", (Dataset,), {"__len__": lambda self, num_rows=num_rows: num_rows})(dataset.data)
        assert default_shard_rows(scorer, large, examples, examples) == round(tokens / mean)


@pytest.mark.parametrize(
    ("parameters", "device", "tokens_per_second"),
    [(135e6, "cpu", 370), (1.7e9, "cpu", 29), (8e9, "cpu", 6), (8e9, "cuda", 6000), (70e9, "cuda", 700)],
)
def test_a_stop_loses_minutes_whatever_the_student(parameters, device, tokens_per_second):
    """At what devices of the kind do at least: 10^11 floating-point operations a second on a CPU, 10^14 on a GPU."""
    for num_rows in (None, 10**4):
        tokens = 500 * rows_of_shard([500] * 10, num_rows, int(parameters), device)
        assert tokens / tokens_per_second < 15 * 60 and tokens <= 2**20


def test_the_size_of_shards_is_kept_by_the_folder(make_job, run, expected, tmp_path, monkeypatch):
    """Another device, or another sample, would choose otherwise: a run that goes on doesn't ask again."""
    monkeypatch.setattr("rsr_trl.scoring.job.rows_of_shard", lambda *_: 9)
    job = make_job(shard_rows=None, num_processes=2)
    job.run(show_bar=False)
    monkeypatch.setattr("rsr_trl.scoring.job.rows_of_shard", lambda *_: 5)
    job = run(shard_rows=None)
    assert job.shard_rows == 9 and sorted(written(tmp_path)) == [f"train-{i:06d}.parquet" for i in range(3)]
    assert read(tmp_path) == expected and job.totals()["rows_found"] == 9 + 5
    run(shard_rows=None, overwrite=True)  # the same run: what is there stays
    with pytest.raises(RSRError, match="shard_rows: 9 -> 4"):
        make_job()


@pytest.mark.parametrize("per_problem", [3, 7])
def test_shards_end_between_problems_where_all_have_as_many_rows(scorer, per_problem):
    rows = [{"prompt": f"What is {i // per_problem}? ", "completion": str(i)} for i in range(50)]
    dataset = Dataset.from_list(rows)
    examples = tokenized_sample(scorer, dataset, neighbours=True)
    found, alone = (
        default_shard_rows(scorer, dataset, examples, near) for near in (examples, examples[::per_problem])
    )
    assert found % per_problem == 0 and 0 <= found - alone < per_problem
    assert default_shard_rows(scorer, dataset, examples, examples[1:]) == alone, "uneven problems are cut anywhere"


@pytest.mark.parametrize("world", [2, 8])
def test_shares_are_even_of_teachers_one_after_another(gsm8k_rows, world):
    by_teacher, draw = {}, np.random.default_rng(0)
    for row in gsm8k_rows:
        by_teacher.setdefault(row["teacher"], []).append(len(row["completion"]))
    lengths = np.concatenate([draw.choice(own, 40 * len(own)) for own in by_teacher.values()])  # 48M tokens
    shards = np.add.reduceat(lengths, range(0, len(lengths), rows_of_shard(lengths[::300], len(lengths))))
    shares = [shards[process::world].sum() for process in range(world)]
    assert len(shards) >= 20 * world and min(shares) >= 0.95 * max(shares)


def test_other_scores_are_part_of_the_run(make_job, run, make_scorer, source, tmp_path):
    several = (["lark", "casl", "lalp"], ["lark"])
    first, second = (make_scorer(scores=scores, share_prefixes=False) for scores in several)
    run(scorer=first)
    assert read(tmp_path) == first.score(data.load(str(source))).to_list()
    with pytest.raises(RSRError, match="student.scores: casl, lark, lalp -> lark"):
        make_job(scorer=second)
    run(scorer=second, overwrite=True)
    assert read(tmp_path) == second.score(data.load(str(source))).to_list()
