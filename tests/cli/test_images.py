"""A dataset with images through the commands: scored as it is stored, streamed or not, and looked at."""

import io
import re

import pytest
from datasets import Image, List

from rsr_trl.data import find_columns, load
from rsr_trl.report.images import images_of
from rsr_trl.rsr import ERROR
from tests.scoring.seeing import build, picture
from tests.training.test_images import pool


BROKEN = b"<script>alert(1)</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A student, and a pool whose last row has a broken image."""
    folder = tmp_path_factory.mktemp("images")
    for part in build("llava"):
        part.save_pretrained(folder / "student")
    pool(images=[{"bytes": BROKEN, "path": None}]).to_parquet(str(folder / "pool.parquet"))
    return folder


@pytest.fixture
def score(folder, rsr, tmp_path):
    def score(*more: str):
        options = ["--model_name_or_path", folder / "student", "--dataset_name", folder / "pool.parquet"]
        done = rsr("score", *options, "--output_dir", tmp_path / "out", "--token_stats", *more)
        assert done.code == 0
        return done, load(f"{tmp_path / 'out'}")

    return score


@pytest.mark.parametrize("more", [[], ["--dataset_streaming", "--shard_rows", "3"]])
def test_images_are_written_as_they_were(folder, score, more):
    done, scored = score(*more)
    source = load(str(folder / "pool.parquet"))
    assert scored.features["images"] == source.features["images"] == List(Image())
    assert scored.data["images"].to_pylist() == source.data["images"].to_pylist()
    assert scored[ERROR][:-1] == [None] * 7 and "can't be read" in scored[ERROR][-1]
    assert "the image can't be read: it isn't in a format that Pillow knows" in done.text


def test_what_was_scored_can_be_chosen_and_looked_at(score, rsr, tmp_path):
    score()
    out, page = tmp_path / "out", tmp_path / "page"
    chosen = rsr(
        "select",
        "--dataset_name",
        out,
        "--group_column",
        "problem",
        "--min_tokens",
        0,
        "--output_dir",
        tmp_path / "chosen",
    )
    assert chosen.code == 0 and len(load(str(tmp_path / "chosen"))) == 4
    assert "2 teachers on 3 problems" in rsr("teachers", "--dataset_name", out, "--problem_column", "problem").text
    shown = rsr("show", "--dataset_name", out, "--row", 0).out
    assert "Prompt: [image] What is in picture 0?" in shown and re.search(r"Image 1: 30 x 30, PNG, \d kB", shown)
    assert "images" not in rsr("show", "--dataset_name", out, "--row", 4, "--json").json  # a problem without
    assert rsr("report", "--dataset_name", out, "--output_dir", page, "--rows", 7).code == 0
    text = (page / "report.html").read_text()
    assert text.count('<img src="data:image/jpeg;base64,') >= 2 and "1: can&#39;t be read" in text
    assert "alert" not in text and len(text) < 300_000


def test_thumbnails_are_small_and_few():
    buffer = io.BytesIO()
    picture(0, 900, 600).save(buffer, "PNG")
    images = images_of({"images": [{"bytes": buffer.getvalue(), "path": None}] * 12}, thumbnails=True)
    assert [one.thumbnail is None for one in images] == [False] * 8 + [True] * 4
    assert (images[0].width, images[0].height) == (160, 107) and len(images[0].thumbnail) < 20_000
    assert images[0].text.startswith("900 x 600, PNG, ")


def test_the_words_of_a_question_do_not_name_a_problem_with_images():
    dataset = pool().map(lambda row: {"question": "What is it?" if row["teacher"] == "A" else "What?"})
    assert find_columns(dataset).problem is None
    assert find_columns(dataset.remove_columns("images")).problem is not None
