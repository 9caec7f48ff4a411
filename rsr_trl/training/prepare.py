"""The training set before the first step: is it fit to be ordered by score, and which of its tokens are scored.

SFTTrainer's preparation filters rows out and may shuffle them, so what belongs to a row has to be a column of it.
"""

from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value

from rsr_trl.data import read_table
from rsr_trl.scoring.scores import ScoredTokens, check_name, content_hash, known_score, random
from rsr_trl.scoring.tokens import ExampleTokenizer
from rsr_trl.selection.table import labels, read_score
from rsr_trl.training.config import RSRSFTConfig
from rsr_trl.training.epoch_rows import SCORED
from rsr_trl.training.score_table import LIVE


OF_TOKENS = ("length", "random")  # scores that a row's own tokens say
SOURCE_ROW = "rsr_source_row"  # number of the row in the dataset that the user passed


def check_train_dataset(dataset: Any, args: RSRSFTConfig) -> None:
    """Raise for what can't be ordered by score, before anything is loaded or tokenized."""
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"train_dataset is {type(dataset).__name__}: ordering by score needs all examples at hand. Pass a "
            "datasets.Dataset (load it without streaming)."
        )
    if len(dataset) == 0:
        raise ValueError("train_dataset is empty.")
    if images := {"image", "images"} & set(dataset.column_names):
        raise ValueError(f"train_dataset has the column {images.pop()!r}: only text is scored. Remove the column.")
    check_name(args.rsr_score, dataset.column_names)
    if known_score(args.rsr_score) not in (*LIVE, *OF_TOKENS):
        read_score(dataset, args.rsr_score)
    for column in (args.rsr_group_column, args.rsr_teacher_column):
        if column is not None:
            labels(read_table(dataset, [column]), column)


def add_scored_column(dataset: Dataset, tokenizer: ExampleTokenizer, num_proc: int | None) -> Dataset:
    """
    Add to each example which of its tokens are scored, before SFTTrainer tokenizes it.

    Args:
        dataset ([`~datasets.Dataset`]): Examples in any text format of SFTTrainer.
        tokenizer ([`ExampleTokenizer`]): With the settings of the trainer's config.
        num_proc (`int`, *optional*): Processes to tokenize with.

    Returns:
        The dataset with `rsr_scored` (a bool per token; empty where the example can't be scored) and `rsr_source_row`.

    Raises:
        `ValueError`: if no text format is recognised, or the dataset is tokenized already.
    """
    tokenizer.check_columns(dataset.column_names)
    if "input_ids" in dataset.column_names:
        raise ValueError(
            "The train dataset is already tokenized (it has `input_ids`): which tokens are the response can't be told "
            "from ids. Pass the dataset before tokenization."
        )
    return dataset.map(
        _scored_of,
        batched=True,
        with_indices=True,
        fn_kwargs={"tokenizer": tokenizer},
        features=Features({**dataset.features, SCORED: List(Value("bool")), SOURCE_ROW: Value("int64")}),
        num_proc=num_proc,
        desc="Finding the scored tokens of train dataset",
    )


def _scored_of(batch: dict[str, list], indices: list[int], tokenizer: ExampleTokenizer) -> dict[str, list]:
    examples = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    return {SCORED: [example.scored for example in tokenizer(examples)], SOURCE_ROW: indices}


def static_scores(dataset: Dataset, score: str, num_scored: np.ndarray) -> np.ndarray | None:
    """
    Values of a score that no scoring pass changes, for prepared rows: `None` for those that are measured live.

    Args:
        dataset ([`~datasets.Dataset`]): As SFTTrainer prepared it.
        score (`str`): The config's `rsr_score`.
        num_scored (int array of shape `(n,)`): Scored tokens of each row.
    """
    name = known_score(score)
    if name in LIVE:
        return None
    if name not in OF_TOKENS:
        return read_score(dataset, score)
    if name == "length":
        values = num_scored
    else:
        rows = dataset.select_columns(["input_ids", SCORED]).with_format("numpy")
        content = np.array([content_hash(row["input_ids"], row[SCORED]) for row in rows], dtype=np.uint64)
        values = random(ScoredTokens(num_scored, ranks=None, surprisals=None, content=content))
    return np.where(num_scored > 0, values, np.nan)


def check_prepared(dataset: Dataset, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Check prepared rows before the first step, and measure them.

    Args:
        dataset ([`~datasets.Dataset`]): As SFTTrainer prepared it, with `input_ids` and `rsr_scored`.
        vocab_size (`int`): Token ids that the student knows.

    Returns:
        Two int64 arrays of shape `(n,)`: tokens and scored tokens of each row.

    Raises:
        `ValueError`: if no row is left, scored positions don't fit the token ids, no row has a scored token, or a
        token id is
            beyond the student's vocabulary.
    """
    if len(dataset) == 0:
        raise ValueError(
            "No example is left to train on: SFTTrainer drops rows whose prompt alone fills max_length. Raise "
            "max_length."
        )
    lengths, num_scored, highest = [], [], 0
    for batch in dataset.select_columns(["input_ids", SCORED]).with_format("arrow").iter(1000):
        ids, scored = (batch[name].combine_chunks() for name in ("input_ids", SCORED))
        highest = max(highest, pc.max(ids.flatten()).as_py())
        lengths.append(pc.list_value_length(ids).to_numpy())
        of_mask = pc.list_value_length(scored).to_numpy()
        if (wrong := np.flatnonzero((of_mask != lengths[-1]) & (of_mask > 0))).size:
            raise ValueError(
                f"Example {sum(map(len, num_scored)) + wrong[0]} has {lengths[-1][wrong[0]]} tokens in SFTTrainer and "
                f"{of_mask[wrong[0]]} in RSRScorer: the two tokenize this format differently. Please report it."
            )
        total = np.concatenate([[0], np.cumsum(scored.flatten().to_numpy(zero_copy_only=False))])
        ends = np.cumsum(of_mask)
        num_scored.append(total[ends] - total[ends - of_mask])
    if highest >= vocab_size:
        raise ValueError(
            f"The tokenizer gives token id {highest}, but the student knows {vocab_size} ids only. Pass the student's "
            "own tokenizer, or resize its embeddings (`model.resize_token_embeddings(len(tokenizer))`)."
        )
    lengths, num_scored = np.concatenate(lengths).astype(np.int64), np.concatenate(num_scored).astype(np.int64)
    if not num_scored.any():
        raise ValueError(f"None of the {len(dataset)} examples has a token to score: there is no response in them.")
    return lengths, num_scored
