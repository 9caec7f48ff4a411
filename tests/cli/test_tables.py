import io

import pytest
from rich.console import Console

from rsr_trl.cli.tables import Column, print_next, print_table


def printed(rows, columns, width=80, **options) -> list[str]:
    out = Console(file=io.StringIO(), width=width)
    print_table(out, rows, columns, **options)
    return [line.rstrip() for line in out.file.getvalue().splitlines() if line.strip()]


TEACHER = Column("teacher", "teacher")


def test_cells_are_keys_or_functions_and_names_are_no_markup():
    rows = [{"teacher": "[red]", "rsr": 2}, {"teacher": "evil\u202egnp", "rsr": 10}]
    lines = printed(rows, [TEACHER, Column("RSR", lambda row: f"{row['rsr']:.1f}"), Column("gone", "x", shown=False)])
    assert [line.split() for line in lines if "─" not in line] == [
        ["teacher", "RSR"],
        ["[red]", "2.0"],
        ["evil\\u202egnp", "10.0"],
    ]
    assert lines[-1].endswith(" 10.0") and lines[-2].endswith("  2.0")  # numbers stand one under the other


def test_what_is_too_much_is_said():
    rows = [{"teacher": f"t{i}"} for i in range(23)]
    lines = printed(rows, [TEACHER], limit=20, things="teacher")
    assert lines[-2].strip() == "t19" and lines[-1] == "... and 3 more teachers; --json lists them all."
    assert "more" not in printed(rows, [TEACHER], limit=None)[-1]


def test_a_narrow_terminal_loses_optional_columns_from_the_right_and_breaks_no_word():
    name = "Nemotron-Ultra-Instruct-Reasoning"
    columns = [TEACHER, Column("RSR", "x"), *(Column(f"score {i}", "x", optional=True) for i in range(9))]
    lines = printed([{"teacher": name, "x": "12.345"}], columns)
    assert max(map(len, lines)) <= 80 and name in lines[-2]
    assert lines[0].split()[-2:] == ["score", "2"]
    assert lines[-1] == f"--json has more columns: {', '.join(f'score {i}' for i in range(3, 9))}."
    lines = printed([{"teacher": name, "x": "12.345"}], columns[:2], width=34)
    assert max(map(len, lines)) <= 34
    assert [line.split()[0] for line in lines[-2:]] == ["Nemotron-Ultra-", "Instruct-Reasoning"]


@pytest.mark.parametrize("width", [40, 80])
def test_next_command_is_one_line_that_a_shell_reads(width):
    out = Console(file=io.StringIO(), width=width)
    print_next(out, "rsr", "select", "--dataset_name", "my data[1]", "--output_dir", "x" * 40)
    assert out.file.getvalue() == f"Next: rsr select --dataset_name 'my data[1]' --output_dir {'x' * 40}\n"
