"""What becomes of the scores: numbers for the trainer's logs, a history for plots, a section of the model card."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import spearmanr

from rsr_trl.training.live_table import ScoreTable


HISTORY_DIR = "rsr_history"


def summarize(
    scores: np.ndarray, teachers: tuple[np.ndarray, list] | None = None, name: str = "rsr"
) -> dict[str, float]:
    """
    Mean and quantiles of the finite scores, and the mean of each teacher.

    Args:
        scores (float array of shape `(n,)`): NaN and infinite entries are left out.
        teachers (pair, *optional*): Teacher number of each row, and the teachers' names.
        name (`str`, *optional*, defaults to `"rsr"`): Of the score, which begins the names of the numbers.
    """
    finite = np.isfinite(scores)
    if not finite.any():
        return {}
    p10, median, p90 = np.quantile(scores[finite], [0.1, 0.5, 0.9])
    logs = {f"{name}/mean": scores[finite].mean(), f"{name}/median": median, f"{name}/p10": p10, f"{name}/p90": p90}
    number, names = teachers or (None, [])
    for i, teacher in enumerate(names):
        if (own := finite & (number == i)).any():
            logs[f"{name}/mean/{teacher}"] = scores[own].mean()
    return {key: float(value) for key, value in logs.items()}


def spearman(before: np.ndarray, after: np.ndarray) -> float | None:
    """Rank correlation of two scorings over the rows that have both; `None` where it isn't defined."""
    both = ~(np.isnan(before) | np.isnan(after))
    if min(len(np.unique(scores[both])) for scores in (before, after)) < 2:
        return None
    return float(spearmanr(before[both], after[both]).statistic)


class ScoreHistory:
    """
    All scores ever measured, as parquet files that `datasets`, pandas and polars read as one table.

    Args:
        output_dir (`str`): Of the trainer; files go to `rsr_history/step-<step>-<kind>.parquet` below.
        source_rows (int array of shape `(n,)`): Number of each row in the dataset that the user passed.
    """

    def __init__(self, output_dir: str, source_rows: np.ndarray):
        self.folder, self.source_rows = Path(output_dir) / HISTORY_DIR, source_rows

    def start(self, step: int | None) -> None:
        """Drop what an earlier run wrote after `step`; everything for `None`."""
        for path in self.folder.glob("step-*.parquet"):
            if step is None or int(path.stem.split("-")[1]) > step:
                path.unlink()

    def write(self, table: ScoreTable, rows: np.ndarray, step: int, kind: str) -> None:
        """Write the scores that rows have now, and where from: a `"pass"`, training `"online"`, the `"dataset"`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        data = {
            "row": self.source_rows[rows],
            "rsr": table.rsr[rows],
            "rsr_mean_clipped_rank": table.mean_clipped_rank[rows],
            "rsr_mean_surprisal": table.mean_surprisal[rows],
            "step": table.step[rows],
            "train_mode": table.train_mode[rows],
        }
        path = self.folder / f"step-{step:08d}-{kind}.parquet"
        pq.write_table(pa.table(data), f"{path}.tmp")
        os.replace(f"{path}.tmp", path)


def card_section(settings: dict[str, object], logs: dict[str, float]) -> str:
    """Section of a model card: how the data was scored and chosen, and what [`summarize`] says of it at the end."""
    lines = [
        "## How the training data was scored",
        "",
        "Each trajectory has a Rank-Surprisal Ratio (RSR) of this student: clipped token ranks over surprisals. "
        "**Lower means more suitable.**",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | `{value}` |" for name, value in settings.items()),
    ]
    if logs:
        only_rsr = all(name.startswith("rsr/") for name in logs)
        value = "RSR (lower = more suitable)" if only_rsr else "value (RSR: lower = more suitable)"
        lines += ["", f"| score at the end of training | {value} |", "|---|---|"]
        lines += [f"| {name.removeprefix('rsr/')} | {value:.4g} |" for name, value in logs.items()]
    return "\n".join(lines) + "\n"
