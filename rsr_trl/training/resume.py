"""What decides which examples a training draws when, as a checkpoint records it and a resume compares it.

It knows no model, and draws nothing: names, values, and how two runs differ in them.
"""

import math
from pathlib import Path

import pyarrow.compute as pc
from datasets import Dataset
from xxhash import xxh3_64

from rsr_trl.rsr import RSRError
from rsr_trl.scoring.scores import known_score
from rsr_trl.scoring.shards import differences, read_json
from rsr_trl.selection.choose import least_tokens
from rsr_trl.training.config import RSRSFTConfig
from rsr_trl.training.live_table import LIVE, ScoreTable
from rsr_trl.training.prepare import SCORED


SETTINGS_NAME = "rsr_settings.json"  # in a checkpoint
EXAMPLES_PER_STEP = "examples per step (per_device_train_batch_size x gradient_accumulation_steps x processes)"


def deciding_settings(args: RSRSFTConfig, batch_size: int, steps_per_epoch: int) -> dict:
    """
    The settings that decide order and scores, with `batch_size` examples per process and forward pass. One that
    decides nothing beside the others isn't among them: it may change.
    """
    settings = {
        "seed (data_seed)": args.seed if args.data_seed is None else args.data_seed,
        EXAMPLES_PER_STEP: batch_size * args.gradient_accumulation_steps * args.world_size,
        "steps per epoch": steps_per_epoch,
    }
    names = ["sampling", "keep_fraction", "score_threshold", "group_column", "rescore_strategy"]
    by_score = args.chooses or args.rsr_sampling != "random" or args.rsr_score_threshold is not None
    if by_score:
        names += ["score", "prefer"]
    if args.rsr_rescore_strategy != "no" or (by_score and known_score(args.rsr_score) in LIVE):
        names.append("r_max")
    if args.rsr_sampling == "weighted":
        names.append("temperature")
    if args.rsr_group_column is not None:
        names.append("keep_per_group")
    settings |= {f"rsr_{name}": getattr(args, f"rsr_{name}") for name in names}
    if args.chooses:
        settings["rsr_min_tokens"] = least_tokens(args.rsr_min_tokens)
    if args.rsr_rescore_strategy == "steps":
        max_steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
        settings["rsr_rescore_steps"] = args.rescore_every(max_steps)
        settings["batches read ahead (by dataloader_num_workers, dataloader_prefetch_factor)"] = read_ahead(args)
    return settings


def read_ahead(args: RSRSFTConfig) -> int:
    """Batches that a process draws before their step comes: accelerate's one, and what workers prefetch."""
    return 1 + args.dataloader_num_workers * (args.dataloader_prefetch_factor or 2)


def digests(dataset: Dataset, groups, table: ScoreTable) -> dict[str, str]:
    """Hashes of what the settings are about: tokens of prepared rows, their groups, and scores that don't change."""
    tokens = xxh3_64()
    for batch in dataset.select_columns(["input_ids", SCORED]).with_format("arrow").iter(1000):
        for column in (batch[name].combine_chunks() for name in ("input_ids", SCORED)):
            for values in (pc.list_value_length(column), column.flatten()):
                tokens.update(values.to_numpy(zero_copy_only=False).tobytes())
    found = {"tokens of the training set": tokens.hexdigest()}
    if groups is not None:
        found["groups in rsr_group_column"] = xxh3_64(groups[0].tobytes()).hexdigest()
    if table.static is not None:
        found["values of rsr_score"] = xxh3_64(table.static.tobytes()).hexdigest()
    return found


def changes(folder: str, now: dict) -> list[str]:
    """What differs between the run that saved a checkpoint and the one of `now`, as `name: then -> now`."""
    then = read_json(Path(folder, SETTINGS_NAME))
    if not then:
        return [f"{SETTINGS_NAME} is missing, which says with what settings it was saved"]
    # Where only one of the runs has a setting, another one that it goes with differs and is named.
    return differences(*({name: run[name] for name in then.keys() & now.keys()} for run in (then, now)))


def check_changes(found: list[str], folder: str, step: int, allowed: bool) -> str | None:
    """`RSRError` for settings other than those of the checkpoint; where they are `allowed`, what to say of them."""
    if not found:
        return None
    what = f"{folder} was saved by a run with other settings (then -> now): {'; '.join(found)}."
    if allowed:
        return f"{what} From step {step} on, this isn't the run that it was."
    raise RSRError(
        f"{what} It can't go on as it was. Give the settings of then, or set rsr_allow_changed_resume=True to go on "
        "with these."
    )
