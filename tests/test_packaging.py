"""The package as a whole: what it exports, what it imports, and the pins that have to agree."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import rsr_trl
from rsr_trl.cli.main import COMMANDS
from rsr_trl.rsr import CITATION


ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rsr_trl"


def test_every_export_exists_and_is_lazy():
    code = "import sys, rsr_trl; dir(rsr_trl); print('torch' in sys.modules, 'datasets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    for name in rsr_trl.__all__:
        assert getattr(rsr_trl, name).__name__ == name
        assert name in dir(rsr_trl)
    assert set(rsr_trl._HOME) == set(rsr_trl.__all__)


def test_the_readme_cites_the_paper_as_the_cards_do():
    assert f"```bibtex\n{CITATION}\n```" in (ROOT / "README.md").read_text()


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'RSRScorrer'"):
        rsr_trl.RSRScorrer  # noqa: B018


def test_every_command_has_its_file_and_every_file_its_line():
    files = {path.stem for path in (PACKAGE / "cli").glob("*.py") if "\ndef make_parser(" in path.read_text()}
    assert files == set(COMMANDS)


def test_typed():
    assert (PACKAGE / "py.typed").is_file()


def test_constraints_meet_what_the_project_asks_for():
    from packaging.requirements import Requirement

    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}
    assert pins["torch"] == "2.13.0"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[requirement.name.lower()]), line
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert set(re.findall(r"ruff==([\d.]+)", hooks)) == {pins["ruff"]}


def test_every_import_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for name, lines in project["optional-dependencies"].items() if name != "dev" for line in lines]
    lines = [*project["dependencies"], *extras]
    beside = {"rsr_trl", "vllm"}  # vLLM has an environment of its own (`make vllm`): it pins other versions
    imported = {"pyyaml": "yaml", "pillow": "PIL"}  # under other names than they are installed
    declared = {name.replace("-", "_") for line in lines for name in re.split(r"[^\w-]", line)[:1]}
    declared = {imported.get(name, name) for name in declared}
    undeclared = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            roots = {name.split(".")[0] for name in names}
            undeclared |= {f"{path.name}: {name}" for name in roots - declared - sys.stdlib_module_names - beside}
    assert not undeclared


@pytest.mark.slow
def test_the_api_reference_holds_every_public_name(tmp_path):
    subprocess.run([sys.executable, ROOT / "docs" / "make_api.py", tmp_path], check=True, cwd=ROOT)
    page = (tmp_path / "rsr_trl.html").read_text()
    assert [name for name in rsr_trl.__all__ if f'id="{name}"' not in page] == []
    assert "[<code>" not in page  # links of doc-builder, which pdoc doesn't know
