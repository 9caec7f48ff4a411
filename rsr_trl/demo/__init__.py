"""The demo's own world: word problems, seven teachers that solve them, and a small student pretrained on such."""

from pathlib import Path


STUDENT_PATH = Path(__file__).parent / "student"  # a checkpoint folder as `from_pretrained` takes it
