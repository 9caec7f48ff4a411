import re

import numpy as np

from rsr_trl.rsr import MEAN_CLIPPED_RANK, MEAN_SURPRISAL, RSR, TOKEN_COLUMNS
from tests.report.pages import as_dataset


def test_chosen_guesses_are_a_caution(write, rows):
    for row in rows[::3]:
        row |= {MEAN_SURPRISAL: float(np.log(5)), MEAN_CLIPPED_RANK: 3.0, RSR: 3 / np.log(5)}
    for row in [row for i, row in enumerate(rows) if i % 3]:
        row |= {MEAN_SURPRISAL: 1.0, MEAN_CLIPPED_RANK: 9.0, RSR: 9.0}
    page = write(as_dataset(rows).remove_columns(list(TOKEN_COLUMNS)))
    assert "Near pure guessing. 6 trajectories (33% of all, 100% of what RSR chooses" in page.words("headline")
    assert "33% of the scored trajectories and 100% of the chosen look like guesses" in page.words("plane")


def test_every_trajectory_is_drawn_once_and_the_chosen_are_ringed(write, rows):
    html = write(rows).report.path.read_text(encoding="utf-8")
    plane = html[html.index('id="plane"') : html.index('id="reading"')]
    (drawing,) = re.findall(r'<svg class="chart".*?</svg>', plane, re.DOTALL)
    groups = re.findall(r'<g data-series="\d">(.*?)</g>\s*</g>', drawing, re.DOTALL)
    marks = [group.count("<use") for group in groups]
    assert sum(marks[:3]) == 18 and sum(marks[3:]) == 6
