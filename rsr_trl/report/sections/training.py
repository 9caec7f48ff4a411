"""How scores moved while the student was trained: of what was chosen first, of each teacher, and their order."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from markupsafe import Markup
from matplotlib.axes import Axes

from rsr_trl.report.charts import INK, MUTED, RATIO_UP, SERIES, draw, each_series, few_ticks, key_above, legend, mark
from rsr_trl.report.material import Material, Missing
from rsr_trl.rsr import MEAN_CLIPPED_RANK, MEAN_SURPRISAL, RSR, RSRError, dataset_rsr
from rsr_trl.selection.compare import rank_correlation
from rsr_trl.training.history import HISTORY_DIR


MAX_POINTS = 40
ALIKE = 0.05  # first scores that differ by more than this from the dataset's aren't those of the same student


@dataclass(frozen=True)
class Snapshot:
    """
    The scores as the run knew them at a step.

    Args:
        step (`int`): When.
        rsr, rank, surprisal (float arrays of shape `(n,)`): Latest of each row of the dataset; NaN where there is
            none.
    """

    step: int
    rsr: np.ndarray
    rank: np.ndarray
    surprisal: np.ndarray

    def mean(self, rows: np.ndarray) -> float:
        """RSR of these rows, Eq. 9."""
        return dataset_rsr(self.rank[rows], self.surprisal[rows])


def view(material: Material) -> dict | Missing:
    if material.run is None:
        return Missing(
            "No training run was given.",
            "A run of RSRSFTTrainer keeps its scores in its output folder. To see how they moved:",
            "rsr report --run OUTPUT_DIR ...",
        )
    table = material.table
    snapshots = read_snapshots(material.run, len(table))
    if len(snapshots) < 2:
        return Missing(
            "The run scored its data once, so nothing moved.",
            "Train with --rsr_rescore_strategy epoch, steps or online.",
        )
    steps, first = [snapshot.step for snapshot in snapshots], snapshots[0]
    known = ~np.isnan(first.rsr)
    chosen = [_chosen(material, np.where(known, snapshot.rsr, np.nan)) for snapshot in snapshots]
    correlations = rank_correlation(np.column_stack([snapshot.rsr[known] for snapshot in snapshots]))[0]
    left = [mask[chosen[0]].mean() if chosen[0].any() else np.nan for mask in chosen]
    return {
        "folder": material.run,
        "steps": steps,
        "rows": int(known.sum()),
        "chosen": _draw_chosen(snapshots, chosen[0], known & ~chosen[0]),
        "teachers": _draw_teachers(table.teacher, len(table.teachers), snapshots, known) if table.teachers else None,
        "legend": legend(table.teachers),
        "order": _draw_order(steps, correlations, left),
        "left": left[-1],
        "correlation": correlations[-1],
        "note": _note(material, first, known),
    }


def read_snapshots(run: Path, num_rows: int) -> list[Snapshot]:
    """
    Read the history of a run.

    Args:
        run (`Path`): Output folder of the trainer.
        num_rows (`int`): Rows of the dataset that it was trained on.

    Raises:
        `RSRError`: no history there, or one of a larger dataset.
    """
    # By name: at equal steps what the dataset brought comes before what training measured, and that before a pass.
    files = sorted((Path(run) / HISTORY_DIR).glob("step-*.parquet"))
    if not files:
        raise RSRError(
            f"There is no score history in {str(run)!r}: a run of RSRSFTTrainer (`rsr sft`) leaves it in "
            f"{HISTORY_DIR}/ of its output folder."
        )
    latest = np.full((3, num_rows), np.nan)
    wanted = set(np.linspace(0, len(files) - 1, min(len(files), MAX_POINTS)).round().astype(int))
    snapshots: dict[int, Snapshot] = {}
    for place, file in enumerate(files):
        table = pq.read_table(file)
        rows = table["row"].to_numpy()
        if rows.size and not 0 <= rows.min() <= rows.max() < num_rows:
            raise RSRError(
                f"The run {str(run)!r} scored row {rows.max()}, but the dataset has {num_rows} rows: pass the dataset "
                "that it was trained on."
            )
        for i, name in enumerate((RSR, MEAN_CLIPPED_RANK, MEAN_SURPRISAL)):
            latest[i, rows] = table[name].to_numpy()
        if place in wanted:
            step = int(file.stem.split("-")[1])
            snapshots[step] = Snapshot(step, *latest.copy())
    return list(snapshots.values())


def _chosen(material: Material, rsr: np.ndarray) -> np.ndarray:
    """What the page's choice would be, given these scores: bool array."""
    mask = np.zeros(len(rsr), dtype=bool)
    mask[material.choose(material.by.sign * rsr)] = True
    return mask


def _draw_chosen(snapshots: list[Snapshot], chosen: np.ndarray, rest: np.ndarray) -> Markup:
    steps = [snapshot.step for snapshot in snapshots]

    def plot(axes: Axes) -> None:
        for rows, name, style in (
            (chosen, "chosen by the first scores", {"color": SERIES[0], "marker": "D"}),
            (rest, "the others", {"color": INK, "marker": "o", "linestyle": "--", "fillstyle": "none"}),
        ):
            if rows.any():
                axes.plot(steps, [snapshot.mean(rows) for snapshot in snapshots], label=name, **style)
        _over_steps(axes)
        key_above(axes)

    alt = "RSR over training of what the first scores would choose, and of the rest"
    return draw("moved-chosen", alt, 3.4, plot)


def _draw_teachers(teacher: np.ndarray, number: int, snapshots: list[Snapshot], known: np.ndarray) -> Markup:
    steps = [snapshot.step for snapshot in snapshots]

    def plot(axes: Axes) -> None:
        for i, own in enumerate(each_series(teacher, number)):
            if (rows := known & own).any():
                values = [snapshot.mean(rows) for snapshot in snapshots]
                axes.plot(steps, values, markersize=6, linewidth=1.2, gid=f"series-{i}", **mark(i, number))
        _over_steps(axes)

    return draw("moved-teachers", "RSR of each teacher's trajectories over training", 3.4, plot)


def _draw_order(steps: list[int], correlations: np.ndarray, left: list[float]) -> Markup:
    def plot(axes: Axes) -> None:
        axes.plot(steps, correlations, color=INK, marker="o", label="rank correlation with the first scores")
        axes.plot(steps, left, color=SERIES[0], marker="D", linestyle="--", label="of the first choice, chosen again")
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.set_ylim(min(-0.05, np.nanmin([*correlations, 0]) - 0.05), 1.05)
        _over_steps(axes, "")
        key_above(axes, columns=1)

    alt = "Correlation with the first scores, and share of the first choice kept"
    return draw("moved-order", alt, 3.7, plot)


def _over_steps(axes: Axes, ratio: str = RATIO_UP) -> None:
    few_ticks(axes)
    axes.set_xlabel("training step")
    axes.set_ylabel(ratio)


def _note(material: Material, first: Snapshot, known: np.ndarray) -> str | None:
    """Rows are matched by number alone, so at least their first scores have to be like the dataset's."""
    both = known & material.finite & np.isfinite(first.rsr)
    if not both.any():
        return "None of the trajectories that the run scored has a score in the dataset."
    far = np.abs(first.rsr[both] / material.rsr[both] - 1) > ALIKE
    if far.mean() <= ALIKE:
        return None
    return (
        f"The run's first scores differ from the dataset's in {far.mean():.0%} of the trajectories. Rows are matched "
        "by number: is this the dataset that the run was trained on, and the same student?"
    )
