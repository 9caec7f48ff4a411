"""The picture of the README: every trajectory of a scored dataset by its mean surprisal and mean clipped rank.

Both axes are logarithmic, so trajectories of equal RSR lie on one diagonal: the lower the diagonal, the more suitable.
By default it draws what `rsr demo` has scored; any dataset with the columns `teacher` and `problem_id` does.

    python examples/plot_rank_surprisal.py --dataset_name demo_output/scored --output docs/images/rank_surprisal.png
"""

import argparse

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FixedLocator, NullLocator

from rsr_trl import select_trajectories
from rsr_trl.data import load
from rsr_trl.rsr import NOISY_BELOW


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--output", default="docs/images/rank_surprisal.png")
parser.add_argument("--dataset_name", default="demo_output/scored")
args = parser.parse_args()

scored = load(args.dataset_name)
chosen = select_trajectories(scored, group_column="problem_id", min_tokens=NOISY_BELOW)

plt.style.use("tableau-colorblind10")
figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
markers = "osD^vPX<>h*d"  # never colour alone
for teacher, marker in zip(sorted(set(scored["teacher"])), markers, strict=False):
    rows = [row for row in scored if row["teacher"] == teacher]
    x, y = ([row[name] for row in rows] for name in ("rsr_mean_surprisal", "rsr_mean_clipped_rank"))
    axes.scatter(x, y, s=18, marker=marker, alpha=0.6, linewidths=0, label=teacher)
axes.scatter(
    chosen["rsr_mean_surprisal"],
    chosen["rsr_mean_clipped_rank"],
    s=60,
    facecolors="none",
    edgecolors="black",
    linewidths=0.8,
    label="most suitable of its problem",
)
low, high, top = 0.6, 9.0, 100.0  # logarithmic: lines of equal RSR run side by side
for ratio in (2, 4, 8):
    axes.plot([low, high], [ratio * low, ratio * high], color="0.6", linewidth=0.8, zorder=0)
    end = min(high, top / ratio) * 0.85
    axes.annotate(f"RSR {ratio}", (end, ratio * end), color="0.3", fontsize=8, ha="right", va="bottom", rotation=31)
words = np.geomspace(np.exp(low), np.exp(4.5), 200)
axes.plot(
    np.log(words), (words + 1) / 2, color="black", linestyle=":", linewidth=1, label="fair guesses among k words"
)
axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(1.5, top))
for axis, ticks in ((axes.xaxis, (1, 2, 5)), (axes.yaxis, (2, 5, 10, 20, 50, 100))):
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")
axes.set_xlabel("mean surprisal, nats (right: more to learn)")
axes.set_ylabel("mean clipped rank (low: close to what the student would say)")
axes.set_title("A lower RSR (a lower diagonal) suits the student better")
axes.legend(fontsize=8, frameon=False)
figure.savefig(args.output, dpi=130)
print(f"Wrote {args.output}.")
