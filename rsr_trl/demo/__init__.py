"""The demo's own world: word problems, seven teachers that solve them, and a small student pretrained on such."""

import json
from pathlib import Path


STUDENT_PATH = Path(__file__).parent / "student"  # a checkpoint folder as `from_pretrained` takes it
# Nouns and sentences. `{name}` is the person of a story, `{items}` what is counted, `{pack}`, `{packs}` a container,
# `{receivers}` those who share, `{a}`, `{b}` a story's numbers, and `{left}`, `{right}`, `{eq}` those of an equation.
WORDS = json.loads(Path(__file__).with_name("words.json").read_text(encoding="utf-8"))
