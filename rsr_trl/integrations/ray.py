"""Scoring as a step of a Ray Data pipeline: a pool of actors, each with its own student.

Knows Ray's batches (Arrow tables) and the scorer, and leaves blocks, files and resume to Ray.
"""

from datetime import date

import pyarrow as pa
import ray
from datasets import Dataset
from ray.data import ActorPoolStrategy, DataContext
from transformers import PreTrainedTokenizerBase

from rsr_trl.rsr import RSRError
from rsr_trl.scoring.rows import TokenBar, scores_among
from rsr_trl.scoring.scorer import RSRScorer


class ScoreRSR:
    """
    Adds the columns of [`RSRScorer`] to batches: the class to pass to `map_batches` with `batch_format="pyarrow"`.
    Each actor loads the student once. Rows keep their order within a batch. A lower RSR suits the student better.

    [`score`] passes it on, after a look at the cluster's resources.

    Args:
        student (`str`): Hub id or path, which each actor's machine can read.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*): The student's tokenizer.
        settings: Those of [`RSRScorer`]. Pass `day` where the chat template writes it: an actor's own is that on which
            it starts.

    Raises:
        RSRError: as [`RSRScorer`] does.
    """

    def __init__(self, student: str, processing_class: PreTrainedTokenizerBase | None = None, **settings):
        self.scorer = RSRScorer(student, processing_class, **settings)
        self.scorer.student  # noqa: B018 - loaded with the actor, not with its first batch

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A batch with the columns added, typed; other columns stay as they are."""
        scorer = self.scorer
        scorer.check_columns(batch.column_names)
        rows = Dataset(batch.select(scorer.text_columns(batch.column_names)))
        batch = batch.drop_columns(scores_among(batch.column_names, scorer.schema))
        for name, column in scorer.score_rows(rows, TokenBar(None, disable=True)).items():
            batch = batch.append_column(name, column)
        return batch


def score(
    dataset: ray.data.Dataset,
    student: str,
    *,
    actors: int = 1,
    num_cpus: float = 1,
    num_gpus: float = 0,
    batch_size: int = 512,
    processing_class: PreTrainedTokenizerBase | None = None,
    **settings,
) -> ray.data.Dataset:
    """
    Score a Ray dataset with a pool of actors.

    Args:
        dataset ([`~ray.data.Dataset`]): In any text format of SFTTrainer.
        student, processing_class: As [`ScoreRSR`] takes them.
        actors (`int`, *optional*, defaults to `1`): How many, each with its own student.
        num_cpus, num_gpus (`float`, *optional*): What one actor takes.
        batch_size (`int`, *optional*, defaults to `512`): Rows that are sorted by length and scored together.
        settings: Those of [`RSRScorer`]. `day` defaults to today, for all actors.

    Returns:
        [`~ray.data.Dataset`]: lazy, with the columns added. The order of rows isn't kept.

    Raises:
        RSRError: if the cluster can't run this: Ray would wait without a word.
    """
    check_resources(actors, num_cpus, num_gpus)
    return dataset.map_batches(
        ScoreRSR,
        fn_constructor_args=(student, processing_class),
        fn_constructor_kwargs={"day": str(date.today()), **settings},
        batch_format="pyarrow",
        batch_size=batch_size,
        compute=ActorPoolStrategy(size=actors),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )


def check_resources(actors: int, num_cpus: float = 1, num_gpus: float = 0) -> None:
    """
    Raise `RSRError` if the cluster, as it is now, can't hold so many actors and what Ray Data runs beside them: a task
    that reads or writes (1 CPU), and with `DataContext.checkpoint_config` a resume's filter (1 CPU and its memory).
    """
    config = DataContext.get_current().checkpoint_config
    if not ray.is_initialized():
        ray.init()
    needed = {"CPU": actors * num_cpus + 1 + (config is not None), "GPU": actors * num_gpus}
    beside = "a task that reads or writes (1 CPU)"
    if config is not None:
        needed["memory"] = config.checkpoint_actor_memory_bytes
        beside += f" and the checkpoint filter (1 CPU, {needed['memory'] / 2**30:g} GiB)"
    there = ray.cluster_resources()
    for name, least in needed.items():
        if (found := there.get(name, 0)) < least:
            kind, unit = ("GiB of memory", 2**30) if name == "memory" else (f"{name}s", 1)
            raise RSRError(
                f"The Ray cluster has {found / unit:g} {kind}, but {least / unit:g} are needed: actors={actors} with "
                f"num_cpus={num_cpus:g} and num_gpus={num_gpus:g} each, and {beside}. Ray would wait without a word. "
                "Lower actors or num_cpus, or start the cluster with more."
            )
