import json

import pytest

from rsr_trl.pilot.run import RESULT as WRITTEN
from rsr_trl.report.sections.pilot import RESULT
from rsr_trl.rsr import RSRError


BETTER = {"control": "random", "better": True, "mean": 0.031, "low": 0.012, "high": 0.05, "seeds": 3, "problems": 200}


def test_the_verdict_and_its_numbers(write, rows, tmp_path):
    assert RESULT == WRITTEN  # the file that `rsr pilot` leaves
    with pytest.raises(RSRError, match="no pilot.json"):
        write(rows, pilot=tmp_path)
    rsr = BETTER | {"strategy": "rsr", "metric": "correct", "value": 0.5, "control_value": 0.469}
    loss = BETTER | {"strategy": "<b>own</b>", "metric": "loss", "value": 1.2, "control_value": 1.19}
    table = [rsr, loss | {"better": None, "mean": 0.01, "low": -0.02}]
    verdict, note = "rsr is better than random in accuracy.", "The loss didn't fall."
    result = {"table": table, "verdict": [verdict], "notes": [note], "confidence": 0.95}
    (tmp_path / RESULT).write_text(json.dumps(result))
    page = write(rows, pilot=tmp_path)
    words = page.words("pilot")
    assert verdict in words and note in words
    assert "rsr random 50.0 46.9 3.1 (better) 1.2 to 5.0 3 200" in words
    assert "<b>own</b> random 1.2000 1.1900 0.0100 -0.0200 to 0.0500 3 200" in words
    assert page.sections()["pilot"] and page.text["pilot"].count("excludes zero") == 2
