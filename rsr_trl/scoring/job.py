"""Score a dataset into a folder: by many processes, bigger than memory, safe to kill at any moment.

The dataset is a row of parts; each becomes a shard, written whole. Processes share the folder and nothing else: each
takes the next part that is neither done nor locked, until nothing is left. So none waits for another, they may start
and end at any time, and starting again means going on. This file knows no command line.
"""

import errno
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, IterableDataset
from xxhash import xxh3_128

from rsr_trl.data import COMPLETE, STATE_FOLDER, dataset_card
from rsr_trl.scoring.locks import Lock
from rsr_trl.scoring.manifest import LOCKS, OPENING, TOTAL, held_locks, open_folder
from rsr_trl.scoring.parts import Part, Parts
from rsr_trl.scoring.rows import TokenBar, add_columns, without_scores
from rsr_trl.scoring.scorer import RSRScorer
from rsr_trl.scoring.shards import ShardFolder, ShardRecord, write_json, write_text


POLL = 1.0  # seconds between two looks at what other processes do
NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class Share:
    """
    Which of several processes this one is.

    Args:
        number (`int`, *optional*, defaults to `0`): Counted from 0.
        of (`int`, *optional*, defaults to `1`): How many there are.
        own_only (`bool`, *optional*, defaults to `False`): Whether it leaves the others' parts alone, as
            `--shard i/n` does; otherwise it takes whatever is free.
    """

    number: int = 0
    of: int = 1
    own_only: bool = False

    def is_own(self, index: int) -> bool:
        return index % self.of == self.number


@dataclass
class Totals:
    """What is in a folder, and how fast it came there in this run."""

    shards: int | None = None  # in all; unknown while nobody has seen the end of a stream
    shards_done: int = 0
    rows: int = 0
    scored: int = 0
    truncated: int = 0
    tokens: int = 0
    reasons: Counter = field(default_factory=Counter)
    failed_rows: list[int] = field(default_factory=list)  # the first ones
    held_by: list[str] = field(default_factory=list)  # who works on what isn't done
    processes: dict[str, dict] = field(default_factory=dict)  # rows, tokens and seconds of this run by process

    @property
    def complete(self) -> bool:
        return self.shards == self.shards_done

    @property
    def balance(self) -> float | None:
        """Busy time of the least busy process over that of the busiest; 1 is even."""
        busy = [one["seconds"] for one in self.processes.values()]
        return min(busy) / max(busy) if busy and max(busy) else None


class Job:
    """
    Scores a dataset into a folder, or what is left of it.

    Args:
        scorer ([`RSRScorer`]): With `overwrite`, it replaces the dataset's own score columns.
        dataset (`Dataset` or `IterableDataset`): With its types known.
        output_dir (`Path`): Folder of the scored dataset.
        data (`dict`): What names the dataset, from [`~rsr_trl.scoring.manifest.data_identity`].
        shard_rows (`int`): Rows of a shard.
        share ([`Share`], *optional*): Which of several processes this is.
        card (`str`, *optional*): Text of the folder's `README.md`.
        facts (`dict`, *optional*): As [`~rsr_trl.data.dataset_card`] takes them.
        overwrite (`bool`, *optional*, defaults to `False`): Remove what another run has left in the folder.

    Raises:
        ValueError: if the folder holds another run, or anything else.
    """

    def __init__(
        self,
        scorer: RSRScorer,
        dataset: Dataset | IterableDataset,
        output_dir: str | Path,
        data: dict,
        shard_rows: int,
        share: Share | None = None,
        card: str = "",
        overwrite: bool = False,
        facts: dict | None = None,
    ):
        scorer.check_columns(dataset.column_names)
        self.scorer = scorer
        self.share = share or Share()
        self.output_dir = Path(output_dir)
        self.state = self.output_dir / STATE_FOLDER
        run = {"student": scorer.identity(), "data": data, "settings": {"shard_rows": shard_rows}}
        self.shards = ShardFolder(self.output_dir, open_folder(self.output_dir, run, overwrite))
        self.parts = Parts(dataset, shard_rows, self._known_rows())
        self.process = f"{socket.gethostname()}:{os.getpid()}"
        self._done: dict[int, ShardRecord] = {}
        self.card, self.facts = card, facts or {}
        self._find_done()
        self._done_before = set(self._done)
        if not (self.state / COMPLETE).is_file():
            self._write_card("incomplete")

    # ------------------------------------------------------------------------------------------------- the work

    def check_rows(self) -> None:
        """Raise `ValueError` with the first row that can't be scored, before any is scored."""
        for part in self.parts:
            if part.index in self._done or (self.share.own_only and not self.share.is_own(part.index)):
                continue
            for window in self.scorer.windows_of(part.load()):
                for row, example in enumerate(window.examples, start=part.first_row + window.first_row):
                    if example.error is not None:
                        raise ValueError(
                            f"Row {row} can't be scored: {example.error}. Nothing was scored. Mend the row, or let "
                            "such rows have null (--on_error null)."
                        )

    def run(self, wait: bool = False, show_bar: bool = True) -> None:
        """
        Score what is left and free.

        Args:
            wait (`bool`, *optional*, defaults to `False`): Wait for parts that living processes are at, and take over
                those of processes that die.
            show_bar (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.
        """
        with TokenBar(self.parts.num_rows, disable=not show_bar) as self._bar:
            for record in self._done.values():
                self._bar.found_done(record.rows, record.tokens)
            while not self._pass() and wait:
                time.sleep(POLL)

    def _pass(self) -> bool:
        """Go over all parts once and score those that are free. Whether all are done then."""
        if self.parts.count is None or len(self._done) < self.parts.count:
            for part in self.parts:
                if not self._is_done(part.index) and (self.share.is_own(part.index) or not self.share.own_only):
                    self._try(part)
        self._bar.num_rows = self.parts.num_rows
        if not (self.state / TOTAL).is_file():
            write_json(self.state / TOTAL, {"rows": self.parts.num_rows})
        # Whoever ends last sees it all, even if others were at work on some when this process came by. And with a
        # fresh look: another process may have found a shard damaged in the meantime.
        all_done = all(self._is_done(index) for index in range(self.parts.count))
        if all_done:
            self._done = {i: record for i in range(self.parts.count) if (record := self.shards.record(i))}
            all_done = len(self._done) == self.parts.count
        if all_done:
            # Killed between a shard's last byte and its release, an owner leaves a lock on what is done.
            for lock in (self.state / LOCKS).iterdir():
                if lock.name.isdigit():
                    lock.unlink(missing_ok=True)
            self._write_card("complete")
            write_json(self.state / COMPLETE, {"rows": self.parts.num_rows, "shards": self.parts.count})
        return all_done

    def _try(self, part: Part) -> None:
        """Score a part unless somebody is at it."""
        lock = Lock(self.state / LOCKS / f"{part.index:06d}")
        try:  # a stop may come at any moment from here on
            if not lock.acquire():
                return
            if not self._is_done(part.index):  # it may have been finished between the two looks
                self._score(part)
        except OSError as error:
            if error.errno in NO_ROOM:
                done = f"What is done ({len(self._done):,} shards) stays good"
                raise OSError(
                    error.errno,
                    f"no room left in {str(self.output_dir)!r}. {done}: free some and run the same command again",
                ) from error
            raise
        finally:
            lock.release()

    def _score(self, part: Part) -> None:
        start = time.perf_counter()
        dataset = without_scores(part.load(), self.scorer.schema)
        before = self._bar.tokens
        table = self.scorer.score_rows(dataset, self._bar, part.first_row)
        seconds = time.perf_counter() - start
        self._done[part.index] = self.shards.write(
            add_columns(dataset, table),
            part.index,
            part.first_row,
            self._bar.tokens - before,
            seconds,
            self.process,
        )

    # ------------------------------------------------------------------------------------------------ what is done

    def _find_done(self) -> None:
        """Look at all shards there are; the bytes of this process's own share are read, those of others' not."""
        for path in sorted(self.shards.records.glob("*.json")):
            index = int(path.stem)
            if record := self.shards.record(index, check_bytes=self.share.is_own(index)):
                self._done[index] = record
            elif not Lock(self.state / LOCKS / path.stem).is_held():
                # Damaged: it isn't done, for nobody. First of all, the folder isn't complete.
                (self.state / COMPLETE).unlink(missing_ok=True)
                path.unlink(missing_ok=True)

    def _is_done(self, index: int) -> bool:
        if index not in self._done and (record := self.shards.record(index)):
            self._done[index] = record
            self._bar.expect(record.rows, record.tokens)
            self._bar.update(record.rows, record.tokens)
        return index in self._done

    def _known_rows(self) -> int | None:
        try:
            return json.loads((self.state / TOTAL).read_text())["rows"]
        except (OSError, ValueError, KeyError):
            return None

    def totals(self) -> Totals:
        """What is done, by whomever."""
        known = [int(path.stem) for path in sorted(self.shards.records.glob("*.json"))]
        records = [record for index in known if (record := self.shards.record(index))]
        totals = Totals(shards=self.parts.count, shards_done=len(records))
        for record in records:
            for name in ("rows", "scored", "truncated", "tokens"):
                setattr(totals, name, getattr(totals, name) + getattr(record, name))
            totals.reasons.update(record.reasons)
            totals.failed_rows += record.failed_rows
            if record.index not in self._done_before:
                mine = totals.processes.setdefault(record.process, dict.fromkeys(("rows", "tokens", "seconds"), 0))
                for name in mine:
                    mine[name] += getattr(record, name)
        owners = [owner for name, owner in held_locks(self.state).items() if name != OPENING]
        totals.held_by = sorted({f"{owner['host']}:{owner['pid']}" for owner in owners if owner})
        return totals

    def files(self) -> Iterable[Path]:
        """The parquet files, in the order of the rows."""
        return [self.shards.path(index) for index in sorted(self._done)]

    def _write_card(self, state: str) -> None:
        digests = xxh3_128("".join(record.digest for _, record in sorted(self._done.items())).encode())
        version = f"{state} {self.shards.run} {digests.hexdigest()[:16]}"
        text = dataset_card(self.card, version, self.facts)
        write_text(self.output_dir / "README.md", text)
