"""What a dataset calls its teachers, problems and columns is shown in the terminal, and not obeyed by it."""

import numpy as np
import pytest
from datasets import Dataset


EVIL = "\x1b[2J\x1b]0;x\x07[bold red]evil[/bold red] [/] \x9b31m \u202egpj"
SHOWN = "␛[2J␛]0;x␇[bold red]evil[/bold red] [/] \\x9b31m \\u202egpj"
COLUMN = "right \x1b[31m[red]"


@pytest.fixture
def pool(tmp_path) -> str:
    """A scored file of two teachers on 30 problems, the better of which has a hostile name."""
    rng = np.random.default_rng(0)
    rows = []
    for problem in range(30):
        for place, name in enumerate((EVIL, "b")):
            rank, surprisal = 2 + place + float(rng.uniform()), 0.7
            row = {"problem_id": f"{EVIL} {problem}", "teacher": name, COLUMN: place == 0, "rsr": rank / surprisal}
            row |= {"rsr_mean_clipped_rank": rank, "rsr_mean_surprisal": surprisal, "rsr_num_tokens": 100 + problem}
            rows.append(row | {"rsr_truncated": False, "prompt": EVIL, "completion": EVIL, "rsr_error": None})
    path = tmp_path / "pool.parquet"
    Dataset.from_list(rows).to_parquet(path)
    return str(path)


@pytest.mark.parametrize(
    "command, shows",
    [
        (["teachers", "--correctness_column", COLUMN], SHOWN),
        (["teachers", "--problem_column", "none"], SHOWN),
        (["select", "--output_dir", "OUT"], SHOWN),
        (["select", "--output_dir", "OUT", "--require", COLUMN], SHOWN),
        (["compare", "--correctness_column", COLUMN], SHOWN),
        (["report", "--output_dir", "OUT"], SHOWN),
        (["teachers", "--teacher_column", EVIL], "[bold red]evil[/bold red]"),
        (["select", "--output_dir", "OUT", "--group_column", "nothing"], "[red]"),
        (["compare", "--scores", f"rsr,{COLUMN}"], "[red]"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value[:1] + value[-2:-1]),
)
def test_hostile_names_are_shown_and_not_obeyed(rsr, pool, tmp_path, command, shows, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    words = [str(tmp_path / "out") if word == "OUT" else word for word in command]
    done = rsr(words[0], "--dataset_name", pool, *words[1:])
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(done.out + done.err), repr(done.err)
    assert shows in done.err, done.err
