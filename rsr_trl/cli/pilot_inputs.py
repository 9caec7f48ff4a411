"""What `rsr pilot` begins with: a pool with this student's scores, and held-out problems that aren't in it."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from datasets import Dataset
from trl import ModelConfig, is_conversational

from rsr_trl import __version__, data
from rsr_trl.cli.options import FormatArguments
from rsr_trl.cli.score import share_of
from rsr_trl.pilot.config import PilotConfig
from rsr_trl.pilot.folder import SCORED
from rsr_trl.pilot.strategies import Strategy
from rsr_trl.rsr import RSR, STUDENT
from rsr_trl.scoring.job import Job
from rsr_trl.scoring.manifest import data_identity
from rsr_trl.scoring.parts import rows_of_part, sample
from rsr_trl.scoring.scorer import RSRScorer
from rsr_trl.scoring.scores import STORED, known_score
from rsr_trl.scoring.shards import digest_of
from rsr_trl.selection.table import check_one_student


CARD = """\
# The scored pool of a pilot

Made by `rsr pilot` (rsr-trl {version}) with the student `{student}`. **A lower `rsr` suits this student better.**
"""


def column_of(dataset: Dataset, asked: str | None, option: str, default: str) -> str | None:
    """The column asked for, else the usual one where there is one."""
    if asked is not None and asked not in dataset.column_names:
        raise ValueError(f"There is no column {asked!r} ({option}). There are: {', '.join(dataset.column_names)}.")
    return asked or (default if default in dataset.column_names else None)


def check_apart(pool: Dataset, held_out: Dataset) -> None:
    """Raise if a held-out problem is in the pool: its arm would have seen it; or if only one of the two is chats."""
    if is_conversational(pool[0]) != is_conversational(held_out[0]):
        chats, plain = ("pool", "held-out set") if is_conversational(pool[0]) else ("held-out set", "pool")
        raise ValueError(
            f"The {chats} holds chats and the {plain} plain text: the student would be measured on another format "
            "than it is trained on. Pass as_chat, which wraps what is plain."
        )
    for column in ("prompt", "messages"):
        if column in pool.column_names and column in held_out.column_names:
            known = {str(_question(value)) for value in pool[column]}
            both = [row for row, value in enumerate(held_out[column]) if str(_question(value)) in known]
            if both:
                raise ValueError(
                    f"{len(both)} of the {len(held_out)} held-out rows have a prompt that is in the pool too (first: "
                    f"row {both[0]}). What was trained on can't be measured on: take them out of one of the two."
                )


def _question(value: str | list[dict]) -> str:
    """What is asked: a plain prompt, or the first user turn of a chat, whatever the system message."""
    if isinstance(value, str):
        return value
    return next((message["content"] for message in value if message["role"] == "user"), str(value))


def make_scorer(model_args: ModelConfig, training_args: PilotConfig, strategies: Sequence[Strategy]) -> RSRScorer:
    """The scorer that `rsr score` has by default, with the trainings' length limit and the strategies' scores."""
    scores = {known_score(s.column) for s in strategies if s.column is not None} - {None}
    options = {
        "revision": None if model_args.model_revision == "main" else model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "assistant_only_loss": training_args.assistant_only_loss,
        "device": str(training_args.device),
    }
    limit = RSRScorer(model_args.model_name_or_path, **options).max_length
    if training_args.max_length is not None:
        limit = min(limit, training_args.max_length)
    scores = sorted(name for name in scores if name not in STORED)
    return RSRScorer(model_args.model_name_or_path, **options, max_length=limit, scores=scores)


def identity_of(source: tuple[str, str | None, str]) -> dict:
    """What names a dataset, wherever its files lie: their bytes."""
    found = data_identity(data.source_files(*source), config=source[1], split=source[2])
    found["files"] = [
        {"name": file["name"], "digest": digest_of(Path(file["path"])) if "path" in file else None}
        for file in found["files"]
    ]
    return found


def non_defaults(model_args: ModelConfig) -> dict:
    """How the student is loaded and trained, where it isn't as by default: LoRA, quantization, dtype."""
    plain = ModelConfig()
    return {
        f.name: getattr(model_args, f.name)
        for f in fields(ModelConfig)
        if f.name != "model_name_or_path" and getattr(model_args, f.name) != getattr(plain, f.name)
    }


def scored_pool(
    pool: Dataset,
    scorer: RSRScorer,
    output_dir: str,
    source: tuple[str, str | None, str],
    format_args: FormatArguments,
    dry_run: bool,
    show_bar: bool,
) -> Dataset:
    """The pool with this student's scores: its own, or made now, all processes together."""
    if not len(pool):
        raise ValueError("The pool has no rows.")
    if RSR in pool.column_names:
        check_one_student(pool)
        theirs = {one for one in pool[STUDENT] if one} if STUDENT in pool.column_names else set()
        if theirs - {scorer.fingerprint}:
            raise ValueError(
                f"The pool's scores are of another student, dtype or template ({theirs.pop()}; this student is "
                f"{scorer.fingerprint}). Pass the pool without its scores to score it now, or, if these scores are "
                f"meant, without the column {STUDENT!r}."
            )
        return pool
    if dry_run:
        raise ValueError(
            "--dry_run needs a pool with scores: score it with `rsr score` (whose own --dry_run says what that costs) "
            "and pass the result."
        )
    examples = [example for window in scorer.windows_of(sample(pool)) for example in window.examples]
    folder = Path(output_dir, SCORED)
    files = data_identity(data.source_files(*source), config=source[1], split=source[2], columns=asdict(format_args))
    card = CARD.format(version=__version__, student=scorer.student.model.config.name_or_path)
    job = Job(scorer, pool, folder, files, rows_of_part(pool, examples), share_of(None), card)
    job.run(wait=True, show_bar=show_bar)
    return data.load(str(folder))
