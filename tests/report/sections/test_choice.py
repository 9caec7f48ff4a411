import re

import numpy as np
import pytest

from rsr_trl.rsr import MEAN_CLIPPED_RANK, MEAN_SURPRISAL, RSR, dataset_rsr
from rsr_trl.selection.choose import select_trajectories
from tests.report.pages import as_dataset, scored_rows


PARTS = (MEAN_CLIPPED_RANK, MEAN_SURPRISAL)


def _figures(chosen) -> str:
    """What the table says of chosen rows: how many, RSR, rank, surprisal."""
    rank, surprisal = (np.array(chosen[name][:]) for name in PARTS)
    return f"{len(chosen)} {dataset_rsr(rank, surprisal):,.3f} {rank.mean():,.2f} {surprisal.mean():,.2f}"


def _line(page, start: str) -> str:
    """The table's line that begins so, without its options."""
    html = page.report.path.read_text(encoding="utf-8")
    lines = re.findall(r'<th scope="row">(.*?)</tr>', html[html.index('id="choice"') :], re.DOTALL)
    cells = next(line for line in lines if line.startswith(start))
    return " ".join(re.sub(r"<code>.*?</code>|<[^>]+>", " ", cells).split()).removeprefix(start)


def test_each_way_is_what_select_trajectories_chooses(write, tiny_tokenizer):
    rows = scored_rows(tiny_tokenizer, 20, ("ann", "bob", "eve", "ida"))
    dataset, page = as_dataset(rows), write(rows)
    by = {"group_column": "problem_id"}
    capped = {"max_share_per_teacher": 0.4, "teacher_column": "teacher"}
    assert _figures(dataset) in _line(page, "All, as they are")
    assert _figures(select_trajectories(dataset, **by)) in _line(page, "Most suitable of each problem")
    assert _figures(select_trajectories(dataset, **by, require="correct")) in _line(page, "… of the correct ones")
    assert _figures(select_trajectories(dataset, **by, **capped)) in _line(page, "… at most 40% of one teacher")


def test_baselines_keep_one_of_each_problem(write, tiny_tokenizer):
    rows = scored_rows(tiny_tokenizer, 20)
    page = write(rows)
    shortest = [
        min((r for r in rows if r["problem_id"] == f"p{i}"), key=lambda r: r["rsr_num_tokens"]) for i in range(20)
    ]
    tokens = np.mean([row["rsr_num_tokens"] for row in shortest])
    assert f" {tokens:,.0f} " in _line(page, "Baseline: shortest of each problem")
    assert _line(page, "Baseline: random of each problem").split()[0] == "20"


def test_without_problems_half_is_kept(write, rows):
    dataset = as_dataset(rows).remove_columns(["problem_id", "prompt"])
    page = write(dataset)
    assert _figures(select_trajectories(dataset, keep_fraction=0.5)) in _line(page, "Most suitable 50%")


def test_commands_are_safe_to_paste(write, rows):
    for row in rows:
        row["my problem; rm"] = row.pop("problem_id")
    page = write(rows, problem_column="my problem; rm")
    assert "--group_column 'my problem; rm'" in page.words("choice")


def test_a_cap_that_cant_be_kept_says_which_can(write, rows):
    rows = [row for row in rows if row["teacher"] == "ann" or row["problem_id"] == "p0"]
    words = write(rows).words("choice")
    assert "The smallest share that can be kept here is 0.8334" in words


def test_what_cant_be_chosen_is_counted(write, rows):
    for row in rows[:3]:
        row[RSR] = float("inf")
    words = write(rows).words("choice")
    assert "Never chosen: 3 (no finite score)" in words
    assert "1 problems have no scored trajectory" in words


@pytest.mark.parametrize("prefer, end", [("low", "Most"), ("high", "Least")])
def test_the_choice_follows_prefer(write, rows, prefer, end):
    page = write(rows, prefer=prefer)
    chosen = select_trajectories(as_dataset(rows), "problem_id", prefer=prefer)
    assert _figures(chosen) in _line(page, f"{end} suitable of each problem")
    assert ("reversed" in page.report.cautions) == (prefer == "high")
