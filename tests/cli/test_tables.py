import io

import pytest
from rich.console import Console

from rsr_trl.cli.options import DatasetArguments, StudentArguments
from rsr_trl.cli.tables import Column, beside, given, print_next, print_table, say


TEACHER = Column("teacher", "teacher")


def printed(rows, columns, width=80, **options) -> list[str]:
    out = Console(file=io.StringIO(), width=width)
    print_table(out, rows, columns, **options)
    lines = [line.rstrip() for line in out.file.getvalue().splitlines() if line.strip()]
    assert max(map(len, lines)) <= width
    return [line for line in lines if "─" not in line]


def test_cells_are_keys_or_functions_and_names_are_no_markup():
    rows = [{"teacher": "[red]", "rsr": 2}, {"teacher": "evil\u202egnp", "rsr": 10}]
    lines = printed(rows, [TEACHER, Column("RSR", lambda row: f"{row['rsr']:.1f}"), Column("gone", "x", shown=False)])
    assert [line.split() for line in lines] == [["teacher", "RSR"], ["[red]", "2.0"], ["evil\\u202egnp", "10.0"]]
    assert lines[-1].endswith(" 10.0") and lines[-2].endswith("  2.0")  # numbers stand one under the other
    assert printed([], [TEACHER, Column("RSR", "rsr")]) == [" teacher   RSR"]


def test_numbers_are_formatted_and_names_are_not():
    rows = [{"teacher": 2024, "tokens": 1234, "rsr": 2.3456}, {"teacher": 7, "tokens": 5, "rsr": None}]
    lines = printed(rows, [TEACHER, Column("tokens", "tokens"), Column("RSR", "rsr", digits=3)])
    assert [line.split() for line in lines[1:]] == [["2024", "1,234", "2.346"], ["7", "5", "–"]]


def test_what_is_too_much_is_said():
    rows = [{"teacher": f"t{i}"} for i in range(23)]
    lines = printed(rows, [TEACHER], limit=20, things="teacher")
    assert lines[-2].strip() == "t19" and lines[-1] == "... and 3 more teachers; --json lists them all."
    assert "more" not in printed(rows, [TEACHER], limit=None)[-1]


def test_a_narrow_terminal_loses_optional_columns_and_breaks_no_word():
    rows = [{"teacher": "Nemotron-Ultra-Instruct-Reasoning", "x": "12.345"}]
    columns = [TEACHER, Column("RSR", "x"), *(Column(f"score {i}", "x", optional=True) for i in range(9))]
    lines = printed(rows, columns)
    assert lines[0].endswith("score 2") and rows[0]["teacher"] in lines[1]
    assert lines[-1] == f"--json has more columns: {', '.join(f'score {i}' for i in range(3, 9))}."
    columns = [TEACHER, Column("RSR (lower = better)", "x")]
    assert [line.split() for line in printed(rows, columns, width=50)] == [
        ["RSR"],
        ["(lower"],
        ["="],
        ["teacher", "better)"],
        ["Nemotron-Ultra-Instruct-Reasoning", "12.345"],
    ]
    lines = printed(rows, columns, width=34)
    assert [line.split()[0] for line in lines[-2:]] == ["Nemotron-Ultra-", "Instruct-Reasoning"]


@pytest.mark.parametrize("width", [45, 80])
def test_a_long_text_loses_its_end_before_a_name_is_broken(width):
    rows = [{"teacher": "Llama-3.1-8B-Instruct", "rsr": 2.5, "text": "First add the two numbers. " * 3}]
    lines = printed(rows, [TEACHER, Column("RSR", "rsr"), Column("response", "text", justify="left")], width=width)
    assert lines[1].split()[:3] == ["Llama-3.1-8B-Instruct", "2.50", "First"] and lines[1].endswith("…")


@pytest.mark.parametrize("width", [40, 80])
def test_next_command_is_one_line_that_a_shell_reads(width):
    out = Console(file=io.StringIO(), width=width)
    print_next(out, "rsr", "select", "--dataset_name", "my data[1]", "--output_dir", "x" * 40)
    assert out.file.getvalue() == f"Next: rsr select --dataset_name 'my data[1]' --output_dir {'x' * 40}\n"


def test_given_options_are_those_that_differ_from_their_defaults():
    assert given(DatasetArguments("a b.jsonl")) == ["--dataset_name", "a b.jsonl"]
    arguments = StudentArguments("m", token_stats=True, r_max=50, dtype="auto", max_length=None)
    assert given(arguments) == ["--model_name_or_path", "m", "--r_max", "50", "--token_stats"]


def test_folders_proposed_beside_a_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pool" / "v1.0").mkdir(parents=True)
    (tmp_path / "pool" / "a.jsonl").touch()
    assert beside("pool/a.jsonl", "scored") == "pool/a-scored"
    assert beside("absent/a.b.jsonl.gz", "scored") == "a.b-scored"
    assert beside("pool/", "scored") == "pool-scored"
    assert beside("pool/v1.0", "scored") == "pool/v1.0-scored"
    assert beside(f"{tmp_path}/pool", "scored") == f"{tmp_path}/pool-scored"
    assert beside("me/on-the-hub", "scored") == "on-the-hub-scored"


def test_a_path_longer_than_the_terminal_stays_whole_and_other_lines_wrap_between_words():
    path, lines = f"/data/{'folder/' * 15}report.html", io.StringIO()
    out = Console(file=lines, width=60)
    say(out, f" -> {path}", "Wrote it")
    assert f" {path}\n" in lines.getvalue()
    say(out, "word " * 30)
    assert max(map(len, lines.getvalue().splitlines()[1:])) <= 60
