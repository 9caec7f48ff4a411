"""The examples of docs/neighbours.md that train run as they stand."""

import re
from pathlib import Path

import pytest

from tests.training.runs import launch


PAGE = (Path(__file__).parents[2] / "docs" / "neighbours.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("heading", ["REDI", "Weights per row"])
def test_example_runs(heading, tmp_path):
    section = re.search(rf"^## {heading}.*?(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)[0]
    (code,) = re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "example.py").write_text(code)
    assert "weight 0" not in launch("example.py", cwd=tmp_path)
    assert list(tmp_path.glob("out_*/checkpoint-*"))
