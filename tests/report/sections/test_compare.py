import pytest

from rsr_trl.selection.compare import compare_scores
from tests.report.pages import as_dataset, scored_rows


@pytest.mark.parametrize("without", [[], ["teacher"], ["problem_id", "prompt"], ["correct"]])
def test_the_table_says_what_compare_scores_finds(write, tiny_tokenizer, without):
    dataset = as_dataset(scored_rows(tiny_tokenizer, 10), without)
    columns = [None if name in without else name for name in ("teacher", "problem_id", "correct")]
    comparison = compare_scores(dataset, None, None, *columns)
    words = write(dataset).words("compare")
    for score in comparison.scores[1:]:
        agreement = f" {score['teacher_agreement']:+.2f}" if columns[0] else ""
        expected = f"{score['name']} ({score['prefer']}) {score['rank_correlation']:+.2f} {score['overlap']:.0%}"
        assert f"{expected}{agreement} {score['length_correlation']:+.2f} " in words
    assert f"by chance: {comparison.chance_overlap:.0%}" in words
    assert ("same order of teachers" in words.split("agrees with RSR, same")[0]) == (without != ["teacher"])
    assert ("correct first" in words) == (without != ["correct"])


def test_added_scores_are_compared_and_where_they_have_no_rows_the_page_says_so(write, rows):
    assert "random (low)" in write([{**row, "score_random": row["rsr"]} for row in rows]).words("compare")
    rows = [{**row, "score_random": float("nan"), "rsr_num_tokens": 9} for row in rows]
    page = write(rows, without=["rsr_token_ids"])
    assert not page.sections()["compare"]
    assert "None of the 18 rows has a finite value of every score" in page.words("teachers")
    assert "short responses" in page.report.cautions
