import re

import numpy as np

from rsr_trl.rsr import MEAN_CLIPPED_RANK, MEAN_SURPRISAL, RSR, TOKEN_COLUMNS


def test_chosen_guesses_are_a_caution(write, rows):
    for i, row in enumerate(rows):
        rank, surprisal = (9.0, 1.0) if i % 3 else (3.0, float(np.log(5)))
        row |= {MEAN_SURPRISAL: surprisal, MEAN_CLIPPED_RANK: rank, RSR: rank / surprisal}
    page = write(rows, without=TOKEN_COLUMNS)
    assert "Near pure guessing. 6 trajectories (33% of all, 100% of what RSR chooses" in page.words("headline")
    assert "33% of the scored trajectories and 100% of the chosen look like guesses" in page.words("plane")


def test_every_trajectory_is_drawn_once_and_the_chosen_are_ringed(write, rows):
    html = write(rows).html
    plane = html[html.index('id="plane"') : html.index('id="reading"')]
    (drawing,) = re.findall(r'<svg class="chart".*?</svg>', plane, re.DOTALL)
    groups = re.findall(r'<g data-series="\d">(.*?)</g>\s*</g>', drawing, re.DOTALL)
    marks = [group.count("<use") for group in groups]
    assert sum(marks[:3]) == 18 and sum(marks[3:]) == 6
