"""What the tests of the command line share: running a command, scored data, and a process that stays as it was."""

import json
from dataclasses import dataclass

import datasets
import pytest
from transformers.utils import logging as transformers_logging

from rsr_trl.cli.main import main
from rsr_trl.rsr import (
    ERROR,
    MEAN_CLIPPED_RANK,
    MEAN_SURPRISAL,
    NUM_TOKENS,
    RSR,
    STUDENT,
    TRUNCATED,
    trajectory_means,
    trajectory_rsr,
)


@pytest.fixture(autouse=True)
def _undo_quiet():
    """A command switches bars off for its process; the tests run many commands in one."""
    yield
    datasets.enable_progress_bars()
    transformers_logging.enable_progress_bar()


@dataclass
class Done:
    """What a command did: its exit code, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """What it says to people, without line ends; nothing goes to programs then."""
        assert self.out == ""
        return " ".join(self.err.split())

    @property
    def json(self) -> dict:
        """What it says to programs."""
        assert self.code == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def rsr(capsys):
    """`rsr("score", ...)` runs the command line in this process."""

    def run(*argv) -> Done:
        capsys.readouterr()
        return Done(main(list(map(str, argv))), *capsys.readouterr())

    return run


@pytest.fixture
def scored_rows() -> list[dict]:
    """Three problems x two teachers with known token statistics; one row of problem c couldn't be scored."""
    tokens = {
        ("a", "short"): ([1, 3], [0.5, 1.5]),
        ("a", "long"): ([2, 9, 4], [1.0, 2.0, 1.0]),
        ("b", "short"): ([50, 300], [2.0, 8.0]),
        ("b", "long"): ([1, 2, 3], [0.5, 1.0, 1.5]),
        ("c", "short"): ([7], [2.0]),
        ("c", "long"): ([], []),
    }
    times = {"a": 20, "b": 20, "c": 70}  # long enough to be chosen
    rows = []
    for (problem, teacher), (ranks, surprisals) in tokens.items():
        ranks, surprisals = ranks * times[problem], surprisals * times[problem]
        rank, surprisal = (means[0] for means in trajectory_means(ranks, surprisals, [len(ranks)]))
        row = {"problem_id": problem, "teacher": teacher, "prompt": f"Solve {problem}.", "completion": teacher}
        row |= {RSR: trajectory_rsr(ranks, surprisals), MEAN_CLIPPED_RANK: rank}
        row |= {MEAN_SURPRISAL: surprisal, NUM_TOKENS: len(ranks), TRUNCATED: problem == "b"}
        row |= {ERROR: None, STUDENT: "tiny"}
        if not ranks:
            row |= dict.fromkeys((RSR, MEAN_CLIPPED_RANK, MEAN_SURPRISAL))
            row[ERROR] = "completion is empty (whole: 12 tokens)"
        rows.append(row)
    return rows


@pytest.fixture
def scored_path(tmp_path, scored_rows) -> str:
    """The scored rows as a file."""
    path = tmp_path / "scored.parquet"
    datasets.Dataset.from_list(scored_rows).to_parquet(path)
    return str(path)
