"""Forms in which people have their data.

Files: which of them can be read, and the types of all rows where the first ones don't show them. Columns: how one
becomes a prompt, a completion or a chat, and chats as text to group by.
"""

import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetBuilder, Features, IterableDataset, LargeList, List, Value, load_dataset
from datasets.packaged_modules.csv.csv import CsvConfig
from datasets.packaged_modules.json.json import JsonConfig

from rsr_trl.rsr import RSRError


logger = logging.getLogger(__name__)

READERS = {ending: ("json", {}) for ending in (".jsonl", ".json", ".ndjson", ".jsonlines")}
READERS |= {".csv": ("csv", {}), ".tsv": ("csv", {"sep": "\t"}), ".parquet": ("parquet", {}), ".arrow": ("arrow", {})}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip")
ALL_LINES = 10**9

IMAGES = ("image", "images")  # columns in which SFTTrainer looks for images: one of each row, or a list
SHAREGPT = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}  # names of roles
FIRST_ROWS = 100  # of a dataset, which show how its messages look

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


def check_no_images(dataset: Dataset, who: str, what: str = "dataset") -> None:
    """Raise `RSRError` where `who` would read the text of a dataset without its images."""
    if images := [name for name in IMAGES if name in dataset.column_names]:
        raise RSRError(f"{who} takes text alone, and the {what} has images (column {images[0]!r}).")


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


def as_booleans(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """The column as booleans; `None` unless it holds them, or 0 and 1, or true and false as text."""
    column = chats_as_text(column)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.utf8_lower(column)
    if pa.types.is_nested(column.type) or not set(pc.unique(column).to_pylist()) <= {0, 1, "true", "false", None}:
        return None
    return column.cast(pa.bool_())


def _text_of_chat(messages: list | None) -> str | None:
    if messages is None:
        return None
    messages = [json.loads(message) if isinstance(message, str) else message for message in messages]
    messages = [{name: part for name, part in message.items() if part is not None} for message in messages]
    only = messages[0] if len(messages) == 1 else {}
    if only.keys() == {"role", "content"} and only["role"] == "user" and isinstance(only["content"], str):
        return only["content"]
    return json.dumps(messages, ensure_ascii=False, sort_keys=True)


# ------------------------------------------------------------------------------------------- columns of SFTTrainer


def map_column(
    dataset: Dataset | IterableDataset, column: str, function: Callable, feature=None, beside: str | None = None
) -> Dataset | IterableDataset:
    """
    Replace one column by `function` of it, and of the column `beside` if there is one; null stays null. `feature` is
    its new type, by default the old one.
    """
    features = dataset.features and Features({**dataset.features, **({column: feature} if feature else {})})
    desc = {"desc": f"Wrapping {column}"} if isinstance(dataset, Dataset) else {}
    on_batch = partial(_map_batch, column=column, function=function, beside=beside)
    return dataset.map(on_batch, with_indices=True, batched=True, features=features, **desc)


def _map_batch(batch: dict, rows: list[int], column: str, function: Callable, beside: str | None) -> dict:
    values, others = [], [()] * len(rows) if beside is None else zip(batch[beside])
    for row, value, other in zip(rows, batch[column], others, strict=True):
        try:
            values.append(None if value is None else function(value, *other))
        except ValueError as error:
            raise RSRError(f"Row {row}, column {column!r}: {error}") from None
    return {column: values}


def join_columns(dataset: Dataset | IterableDataset, names: str) -> Dataset | IterableDataset:
    """Add the column `names`: the texts of the columns so named, with blank lines between them."""

    def join(batch: dict) -> dict:
        rows = zip(*(batch[name] for name in names.split(",")), strict=True)
        return {names: ["\n\n".join(str(text) for text in texts if text) or None for texts in rows]}

    features = dataset.features and Features({**dataset.features, names: Value("string")})
    return dataset.map(join, batched=True, features=features)


def check_one_text(feature: object, target: str, column: str) -> None:
    """Raise where a column holds several texts in a row, as OpenThoughts' and OpenR1's `generations` do."""
    if isinstance(feature, (List, LargeList)) and isinstance(feature.feature, Value):
        raise RSRError(
            f"{column!r} holds a list of texts in a row, but a row is one trajectory. Make a row of each first: "
            f"Dataset.from_list([{{**row, {target!r}: text}} for row in dataset for text in row[{column!r}]])."
        )


def wrap(text: str | list[dict], role: str) -> list[dict]:
    if isinstance(text, list):  # a stream's columns may have no known type
        return text
    if not isinstance(text, str):
        raise RSRError(f"as_chat wraps plain text, but this is {type(text).__name__}: {str(text)[:60]!r}")
    return [{"role": role, "content": text}]


def prepend_system(messages: list[dict], own: str | None = None, system_prompt: str | None = None) -> list[dict]:
    """A chat with a system message before it: the row's own or the same for all; without either as it is."""
    if not (text := system_prompt or own):
        return messages
    if isinstance(messages, str):
        raise RSRError("a system message goes before a chat, but this is plain text; pass as_chat too")
    role, content = ("from", "value") if messages and "from" in messages[0] else ("role", "content")
    if messages and messages[0].get(role) == "system":
        raise RSRError("a system message was given, but this chat begins with a system message of its own")
    return [{role: "system", content: text}, *messages]


def with_known_names(dataset: Dataset | IterableDataset, columns: list[str]) -> Dataset | IterableDataset:
    """ShareGPT's names of roles as SFTTrainer knows them, and no tools where `tools` is an empty text."""
    if "conversations" in columns:
        messages = _first_messages(dataset, "conversations")
        if any(message.get("from") in SHAREGPT for message in messages):
            dataset = map_column(dataset, "conversations", with_known_roles)
        elif any("role" in message for message in messages) and not {"prompt", "messages", "text"} & set(columns):
            raise RSRError("`conversations` holds messages with role and content: pass messages_column=conversations.")
    if "tools" in columns and (dataset.features or {}).get("tools") == Value("string"):
        if isinstance(dataset, IterableDataset) or "" in dataset.unique("tools"):
            dataset = map_column(dataset, "tools", lambda tools: tools.strip() or None)
    return dataset


def is_sharegpt(dataset: Dataset | IterableDataset, column: str) -> bool:
    """Whether a column's messages are `{from, value}`, which SFTTrainer takes as `conversations` only."""
    return any("from" in message for message in _first_messages(dataset, column))


def with_known_roles(messages: list[dict]) -> list[dict]:
    """ShareGPT's names of roles (`human`, `gpt`) in messages of `{from, value}` as SFTTrainer knows them."""
    return [{**message, "from": SHAREGPT.get(message["from"], message["from"])} for message in messages]


def warn_of_unused(dataset, columns: list[str], prompt_column: str | None, has_system: str | None) -> None:
    """Say once which well-known column isn't part of what is scored, though it belongs to it, and what takes it."""
    if prompt_column == "instruction" and "input" in columns and any(_first(dataset, "input")):
        logger.warning("The column 'input' isn't part of the prompt: prompt_column=instruction,input joins the two.")
    chats = [name for name in ("messages", "conversations") if name in columns]
    if has_system is None and "system" in columns and chats and "prompt" not in columns:
        texts, messages = _first(dataset, "system"), _first_messages(dataset, chats[0])
        is_there = any("system" in (message.get("role"), message.get("from")) for message in messages)
        if any(texts) and all(isinstance(text, str | None) for text in texts) and not is_there:
            logger.warning("The column 'system' isn't part of the chats: system_column=system puts it before them.")


def _first(dataset: Dataset | IterableDataset, column: str) -> list:
    """The column's first values."""
    return [row[column] for row in dataset.select_columns([column]).take(FIRST_ROWS)]


def _first_messages(dataset: Dataset | IterableDataset, column: str) -> list[dict]:
    """All messages of the column's first values."""
    chats = [chat for chat in _first(dataset, column) if isinstance(chat, list)]
    return [message for chat in chats for message in chat if isinstance(message, dict)]
