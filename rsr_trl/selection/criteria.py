"""What to choose by, checked before any data is read."""

import math
from dataclasses import dataclass
from typing import Literal

from rsr_trl import columns
from rsr_trl.selection.scores import direction_of


@dataclass(frozen=True)
class Criteria:
    """
    The options of [`select_trajectories`], where each is explained.

    Raises:
        `ValueError`: an option out of its range, or options that contradict each other.
    """

    group_column: str | None = None
    keep_per_group: int = 1
    keep_fraction: float | None = None
    score_threshold: float | None = None
    prefer: Literal["low", "high"] | None = None  # afterwards never None
    score: str = columns.RSR
    require: str | None = None
    when_none_qualifies: Literal["drop", "any", "error"] = "drop"
    min_tokens: int | None = None
    max_tokens: int | None = None
    max_share_per_teacher: float | None = None
    teacher_column: str | None = None

    def __post_init__(self) -> None:
        ways = ("group_column", "keep_fraction", "score_threshold")
        given = [name for name in ways if vars(self)[name] is not None]
        if len(given) != 1:
            raise ValueError(
                "Give exactly one of group_column (the best of each group), keep_fraction (the best share of all) and "
                f"score_threshold (all at least this good); got {' and '.join(given) or 'none'}."
            )
        if isinstance(self.keep_per_group, bool) or not self.keep_per_group >= 1 or self.keep_per_group % 1:
            raise ValueError(f"keep_per_group must be a whole number, 1 or more, got {self.keep_per_group}.")
        if self.keep_per_group != 1 and self.group_column is None:
            raise ValueError(f"keep_per_group={self.keep_per_group} needs group_column.")
        if self.keep_fraction is not None and not 0 < self.keep_fraction <= 1:
            raise ValueError(f"keep_fraction must be in (0, 1], got {self.keep_fraction}.")
        if self.score_threshold is not None and not math.isfinite(self.score_threshold):
            raise ValueError(f"score_threshold must be a finite number, got {self.score_threshold}.")
        object.__setattr__(self, "prefer", direction_of(self.score, self.prefer))  # frozen otherwise
        if self.when_none_qualifies not in ("drop", "any", "error"):
            raise ValueError(f"when_none_qualifies is 'drop', 'any' or 'error', got {self.when_none_qualifies!r}.")
        if self.when_none_qualifies != "drop" and (self.require is None or self.group_column is None):
            raise ValueError(f"when_none_qualifies={self.when_none_qualifies!r} needs require and group_column.")
        for name in ("min_tokens", "max_tokens"):
            if (limit := vars(self)[name]) is not None and not limit >= 1:
                raise ValueError(f"{name} must be 1 or more, got {limit}.")
        if None not in (self.min_tokens, self.max_tokens) and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens={self.min_tokens} is above max_tokens={self.max_tokens}.")
        if self.max_share_per_teacher is not None:
            self._check_cap()

    def _check_cap(self) -> None:
        if not 0 < self.max_share_per_teacher <= 1:
            raise ValueError(f"max_share_per_teacher must be in (0, 1], got {self.max_share_per_teacher}.")
        if self.teacher_column is None:
            raise ValueError("max_share_per_teacher needs teacher_column.")
        if self.score_threshold is not None:
            raise ValueError(
                "max_share_per_teacher needs to know how many rows are chosen: use group_column or keep_fraction "
                "instead of score_threshold."
            )

    @property
    def sign(self) -> int:
        """Factor that turns the score into a cost: the least is the best."""
        return 1 if self.prefer == "low" else -1
