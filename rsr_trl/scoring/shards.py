"""Parts of a scored dataset on disk: each a parquet file and a record of what is in it, whole or not there.

A shard is done when its record is there and the file is the one that the record describes. Everything is written to
a temporary name, flushed to the disk, and renamed.
"""

import json
import os
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from datasets import Dataset
from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from xxhash import xxh3_128

from rsr_trl.data import DATA_FOLDER, STATE_FOLDER
from rsr_trl.rsr import ERROR, TRUNCATED


RECORDS = "shards"  # folder of the records, in the state folder
MAX_NAMED_ROWS = 100  # rows of a shard that its record names one by one
ROW_GROUP = 1024  # rows that a reader of the file holds at once


@dataclass(frozen=True)
class ShardRecord:
    """
    What a shard holds and how it came about.

    Args:
        run (`str`): Fingerprint of student, data and settings.
        index (`int`): Number of the shard.
        first_row (`int`): Row of the dataset with which it begins.
        rows, scored, truncated (`int`): Rows in it; those with a score; of these, those that were cut.
        tokens (`int`): Tokens that went through the student.
        reasons (`dict[str, int]`): Why rows have no score, and how many.
        failed_rows (`list[int]`): Rows of the dataset that have no score, the first 100.
        size, digest (`int`, `str`): Bytes of the file and their hash.
        seconds (`float`): Time that it took.
        process (`str`): Who made it.
    """

    run: str
    index: int
    first_row: int
    rows: int
    scored: int
    truncated: int
    tokens: int
    reasons: dict[str, int]
    failed_rows: list[int]
    size: int
    digest: str
    seconds: float
    process: str


class ShardFolder:
    """
    The shards of one scored dataset.

    Args:
        output_dir (`Path`): Folder of the dataset.
        run (`str`): Fingerprint of student, data and settings: shards of another run aren't done.
    """

    def __init__(self, output_dir: Path, run: str):
        self.run = run
        self.data = output_dir / DATA_FOLDER
        self.records = output_dir / STATE_FOLDER / RECORDS

    def path(self, index: int) -> Path:
        return self.data / f"train-{index:06d}.parquet"

    def record_path(self, index: int) -> Path:
        return self.records / f"{index:06d}.json"

    def record(self, index: int, check_bytes: bool = False) -> ShardRecord | None:
        """
        The record of a shard that is done; `None` if it isn't, or if file and record don't belong together.

        Args:
            index (`int`): Number of the shard.
            check_bytes (`bool`, *optional*, defaults to `False`): Read the whole file, not only its size.
        """
        try:
            record = ShardRecord(**json.loads(self.record_path(index).read_text()))
            size = self.path(index).stat().st_size
        except (OSError, ValueError, TypeError):
            return None
        good = record.run == self.run and record.size == size
        return record if good and (not check_bytes or digest_of(self.path(index)) == record.digest) else None

    def write(
        self, scored: Dataset, index: int, first_row: int, tokens: int, seconds: float, process: str
    ) -> ShardRecord:
        """Write a shard and its record, under its lock. Either is there whole, or not at all."""
        self.record_path(index).unlink(missing_ok=True)  # it doesn't describe what comes now
        for folder in (self.data, self.records):
            for leftover in folder.glob(f".{index:06d}*"):  # of a writer that was killed
                leftover.unlink(missing_ok=True)
        temporary = self.data / f".{index:06d}-{uuid.uuid4().hex}"
        try:
            with _without_bars():
                scored.to_parquet(temporary, batch_size=ROW_GROUP)
            _flush(temporary)
            errors, cut = (list(scored[name]) for name in (ERROR, TRUNCATED))
            failed = [row for row, error in enumerate(errors) if error is not None]
            record = ShardRecord(
                run=self.run,
                index=index,
                first_row=first_row,
                rows=len(errors),
                scored=len(errors) - len(failed),
                truncated=sum(was and error is None for was, error in zip(cut, errors, strict=True)),
                tokens=tokens,
                reasons=dict(Counter(reason_of(errors[row]) for row in failed)),
                failed_rows=[first_row + row for row in failed[:MAX_NAMED_ROWS]],
                size=temporary.stat().st_size,
                digest=digest_of(temporary),
                seconds=seconds,
                process=process,
            )
            os.replace(temporary, self.path(index))
        finally:
            temporary.unlink(missing_ok=True)
        write_json(self.record_path(index), asdict(record))
        return record


@contextmanager
def _without_bars() -> Iterator[None]:
    """Without the bar that `datasets` shows for every file it writes."""
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def reason_of(error: str) -> str:
    """The part of an `rsr_error` that rows share: what is in brackets is of one row, its lengths, its words."""
    return error.split(" (")[0]


def digest_of(path: Path) -> str:
    """Hash of a file's bytes."""
    digest = xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, value: dict) -> None:
    """Write a small file whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False))


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        temporary.write_text(text, encoding="utf-8")
        _flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Bytes on the disk before the name: a power cut between the two leaves no half file under a good name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
