"""Which run an output folder belongs to: student, data and settings, as `.rsr/manifest.json` names them.

The same command started again finds its own run here; another student, other data or other settings are told apart
by name.
"""

import json
import os
import time
from pathlib import Path

from xxhash import xxh3_128

from rsr_trl.data import COMPLETE, DATA_FOLDER, STATE_FOLDER, check_not_read, check_output_dir
from rsr_trl.scoring.locks import Lock
from rsr_trl.scoring.shards import RECORDS, digest_of, write_json


MANIFEST = "manifest.json"
LOCKS = "locks"
TOTAL = "rows.json"  # how many rows a stream has, once its end was seen
OPENING = "folder"  # the lock under which a folder gets its manifest
MAX_SHOWN = 40  # characters of a value in a message


def data_identity(files: list[str], **what: object) -> dict:
    """
    What names a dataset: how it was asked for, and its files.

    Args:
        files (`list[str]`): As [`~rsr_trl.data.source_files`] gives them.
        what: Configuration, split, and columns as asked for.
    """
    local = [os.path.realpath(file) for file in files if os.path.isfile(file)]
    if len(local) < len(files):
        return {**what, "files": [{"name": file} for file in files]}  # on the Hub: addresses have the commit in them
    folder = os.path.commonpath([os.path.dirname(file) for file in local])
    stats = [(os.path.relpath(file, folder), file, os.stat(file)) for file in local]
    return {
        **what,
        "files": [
            {"name": name, "path": file, "size": stat.st_size, "modified": stat.st_mtime_ns}
            for name, file, stat in stats
        ],
    }


def _with_digests(run: dict, known: dict | None) -> dict:
    """
    Replace size and time of local files by hashes of their bytes. Those of `known` are taken over where size and time
    say that the file hasn't changed, so that a large file isn't read at every start.
    """
    before = {} if known is None else {file["name"]: file for file in known["data"]["files"]}
    files = []
    for file in run["data"]["files"]:
        if "size" in file:
            file = dict(file)
            path, old = Path(file.pop("path")), before.get(file["name"], {})
            unchanged = all(old.get(name) == file[name] for name in ("size", "modified"))
            file["digest"] = old["digest"] if unchanged else digest_of(path)
        files.append(file)
    return {**run, "data": {**run["data"], "files": files}}


def run_fingerprint(run: dict) -> str:
    """Short name of a run. A file that was touched or moved, but not changed, is the same."""
    files = [{name: value for name, value in file.items() if name != "modified"} for file in run["data"]["files"]]
    run = {**run, "data": {**run["data"], "files": files}}
    return xxh3_128(json.dumps(run, sort_keys=True, default=str).encode()).hexdigest()[:16]


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """What differs between two runs, as `name: old -> new`."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        if name == "modified":
            continue
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{name}.")
        elif name == "files":
            before, after = ([(f["name"], f.get("digest")) for f in files or []] for files in (before, after))
            if before != after:
                changed = sorted({name for name, _ in set(before) ^ set(after)})
                found.append(f"{prefix}files: {', '.join(changed[:3])} changed")
        elif before != after:
            found.append(f"{prefix}{name}: {_shown(before)} -> {_shown(after)}")
    return found


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def open_folder(output_dir: Path, run: dict, overwrite: bool) -> str:
    """
    Make the folder ready for a run, or find that it is its own already.

    Args:
        output_dir (`Path`): Folder of the scored dataset.
        run (`dict`): `student`, `data` (as [`data_identity`] gives it) and `settings`.
        overwrite (`bool`): Whether to remove what another run has written there. What this very run has written is
            kept: it would come out the same.

    Returns:
        `str`: The run's fingerprint.

    Raises:
        ValueError: if the folder holds another run, or anything that isn't a scored dataset.
        OSError: if it can't be written.
    """
    state = output_dir / STATE_FOLDER
    check_not_read([file["path"] for file in run["data"]["files"] if "path" in file], output_dir)
    if not state.is_dir():
        try:
            check_output_dir(output_dir, overwrite)
        except ValueError:
            if not state.is_dir():  # else another process has made it in this moment
                raise
    try:
        for folder in (state / RECORDS, state / LOCKS, output_dir / DATA_FOLDER):
            folder.mkdir(parents=True, exist_ok=True)
        with _exclusive(state):
            return _open(output_dir, state, run, overwrite)
    except OSError as error:
        raise OSError(error.errno, f"can't write to the folder {str(output_dir)!r}: {error.strerror}") from error


def _open(output_dir: Path, state: Path, run: dict, overwrite: bool) -> str:
    known = read_manifest(state)
    run = _with_digests(run, known)
    fingerprint = run_fingerprint(run)
    others = [] if known is None else differences(known, run)
    done = list((state / RECORDS).glob("*.json"))
    data = list((output_dir / DATA_FOLDER).glob("*.parquet"))
    if known is None and not others:  # new; or the manifest was lost, and shards say themselves whose they are
        theirs = {_run_of(record) for record in done} - {fingerprint, None}
        others = [f"a run of which only its fingerprint is known ({theirs.pop()})"] if theirs else []
        others = others or (["files that no run has left"] if data and not done else [])
    if others:
        if done and not overwrite:
            raise ValueError(
                f"{str(output_dir)!r} holds results of another run. What differs: {'; '.join(others)}. Give the same "
                "options as before to go on, choose another output_dir, or pass --overwrite to start anew."
            )
        if holders := [lock for lock in held_locks(state) if lock != OPENING]:
            raise ValueError(
                f"Another run is writing to {str(output_dir)!r} at this moment ({len(holders)} shards). What differs: "
                f"{'; '.join(others)}. Stop it first, or choose another output_dir."
            )
        for file in [state / COMPLETE, state / TOTAL, *done, *data]:
            file.unlink(missing_ok=True)
    if known != run:
        write_json(state / MANIFEST, run)
    return fingerprint


class _exclusive:
    """Waits for its turn to open the folder; who has it has it for moments, or for reading the input once."""

    def __init__(self, state: Path):
        self._lock = Lock(state / LOCKS / OPENING)

    def __enter__(self) -> None:
        while not self._lock.acquire():
            time.sleep(0.2)

    def __exit__(self, *error) -> None:
        self._lock.release()


def held_locks(state: Path) -> dict[str, dict]:
    """Names of the locks that living processes have, with their owners."""
    locks = {path.name: Lock(path) for path in (state / LOCKS).iterdir() if "." not in path.name}
    return {name: lock.owner() or {} for name, lock in locks.items() if lock.is_held()}


def read_manifest(state: Path) -> dict | None:
    """The manifest; `None` if there is none, or if it is damaged."""
    try:
        manifest = json.loads((state / MANIFEST).read_text(encoding="utf-8"))
        return manifest if {"student", "data", "settings"} <= manifest.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _run_of(record: Path) -> str | None:
    try:
        return json.loads(record.read_text())["run"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
