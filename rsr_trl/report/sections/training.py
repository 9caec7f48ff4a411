"""How scores moved while the student was trained: of what was chosen first, of each teacher, and their order."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from markupsafe import Markup
from matplotlib.axes import Axes

from rsr_trl.report.charts import (
    FEW_TICKS,
    INK,
    MUTED,
    RATIO_UP,
    SERIES,
    draw,
    each_series,
    key_above,
    legend,
    mark,
)
from rsr_trl.report.material import Material, Missing
from rsr_trl.rsr import MEAN_CLIPPED_RANK, MEAN_SURPRISAL, RSR, RSRError, dataset_rsr
from rsr_trl.selection.compare import rank_correlation
from rsr_trl.training.live_table import HISTORY_DIR


MAX_POINTS = 40
ALIKE = 0.05  # first scores that differ by more than this from the dataset's aren't those of the same student


def view(material: Material) -> dict | Missing:
    if material.run is None:
        how = "Run `rsr sft` with re-scoring, then add its folder:"
        return Missing("No training run yet.", how, "rsr report --run OUTPUT_DIR ...")
    teachers = material.table.teachers
    steps, scores = read_history(material.run, len(material.table))
    if len(steps) < 2:
        how = "Train with `rsr sft --rsr_rescore_strategy epoch`, `steps` or `online`."
        return Missing("The run scored its data only once, so no change can be shown.", how)
    rsr = scores[:, 0]
    known = ~np.isnan(rsr[0])
    chosen = [_chosen(material, np.where(known, now, np.nan)) for now in rsr]
    correlations = rank_correlation(rsr[:, known].T)[0]
    kept = [mask[chosen[0]].mean() if chosen[0].any() else np.nan for mask in chosen]
    of_teachers = [known & own for own in each_series(material.table.teacher, len(teachers))] if teachers else []
    return {
        "folder": material.run,
        "steps": steps,
        "rows": int(known.sum()),
        "chosen": _draw_chosen(steps, _means(scores, chosen[0]), _means(scores, known & ~chosen[0])),
        "teachers": _draw_teachers(steps, [_means(scores, rows) for rows in of_teachers], len(teachers)),
        "legend": legend(teachers),
        "order": _draw_order(steps, correlations, kept),
        "kept": kept[-1],
        "correlation": correlations[-1],
        "note": _note(material, rsr[0], known),
    }


def read_history(run: Path, num_rows: int) -> tuple[list[int], np.ndarray]:
    """
    When a run scored, and what it knew then of a dataset of `num_rows` rows: float array of shape
    `(steps, 3, num_rows)` with RSR, mean clipped rank and mean surprisal, NaN where a row had none.
    """
    # By name: at equal steps what the dataset brought comes before what training measured, and that before a pass.
    files = sorted((Path(run) / HISTORY_DIR).glob("step-*.parquet"))
    if not files:
        raise RSRError(
            f"There is no score history in {str(run)!r}: a run of RSRSFTTrainer (`rsr sft`) leaves it in "
            f"{HISTORY_DIR}/ of its output folder, if it used scores."
        )
    latest, history = np.full((3, num_rows), np.nan), {}
    wanted = set(np.linspace(0, len(files) - 1, min(len(files), MAX_POINTS)).round().astype(int))
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
            history[int(file.stem.split("-")[1])] = latest.copy()
    return list(history), np.stack(list(history.values()))


def _chosen(material: Material, rsr: np.ndarray) -> np.ndarray:
    """What the page's choice would be, given these scores: bool array."""
    mask = np.zeros(len(rsr), dtype=bool)
    mask[material.choose(material.by.sign * rsr)] = True
    return mask


def _means(scores: np.ndarray, rows: np.ndarray) -> list[float]:
    """RSR of these rows at each step, Eq. 9; NaN where there are none."""
    return [dataset_rsr(rank[rows], surprisal[rows]) for _, rank, surprisal in scores]


def _draw_chosen(steps: list[int], chosen: list[float], rest: list[float]) -> Markup:
    def plot(axes: Axes) -> None:
        axes.plot(steps, chosen, color=SERIES[0], marker="D", label="chosen by the first scores")
        axes.plot(steps, rest, color=INK, marker="o", linestyle="--", fillstyle="none", label="the others")
        key_above(axes)

    return _over_steps("chosen", "RSR over training of what the first scores would choose, and of the rest", plot)


def _draw_teachers(steps: list[int], means: list[list[float]], number: int) -> Markup | None:
    def plot(axes: Axes) -> None:
        for i, own in enumerate(means):
            axes.plot(steps, own, gid=f"series-{i}", **({"markersize": 6, "linewidth": 1.2} | mark(i, number)))

    return _over_steps("teachers", "RSR of each teacher's trajectories over training", plot) if means else None


def _draw_order(steps: list[int], correlations: np.ndarray, kept: list[float]) -> Markup:
    def plot(axes: Axes) -> None:
        axes.plot(steps, correlations, color=INK, marker="o", label="rank correlation with the first scores")
        axes.plot(steps, kept, color=SERIES[0], marker="D", linestyle="--", label="of the first choice, chosen again")
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.set_ylim(min(-0.05, np.nanmin([*correlations, 0]) - 0.05), 1.05)
        axes.set_ylabel("")
        key_above(axes, columns=1)

    alt = "Correlation with the first scores, and share of the first choice kept"
    return _over_steps("order", alt, plot, 3.7)


def _over_steps(name: str, alt: str, plot: Callable[[Axes], None], height: float = 3.4) -> Markup:
    """A chart over training; of RSR, unless `plot` says otherwise."""

    def plot_over_steps(axes: Axes) -> None:
        axes.set(xlabel="training step", ylabel=RATIO_UP)
        axes.locator_params(axis="x", nbins=FEW_TICKS)
        plot(axes)

    return draw(f"moved-{name}", alt, height, plot_over_steps)


def _note(material: Material, first: np.ndarray, known: np.ndarray) -> str | None:
    """Rows are matched by number alone, so at least their first scores have to be like the dataset's."""
    both = known & material.finite & np.isfinite(first)
    if not both.any():
        return "None of the trajectories that the run scored has a score in the dataset."
    far = np.abs(first[both] / material.rsr[both] - 1) > ALIKE
    if far.mean() <= ALIKE:
        return None
    return (
        f"The run's first scores differ from the dataset's in {far.mean():.0%} of the trajectories. Rows are matched "
        "by number: check that dataset and student are those of the run."
    )
