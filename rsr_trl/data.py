"""Datasets in and out: load what a user has, find and wrap its columns, write what was scored with its card.

This file knows no model and no tokenizer.
"""

import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from datasets import (
    Dataset,
    DatasetDict,
    IterableDataset,
    LargeList,
    List,
    Value,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetsError
from filelock import FileLock, Timeout
from huggingface_hub import DatasetCard, DatasetCardData

from rsr_trl import formats
from rsr_trl.formats import READERS, as_booleans, chats_as_text, holds_rows, reader_of, types_of_all_rows
from rsr_trl.rsr import CITATION, SCORE_COLUMNS, RSRError, did_you_mean


FORMAT_COLUMNS = ("prompt", "completion", "messages", "conversations", "text")  # the names that SFTTrainer looks for
CHAT = [{"role": Value("string"), "content": Value("string")}]

DATA_FOLDER = "data"  # of a folder that `rsr score` or `rsr select` has written
STATE_FOLDER = ".rsr"  # there: how far scoring is
UNFINISHED = ".unfinished"  # ending of what is being written: after a kill it stays, and the next start removes it
COMPLETE = "complete.json"  # in the state folder, once every row is there
FACTS = "rsr_trl"  # of a dataset card's metadata: what wrote the data, with which student and settings

_NOT_DATA = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


def load(
    dataset_name: str, config: str | None = None, split: str = "train", streaming: bool = False
) -> Dataset | IterableDataset:
    """
    Load one split of a dataset from wherever it is.

    Args:
        dataset_name (`str`): A `.jsonl`, `.json`, `.csv` or `.parquet` file (or another of [`READERS`], also
            compressed), a folder of such files, a folder written by `save_to_disk`, or the id of a dataset on the Hub.
        config (`str`, *optional*): Configuration of a dataset with several.
        split (`str`, *optional*, defaults to `"train"`): Split to load; a single file is one split, `"train"`. Slices
            such as `"train[:100]"` work, except for `save_to_disk` folders.
        streaming (`bool`, *optional*, defaults to `False`): Whether to read rows as they are needed.

    Raises:
        RSRError: If nothing readable is there, if files of a folder would silently be left out, or if the split or
            configuration doesn't exist (the message names those that do).
    """
    path = Path(dataset_name).expanduser()
    if config is not None and path.is_file():
        raise RSRError(f"{dataset_name!r} is one file, so it has no configuration {config!r}.")
    if path.is_file():
        if (reader := reader_of(path)) is None:
            endings = f"{', '.join(READERS)}, or be one of these in .gz or another compression"
            raise RSRError(f"Can't read {dataset_name!r}: the file must end in {endings}.")
        source = {"path": reader[0], "data_files": {"train": [str(path)]}, **reader[1]}
    elif _is_saved(path):
        dataset = _load_saved(path, split)
        return dataset.to_iterable_dataset() if streaming else dataset
    elif path.is_dir() or not is_written_as_path(dataset_name):
        source = {"path": str(path) if path.is_dir() else dataset_name}
    else:
        raise RSRError(f"There is no file or folder {dataset_name!r}.")
    if (path / STATE_FOLDER).is_dir() and not (path / STATE_FOLDER / COMPLETE).is_file():
        raise RSRError(f"{dataset_name!r} isn't fully scored yet. Run the same `rsr score` command again: it resumes.")
    try:
        dataset = _load(source, name=config, split=split, streaming=streaming)
    except StopIteration:
        raise RSRError(f"{dataset_name!r} is empty: it has no rows.") from None
    except (DatasetsError, OSError, ValueError) as error:
        what = f"{dataset_name!r}" if path.exists() else f"{dataset_name!r} (no file or folder here, so a Hub id)"
        others = _data_files(path) if isinstance(error, DataFilesNotFoundError) and path.is_dir() else []
        hint = f" Files that can be read by their own names: {examples(others)}." if others else ""
        raise RSRError(f"Can't load {what}, split {split!r}: {error.__cause__ or error}{hint}") from error
    if path.is_dir():
        _check_none_left_out(path, config)
    return dataset


def _load(source: dict, **options) -> Dataset | IterableDataset:
    """`load_dataset`, also of files whose types the first rows don't show."""
    try:
        return load_dataset(**source, **options)
    except DatasetGenerationError as error:
        with suppress(DatasetsError, OSError, ValueError):  # not JSON at all, for one: the first error says so
            if whole := types_of_all_rows(load_dataset_builder(**source, name=options["name"])):
                return load_dataset(**source, **options, **whole)
        raise error


def is_written_as_path(name: str) -> bool:
    """Whether `name` can only mean a file or folder, not something on the Hub."""
    return name.startswith((".", "~", os.sep)) or name.count("/") > 1 or reader_of(name) is not None


def _is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))  # by `save_to_disk`


def _load_saved(path: Path, split: str) -> Dataset:
    dataset = load_from_disk(str(path))
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise RSRError(f"{str(path)!r} has no split {split!r}; it has {', '.join(dataset)}.")
        return dataset[split]
    if split not in ("train", str(dataset.split)):
        raise RSRError(f"{str(path)!r} is one dataset without splits, so there is no split {split!r} in it.")
    return dataset


def _check_none_left_out(folder: Path, config: str | None) -> None:
    """Raise if `load_dataset` would pass over data files, as it does where only some of the names mean a split."""
    if _metadata(folder).get("configs"):
        return  # the folder itself says which files belong to what
    taken = load_dataset_builder(str(folder), name=config).config.data_files
    taken = {os.path.realpath(file) for files in taken.values() for file in files}
    if left_out := [name for name in _data_files(folder) if os.path.realpath(folder / name) not in taken]:
        raise RSRError(
            f"{len(left_out)} data files of {str(folder)!r} would be left out ({examples(left_out)}), because others "
            "are of another kind or named after splits. Pass a file, or a folder whose files belong together."
        )


def _data_files(folder: Path) -> list[str]:
    """Files in a folder that look as if they held rows; hidden ones don't count."""
    names = [file.relative_to(folder) for file in sorted(folder.rglob("*")) if holds_rows(file)]
    shown = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    return [str(name) for name in shown if name.name not in _NOT_DATA]


def read_table(dataset: Dataset, names: Iterable[str | None], option: str | None = None) -> pa.Table:
    """
    Read the named columns at once (`None` is skipped), in the dataset's own order; a format set on it is ignored.
    `TypeError` for anything but a [`~datasets.Dataset`]; `RSRError`, which begins with `option`, for a column that
    isn't there.
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"Comparing trajectories needs all of them at once: pass a datasets.Dataset, not {type(dataset).__name__}."
        )
    wanted = list(dict.fromkeys(name for name in names if name is not None))
    for name in wanted:
        if name not in dataset.column_names:
            hint = did_you_mean(name, dataset.column_names)
            if name in SCORE_COLUMNS:
                hint = " Score it first with RSRScorer(student).score(dataset) or `rsr score`."
            what = f"{option}: the dataset" if option else "The dataset"
            raise RSRError(f"{what} has no column {name!r}; its columns are {dataset.column_names}.{hint}")
    table = dataset.data.table.select(wanted)
    # A shuffled or filtered dataset is an index over its table. Reading through it gathers row by row, and leaves one
    # chunk per row: one take of the few columns wanted is more than ten times faster.
    return table if dataset._indices is None else table.take(dataset._indices.column(0))


@dataclass(frozen=True)
class Columns:
    """Which columns say who wrote a trajectory, which problem it answers and whether it is right; `None`: none."""

    teacher: str | None = None
    problem: str | None = None
    correct: str | None = None
    notes: list[str] = field(default_factory=list)  # well-known columns that can't be used, and why

    @property
    def names(self) -> list[str]:
        """Those that there are."""
        return [name for name in (self.teacher, self.problem, self.correct) if name is not None]


def find_columns(dataset: Dataset, asked: Columns | None = None, needed: Iterable[str] = ()) -> Columns:
    """
    The columns of teacher, problem and correctness: those asked for, else well-known ones that can be used.

    A column of problems can be used if it names two or more, and some problem is in several rows; neither it nor that
    of teachers may have nulls; a column of correctness holds booleans. In `asked`, `"none"` means that no column is to
    be taken. `RSRError` for a name that isn't a column, or if one that is `needed` (`"teacher"`, `"problem"`) isn't
    found.
    """
    asked, notes = asked or Columns(), []

    def find(option: str, given: str | None, known: tuple[str, ...], usable: Callable[[str], bool]) -> str | None:
        if given not in (None, "none"):
            return read_table(dataset, [given], option).column_names[0]
        known = known if given is None else ()
        return next((name for name in known if name in dataset.column_names and usable(name)), None)

    def names_groups(name: str) -> bool:
        column = chats_as_text(read_table(dataset, [name])[name])
        if pa.types.is_nested(column.type) or pa.types.is_null(column.type):
            return False
        if column.null_count:
            notes.append(f"Column {name!r} is null in {counted(column.null_count, 'row')}, so it isn't used.")
        return not column.null_count

    def names_problems(name: str) -> bool:
        column = read_table(dataset, [name])[name]
        return names_groups(name) and 1 < pc.count_distinct(chats_as_text(column)).as_py() < len(dataset)

    def says_true_or_false(name: str) -> bool:
        if (kind := dataset.features[name]) == Value("bool"):
            return True
        if as_booleans(read_table(dataset, [name])[name]) is not None:
            how = f"correctness_column={name} takes it as true and false"
            notes.append(f"Column {name!r} holds {kind.dtype}, no booleans, so it isn't used: {how}.")
        return False

    problems = ("problem_id", "question_id", "prompt_id")  # the same words may be asked of several images
    problems += () if {*formats.IMAGES} & {*dataset.column_names} else ("problem", "question", "prompt")
    found = Columns(
        teacher=find("teacher_column", asked.teacher, ("teacher",), names_groups),
        problem=find("problem_column", asked.problem, problems, names_problems),
        correct=find("correctness_column", asked.correct, ("correct", "is_correct"), says_true_or_false),
        notes=notes,
    )
    if missing := [name for name in needed if vars(found)[name] is None]:
        raise RSRError(
            f"No column of {missing[0]}s was found: pass {missing[0]}_column. Columns are {dataset.column_names}."
        )
    return found


def as_trl_format(
    dataset: Dataset | IterableDataset,
    prompt_column: str | None = None,
    completion_column: str | None = None,
    messages_column: str | None = None,
    system_prompt: str | None = None,
    as_chat: bool = False,
    system_column: str | None = None,
) -> Dataset | IterableDataset:
    """
    Turn raw columns into a format that [`~trl.SFTTrainer`] takes. Without arguments the dataset comes back as it is,
    but for ShareGPT's names of roles (`human`, `gpt`), which become `user` and `assistant`, and `tools` of `""`.

    Args:
        dataset (`Dataset` or `IterableDataset`): With text or chat columns.
        prompt_column, completion_column (`str`, *optional*): Columns to call `prompt` and `completion`. Several for
            the prompt, with commas (`"instruction,input"`), are joined with blank lines between their texts.
        messages_column (`str`, *optional*): Column to call `messages` (`conversations`, if that is its form), instead
            of the other two.
        system_prompt (`str`, *optional*): System message to put before every chat.
        as_chat (`bool`, *optional*, defaults to `False`): Whether to wrap a plain-text prompt into a user message and
            its completion into an assistant message, for the student's chat template. Chats stay as they are.
        system_column (`str`, *optional*): Column with each row's own system message, to put before its chat.

    Returns:
        The dataset with those columns. If columns are named, others whose names SFTTrainer would read (`prompt`,
        `completion`, `messages`, `conversations`, `text`) step aside as `source_<name>`.

    Raises:
        RSRError: If a named column doesn't exist, or a row can't be wrapped (the message names it). Null stays null.
    """
    names = {"prompt": prompt_column, "completion": completion_column, "messages": messages_column}
    names = {target: column for target, column in names.items() if column is not None}
    if messages_column and len(names) > 1:
        raise RSRError("Pass messages_column, or prompt_column and completion_column, not both.")
    if system_prompt is not None and system_column is not None:
        raise RSRError("Pass system_prompt, or system_column, not both.")
    columns = dataset.column_names or list(next(iter(dataset)))
    for target, column in {**names, **({} if system_column is None else {"system": system_column})}.items():
        for part in [column] if column in columns or target != "prompt" else column.split(","):
            if part not in columns:
                raise RSRError(
                    f"{target}_column={part!r}: the dataset has no such column.{did_you_mean(part, columns)} It has: "
                    f"{', '.join(columns)}."
                )
    if prompt_column is not None and prompt_column not in columns:
        dataset, columns = formats.join_columns(dataset, prompt_column), [*columns, prompt_column]
    if messages_column is not None and formats.is_sharegpt(dataset, messages_column):
        names = {"conversations": messages_column}
    if names:
        kept = set(names) if messages_column else {"prompt", "completion"} - set(names)
        aside = {name for name in FORMAT_COLUMNS if name in columns} - kept - set(names.values())
        renames = {name: f"source_{name}" for name in aside}
        renames |= {column: target for target, column in names.items() if column != target}
        dataset = dataset.rename_columns(renames)
        columns = [renames.get(column, column) for column in columns]
        system_column = renames.get(system_column, system_column)
    features = dataset.features or {}
    for target in ("prompt", "completion"):
        formats.check_one_text(features.get(target), target, names.get(target, target))
    if as_chat:
        if missing := [target for target in ("prompt", "completion") if target not in columns]:
            raise RSRError(
                f"as_chat wraps a prompt and a completion, but there is no column {missing[0]!r}; name it with "
                f"{missing[0]}_column. The dataset has: {', '.join(columns)}."
            )
        for target, role in (("completion", "assistant"), ("prompt", "user")):
            if not isinstance(features.get(target), (list, List, LargeList)):
                dataset = formats.map_column(dataset, target, partial(formats.wrap, role=role), CHAT)
    dataset = formats.with_known_names(dataset, columns)
    if system_prompt is not None or system_column is not None:
        # Where there are several, SFTTrainer reads the prompt.
        column = next((name for name in ("prompt", "messages", "conversations") if name in columns), None)
        if column is None:
            what = "system_prompt" if system_column is None else "system_column"
            raise RSRError(f"{what} needs `messages` or `prompt`. The dataset has: {', '.join(columns)}.")
        prepend = partial(formats.prepend_system, system_prompt=system_prompt)
        dataset = formats.map_column(dataset, column, prepend, beside=system_column)
    formats.warn_of_unused(dataset, columns, prompt_column, system_column or system_prompt)
    return dataset


def source_files(dataset_name: str, config: str | None = None, split: str = "train") -> list[str]:
    """The files that [`load`] reads with these arguments: paths, or addresses on the Hub, which name the commit."""
    path = Path(dataset_name).expanduser()
    if path.is_file():
        return [str(path)]
    if _is_saved(path):
        return sorted(str(file) for file in path.rglob("*.arrow"))
    files = load_dataset_builder(str(path) if path.is_dir() else dataset_name, name=config).config.data_files or {}
    wanted = {part.split("[")[0].strip() for part in split.split("+")}
    return sorted(file for name, part in files.items() if str(name) in wanted or "all" in wanted for file in part)


def dataset_card(card: str | Path, version: str | None = None, facts: dict | None = None) -> str:
    """
    The `README.md` of a folder with scored data: facts for programs in its metadata, text for people below.

    Args:
        card (`str` or `Path`): Text in Markdown; or the path of a Jinja template of a whole card (see
            [`~huggingface_hub.DatasetCard.from_template`]), which gets `facts` and `citation`.
        version (`str`, *optional*): Names the content of a folder that is still written to. `load_dataset` caches a
            folder by its name and the card's header: without this it would give rows of another, or of an older time.
        facts (`dict`, *optional*): What [`card_facts`] gives back, such as `command`, `student` and `settings`.
    """
    config = {"config_name": "default", "data_files": [{"split": "train", "path": f"{DATA_FOLDER}/train-*.parquet"}]}
    configs = {"configs": [{**config, "description": version}]} if version else {}
    data = DatasetCardData(tags=["rsr-trl"], **configs, **{FACTS: facts or {}})
    if isinstance(card, Path):
        return f"{DatasetCard.from_template(data, card, facts=facts or {}, citation=CITATION).content}\n"
    return f"---\n{data.to_yaml()}\n---\n\n{card.strip()}\n"


def card_facts(source: str | Path | None) -> dict:
    """What [`dataset_card`] noted in the folder `source`; empty where there is no such card."""
    return _metadata(source).get(FACTS) or {} if source is not None else {}


def _metadata(folder: str | Path) -> dict:
    """Of the card in a folder; empty where there is none."""
    card = Path(folder, "README.md").expanduser()
    return DatasetCard.load(card, ignore_metadata_errors=True).data.to_dict() if card.is_file() else {}


def scoring_settings(source: str | Path | None) -> dict:
    """What the rows in the folder `source` were scored with, as far as its card, or that of a selection, says so."""
    facts = card_facts(source)
    return facts.get("settings" if facts.get("command") == "score" else "scoring") or {}


def is_selection(source: str | Path | None) -> bool:
    """Whether `source` is a folder that `rsr select` wrote."""
    return card_facts(source).get("command") == "select"


def check_output_dir(output_dir: str | Path, overwrite: bool = False) -> None:
    """
    Raise `RSRError` if [`write_scored`] would refuse `output_dir`: call it before the work. With `overwrite` only a
    folder that this package has written is replaced: a dataset of another origin may have the same files.
    """
    output_dir = Path(output_dir)
    if output_dir.is_file():
        raise RSRError(f"{str(output_dir)!r} is a file; output_dir must be a folder.")
    found = sorted(file.name for file in output_dir.glob("*"))
    if found and not overwrite:
        raise RSRError(
            f"{str(output_dir)!r} isn't empty. Choose another output_dir, or replace it with overwrite=True."
        )
    foreign = [name for name in found if name not in ("README.md", DATA_FOLDER, STATE_FOLDER)]
    inside = output_dir.glob(f"{DATA_FOLDER}/*")
    foreign += [f"{DATA_FOLDER}/{file.name}" for file in inside if file.suffix != ".parquet" and file.name[0] != "."]
    ours = (output_dir / STATE_FOLDER).is_dir() or "rsr-trl" in (_metadata(output_dir).get("tags") or [])
    if found and (foreign or not ours):
        what = f"contains files that aren't of a scored dataset (first: {foreign[0]})" if foreign else ""
        what = what or "holds a dataset that wasn't written by rsr-trl"
        raise RSRError(f"{str(output_dir)!r} {what}, so it is not overwritten. Choose another output_dir.")


def check_not_read(sources: Iterable[str | Path], output_dir: str | Path) -> None:
    """Raise `RSRError` if a file or folder that is read lies in the folder that is to be written."""
    target = Path(output_dir).expanduser().resolve()
    for source in sources:
        path = Path(source).expanduser()
        if path.exists() and path.resolve().is_relative_to(target):
            raise RSRError(f"{str(source)!r} is the input and lies in output_dir. Choose another output_dir.")


def write_scored(
    dataset: Dataset, output_dir: str | Path, card: str | Path, overwrite: bool = False, facts: dict | None = None
) -> None:
    """
    Write a scored dataset as a folder that [`load`], `datasets.load_dataset` and `trl sft` read: `data/*.parquet` and
    a dataset card, of `card` and `facts` as [`dataset_card`] takes them. The folder appears whole or not at all; it
    must be absent or empty, or with `overwrite` an earlier scored dataset.
    """
    check_output_dir(output_dir, overwrite)
    output_dir = Path(output_dir).resolve()
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    for left in output_dir.parent.glob(f".{glob.escape(output_dir.name)}-*{UNFINISHED}"):
        with suppress(Timeout), FileLock(left / "lock", timeout=0):  # else another run is at work in it
            shutil.rmtree(left, ignore_errors=True)
    # Beside the target, because a rename is atomic only within one file system.
    place = {"prefix": f".{output_dir.name}-", "suffix": UNFINISHED, "dir": output_dir.parent}
    with tempfile.TemporaryDirectory(**place) as scratch, FileLock(Path(scratch, "lock")):
        made = Path(scratch, "new")
        (made / DATA_FOLDER).mkdir(parents=True)
        dataset.to_parquet(str(made / DATA_FOLDER / "train-00000-of-00001.parquet"))
        (made / "README.md").write_text(dataset_card(card, facts=facts), encoding="utf-8")
        if output_dir.exists():
            os.replace(output_dir, Path(scratch, "old"))
        os.replace(made, output_dir)


def examples(names: list, limit: int = 5, show: Callable = repr) -> str:
    """A few of `names` for a message."""
    return ", ".join(map(show, names[:limit])) + (", ..." if len(names) > limit else "")


def duration(seconds: float) -> str:
    """`40 seconds`, `5 minutes`, `2.5 hours`."""
    if seconds >= 5400:
        return f"{seconds / 3600:,.1f} hours"
    return counted(round(seconds / 60), "minute") if seconds >= 90 else counted(max(1, round(seconds)), "second")


def counted(number: int, thing: str) -> str:
    """`1 teacher`, `2 teachers`, `2 trajectories`."""
    if thing.endswith("y") and number != 1:
        return f"{number:,} {thing[:-1]}ies"
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
