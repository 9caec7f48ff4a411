import json
import re
import subprocess
import sys

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from rsr_trl.cli import show
from rsr_trl.cli.options import parse
from rsr_trl.demo import STUDENT_PATH
from rsr_trl.rsr import (
    ERROR,
    RSR,
    TOKEN_COLUMNS,
    TOKEN_TOP1,
    TRUNCATED,
    RSRError,
    score_schema,
    trajectory_means,
    trajectory_rsr,
)


HOSTILE = (
    "A \x1b[31mred\x1b[0m \x1b]8;;http://x\x07link\x9b2J bell\x07 \u202eevil\u202c \u2066x\u2069 [bold]b[/bold] [/] "
    "[link=http://x]l[/link] <script>alert(1)</script> {{ braces }} 鱻👨‍👩‍👧 مرحبا\rover\x00\x08"
)
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")  # the colours: the only sequences that may be there


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(str(STUDENT_PATH))


@pytest.fixture
def scored(tokenizer, tmp_path):
    """`scored(text, ...)` makes a scored file of two equal rows whose tokens have ranks 1, 2, 3, ...; its path."""

    def make(text: str, row: dict | None = None, surprisals: list[float] | None = None, without: tuple = ()) -> str:
        ids = tokenizer.encode(text, add_special_tokens=False)
        ranks = list(range(1, len(ids) + 1))
        surprisals = surprisals or [rank / 4 for rank in ranks]
        rank, surprisal = (float(means[0]) for means in trajectory_means(ranks, surprisals, [len(ids)]))
        values = [trajectory_rsr(ranks, surprisals), rank, surprisal, len(ids), False, None, "abc", "def"]
        values += [ids, ranks, surprisals, ids[::-1]]
        columns = dict(zip(score_schema(token_stats=True), values, strict=True)) | {"prompt": "What is 3 + 4?"}
        columns = {name: value for name, value in (columns | (row or {})).items() if name not in without}
        Dataset.from_list([columns] * 2).to_parquet(tmp_path / "scored.parquet")
        return str(tmp_path / "scored.parquet")

    return make


@pytest.fixture
def run(capsys, monkeypatch):
    """`run(path, ...)` runs `rsr show` on row 0 with 80 columns and without colours, and returns its output."""
    for name in ("FORCE_COLOR", "NO_COLOR", "COLORTERM", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")

    def show_row(path: str, *more: str) -> str:
        argv = ["--dataset_name", path, "--row", "0", "--tokenizer", str(STUDENT_PATH), *more]
        capsys.readouterr()
        show.main(*parse(show.make_parser(), argv))
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out

    return show_row


def words(text: str) -> str:
    return " ".join(text.split())


def test_says_what_the_row_is(run, scored):
    path = scored("So 3+4=7.", {"teacher": "solver", "problem_id": 17, "correct": False, TRUNCATED: True})
    text = words(run(path, "--problem_column", "problem_id"))  # asked for: it is the same in all rows
    # Eight tokens of ranks 1 to 8 and surprisals of a quarter of that.
    assert "Row 0: RSR 4.000 (lower = more suitable), 8 tokens mean rank 4.50 / mean surprisal 1.12 nats" in text
    assert "teacher: solver; problem: 17; correct: no; truncated: only the part before the cut is scored" in text
    assert "Prompt: What is 3 + 4?" in text


def test_without_colours_surprising_tokens_have_marks(run, scored):
    text = run(scored("So 3+4=7."))
    # From 2 nats on: the eighth token, of rank 8.
    assert "So 3+4=7⟦.⟧₈" in text and text.count("⟦") == 2  # once in the legend
    assert "\x1b" not in text and "surprisal of 2 nats or more" in text
    # Nothing is said of columns that aren't there.
    assert not any(word in text for word in ("teacher", "problem", "correct", "truncated", "student:", "clipped"))


def test_turns_have_a_border(run, scored):
    said = ("So it is 7", "Yes.")
    messages = [{"role": "assistant", "content": said[0]}, {"role": "user", "content": "Really?"}]
    row = {"messages": [*messages, {"role": "assistant", "content": said[1]}]}
    path = scored("".join(said), row, without=["prompt"])
    lines = run(path).splitlines()
    border = next(i for i, line in enumerate(lines) if "turn 2 ─" in line)
    assert "So" in lines[border - 1] and "Yes" in words(lines[border + 1]).replace("⟦", "").replace("⟧", "")
    sentences = json.loads(run(path, "--json"))["sentences"]
    assert [(one["turn"], one["text"]) for one in sentences] == [(1, said[0]), (2, said[1])]


def test_by_rank(run, scored):
    text = run(scored("So 3+4=7. So 5+6=11, and 7+8=15."), "--color_by", "rank")
    marked = re.findall(r"⟦.+?⟧([₀-₉]+)", text)[1:]
    assert marked == [str(rank).translate(show.SUBSCRIPTS) for rank in range(21, 21 + len(marked))]
    assert "a rank of 21 or more" in text and marked


def test_colours_are_those_of_the_ramp(run, scored, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLORTERM", "truecolor")
    text = run(scored("So 3+4=7.", surprisals=[0.05, 0.2, 0.7, 1.5, 2.5, 8.0, 0.0, 4.0]))
    body = text[text.index("of each sentence") :]
    backgrounds = [tuple(map(int, found)) for found in re.findall(r"48;2;(\d+);(\d+);(\d+)m", body)]
    ramp = [tuple(bytes.fromhex(background[1:])) for background, _ in show.RAMP]
    assert backgrounds == [ramp[step] for step in (0, 1, 2, 3, 4, 5, 0, 5)]
    assert "⟦" not in text
    for label in ("0-0.1", "0.1-0.5", "2-4", "4 or more"):
        assert label in ESCAPE.sub("", text)
    monkeypatch.setenv("NO_COLOR", "1")  # wins over a terminal with colours
    text = run(scored("So 3+4=7."))
    assert "48;" not in text and "⟦.⟧₈" in text


def test_colours_can_be_read():
    """WCAG contrast of each foreground to its background, and lightness that rises: no hue is needed."""

    def luminance(color: str) -> float:
        parts = (part / 255 for part in bytes.fromhex(color[1:]))
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    values = [luminance(background) for background, _ in show.RAMP]
    assert values == sorted(values)
    for background, foreground in show.RAMP:
        low, high = sorted((luminance(background), luminance(foreground)))
        assert (high + 0.05) / (low + 0.05) > 4.5


def test_each_sentence_has_its_ratio(run, scored):
    surprisals = [1.0] * 9 + [2.0] * 11 + [0.5] * 2
    text = run(scored("So 3+4=7.\nThen 2.5 each is right.\nYes", surprisals=surprisals))
    lines = [line.split(maxsplit=1) for line in text[text.index("of each") :].splitlines()[1:4]]
    # Ranks 1 to 9, 10 to 20, and 21 and 22.
    assert [line[0] for line in lines] == ["5.00", "7.50", "(43.00)"]
    assert lines[0][1].startswith("So 3+4=7.⏎") and lines[1][1].startswith("⟦The⟧₁₀⟦n⟧₁₁")
    assert "Suits best (RSR 5.00): So 3+4=7." in text
    assert "Suits least (RSR 7.50): Then 2.5 each is right." in text


def test_lists_the_most_surprising_tokens(run, scored, tokenizer):
    text = run(scored("So 3+4=7.", surprisals=[0.1, 0.2, 0.3, 9.0, 0.5, 0.6, 0.7, 1.0]))
    listed = text[text.index("The most surprising") :].splitlines()
    rows = [line.split() for line in listed if re.search(r"\d\.\d\d ", line)]
    # After "So 3": the fourth token, and what the student says instead is the fourth from behind.
    assert rows[0] == ["So", "3", "+", "4", "1e-04", "9.00", "4"]
    assert rows[1] == ["So", "3+4=7", ".", "8", "36.8%", "1.00", "So"]
    assert [row[-2] for row in rows] == sorted((row[-2] for row in rows), reverse=True)


def test_another_r_max_is_said_and_the_students_own_choice_only_where_it_is(run, scored):
    text = run(scored("So 3+4=7.", without=[TOKEN_TOP1]), "--r_max", "2")
    assert "student says" not in text and "prob." in text
    # (1 + 2 * 7) / 9
    assert "RSR 1.667" in text and "Ranks are clipped at 2 here. The dataset's own rsr is 4.000." in words(text)


@pytest.mark.parametrize("color", [False, True])
def test_hostile_content_is_text(run, scored, monkeypatch, color):
    if color:
        monkeypatch.setenv("FORCE_COLOR", "1")
    row = {"teacher": HOSTILE, "problem_id": HOSTILE, "prompt": HOSTILE}
    text = run(scored(HOSTILE, row))
    text = ESCAPE.sub("", text) if color else text
    assert not set(map(ord, text)) & {*range(10), *range(11, 32), *range(0x7F, 0xA0), 0x202E, 0x202C, 0x2066, 0x2069}
    together = text.replace("⟦", "").replace("⟧", "").translate(dict.fromkeys(map(ord, "₀₁₂₃₄₅₆₇₈₉\n ")))
    parts = ["␛[31mred", "␛]8;;http://x␇link", "\\x9b2J", "\\u202eevil", "[bold]b[/bold]", "[/]", "[link=http://x]"]
    for shown in (*parts, "<script>alert(1)</script>", "{{braces}}", "鱻", "␍over␀␈"):
        assert shown in together


def test_a_conversation_a_teacher_that_looks_like_markup_and_a_word_without_end(run, scored):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why [red]?"}]
    text = run(scored("x" * 30_000, {"prompt": messages, "teacher": "[red]"}))
    assert "Prompt: [system] Be brief. [user] Why [red]?" in text and "teacher: [red]" in text
    assert "".join(text.split()).replace("⟦", "").count("x") >= 30_000


def test_json(run, scored, tokenizer):
    path = scored("So 3+4=7.\nYes 鱻", {"teacher": "solver", "problem_id": "p1", "correct": True})
    result = json.loads(run(path, "--json", "--r_max", "3", "--problem_column", "problem_id"))
    ids = tokenizer.encode("So 3+4=7.\nYes 鱻", add_special_tokens=False)
    assert "".join(token["text"] for token in result["tokens"]) == "So 3+4=7.\nYes 鱻"
    assert [token["rank"] for token in result["tokens"]] == list(range(1, len(ids) + 1))
    assert set(result["tokens"][0]) == {"text", "rank", "surprisal", "probability", "top1"}
    assert [part["text"] for part in result["sentences"]] == ["So 3+4=7.\n", "Yes 鱻"]
    surprisals = [rank / 4 for rank in range(1, len(ids) + 1)]
    assert result["rsr"] == pytest.approx(trajectory_rsr(range(1, len(ids) + 1), surprisals, 3))
    assert (result["row"], result["teacher"], result["problem"], result["correct"]) == (0, "solver", "p1", True)
    assert result["direction"] == "lower = more suitable" and result["student"] is None


def test_a_trajectory_that_the_student_foresaw(run, scored):
    path = scored("So 3+4=7.", surprisals=[0.0] * 8)
    assert "RSR ∞ (lower" in run(path)
    result = json.loads(run(path, "--json"))
    assert result["rsr"] is None and result["sentences"][0]["rsr"] is None


@pytest.mark.parametrize(
    "data, options, message",
    [
        ({}, ["--row", "2"], r"no row 2: .* has 2 rows, counted from 0"),
        ({}, ["--row", "-1"], r"no row -1: .* has 2 rows, counted from 0"),
        ({"row": {RSR: None, ERROR: "completion is empty"}}, [], "Row 0 has no score: completion is empty"),
        ({}, ["--teacher_column", "author"], "no column 'author'.*prompt"),
        ({"without": list(TOKEN_COLUMNS)}, [], "rsr_token_ids.*--token_stats"),
        ({"without": [RSR]}, [], "no scores.*rsr score --token"),
    ],
)
def test_what_cant_be_shown_is_said_with_what_to_do(run, scored, data, options, message):
    with pytest.raises(RSRError, match=message):
        run(scored("So.", **data), *options)


def test_a_picture_that_nobody_reads_is_no_error(scored):
    options = ["--dataset_name", scored("Add 3 and 4."), "--row", "0", "--tokenizer", str(STUDENT_PATH)]
    command = [sys.executable, "-m", "rsr_trl", "show", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()  # as behind `| true`
    assert (process.stderr.read(), process.wait()) == ("", 141)
