"""The collator that leaves out rows which don't suit the student. It decides nothing in training: the sampler does."""

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from rsr_trl.rsr import RSR
from rsr_trl.scoring.scores import columns_of, direction_of
from rsr_trl.training.config import RSRSFTConfig
from rsr_trl.training.epoch_rows import MASKED_ROW, ROW, SCORED
from rsr_trl.training.sampler import is_past


NUM_SCORED = "rsr_num_scored"  # scored tokens of each row: rows may be flattened into one


@dataclass
class RSRDataCollator(DataCollatorForLanguageModeling):
    """
    TRL's collator for language modeling that drops rows past a score threshold.

    RSR is **lower = more suitable**: with `prefer="low"` rows above the threshold don't train. Rows without a score
    don't either. When a whole batch goes, one fully masked row of two tokens stays, so that every process still takes
    its step.

    In a plain [`~trl.SFTTrainer`] it reads the `rsr` column of a scored dataset, which needs
    `SFTConfig(remove_unused_columns=False)`; an evaluation dataset then needs the column too. In [`RSRSFTTrainer`] the
    threshold is applied to the live scores when a row is drawn, to training rows only.

    Args:
        pad_token_id (`int`): Token id to pad with.
        score_threshold (`float`, *optional*): Last score that trains. `None` drops nothing by score.
        prefer (`"low"` or `"high"`, *optional*): Which end of the score trains. By default the score's own (RSR:
            `"low"`); a column of your own has none and needs it.
        score (`str`, *optional*, defaults to `"rsr"`): What the threshold is of: the name of a score that the dataset
            has, or a numeric column.
        with_scored (`bool`, *optional*, defaults to `False`):
            Set by [`RSRSFTTrainer`]: pass on which tokens are scored. padding_free, return_position_ids,
            pad_to_multiple_of, return_tensors: As in TRL's collator.

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
            raise ValueError(f"score={self.score!r} is fitted to a whole dataset: make a column of it first.")

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
            batch |= self._scored_columns(rows, batch["input_ids"].shape)
        return batch

    def _scored_columns(self, rows: list[dict[str, Any]], shape: torch.Size) -> dict[str, torch.Tensor]:
        """
        Row numbers `(rows,)`, scored tokens of each `(rows,)`, and which tokens are scored, in the shape of the ids.
        """
        mask = torch.zeros(shape, dtype=torch.bool)
        start = 0
        for i, row in enumerate(rows):
            # A row that can't be scored has an empty mask.
            where = (0, start) if self.padding_free else (i, 0)
            mask[where[0], where[1] : where[1] + len(row[SCORED])] = torch.tensor(row[SCORED], dtype=torch.bool)
            start += len(row["input_ids"])
        return {
            ROW: torch.tensor([row[ROW] for row in rows]),
            NUM_SCORED: torch.tensor([sum(row[SCORED]) for row in rows]),
            SCORED: mask,
        }

    def _trains(self, example: dict[str, Any]) -> bool:
        if example.get(ROW, 0) < 0:
            return False
        if self.score_threshold is None:
            return True
        column = next((name for name in columns_of(self.score) if name in example), None)
        if column is None:
            wanted = " or ".join(map(repr, columns_of(self.score)))
            raise ValueError(
                f"RSRDataCollator(score_threshold={self.score_threshold}) found no {wanted} "
                f"among {list(example)}. Score the dataset (the evaluation set too) and set "
                "remove_unused_columns=False in the SFTConfig, or use RSRSFTTrainer."
            )
        score = example[column]
        return not is_past(float("nan") if score is None else score, self.score_threshold, self.prefer)


def live_threshold(args: RSRSFTConfig, collator: Any) -> float | None:
    """Score threshold of the config or of the user's collator."""
    if collator is not None and not isinstance(collator, RSRDataCollator):
        if type(collator) is not DataCollatorForLanguageModeling:
            raise ValueError(
                f"data_collator is {type(collator).__name__}, which may train on rows that are masked: derive it from "
                "RSRDataCollator."
            )
    elif collator is not None and collator.score_threshold is not None:
        own, same = (args.rsr_score_threshold, args.rsr_prefer), args.rsr_score == collator.score
        if not same or own not in ((None, collator.prefer), (collator.score_threshold, collator.prefer)):
            of = "" if same else f" of {collator.score!r}"
            raise ValueError(
                f"The data collator has score_threshold={collator.score_threshold}{of} and "
                f"prefer={collator.prefer!r}, the config rsr_score_threshold={own[0]}"
                f"{'' if same else f' of {args.rsr_score!r}'} and rsr_prefer={own[1]!r}: set them in the config alone."
            )
        return collator.score_threshold
    return args.rsr_score_threshold


def live_collator(collator: DataCollatorForLanguageModeling, online: bool) -> RSRDataCollator:
    """The collator with its scores left to the sampler."""
    if isinstance(collator, RSRDataCollator):
        return replace(collator, score_threshold=None, with_scored=online)
    inherited = {f.name: getattr(collator, f.name) for f in fields(collator)}
    return RSRDataCollator(**inherited, with_scored=online)
