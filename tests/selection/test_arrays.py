"""How columns and numbers are told."""

from rsr_trl.data import counted


def test_counts():
    assert [counted(1, "trajectory"), counted(2, "trajectory"), counted(1200, "problem")] == [
        "1 trajectory",
        "2 trajectories",
        "1,200 problems",
    ]
