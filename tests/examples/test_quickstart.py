"""The notebook runs from its first cell to its last."""

import json
from pathlib import Path

import pytest

from rsr_trl.demo import STUDENT_PATH


NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:With 12 problems:UserWarning", "ignore:.*fewer than 32 scored tokens:UserWarning")
def test_every_cell_runs(monkeypatch):
    monkeypatch.setattr("rsr_trl.demo.find_smollm2", lambda: None)  # the built-in student is quicker
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    names = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
    assert names["student"] == str(STUDENT_PATH)
    assert len(set(names["best"]["problem_id"])) == len(names["best"]) > 0
    assert min(names["best"]["rsr_num_tokens"]) >= 32
    outputs = json.dumps([cell["outputs"] for cell in cells])
    assert "text/html" in outputs and "traceback" not in outputs
