import re

import numpy as np
import pytest

from rsr_trl.rsr import RSR
from rsr_trl.selection.choose import select_trajectories
from tests.report.pages import MEASURED, as_dataset, rsr_of, scored_rows


BY_PROBLEM = {"group_column": "problem_id"}
CAPPED = {"max_share_per_teacher": 0.4, "teacher_column": "teacher"}


def _figures(chosen) -> str:
    """What the table says of chosen rows: how many, RSR, rank, surprisal."""
    rank, surprisal = (np.mean(chosen[name]) for name in MEASURED[1:])
    return f"{len(chosen)} {rsr_of(chosen.to_list()):,.3f} {rank:,.2f} {surprisal:,.2f}"


def _line(page, start: str) -> str:
    """The table's line that begins so, without its options."""
    lines = re.findall(r'<th scope="row">(.*?)</tr>', page.html[page.html.index('id="choice"') :], re.DOTALL)
    cells = next(line for line in lines if line.startswith(start))
    return " ".join(re.sub(r"<code>.*?</code>|<[^>]+>", " ", cells).split()).removeprefix(start)


@pytest.mark.parametrize(
    "start, options, prefer, without",
    [
        ("Most suitable of each problem", BY_PROBLEM, "low", []),
        ("Least suitable of each problem", BY_PROBLEM, "high", []),
        ("… only correct ones", BY_PROBLEM | {"require": "correct"}, "low", []),
        ("… at most 40% of one teacher", BY_PROBLEM | CAPPED, "low", []),
        ("Most suitable 50%", {"keep_fraction": 0.5}, "low", ["problem_id", "prompt"]),
    ],
)
def test_each_way_is_what_select_trajectories_chooses(write, tiny_tokenizer, start, options, prefer, without):
    dataset = as_dataset(scored_rows(tiny_tokenizer, 20, ("ann", "bob", "eve", "ida")), without)
    page = write(dataset, prefer=prefer)
    assert _figures(dataset) in _line(page, "All")
    assert _figures(select_trajectories(dataset, **options, prefer=prefer)) in _line(page, start)
    assert ("reversed" in page.report.cautions) == (prefer == "high")
    if "problem_id" not in without:
        shortest = [min(dataset["rsr_num_tokens"][i : i + 4]) for i in range(0, 80, 4)]
        assert f" {np.mean(shortest):,.0f} " in _line(page, "Baseline: shortest of each problem")
        lowest = [min(dataset["rsr_mean_surprisal"][i : i + 4]) for i in range(0, 80, 4)]
        assert f" {np.mean(lowest):.2f} " in _line(page, "Baseline: lowest surprisal of each problem")
        assert _line(page, "Baseline: random of each problem (one draw)").split()[0] == "20"


def test_bare_answers_are_left_out_and_shown_beside(write, rows):
    for row in rows[:2]:
        row["rsr_num_tokens"] = 5
    page = write(rows)
    assert "Never chosen: 2 (fewer than 32 scored tokens)" in page.words("choice")
    dataset = as_dataset(rows)
    assert _figures(select_trajectories(dataset, **BY_PROBLEM, min_tokens=0)) in _line(page, "… bare answers included")
    for row in rows:
        row["rsr_num_tokens"] = 5
    words = write(rows).words("choice")  # nothing else to choose from: the page shows it all the same
    assert "--min_tokens 0" in words and "Never chosen" not in words


def test_commands_are_safe_to_paste(write, rows):
    for row in rows:
        row["my problem; rm"] = row.pop("problem_id")
    assert "--group_column 'my problem; rm'" in write(rows, problem_column="my problem; rm").words("choice")


def test_what_cant_be_chosen_is_counted_and_a_cap_that_cant_be_kept_says_which_can(write, rows):
    for row in rows[:3]:
        row[RSR] = float("inf")
    words = write(rows).words("choice")
    assert "Never chosen: 3 (no finite score)" in words
    assert "1 of 6 problems have no scored trajectory: nothing is chosen for them" in words
    rows = [row for row in rows if row["teacher"] == "ann" or row["problem_id"] == "p1"]
    assert "The smallest share that can be kept here is 0.8" in write(rows).words("choice")
