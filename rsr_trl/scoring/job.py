"""Score a dataset into a folder: by many processes, bigger than memory, safe to kill at any moment.

    shard      0    1    2    3    4   ...    `shard_rows` rows each; a parquet file and its record
    process    0    1    0    1    0   ...    shard % num_processes

Where shards end depends on data, student and settings alone, so any number of processes gives the same files, and is
kept in the manifest. Every process owns its shards and waits for nobody; starting again means going on. This file
knows no command line.
"""

import errno
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, IterableDataset
from xxhash import xxh3_64_hexdigest

from rsr_trl.data import STATE_FOLDER, dataset_card
from rsr_trl.rsr import RSRError
from rsr_trl.scoring.batches import rows_of_shard
from rsr_trl.scoring.own_text import LOST
from rsr_trl.scoring.rows import (
    TokenBar,
    add_columns,
    next_rows,
    of_types,
    typed_rows,
    undecoded,
    without_scores,
)
from rsr_trl.scoring.scorer import RSRScorer
from rsr_trl.scoring.shards import ShardFolder, read_json, write_json, written_whole
from rsr_trl.scoring.tokens import TokenizedExample


SAMPLE_ROWS = 256  # rows that stand for all


class Job:
    """
    Scores a dataset into a folder, or what is left of it.

    Args:
        scorer ([`RSRScorer`]): With `overwrite`, it replaces the dataset's own score columns.
        dataset (`Dataset` or `IterableDataset`): With its types known.
        output_dir (`str` or `Path`): Folder of the scored dataset.
        identity (`dict`): What names the dataset: its `files` (see [`~rsr_trl.data.source_files`]), and how it was
            asked for (configuration, split, columns).
        shard_rows (`int`, *optional*): Rows of a shard; by default those of this run's manifest, where there is one,
            else [`default_shard_rows`].
        process, num_processes (`int`, *optional*): Which of how many processes this is, counted from 0.
        card, facts (*optional*): As [`~rsr_trl.data.dataset_card`] takes them.
        overwrite (`bool`, *optional*, defaults to `False`): Remove what another run has left; not what this one has.

    Raises:
        RSRError: if the folder holds another run or anything else, or if another run, or this process of this run, is
            at work there.
    """

    def __init__(
        self,
        scorer: RSRScorer,
        dataset: Dataset | IterableDataset,
        output_dir: str | Path,
        identity: dict,
        shard_rows: int | None = None,
        process: int = 0,
        num_processes: int = 1,
        card: str | Path = "",
        facts: dict | None = None,
        overwrite: bool = False,
    ):
        scorer.check_columns(dataset.column_names)
        # Whether a template that rows bring writes the day, shows when they are rendered.
        if "chat_template_kwargs" in dataset.column_names:
            tokenized_sample(scorer, dataset)
        if shard_rows is not None and shard_rows < 1:
            raise RSRError(f"shard_rows must be at least 1, got {shard_rows}.")
        self.scorer, self.dataset, self._types = scorer, dataset, dataset.features
        if isinstance(dataset, IterableDataset):
            self.dataset = undecoded(dataset)
        self.process, self.num_processes, self._card, self._facts = process, num_processes, card, facts
        if day := read_json(Path(output_dir) / STATE_FOLDER / "manifest.json").get("student", {}).get("day"):
            scorer.set_day(day)  # a chat template writes it: the rest has to be of the same text as what is done
        run = {"student": scorer.identity(), "data": identity, "settings": {"shard_rows": shard_rows}}
        rows = partial(default_shard_rows, scorer, dataset)
        self.folder = folder = ShardFolder(Path(output_dir), run, process, num_processes, overwrite, rows)
        self.shard_rows = folder.shard_rows
        self.num_rows = len(dataset) if isinstance(dataset, Dataset) else read_json(folder.complete).get("rows")
        last = max((int(path.stem) for path in folder.records.glob("*.json")), default=-1)
        self._done: dict[int, dict] = {}
        for index in range(process, last + 1 if self.num_shards is None else self.num_shards, num_processes):
            if record := folder.record(index, check_bytes=True):
                self._done[index] = record
            else:
                folder.forget(index)
        self.was_complete = folder.complete.is_file()
        if not self.was_complete:
            self._write_card()

    @property
    def num_shards(self) -> int | None:
        """Of a stream, known when it was read to its end."""
        return None if self.num_rows is None else -(-self.num_rows // self.shard_rows)

    def _left(self) -> Iterator[tuple[int, Dataset]]:
        """The shards of this process that aren't done: number and rows."""
        if isinstance(self.dataset, Dataset):
            for index in range(self.process, self.num_shards, self.num_processes):
                if index not in self._done:
                    first = index * self.shard_rows
                    yield index, self.dataset.select(range(first, min(first + self.shard_rows, self.num_rows)))
        elif not self.was_complete:
            stream, index, num_rows = iter(self.dataset), 0, 0
            while rows := next_rows(stream, self.shard_rows, num_rows):
                if index % self.num_processes == self.process and index not in self._done:
                    yield index, typed_rows(rows, self.dataset.features, num_rows)
                index, num_rows = index + 1, num_rows + len(rows)
            self.num_rows = num_rows

    def check_rows(self) -> None:
        """Raise `RSRError` with the first row that can't be scored, before any is scored."""
        for index, rows in self._left():
            for window in self.scorer.windows_of(rows):
                for row, example in enumerate(window.examples, index * self.shard_rows + window.first_row):
                    lost = [note for note in example.notes if note in LOST]
                    if example.error is None and not lost:
                        continue
                    self.folder.lock.release()
                    if lost:
                        raise RSRError(
                            f"Row {row} loses its {', its '.join(lost)} in the student's chat template. Nothing was "
                            "scored. Use another template, or score what is left (--on_error null)."
                        )
                    raise RSRError(
                        f"Row {row} can't be scored: {example.error}. Nothing was scored. Fix the row, or let "
                        "such rows have null (--on_error null)."
                    )

    def run(self, show_bar: bool = True) -> bool:
        """Score what is left. Whether this completed the dataset: of several processes, the last to end does."""
        rows = self.num_rows and len(range(self.process, self.num_shards, self.num_processes)) * self.shard_rows
        try:
            with TokenBar(rows and min(rows, self.num_rows), disable=not show_bar) as bar:
                for record in self._done.values():
                    bar.found_done(record["rows"], record["tokens"])
                for index, rows in self._left():
                    self._done[index] = self._score(index, rows, bar)
            return self._complete()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                done = (
                    f"What is done ({len(self._done):,} shards) stays good: free some and run the same command again"
                )
                raise OSError(error.errno, f"no room left in {str(self.folder.path)!r}. {done}") from error
            raise
        finally:
            self.folder.lock.release()

    def _score(self, index: int, rows: Dataset, bar: TokenBar) -> dict:
        start, tokens, read, first_row = time.perf_counter(), bar.tokens, bar.tokens_read, index * self.shard_rows
        rows = without_scores(rows, self.scorer.schema)
        scored = add_columns(rows, self.scorer.score_rows(rows, bar, first_row, notes=(notes := Counter())))
        counts = {"tokens": bar.tokens - tokens, "tokens_read": bar.tokens_read - read}
        counts["seconds"] = time.perf_counter() - start
        scored = of_types(scored, Features({**scored.features, **{n: self._types[n] for n in rows.column_names}}))
        return self.folder.write(scored, index, first_row, counts, notes)

    def _complete(self) -> bool:
        """Write down that the dataset is complete, if it is and nobody has yet. Whether this call did so."""
        with self.folder.alone:
            if self.folder.complete.is_file() or len(self.folder.done()) < self.num_shards:
                return False
            self._write_card()
            write_json(self.folder.complete, {"rows": self.num_rows, "shards": self.num_shards})
            return True

    def _write_card(self) -> None:
        digests = "".join(record["digest"] for record in self.folder.done().values())
        version = f"{self.folder.run} {xxh3_64_hexdigest(digests.encode())}"
        with written_whole(self.folder.path / "README.md") as path:
            path.write_text(dataset_card(self._card, version, self._facts), encoding="utf-8")

    def totals(self) -> dict:
        """
        What is done, by whomever: shards, rows (`rows_found`: by an earlier launch), tokens, `at_work` (the processes
        that still score), and of this launch `processes` (rows, tokens, seconds of each) and `balance` (seconds of the
        least busy over the busiest).
        """
        records, processes = list(self.folder.done().values()), {}
        for record in records:
            if record["launch"] == self.folder.launch:
                mine = processes.setdefault(record["process"], Counter())
                mine.update({name: record[name] for name in ("rows", "tokens", "seconds")})
        for one in processes.values():
            one["tokens_per_second"] = one["tokens"] / one["seconds"]
        seconds = [one["seconds"] for one in processes.values()]
        return {
            "complete": len(records) == self.num_shards,
            "shards": self.num_shards,
            "shards_done": len(records),
            "rows_done": sum(record["rows"] for record in records),
            "rows_found": sum(record["rows"] for record in records if record["launch"] != self.folder.launch),
            "tokens": sum(record["tokens"] for record in records),
            "tokens_read": sum(record.get("tokens_read", record["tokens"]) for record in records),
            "failed_rows": [row for record in records for row in record["failed_rows"]],
            "notes": dict(sum((Counter(record.get("notes")) for record in records), Counter())),
            "at_work": self.folder.busy(),
            "processes": processes,
            "balance": min(seconds) / max(seconds) if seconds else None,
        }


def tokenized_sample(
    scorer: RSRScorer, dataset: Dataset | IterableDataset, neighbours: bool = False
) -> list[TokenizedExample]:
    """Some rows that stand for all, tokenized: evenly spread ones, or the first (a stream's, or `neighbours`)."""
    if isinstance(dataset, Dataset):
        step = 1 if neighbours else max(1, len(dataset) // SAMPLE_ROWS)
        rows = dataset.select(range(0, len(dataset), step)[:SAMPLE_ROWS])
    else:
        rows = Dataset.from_list(next_rows(iter(dataset), SAMPLE_ROWS), features=dataset.features)
    examples = (example for window in scorer.windows_of(rows) for example in window.examples)
    return [replace(e, pictures=e.pictures.without_numbers()) if e.pictures else e for e in examples]


def default_shard_rows(
    scorer: RSRScorer,
    dataset: Dataset | IterableDataset,
    examples: Sequence[TokenizedExample] | None = None,
    neighbours: Sequence[TokenizedExample] | None = None,
) -> int:
    """
    Rows of a shard, by data, student and kind of device. `examples` are the [`tokenized_sample`], `neighbours` the
    first rows: where all of their problems have as many trajectories in a row, shards end between problems.
    """
    lengths = [len(example.input_ids) for example in examples or tokenized_sample(scorer, dataset)]
    num_rows = len(dataset) if isinstance(dataset, Dataset) else None
    student = scorer.student
    rows = rows_of_shard(lengths, num_rows, student.num_parameters, student.device.type)
    if neighbours is None:
        neighbours = tokenized_sample(scorer, dataset, neighbours=True)
    prompts = [e.input_ids[: np.argmax(e.scored)].tobytes() if e.error is None else None for e in neighbours]
    runs = [len(list(run)) for _, run in groupby(prompts)][:-1]  # the last may go on
    return -(-rows // runs[0]) * runs[0] if len(set(runs)) == 1 else rows
