import base64
import hashlib
import importlib.util
import re

import pytest

from rsr_trl.report.page import SECTIONS, write_report
from rsr_trl.rsr import MEAN_SURPRISAL, RSR, STUDENT, TOKEN_COLUMNS, TOKEN_RANKS, RSRError
from tests.report.pages import UNSCORED, as_dataset, scored_rows


ALL = dict.fromkeys(SECTIONS, True) | {"training": False, "pilot": False}
del ALL["provenance"]  # of an experimental method: there where its columns are


def test_every_part_that_the_data_can_fill_is_there_and_says_the_direction(write, rows):
    page = write(rows)
    assert page.sections() == ALL
    assert "lower = more suitable" in page.words("page")
    for section in ("teachers", "distribution", "plane", "reading", "choice"):
        assert re.search("more suitable|most suitable", page.words(section)), section


def test_the_page_needs_nothing_but_itself(write, rows):
    page, places = write(rows), ("src", "href", "srcset", "xlink:href")
    addresses = [attrs[name] for _, attrs in page.tags for name in places if attrs.get(name)]
    assert addresses and all(address.startswith(("#", "data:")) for address in addresses)
    style = re.search(r"<style>(.*?)</style>", page.html, re.DOTALL)[1]
    assert "@import" not in style and "url(" not in style
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv"))
    script = re.search(r"<script>(.*?)</script>", page.html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {address[1:] for address in addresses if address.startswith("#")}
    assert targets | set(re.findall(r"url\(#([^)]+)\)", page.html)) <= set(ids)
    # Every colour of a chart has a value in light and in dark.
    used = set(re.findall(r"var\(--(\w+)\)", "".join(re.findall(r"<svg.*?</svg>", page.html, re.DOTALL))))
    themes = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[:2]
    light, dark = (set(re.findall(r"--(\w+):", theme)) for theme in themes)
    assert {"ink", "line", "c0"} <= used <= light == dark


@pytest.mark.parametrize(
    "without, absent, advice",
    [
        (["teacher"], {"teachers"}, "--teacher_column"),
        (["problem_id", "prompt"], {"problem"}, "--problem_column"),
        ([TOKEN_RANKS], {"reading"}, "rsr score --token_stats"),
        (["teacher", "problem_id", "prompt", "correct", *TOKEN_COLUMNS], {"teachers", "problem", "reading"}, ""),
    ],
)
def test_without_columns_a_part_says_how_to_get_it(write, rows, without, absent, advice):
    page = write(rows, without=without)
    assert page.sections() == ALL | dict.fromkeys(absent, False)
    for section in absent:
        assert advice in page.words(section)
        assert SECTIONS[section] in page.report.missing


def test_without_correctness_or_a_tokenizer_the_rest_of_the_part_stays(write, rows):
    page = write(rows, without=["correct"], tokenizer=None, rows=[0])
    assert "--correctness_column" in page.words("distribution") and "Spearman" in page.words("distribution")
    assert "correct ones" not in page.words("choice")
    assert not page.sections()["reading"] and "--tokenizer" in page.words("reading")
    assert page.sections()["problem"] and rows[0]["completion"] in page.text["problem"]


def test_columns_are_found_by_name_and_named_on_the_page(write, rows):
    renamed = [{"question_id": row.pop("problem_id"), "is_correct": row.pop("correct"), **row} for row in rows]
    words = write(renamed).words("method")
    assert "column question_id" in words and "column is_correct" in words and "column teacher" in words
    assert not write(renamed, problem_column="none").sections()["problem"]


def test_a_column_with_nulls_is_passed_over_and_said(write, rows):
    rows[3]["teacher"] = None
    assert not write(rows).sections()["teachers"]
    rows[3]["teacher"], rows[4]["problem_id"] = "ann", None
    page = write(rows)
    assert "Column 'problem_id' is null in 1 row," in page.words("teachers")
    assert "column prompt" in page.words("method")
    with pytest.raises(RSRError, match="'problem_id' is null in 1"):
        write(rows, problem_column="problem_id")


def test_rows_without_a_score_are_counted_and_never_chosen(write, rows):
    rows[0] |= UNSCORED
    rows[4] |= {RSR: float("inf"), MEAN_SURPRISAL: 0.0}
    page = write(rows, rows=[0])
    assert "1 couldn't be scored" in page.words("headline")
    assert "1: completion is empty" in page.words("method")
    assert {"not scored", "infinite"} <= page.report.cautions.keys()
    assert "Not scored: completion is empty" in page.words("reading")


@pytest.mark.parametrize("prefer", ["low", "high"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_tiny_datasets_make_a_page(write, rows, count, prefer):
    assert f"{count} traject" in write(rows[:count], prefer=prefer).words("headline")


def test_many_teachers_of_few_words_each(write, tiny_tokenizer):
    page = write(scored_rows(tiny_tokenizer, 2, tuple(f"teacher {i}" for i in range(45))))
    assert page.words("teachers").count("teacher 4") >= 6  # 4 and 40 to 44, in the table
    assert "34 others" in page.words("plane")


def test_the_same_data_gives_the_same_page_and_only_a_report_is_replaced(write, rows, tmp_path):
    pages = [re.sub(r"Page written</dt><dd><bdi>[^<]*", "", write(rows).html) for _ in range(2)]
    assert pages[0] == pages[1]
    assert write(rows[:9]).words("headline").startswith("In short Data 9 trajectories")
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    with pytest.raises(RSRError, match="isn't a report, so it isn't replaced"):
        write(rows, "mine.html")
    assert (tmp_path / "mine.html").read_text() == "<p>mine</p>"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.html", "report.html"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"name": "page.json"}, "must end in .html"),
        ({"teacher_column": "author"}, "no column 'author'"),
        ({"correctness_column": "teacher"}, "'teacher' must hold true or false"),
        ({"prefer": "lowest"}, "prefer must be"),
        ({"rows": [18]}, "no row 18 .* rows 0 to 17"),
        ({"run": "absent"}, "no score history in 'absent'"),
        ({"tokenizer": "./absent"}, "no folder"),
        ({"without": [RSR]}, "no column 'rsr'.*rsr score"),
    ],
)
def test_wrong_options_are_said(write, rows, options, message, tmp_path):
    with pytest.raises(RSRError, match=message):
        write(rows, **options)
    assert not list(tmp_path.iterdir())


def test_datasets_that_say_nothing_are_refused(write, rows):
    with pytest.raises(RSRError, match="None of the 18 rows has a finite RSR.*completion is empty"):
        write([row | UNSCORED for row in rows])
    with pytest.raises(RSRError, match="2 different students"):
        write([rows[0] | {STUDENT: "other"}, *rows[1:]])
    with pytest.raises(RSRError, match="no rows"):
        write(as_dataset(rows).select([]))


def test_without_matplotlib_one_error_says_what_to_install(tmp_path, rows, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    with pytest.raises(ImportError, match=r"pip install rsr-trl\[report\]"):
        write_report(as_dataset(rows), tmp_path / "report.html")


def test_a_dataset_is_read_by_name_too(tmp_path, rows, tiny_tokenizer):
    as_dataset(rows).to_parquet(tmp_path / "scored.parquet")
    report = write_report(str(tmp_path / "scored.parquet"), tmp_path / "new" / "report.html", tokenizer=tiny_tokenizer)
    assert report.path.is_file() and report.num_bytes == report.path.stat().st_size
