"""How scores moved while the student was trained: of what was chosen first, of each teacher, and their order."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from matplotlib.axes import Axes

from rsr_trl.report.charts import INK, MAX_SERIES, MUTED, SERIES, Chart, Key, draw, few_ticks, keys, mark, series
from rsr_trl.report.pool import Material, Missing, Pool
from rsr_trl.rsr import dataset_rsr
from rsr_trl.selection.table import place_in_run
from rsr_trl.training.live_table import HISTORY_DIR, spearman


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


@dataclass(frozen=True)
class Training:
    """
    Args:
        folder (`str`): Of the run.
        steps (`list[int]`): When it scored.
        rows (`int`): Trajectories it knew.
        chosen ([`Chart`]): RSR of what the first scoring would choose, and of the rest.
        teachers ([`Chart`], *optional*): RSR by teacher.
        keys (`list[Key]`): Teachers.
        order ([`Chart`]): How much of the first order, and of the first choice, is left.
        left (`float`): Share of the first choice that the last scoring would choose again.
        correlation (`float`, *optional*): Spearman's, of the first and the last scores.
        note (`str`, *optional*): What may be wrong.
    """

    folder: str
    steps: list[int]
    rows: int
    chosen: Chart
    teachers: Chart | None
    keys: list[Key]
    order: Chart
    left: float
    correlation: float | None
    note: str | None


def make(material: Material) -> Training | Missing:
    if material.run is None:
        return Missing(
            "No training run was given.",
            "A run of RSRSFTTrainer keeps its scores in its output folder. To see how they moved:",
            "rsr report --run OUTPUT_DIR ...",
        )
    pool = material.pool
    snapshots = read_snapshots(material.run, len(pool))
    if len(snapshots) < 2:
        return Missing(
            "The run scored its data once, so nothing moved.",
            "Train with --rsr_rescore_strategy epoch, steps or online.",
        )
    known = ~np.isnan(snapshots[0].rsr)
    chosen = [_choose(pool, snapshot, known) for snapshot in snapshots]
    correlations = [spearman(snapshots[0].rsr[known], snapshot.rsr[known]) for snapshot in snapshots]
    left = [float(mask[chosen[0]].mean()) if chosen[0].any() else float("nan") for mask in chosen]
    steps = [snapshot.step for snapshot in snapshots]
    return Training(
        folder=str(material.run),
        steps=steps,
        rows=int(known.sum()),
        chosen=_draw_chosen(snapshots, chosen[0], known & ~chosen[0]),
        teachers=_draw_teachers(pool, snapshots, known) if pool.teacher else None,
        keys=keys(pool.teacher.names) if pool.teacher else [],
        order=_draw_order(steps, correlations, left),
        left=left[-1],
        correlation=correlations[-1],
        note=_note(pool, snapshots[0], known),
    )


def read_snapshots(run: Path, num_rows: int) -> list[Snapshot]:
    """
    Read the history of a run.

    Args:
        run (`Path`): Output folder of the trainer.
        num_rows (`int`): Rows of the dataset that it was trained on.

    Raises:
        `ValueError`: no history there, or one of a larger dataset.
    """
    # By name: at equal steps what the dataset brought comes before what training measured, and that before a pass.
    files = sorted((Path(run) / HISTORY_DIR).glob("step-*.parquet"))
    if not files:
        raise ValueError(
            f"There is no score history in {str(run)!r}: a run of RSRSFTTrainer (`rsr sft`) leaves it in "
            f"{HISTORY_DIR}/ of its output folder."
        )
    latest = np.full((3, num_rows), np.nan)
    wanted = set(np.linspace(0, len(files) - 1, MAX_POINTS).round().astype(int)) if len(files) > MAX_POINTS else None
    snapshots: dict[int, Snapshot] = {}
    for place, file in enumerate(files):
        table = pq.read_table(file)
        rows = table["row"].to_numpy()
        if rows.size and not 0 <= rows.min() <= rows.max() < num_rows:
            raise ValueError(
                f"The run {str(run)!r} scored row {rows.max()}, but the dataset has {num_rows} rows: pass the dataset "
                "that it was trained on."
            )
        for i, name in enumerate(("rsr", "rsr_mean_clipped_rank", "rsr_mean_surprisal")):
            latest[i, rows] = table[name].to_numpy()
        if wanted is None or place in wanted:
            step = int(file.stem.split("-")[1])
            snapshots[step] = Snapshot(step, *latest.copy())
    return list(snapshots.values())


def _choose(pool: Pool, snapshot: Snapshot, known: np.ndarray) -> np.ndarray:
    """What the page's choice would be, given these scores."""
    cost = pool.criteria.sign * snapshot.rsr
    rows = np.flatnonzero(known & np.isfinite(cost))
    mask = np.zeros(len(pool), dtype=bool)
    if pool.problem is None:
        kept = int(np.ceil(pool.criteria.keep_fraction * len(rows) - 1e-9))
        mask[rows[np.lexsort((pool.tokens[rows], cost[rows]))][:kept]] = True
        return mask
    group = pool.problem.number[rows]
    order = np.lexsort((pool.tokens[rows], cost[rows], group))
    mask[rows[order[place_in_run(group[order]) < pool.criteria.keep_per_group]]] = True
    return mask


def _mean(snapshot: Snapshot, rows: np.ndarray) -> float:
    return dataset_rsr(snapshot.rank[rows], snapshot.surprisal[rows])


def _draw_chosen(snapshots: list[Snapshot], chosen: np.ndarray, rest: np.ndarray) -> Chart:
    steps = [snapshot.step for snapshot in snapshots]

    def plot(axes: Axes) -> None:
        for rows, name, style in (
            (chosen, "chosen by the first scores", {"color": SERIES[0], "marker": "D"}),
            (rest, "the others", {"color": INK, "marker": "o", "linestyle": "--", "fillstyle": "none"}),
        ):
            if rows.any():
                axes.plot(steps, [_mean(snapshot, rows) for snapshot in snapshots], label=name, **style)
        few_ticks(axes)
        axes.set_xlabel("training step")
        axes.set_ylabel("← more suitable  ·  RSR")
        axes.figure.legend(loc="outside upper center", ncols=2, frameon=False)

    return draw("moved-chosen", "RSR over training of what the first scores would choose, and of the rest", 3.8, plot)


def _draw_teachers(pool: Pool, snapshots: list[Snapshot], known: np.ndarray) -> Chart:
    names, number = pool.teacher.names, np.minimum(pool.teacher.number, MAX_SERIES - 1)
    steps = [snapshot.step for snapshot in snapshots]

    def plot(axes: Axes) -> None:
        for i in range(series(len(names) - 1) + 1):
            if (rows := known & (number == i)).any():
                values = [_mean(snapshot, rows) for snapshot in snapshots]
                axes.plot(steps, values, markersize=6, linewidth=1.2, gid=f"series-{i}", **mark(i, len(names)))
        few_ticks(axes)
        axes.set_xlabel("training step")
        axes.set_ylabel("← more suitable  ·  RSR")

    return draw("moved-teachers", "RSR of each teacher's trajectories over training", 3.8, plot)


def _draw_order(steps: list[int], correlations: list[float | None], left: list[float]) -> Chart:
    def plot(axes: Axes) -> None:
        same = [np.nan if value is None else value for value in correlations]
        axes.plot(steps, same, color=INK, marker="o", label="correlation with the first scores")
        axes.plot(steps, left, color=SERIES[0], marker="D", linestyle="--", label="of the first choice, chosen again")
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.set_ylim(min(-0.05, np.nanmin([*same, 0]) - 0.05), 1.05)
        few_ticks(axes)
        axes.set_xlabel("training step")
        axes.figure.legend(loc="outside upper center", ncols=1, frameon=False)

    return draw("moved-order", "Correlation with the first scores, and share of the first choice kept", 4.2, plot)


def _note(pool: Pool, first: Snapshot, known: np.ndarray) -> str | None:
    """Rows are matched by number alone, so at least their first scores have to be like the dataset's."""
    both = known & pool.finite & np.isfinite(first.rsr)
    if not both.any():
        return "None of the trajectories that the run scored has a score in the dataset."
    far = np.abs(first.rsr[both] / pool.rsr[both] - 1) > ALIKE
    if far.mean() <= ALIKE:
        return None
    return (
        f"The run's first scores differ from the dataset's in {far.mean():.0%} of the trajectories. Rows are matched "
        "by number: is this the dataset that the run was trained on, and the same student?"
    )
