"""What becomes of a drawn index: a row of the training set, or one that doesn't train, and then a batch.

Nothing here decides in training: the sampler does, in the main process, and says so in the index, so that worker
processes never read a score.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from datasets import Dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, DataCollatorForVisionLanguageModeling

from rsr_trl.rsr import RSR, RSRError
from rsr_trl.scoring.scores import columns_of, direction_of
from rsr_trl.training.config import RSRSFTConfig
from rsr_trl.training.prepare import SCORED
from rsr_trl.training.sampler import is_past


ROW = "rsr_row"  # number of the row in the training set; -1 where it doesn't train
NUM_SCORED = "rsr_num_scored"  # scored tokens of each row: rows may be flattened into one
# Two tokens: causal losses drop the first. `-100` and False: neither loss nor score sees it.
MASKED_ROW = {"input_ids": [0, 0], "labels": [-100, -100], SCORED: [False, False], ROW: -1}


class DrawnRows(torch.utils.data.Dataset):
    """
    The `n` tokenized rows of a dataset by drawn index: one below `n` gives that row, a higher one a fully masked row
    of two tokens; either says its number in `rsr_row`. An epoch draws `num_kept` distinct rows in `num_draws` draws.
    """

    def __init__(self, dataset: Dataset, num_kept: int, num_draws: int):
        self.dataset, self.num_kept = dataset, num_kept
        # accelerate cuts what it gathers in the last batch to this length modulo the batch size: here all are full.
        self.total_dataset_length = num_draws

    def __len__(self) -> int:
        return self.num_kept

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        n = len(self.dataset)
        rows = [index for index in indices if index < n]
        fetched = iter(self.dataset.__getitems__(rows) if rows else [])
        return [{**next(fetched), ROW: index} if index < n else MASKED_ROW for index in indices]


@dataclass
class RSRDataCollator(DataCollatorForLanguageModeling):
    """
    TRL's collator for language modeling that drops rows past a score threshold.

    RSR is **lower = more suitable**: with `prefer="low"` rows above the threshold don't train. Rows without a score
    don't either. When a whole batch goes, one fully masked row of two tokens stays, so that every process still takes
    its step. In a plain [`~trl.SFTTrainer`] it reads the `rsr` column of a scored dataset, which needs
    `SFTConfig(remove_unused_columns=False)`; an evaluation dataset then needs the column too. In [`RSRSFTTrainer`] the
    threshold is applied to the live scores when a row is drawn, to training rows only.

    Args:
        pad_token_id (`int`): Token id to pad with.
        score_threshold (`float`, *optional*): Last score that trains. `None` drops nothing by score.
        score (`str`, *optional*, defaults to `"rsr"`): What the threshold is of: the name of a score that the dataset
            has, or a numeric column.
        prefer (`"low"` or `"high"`, *optional*): As in [`RSRSFTConfig`]: which end of the score trains.
        with_scored (`bool`, *optional*): Set by [`RSRSFTTrainer`]: pass on which tokens are scored.
        padding_free, return_position_ids, pad_to_multiple_of, return_tensors: As in TRL's collator.

    Example:

    ```python
    >>> args = SFTConfig(output_dir="out", remove_unused_columns=False)
    >>> collator = RSRDataCollator(pad_token_id=tokenizer.pad_token_id, score_threshold=6.0)
    >>> SFTTrainer(model, args=args, data_collator=collator, train_dataset=scored).train()
    >>> collator.num_dropped
    ```
    """

    score_threshold: float | None = None
    prefer: Literal["low", "high"] | None = None
    with_scored: bool = False
    score: str = RSR
    # One slot for each worker process, in shared memory, so that no two add to the same.
    _dropped: torch.Tensor = field(
        default_factory=lambda: torch.zeros(1024, dtype=torch.int64).share_memory_(), repr=False, compare=False
    )

    def __post_init__(self):
        self.prefer = direction_of(self.score, self.prefer)
        if self.score_threshold is not None and not columns_of(self.score):
            raise RSRError(f"score={self.score!r} is fitted to a whole dataset: make a column of it first.")

    @property
    def num_dropped(self) -> int:
        """Rows that this collator dropped so far, in all worker processes."""
        return int(self._dropped.sum())

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        kept = [example for example in examples if self._trains(example)]
        worker = torch.utils.data.get_worker_info()
        self._dropped[0 if worker is None else 1 + worker.id] += len(examples) - len(kept)
        rows = kept or [MASKED_ROW]
        batch = super().torch_call(rows)
        if self.with_scored and ROW in rows[0]:  # evaluation rows have none
            batch |= _scored_columns(rows, batch["input_ids"].shape, self.padding_free)
        return batch

    def _trains(self, example: dict[str, Any]) -> bool:
        if example.get(ROW, 0) < 0:
            return False
        if self.score_threshold is None:
            return True
        columns = columns_of(self.score)
        column = next((name for name in columns if name in example), None)
        if column is None:
            raise RSRError(
                f"RSRDataCollator found no {' or '.join(map(repr, columns))} among {list(example)}. Score the dataset "
                "(the evaluation set too) and set remove_unused_columns=False in the SFTConfig, or use RSRSFTTrainer."
            )
        return not is_past(example[column], self.score_threshold, self.prefer)


@dataclass
class RSRVisionDataCollator(DataCollatorForVisionLanguageModeling):
    """
    TRL's collator for rows with images, which leaves out rows that [`DrawnRows`] masks, as [`RSRDataCollator`] does.
    [`RSRSFTTrainer`] sets it.

    Args:
        with_scored (`bool`, *optional*): Pass on which tokens are scored.
    """

    with_scored: bool = False

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        rows = [dict(example) for example in examples if example.get(ROW, 0) >= 0]  # it takes columns out of them
        if rows:
            batch = super().torch_call(list(map(dict, rows)))
        else:
            rows, batch = [MASKED_ROW], {name: torch.tensor([MASKED_ROW[name]]) for name in ("input_ids", "labels")}
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        if self.with_scored and ROW in rows[0]:
            batch |= _scored_columns(rows, batch["input_ids"].shape)
        return batch


def in_batch(rows: list[dict[str, Any]], padding_free: bool) -> Iterator[tuple[dict[str, Any], int, int]]:
    """Each row, with the line of the batch and the place in it where its tokens begin."""
    start = 0
    for i, row in enumerate(rows):
        yield row, *((0, start) if padding_free else (i, 0))
        start += len(row["input_ids"]) if padding_free else 0


def _scored_columns(
    rows: list[dict[str, Any]], shape: torch.Size, padding_free: bool = False
) -> dict[str, torch.Tensor]:
    """Row numbers and scored tokens of each row, `(rows,)`, and which tokens are scored, in the ids' shape."""
    mask = torch.zeros(shape, dtype=torch.bool)
    for row, line, first in in_batch(rows, padding_free):
        scored = torch.tensor(row[SCORED], dtype=torch.bool)  # empty where the row can't be scored
        mask[line, first : first + len(scored)] = scored
    return {
        ROW: torch.tensor([row[ROW] for row in rows]),
        NUM_SCORED: torch.tensor([sum(row[SCORED]) for row in rows]),
        SCORED: mask,
    }


def live_threshold(args: RSRSFTConfig, collator: Any) -> float | None:
    """Score threshold of the config or of the user's collator."""
    if type(collator) in (type(None), DataCollatorForLanguageModeling, DataCollatorForVisionLanguageModeling):
        return args.rsr_score_threshold
    if not isinstance(collator, RSRDataCollator):
        name = type(collator).__name__
        raise RSRError(f"{name} may train on rows that are masked: derive the data collator from RSRDataCollator.")
    own, threshold = args.rsr_score_threshold, collator.score_threshold
    if threshold is None:
        return own
    for name in ("score", "prefer", "score_threshold"):
        theirs, ours = getattr(collator, name), getattr(args, f"rsr_{name}")
        if theirs != ours and ours is not None:
            raise RSRError(
                f"The data collator's {name} is {theirs!r}, the config's rsr_{name} {ours!r}: set it in the config "
                "alone."
            )
    return threshold


def live_collator(
    collator: DataCollatorForLanguageModeling | DataCollatorForVisionLanguageModeling, online: bool
) -> RSRDataCollator | RSRVisionDataCollator:
    """The collator with its scores left to the sampler."""
    if isinstance(collator, DataCollatorForVisionLanguageModeling):
        return RSRVisionDataCollator(
            **{f.name: getattr(collator, f.name) for f in fields(DataCollatorForVisionLanguageModeling)},
            with_scored=online,
        )
    if isinstance(collator, RSRDataCollator):
        return replace(collator, score_threshold=None, with_scored=online)
    return RSRDataCollator(**{f.name: getattr(collator, f.name) for f in fields(collator)}, with_scored=online)
