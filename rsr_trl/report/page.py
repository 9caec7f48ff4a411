"""`write_report`: one self-contained HTML page about a scored dataset."""

import base64
import hashlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import pandas as pd
from datasets import Dataset
from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers import PreTrainedTokenizerBase

from rsr_trl import __version__, data
from rsr_trl.report.format import name, number, percent, ratio, visible
from rsr_trl.report.material import Material, Missing, read_material
from rsr_trl.report.tokens import load_tokenizer
from rsr_trl.rsr import DIRECTION, TOKEN_IDS, RSRError
from rsr_trl.selection.display import as_html


# The parts of the page in their order: the file in `sections/` (and template) of each, and its heading. One of an
# experimental method is left out where its `view` is None: the dataset has no columns for it.
SECTIONS = {
    "headline": "In short",
    "teachers": "Which teacher suits",
    "distribution": "Distribution of RSR",
    "plane": "Rank and surprisal",
    "reading": "Reading trajectories",
    "problem": "One problem, all its trajectories",
    "choice": "What selection changes",
    "compare": "RSR and other scores",
    "training": "During training",
    "pilot": "Pilot results",
    "provenance": "Where sentences come from",
    "method": "How this was measured",
}
MAX_ROWS = 40
PAGE = "report.html"  # its name in a folder
GENERATOR = '<meta name="generator" content="rsr-trl'


@dataclass(frozen=True)
class Report:
    """
    A page that [`write_report`] has written.

    Args:
        path (`Path`): Where it is.
        num_bytes (`int`): Its size.
        headline (`dict[str, str]`): What it says at its top.
        cautions (`dict[str, str]`): What to be careful about with this data.
        missing (`dict[str, Missing]`): Heading of each part that couldn't be filled -> why, and how to get it.
    """

    path: Path
    num_bytes: int
    headline: dict[str, str]
    cautions: dict[str, str]
    missing: dict[str, Missing]

    def __repr__(self) -> str:
        return f"Report({str(self.path)!r}, {self.num_bytes / 1e6:.1f} MB)"

    def _repr_html_(self) -> str:
        said = pd.DataFrame((self.headline | self.cautions).items(), columns=["", "what the page says"])
        return f'<p><a href="{quote(str(self.path))}">{escape(str(self.path))}</a></p>' + as_html("", said)


def write_report(
    dataset: Dataset | str,
    output: str | os.PathLike,
    source: str | None = None,
    tokenizer: str | PreTrainedTokenizerBase | None = None,
    teacher_column: str | None = None,
    problem_column: str | None = None,
    correctness_column: str | None = None,
    prefer: Literal["low", "high"] = "low",
    rows: Sequence[int] = (),
    run: str | os.PathLike | None = None,
    pilot: str | os.PathLike | None = None,
) -> Report:
    """
    Write one self-contained HTML page about a scored dataset. RSR: **lower = more suitable**, and the page says so.

    Teachers with intervals, the spread of the RSR, every trajectory by rank and surprisal, trajectories token by token
    (with token statistics), one problem with all its candidates, what selection would change, how scores moved in
    training (with `run`), and what to be careful about. Parts that the dataset can't fill say how to get them.

    Args:
        dataset (`Dataset` or `str`): Scored with [`RSRScorer`] or `rsr score`; a `str` is loaded as by
            [`~rsr_trl.data.load`].
        output (`str` or path): Page to write, ending in `.html`; or a folder, in which it is `report.html`. An earlier
            page of this function is replaced.
        source (`str`, *optional*): Where the dataset was read from: a folder of `rsr score` names student
            and settings. The dataset itself where that is a `str`.
        tokenizer (`str` or [`~transformers.PreTrainedTokenizerBase`], *optional*): The student's, for reading tokens;
            by default that of the student that `source` names.
        teacher_column (`str`, *optional*): Column that names the teacher; by default `teacher`, where there is one.
        problem_column (`str`, *optional*): Column that says which trajectories answer the same problem. By default
            `problem_id`, `question_id`, `prompt_id`, `problem`, `question` or `prompt`: the first that is there and
            in which values repeat.
        correctness_column (`str`, *optional*): Boolean column; by default `correct` or `is_correct`. For each of these
            three, `"none"` means that no column is taken.
        prefer (`str`, *optional*, defaults to `"low"`): Which end of the RSR the choice on the page keeps: of each
            problem, or half of all where no column names the problem.
        rows (sequence of `int`, *optional*): Rows to show token by token, besides the most, median and least suitable
            one. The problem that is shown is that of the first.
        run (`str` or path, *optional*): Output folder of the [`RSRSFTTrainer`] that was trained on this dataset.
        pilot (`str` or path, *optional*): Output folder of an `rsr pilot` on this dataset.

    Returns:
        [`Report`]: where the page is and what it says at its top.

    Raises:
        `ImportError`: matplotlib isn't there.
        `RSRError`: a missing column, a row that isn't there, no row with a finite score, scores of different
            students, a tokenizer that can't be loaded or isn't the student's, a run without scores, a pilot without
            result, or an `output` that is another kind of file.

    Example:

    ```python
    >>> from rsr_trl import write_report

    >>> write_report("scored", "report.html", rows=[17])
    ```
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("The report's charts need matplotlib: pip install rsr-trl[report]")
    output = _page_at(Path(output).expanduser())
    if isinstance(dataset, str):
        source = source or dataset
        dataset = data.load(dataset)
    tokenizer, no_tokenizer = _tokenizer(dataset, source, tokenizer)
    material = read_material(
        dataset,
        data.Columns(teacher=teacher_column, problem=problem_column, correct=correctness_column),
        prefer,
        source=source,
        student=data.card_facts(source).get("student"),
        settings=data.scoring_settings(source),
        tokenizer=tokenizer,
        no_tokenizer=no_tokenizer,
        rows=_checked_rows(rows, len(dataset)),
        run=None if run is None else Path(run).expanduser(),
        pilot=None if pilot is None else Path(pilot).expanduser(),
    )
    parts = {name: import_module(f"rsr_trl.report.sections.{name}").view(material) for name in SECTIONS}
    parts = {name: part for name, part in parts.items() if part is not None}
    page = _render(parts, material)
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f".{output.name}.tmp")
    unfinished.write_text(page, encoding="utf-8")
    os.replace(unfinished, output)
    return Report(
        path=output,
        num_bytes=output.stat().st_size,
        headline=dict(parts["headline"]["sentences"]),
        cautions={one["name"]: one["what"] for one in parts["method"]["cautions"]},
        missing={SECTIONS[name]: part for name, part in parts.items() if isinstance(part, Missing)},
    )


def _page_at(output: Path) -> Path:
    """The file to write: `output`, or `report.html` in it if that is a folder."""
    if output.is_dir() or not output.suffix:
        output /= PAGE
    if output.suffix.lower() not in (".html", ".htm"):
        raise RSRError(f"The report is HTML: its name must end in .html, or be that of a folder, got {str(output)!r}.")
    if output.is_dir():
        raise RSRError(f"{str(output)!r} is a folder, and the page is a file.")
    if output.is_file() and GENERATOR not in output.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise RSRError(f"{str(output)!r} exists and isn't a report, so it isn't replaced. Choose another name.")
    return output


def _checked_rows(rows: Sequence[int], num_rows: int) -> tuple[int, ...]:
    rows = tuple(dict.fromkeys(int(row) for row in rows))
    if outside := [row for row in rows if not 0 <= row < num_rows]:
        raise RSRError(f"There is no row {outside[0]} (rows): the dataset has rows 0 to {num_rows - 1}.")
    if len(rows) > MAX_ROWS:
        raise RSRError(f"A page has room for {MAX_ROWS} rows, got {len(rows)} (rows). Write several pages.")
    return rows


def _tokenizer(dataset: Dataset, source: str | None, asked: str | PreTrainedTokenizerBase | None) -> tuple:
    """The student's tokenizer, and why there is none."""
    if isinstance(asked, PreTrainedTokenizerBase):
        return asked, None
    if TOKEN_IDS not in dataset.column_names:
        return None, None
    try:
        return load_tokenizer(source or "the dataset", asked), None
    except RSRError as error:
        if asked is not None:
            raise
        return None, str(error)


def _render(parts: dict, material: Material) -> str:
    environment = Environment(
        loader=PackageLoader("rsr_trl.report"),
        autoescape=True,  # whatever a file's name is: all that comes from the dataset is text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (name, number, percent, ratio, visible):
        environment.filters[function.__name__] = function
    environment.tests["missing"] = lambda part: isinstance(part, Missing)
    script = environment.loader.get_source(environment, "page.js")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        parts=parts,
        headings={name: SECTIONS[name] for name in parts},
        title=f"RSR report: {name(material.source or material.student or 'scored trajectories')}",
        style=environment.loader.get_source(environment, "page.css")[0],
        script=script,
        # The browser runs this one script and fetches nothing, whatever a dataset's text tries.
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'",
        generator=f"rsr-trl {__version__}",
        direction=DIRECTION,
        notes=material.notes,
        by=material.by,
    )
