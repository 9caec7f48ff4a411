"""A scored dataset as a folder: the run it belongs to, the shards that are done, a lock for every process at work.

    data/train-000123.parquet   the rows of a shard     .rsr/manifest.json       student, data and settings
    README.md                   the dataset card        .rsr/shards/000123.json  record of a shard: rows, bytes, hash
    .rsr/locks/2-of-8.lock      held by process 2       .rsr/complete.json       every shard is done

A shard is done when its record is there and the file is the one that the record describes. Every file appears whole
or not at all. This file knows no scorer.
"""

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from datasets import Dataset
from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from filelock import FileLock, Timeout
from xxhash import xxh3_64_hexdigest

from rsr_trl.data import COMPLETE, DATA_FOLDER, STATE_FOLDER, UNFINISHED, check_not_read, check_output_dir
from rsr_trl.rsr import ERROR, RSRError
from rsr_trl.scoring.fingerprint import digest_of


MAX_NAMED_ROWS = 100  # rows of a shard that its record names one by one
ROW_GROUP = 1024  # rows that a reader of the file holds at once


class ShardFolder:
    """
    The folder of one run and the place of one process in it, whose `lock` is held from the beginning. `run` is what
    the manifest says: `student`, `data` (with its `files`) and `settings`. Where these leave `shard_rows` open, it is
    that of the manifest, or what `choose_rows` gives if there is none of this run. The errors are those of [`Job`].
    """

    def __init__(
        self, path: Path, run: dict, process: int, num_processes: int, overwrite: bool, choose_rows: Callable[[], int]
    ):
        self.path, self.state, self.data = path, path / STATE_FOLDER, path / DATA_FOLDER
        self.records, self.locks = self.state / "shards", self.state / "locks"
        self.complete, self.manifest = self.state / COMPLETE, self.state / "manifest.json"
        self.process = f"{process + 1}-of-{num_processes}"
        self.lock = FileLock(self.locks / f"{self.process}.lock")
        self.alone = FileLock(self.locks / "folder.lock")  # for moments, or while the input is hashed the first time
        check_not_read(run["data"]["files"], path)
        if not self.state.is_dir():
            try:
                check_output_dir(path, overwrite)
            except RSRError:
                if not self.state.is_dir():  # else another process has made it at this moment
                    raise
        try:
            for folder in (self.records, self.locks, self.data):
                folder.mkdir(parents=True, exist_ok=True)
            with self.alone:
                self._open(run, overwrite, choose_rows)
        except OSError as error:
            raise OSError(error.errno, f"can't write to the folder {str(path)!r}: {error.strerror}") from error

    def _open(self, run: dict, overwrite: bool, choose_rows: Callable[[], int]) -> None:
        files = digests_of(run["data"]["files"], self.state / "hashes.json")
        run = json.loads(json.dumps(run | {"data": run["data"] | {"files": files}}, default=str))
        known, busy, done = read_json(self.manifest), self.busy(), list(self.records.glob("*.json"))
        if run["settings"]["shard_rows"] is None:
            is_same = all(known.get(name) == run[name] for name in ("student", "data"))
            run["settings"] = known["settings"] if is_same else {"shard_rows": choose_rows()}
        self.shard_rows = run["settings"]["shard_rows"]
        self.run = xxh3_64_hexdigest(json.dumps(run, sort_keys=True).encode())  # names it in the records
        if known.keys() == run.keys():
            others = differences(known, run)
        else:  # new; or the manifest was lost, and the records say to which run they belong
            names = {read_json(record).get("run") for record in done} - {self.run, None}
            others = [f"it is a run known only by its fingerprint ({name})" for name in names]
        what = f" What differs: {'; '.join(others)}." if others else ""
        companions = [name for name in busy if name != self.process and name.endswith(self.process.split("-", 1)[1])]
        if busy and (others or companions != busy):
            raise RSRError(
                f"Another run is writing to {str(self.path)!r} at this moment (process {', '.join(busy)}).{what} Wait "
                "for it, stop it, or choose another output_dir."
            )
        if others and done and not overwrite:
            raise RSRError(
                f"{str(self.path)!r} holds results of another run.{what} Give the same options as before to resume, "
                "choose another output_dir, or pass --overwrite to start again."
            )
        self.lock.acquire(timeout=0)
        if not busy:  # the first process of a launch: what is unfinished, a killed one has left
            stale = [self.complete, *done, *self.data.glob("*.parquet")] if others or not done else []
            stale += [file for depth in ("", "*/", "*/*/") for file in self.path.glob(f"{depth}.*{UNFINISHED}")]
            for file in stale:
                file.unlink(missing_ok=True)
            write_json(self.locks / "launch.json", {"id": uuid.uuid4().hex})
        self.launch = read_json(self.locks / "launch.json").get("id")
        if known != run:
            write_json(self.manifest, run)

    def busy(self) -> list[str]:
        """The processes that are at work in the folder, such as `2-of-8`."""

        def is_held(lock: Path) -> bool:
            try:
                with FileLock(lock, timeout=0):
                    return False
            except Timeout:
                return True

        with self.alone:  # asking means holding for a moment
            return sorted(lock.stem for lock in self.locks.glob("*-of-*.lock") if is_held(lock))

    def paths(self, index: int) -> tuple[Path, Path]:
        """Where a shard is, and its record."""
        return self.data / f"train-{index:06d}.parquet", self.records / f"{index:06d}.json"

    def record(self, index: int, check_bytes: bool = False) -> dict | None:
        """The record of a shard that is done; else `None`. With `check_bytes` the whole file is read."""
        shard, path = self.paths(index)
        record = read_json(path)
        is_done = record.get("run") == self.run and shard.is_file() and shard.stat().st_size == record["size"]
        return record if is_done and (not check_bytes or digest_of(shard) == record["digest"]) else None

    def done(self) -> dict[int, dict]:
        """The records of all shards that are done, by number."""
        indices = sorted(int(path.stem) for path in self.records.glob("*.json"))
        return {index: record for index in indices if (record := self.record(index))}

    def forget(self, index: int) -> None:
        """A shard isn't done, so the dataset isn't complete."""
        self.complete.unlink(missing_ok=True)
        self.paths(index)[1].unlink(missing_ok=True)

    def write(
        self, scored: Dataset, index: int, first_row: int, counts: Mapping[str, float], notes: Mapping[str, int]
    ) -> dict:
        """Write a shard and its record, which is returned; `counts` are its tokens, those read, and the seconds."""
        self.forget(index)
        shard, record_path = self.paths(index)
        with written_whole(shard) as path, ExitStack() as bars:
            if not are_progress_bars_disabled():  # `datasets` would show one for every file
                disable_progress_bars()
                bars.callback(enable_progress_bars)
            scored.to_parquet(path, batch_size=ROW_GROUP)
            size, digest = path.stat().st_size, digest_of(path)
        failed = [row for row, error in enumerate(scored[ERROR], first_row) if error is not None]
        record = {"run": self.run, "launch": self.launch, "process": self.process, "size": size, "digest": digest}
        record |= {"rows": len(scored), **counts, "failed_rows": failed[:MAX_NAMED_ROWS]}
        record["notes"] = dict(notes)
        write_json(record_path, record)
        return record


def digests_of(files: Sequence[str], cache: Path | None = None) -> dict[str, str | None]:
    """
    The files of a dataset by name, with hashes of their bytes: the same wherever they lie. A file on the Hub has no
    hash, for its address has the commit in it. `cache` keeps hashes as long as a file's size and time stay.
    """
    paths = [os.path.realpath(file) for file in files if os.path.isfile(file)]
    if len(paths) < len(files) or not files:
        return dict.fromkeys(files)
    known = read_json(cache) if cache else {}
    for path in paths:
        stat = os.stat(path)
        if known.get(path, [])[:2] != [stat.st_size, stat.st_mtime_ns]:
            known[path] = [stat.st_size, stat.st_mtime_ns, digest_of(Path(path))]
    if cache:
        write_json(cache, known)
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return {os.path.relpath(path, folder): known[path][2] for path in paths}


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """What differs between two runs, as `name: old -> new`."""
    result = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if name == "files" and before != after:
            changed = sorted({file for file, _ in (before or {}).items() ^ (after or {}).items()})
            result.append(f"{prefix}files: {', '.join(changed[:3])} changed")
        elif isinstance(before, dict) and isinstance(after, dict):
            result += differences(before, after, f"{prefix}{name}.")
        elif before != after:
            result.append(f"{prefix}{name}: {before!s:.40} -> {after!s:.40}")
    return result


def read_json(path: Path) -> dict:
    """A small file; empty if it isn't there or is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: dict) -> None:
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes `path` when its bytes are on the disk; after an error it is removed."""
    unfinished = path.with_name(f".{path.name}-{uuid.uuid4().hex}{UNFINISHED}")
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
