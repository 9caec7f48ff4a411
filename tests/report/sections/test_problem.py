from rsr_trl.rsr import RSR, TOKEN_COLUMNS
from tests.report.pages import UNSCORED


def test_the_problem_of_the_first_row_asked_for(write, rows):
    page = write(rows, rows=[7], without=TOKEN_COLUMNS)
    words = page.words("problem")
    same = sorted((row for row in rows if row["problem_id"] == "p2"), key=lambda row: row["rsr"])
    assert "Problem p2" in words and rows[7]["prompt"] in words
    places = [page.text["problem"].index(row["completion"]) for row in same]
    assert places == sorted(places)  # the most suitable first
    assert words.count("✓ chosen") == 1
    assert f"The lowest RSR of the problem, {same[0]['rsr']:,.3f}, is chosen" in words
    assert f"The next is {same[1]['rsr'] / same[0]['rsr'] - 1:.0%} higher" in words
    words = write(rows, rows=[7], prefer="high").words("problem")
    assert f"The highest RSR of the problem, {same[-1]['rsr']:,.3f}, is chosen: it is the least suitable" in words


def test_rows_without_a_score_come_last(write, rows):
    rows[6] |= UNSCORED
    page = write(rows, rows=[7])
    assert page.tokens[-1] == [] and "No scored tokens" in page.words("problem")


def test_of_equals_the_shorter_one(write, rows):
    for row in rows[6:9]:
        row[RSR] = 2.0
    assert "the shorter one goes first" in write(rows, rows=[7]).words("problem")
