"""Writes the API reference from the docstrings: `make docs`, then open `docs/api/rsr_trl.html`."""

import re
import sys
from pathlib import Path

import pdoc
import pdoc.docstrings
import pdoc.render


_LINK = re.compile(r"\[(`[^`]+`)\]")  # of Hugging Face's doc-builder: [`~trl.SFTTrainer`]


def without_links(docstring: str) -> str:
    """Docstring with plain code where doc-builder has links; pdoc links the names that it knows by itself."""
    return _LINK.sub(lambda link: link[1].replace("`~", "`"), docstring)


def write_api(output: Path) -> None:
    google = pdoc.docstrings.google
    pdoc.docstrings.google = lambda docstring: google(without_links(docstring))
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc("rsr_trl", "!rsr_trl.", output_directory=output)


if __name__ == "__main__":
    write_api(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "api"))
