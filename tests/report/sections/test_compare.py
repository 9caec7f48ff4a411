import numpy as np
import pytest
from scipy import stats

from rsr_trl.selection.compare import compare_scores
from tests.report.pages import as_dataset, scored_rows


def test_the_table_says_what_compare_scores_finds(write, tiny_tokenizer):
    rows = scored_rows(tiny_tokenizer, 10)
    comparison = compare_scores(as_dataset(rows), None, None, "teacher", "problem_id", "correct")
    words = write(rows).words("compare")
    for score in comparison.scores[1:]:
        expected = f"{score['name']} ({score['prefer']}) {score['rank_correlation']:+.2f} {score['overlap']:.0%}"
        assert expected in words
    assert f"by chance {comparison.chance_overlap:.0%}" in words
    assert "random (low)" in write([{**row, "score_random": row["rsr"]} for row in rows]).words("compare")


def test_without_common_rows_the_page_says_so_and_has_its_cautions(write, rows):
    rows = [{**row, "score_random": float("nan"), "rsr_num_tokens": 9} for row in rows]
    page = write(rows, without=["rsr_token_ids"])
    assert not page.sections()["compare"]
    assert "None of the 18 rows has a finite value of every score" in page.words("teachers")
    assert "short responses" in page.report.cautions


@pytest.mark.parametrize("without", [["teacher"], ["problem_id", "prompt"], ["correct"]])
def test_columns_that_are_absent_are_left_out(write, rows, without):
    words = write(rows, without=without).words("compare")
    assert ("same order of teachers" in words.split("agrees with RSR, same")[0]) == (without != ["teacher"])
    assert ("correct first" in words) == (without != ["correct"])
    if without == ["problem_id", "prompt"]:
        ratio, tokens = (np.array([row[name] for row in rows]) for name in ("rsr", "rsr_num_tokens"))
        assert f"{stats.spearmanr(-ratio, tokens).statistic:+.2f}" in words
