"""Forms in which people have their data.

Files: which of them can be read, and the types of all rows where the first ones don't show them. Columns: chats as
text to group by.
"""

import json
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import fsspec
import pyarrow as pa
from datasets import DatasetBuilder, Features, load_dataset
from datasets.packaged_modules.csv.csv import CsvConfig
from datasets.packaged_modules.json.json import JsonConfig


READERS = {ending: ("json", {}) for ending in (".jsonl", ".json", ".ndjson", ".jsonlines")}
READERS |= {".csv": ("csv", {}), ".tsv": ("csv", {"sep": "\t"}), ".parquet": ("parquet", {}), ".arrow": ("arrow", {})}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip")
ALL_LINES = 10**9

_LIKE_A_TIME = re.compile(r"\d{4}-\d\d-\d\d")  # such strings become times where all of a column are


def reader_of(name: str | Path) -> tuple[str, dict] | None:
    """The builder of `datasets` that reads a file of this name, compressed or not, and its options; `None`: none."""
    endings = [ending.lower() for ending in Path(name).suffixes]
    while endings and endings[-1] in COMPRESSED:
        endings.pop()
    return READERS.get(endings[-1]) if endings else None


def holds_rows(file: Path) -> bool:
    """Whether a file looks as if it held rows, whoever can read it."""
    return reader_of(file) is not None or file.suffix.lower() in (*COMPRESSED, ".tar", ".tgz")


def types_of_all_rows(builder: DatasetBuilder) -> dict:
    """
    Options with which `load_dataset` reads files whose types show late. It takes those of the first 10 MB of JSON (or
    10,000 lines of CSV), and fails where a later row has a new key, or a first value where all were null.
    """
    if isinstance(builder.config, CsvConfig):
        return {"chunksize": ALL_LINES}
    if not isinstance(builder.config, JsonConfig):
        return {}
    files = [file for files in builder.config.data_files.values() for file in files]
    return {"features": _features_of(files)}


def _features_of(files: Iterable[str]) -> Features:
    """Of JSON files: those of a few rows that have between them every kind of value that there is at any key."""
    kinds: dict[tuple, set] = {}
    rows = [row for file in files for row in _rows_of(file) if _shows_new(row, (), kinds)]
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder, "rows.jsonl")
        sample.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        options = {"split": "train", "cache_dir": folder, "chunksize": sample.stat().st_size + 1}
        return load_dataset("json", data_files=str(sample), **options).features


def _rows_of(file: str) -> Iterable[dict]:
    with fsspec.open(file, "rt", encoding="utf-8-sig", compression="infer") as text:
        if text.read(1) == "[":
            text.seek(0)
            yield from json.load(text)
            return
        text.seek(0)
        yield from (json.loads(line) for line in text if line.strip())


def _shows_new(value: object, path: tuple, kinds: dict[tuple, set]) -> bool:
    """Whether the value, or one inside it, is of a kind that `kinds` doesn't have at its path. It has it then."""
    known = kinds.setdefault(path, set())
    if sum(isinstance(kind, frozenset) for kind in known) > 1:
        return False  # objects with different keys: they are kept as JSON, whatever is in them
    inner = []
    if isinstance(value, dict):
        kind = frozenset(value) if path else dict
        inner = [_shows_new(part, (*path, name), kinds) for name, part in value.items()]
    elif isinstance(value, list):
        kind = list
        inner = [_shows_new(part, (*path, 0), kinds) for part in value]
    else:
        kind = "time" if isinstance(value, str) and _LIKE_A_TIME.match(value) else type(value)
    is_new = kind not in known
    known.add(kind)
    return is_new or any(inner)


def chats_as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of chats as text: a single user message as what it says, others as JSON. Any other as it is."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):  # JSON, of values of several types
        return column.cast(kind.storage_type)
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return column
    kind = kind.value_type
    if not isinstance(kind, pa.JsonType) and not (pa.types.is_struct(kind) and kind.get_field_index("role") >= 0):
        return column
    texts = [pa.array(map(_text_of_chat, chunk.to_pylist()), pa.string()) for chunk in column.chunks]
    return pa.chunked_array(texts, pa.string())


def _text_of_chat(messages: list | None) -> str | None:
    if messages is None:
        return None
    messages = [json.loads(message) if isinstance(message, str) else message for message in messages]
    messages = [{name: part for name, part in message.items() if part is not None} for message in messages]
    only = messages[0] if len(messages) == 1 else {}
    if only.keys() == {"role", "content"} and only["role"] == "user" and isinstance(only["content"], str):
        return only["content"]
    return json.dumps(messages, ensure_ascii=False, sort_keys=True)
