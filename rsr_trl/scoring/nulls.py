"""Nulls that Arrow adds to messages and tools: a struct holds every key of the column, and null where there is none.

Chat templates take `image_url: null` for an image, and write null arguments into tool calls. TRL's answer is
`remove_none_values`, which this does by itself, and only where Arrow has added them: a column of JSON has none.
"""

from collections.abc import Mapping

from datasets import Dataset, Features, Json, List


COLUMNS = ("prompt", "completion", "messages", "conversations", "tools", "chat_template_kwargs")


def without_nulls(example: Mapping, features: Features | None = None) -> dict:
    """
    The example without nulls inside its messages and tools. Of unknown types (`features`), they count as Arrow's where
    all messages have the same keys, as Arrow leaves them.
    """
    if features is None and not all(_is_filled(example.get(name)) for name in ("prompt", "completion", "messages")):
        return dict(example)
    nested = {name for name, value in example.items() if name in COLUMNS and isinstance(value, (list, dict))}
    kinds = features or {}
    return {name: _plain(value, kinds.get(name)) if name in nested else value for name, value in example.items()}


def _is_filled(messages: object) -> bool:
    keys = {frozenset(part) for part in messages if isinstance(part, Mapping)} if isinstance(messages, list) else ()
    return len(keys) <= 1


def _plain(value: object, kind: object) -> object:
    if isinstance(kind, Json):
        return value
    if isinstance(value, Mapping):
        kinds = kind if isinstance(kind, Mapping) else {}
        return {key: _plain(part, kinds.get(key)) for key, part in value.items() if part is not None}
    if isinstance(value, list):
        of_parts = kind[0] if isinstance(kind, list) else getattr(kind, "feature", None)
        return [_plain(part, of_parts) for part in value]
    return value


def as_json(dataset: Dataset, num_proc: int | None = None) -> Dataset:
    """The dataset with messages and tools that nest structs as JSON, where a key that isn't there stays away."""
    kinds = {name: kind for name, kind in dataset.features.items() if name in COLUMNS}
    # Those of a message itself, transformers leaves out.
    kinds = {name: kind for name, kind in kinds.items() if _structs(kind) > (name != "chat_template_kwargs")}
    if not kinds:
        return dataset
    types = {name: Json() if isinstance(kind, Mapping) else List(Json()) for name, kind in kinds.items()}
    return dataset.map(
        _without_nulls,
        fn_kwargs={"features": Features(kinds)},
        features=Features({**dataset.features, **types}),
        num_proc=num_proc,
        desc="Removing the nulls that Arrow added",
    )


def _without_nulls(row: Mapping, features: Features) -> dict:
    return without_nulls({name: row[name] for name in features}, features)


def _structs(kind: object) -> int:
    """How many structs lie within each other."""
    if isinstance(kind, Mapping):
        return 1 + max(map(_structs, kind.values()), default=0)
    if isinstance(kind, list):
        return _structs(kind[0])
    return _structs(kind.feature) if hasattr(kind, "feature") else 0
