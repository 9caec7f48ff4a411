"""Choose the reasoning trajectories that suit a student, and train on them, with the Rank-Surprisal Ratio (RSR).

Everywhere in this package a **lower** RSR suits the student better.

Names are imported when they are first used, so that `import rsr_trl` and `rsr --help` don't wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING


__version__ = "0.1.0"

_HOME = {
    "RSRDataCollator": "training.collator",
    "RSRError": "rsr",
    "RSRSFTConfig": "training.config",
    "RSRSFTTrainer": "training.trainer",
    "RSRSampler": "training.sampler",
    "RSRScorer": "scoring.scorer",
    "ScoreTable": "training.live_table",
    "compare_scores": "selection.compare",
    "dataset_rsr": "rsr",
    "filtered_token_rsr": "rsr",
    "race_teachers": "selection.race",
    "rank_teachers": "selection.teachers",
    "select_trajectories": "selection.choose",
    "token_rsr": "rsr",
    "trajectory_rsr": "rsr",
    "write_report": "report.page",
}
__all__ = [  # spelt out: type checkers and ruff don't follow list(_HOME)
    "RSRDataCollator",
    "RSRError",
    "RSRSFTConfig",
    "RSRSFTTrainer",
    "RSRSampler",
    "RSRScorer",
    "ScoreTable",
    "compare_scores",
    "dataset_rsr",
    "filtered_token_rsr",
    "race_teachers",
    "rank_teachers",
    "select_trajectories",
    "token_rsr",
    "trajectory_rsr",
    "write_report",
]

if TYPE_CHECKING:
    from rsr_trl.report.page import write_report
    from rsr_trl.rsr import RSRError, dataset_rsr, filtered_token_rsr, token_rsr, trajectory_rsr
    from rsr_trl.scoring.scorer import RSRScorer
    from rsr_trl.selection.choose import select_trajectories
    from rsr_trl.selection.compare import compare_scores
    from rsr_trl.selection.race import race_teachers
    from rsr_trl.selection.teachers import rank_teachers
    from rsr_trl.training.collator import RSRDataCollator
    from rsr_trl.training.config import RSRSFTConfig
    from rsr_trl.training.live_table import ScoreTable
    from rsr_trl.training.sampler import RSRSampler
    from rsr_trl.training.trainer import RSRSFTTrainer


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value  # the next access doesn't come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
