import json

import pytest


COMPARISON = {"told": True, "better": True, "mean": 0.031, "low": 0.012, "high": 0.05, "seeds": 3, "problems": 200}


@pytest.fixture
def pilot(tmp_path):
    """A pilot's folder with a strategy that is better in answers, and one that can't be told apart in loss."""
    rsr = {"strategy": "rsr", "control": "random", "metric": "correct", "value": 0.5, "control_value": 0.469}
    loss = {"strategy": "<b>own</b>", "control": "random", "metric": "loss", "value": 1.2, "control_value": 1.19}
    result = {
        "table": [rsr | COMPARISON, loss | COMPARISON | {"told": False, "better": None, "mean": 0.01, "low": -0.02}],
        "verdict": ["rsr is better than random in share of right answers."],
        "notes": ["The loss didn't fall."],
        "confidence": 0.95,
    }
    (tmp_path / "pilot").mkdir()
    (tmp_path / "pilot" / "pilot.json").write_text(json.dumps(result))
    return tmp_path / "pilot"


def test_the_verdict_and_its_numbers(write, rows, pilot):
    page = write(rows, pilot=pilot)
    words = page.words("pilot")
    assert "rsr is better than random in share of right answers." in words and "The loss didn't fall." in words
    assert "rsr random 50.0 46.9 3.1 (better) 1.2 to 5.0 3 200" in words
    assert "<b>own</b> random 1.2000 1.1900 0.0100 -0.0200 to 0.0500 3 200" in words
    assert page.sections()["pilot"] and page.text["pilot"].count("excludes zero") == 2


def test_a_folder_without_result_is_an_error(write, rows, tmp_path):
    with pytest.raises(ValueError, match="no pilot.json"):
        write(rows, pilot=tmp_path)


def test_what_rsr_pilot_writes_has_all_that_is_read():
    from rsr_trl.report.sections.pilot import METRICS, RESULT

    folder = pytest.importorskip("rsr_trl.pilot.folder", reason="there is no rsr pilot in this package")
    from rsr_trl.pilot.verdict import CORRECT, LOSS

    assert RESULT == folder.RESULT
    assert set(METRICS) == {CORRECT.name, LOSS.name}
