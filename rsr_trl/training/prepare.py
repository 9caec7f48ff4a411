"""The training set before the first step: is it fit to be ordered by score, and which of its tokens are scored.

SFTTrainer's preparation filters rows out and may shuffle them, so what belongs to a row has to be a column of it.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value
from datasets.formatting.formatting import LazyBatch

from rsr_trl.data import Columns, find_columns, read_table
from rsr_trl.formats import IMAGES
from rsr_trl.rsr import CONTENT, MEAN_CLIPPED_RANK, MEAN_SURPRISAL, STUDENT, TOO_SHORT, RSRError
from rsr_trl.scoring.batches import ROWS_WITH_IMAGES
from rsr_trl.scoring.fingerprint import DEFINITION, same_student
from rsr_trl.scoring.rows import describe_notes, stored, to_rows
from rsr_trl.scoring.scores import ScoredTokens, check_name, content_hash, content_name, known_score, random
from rsr_trl.scoring.tokens import ExampleTokenizer, TokenizedExample
from rsr_trl.selection.choose import all_short, least_tokens, long_enough
from rsr_trl.selection.table import ScoredTable, labels, read_score
from rsr_trl.training.config import RSRSFTConfig
from rsr_trl.training.live_table import LIVE, ScoreTable


if TYPE_CHECKING:
    from rsr_trl.scoring.images import SeeingTokenizer


SCORED = "rsr_scored"  # bool per token: whether it is scored
NOTES = "rsr_notes"  # what is to be said of the row, as in TokenizedExample
SOURCE_ROW = "rsr_source_row"  # number of the row in the dataset that the user passed
DIGEST = "rsr_images"  # of a row's images, 0 without
OWN_SCORES = {STUDENT, MEAN_CLIPPED_RANK, MEAN_SURPRISAL}  # columns of a dataset that brings its scores
OF_TOKENS = ("length", "random")  # scores that a row's own tokens give


def check_train_dataset(dataset: Any, args: RSRSFTConfig) -> None:
    """Raise for what can't be ordered by score, before anything is loaded or tokenized."""
    if not isinstance(dataset, Dataset):
        kind = type(dataset).__name__
        raise TypeError(f"train_dataset is {kind}: pass a datasets.Dataset, loaded without streaming.")
    if len(dataset) == 0:
        raise RSRError("train_dataset is empty.")
    try:
        dataset[0]  # SFTTrainer looks at it
    except (OSError, ValueError, SyntaxError) as error:  # an image's
        raise RSRError(f"Row 0 of the train dataset can't be trained on: it can't be read ({error}).") from error
    check_name(args.rsr_score, dataset.column_names)
    if known_score(args.rsr_score) not in (*LIVE, *OF_TOKENS):
        read_score(dataset, args.rsr_score)
    for column in (args.rsr_group_column, args.rsr_teacher_column):
        labels_of(dataset, column)


def labels_of(dataset: Dataset, column: str | None) -> tuple[np.ndarray, list] | None:
    """Group number of each row, and the groups' names; `None` without a column."""
    return None if column is None else labels(read_table(dataset, [column]), column)


def correct_by_problem(dataset: Dataset, group_column: str | None) -> tuple[np.ndarray, np.ndarray] | None:
    """
    Whether each row is correct (float, NaN where unknown) and which problem it answers (int), both of shape `(n,)`;
    `None` where the dataset doesn't say. Problems are those of `group_column`, else a well-known column's.
    """
    correct = find_columns(dataset, Columns("none", "none")).correct
    if correct is None or (problem := find_columns(dataset, Columns("none", group_column, "none")).problem) is None:
        return None
    table = ScoredTable.read(dataset, Columns(None, problem, correct), scores=(), optional=True)
    return table.correct, table.problem


def add_scored_column(dataset: Dataset, tokenizer: ExampleTokenizer, num_proc: int | None) -> Dataset:
    """
    Add `rsr_scored` (a bool per token; empty where the example can't be scored), `rsr_notes` and `rsr_source_row` to
    examples in any text format of SFTTrainer, before it tokenizes them.
    """
    tokenizer.check_columns(dataset.column_names)
    if "input_ids" in dataset.column_names:
        raise RSRError("The train dataset is already tokenized, which hides the response: pass it before that.")
    return _with_columns(dataset, _scored_of, tokenizer, num_proc, {})


def _with_columns(
    dataset: Dataset, function: Callable, tokenizer: ExampleTokenizer, num_proc: int | None, more: dict, **how
) -> Dataset:
    """The dataset with what `function` finds of each batch; `more` are its columns beside those of every example."""
    added = {SCORED: List(Value("bool")), NOTES: List(Value("string")), SOURCE_ROW: Value("int64"), **more}
    return dataset.map(
        function,
        batched=True,
        with_indices=True,
        fn_kwargs={"tokenizer": tokenizer, "features": dataset.features, "definition": DEFINITION},
        features=Features({**dataset.features, **added}),
        num_proc=num_proc,
        desc="Finding the scored tokens of train dataset",
        **how,
    )


def _scored_of(
    batch: Mapping[str, list], indices: list[int], tokenizer: ExampleTokenizer, features: Features, definition: str
) -> dict[str, list]:
    # `definition` is there for the cache of `datasets` alone: what an older rule gave isn't taken.
    return _columns_of(tokenizer(to_rows(batch), features), indices)


def _columns_of(examples: Sequence[TokenizedExample], indices: list[int]) -> dict[str, list]:
    notes = [list(example.notes) for example in examples]
    return {SCORED: [example.scored for example in examples], NOTES: notes, SOURCE_ROW: indices}


def add_image_columns(dataset: Dataset, tokenizer: "SeeingTokenizer", num_proc: int | None) -> Dataset:
    """
    What [`add_scored_column`] adds, for rows with images, which SFTTrainer doesn't prepare: also `input_ids`, and the
    digest of the images. `RSRError` for a row that it couldn't train on.
    """
    tokenizer.check_columns(dataset.column_names)
    more = {"input_ids": List(Value("int32")), DIGEST: Value("int64")}
    return _with_columns(dataset, _seen_of, tokenizer, num_proc, more, batch_size=ROWS_WITH_IMAGES)


def _seen_of(
    batch: LazyBatch, indices: list[int], tokenizer: "SeeingTokenizer", features: Features, definition: str
) -> dict[str, list]:
    read = [name for name in ("prompt", "completion", "messages", *IMAGES) if name in batch]
    examples = tokenizer(to_rows({name: stored(batch, name) for name in read}), features)
    for row, example in zip(indices, examples, strict=True):
        if example.error:
            raise RSRError(
                f"Row {row} of the train dataset can't be trained on: {example.error}. Fix it, leave it out, or raise "
                "max_length where it is too long. RSRScorer says of every such row what is wrong, in rsr_error."
            )
    return _columns_of(examples, indices) | {
        "input_ids": [example.input_ids for example in examples],
        DIGEST: [0 if example.pictures is None else example.pictures.digest for example in examples],
    }


def describe(dataset: Dataset, num_scored: np.ndarray, args: RSRSFTConfig) -> list[str]:
    """What a user has to know of prepared rows with `num_scored` tokens each."""
    notes = Counter(pc.list_flatten(read_table(dataset, [NOTES])[NOTES]).to_pylist())
    lines = describe_notes(notes, len(dataset))
    if unscored := int((num_scored == 0).sum()):
        lines.append(f"{unscored} of {len(dataset)} examples have no token to score: they come last.")
    if not args.chooses:
        return lines
    is_long, least = long_enough(num_scored, args.rsr_min_tokens), least_tokens(args.rsr_min_tokens)
    if short := int((~is_long & (num_scored > 0)).sum()):
        if not is_long.any():
            raise RSRError(all_short(short, least, "rsr_"))
        lines.append(
            f"{short} of {len(dataset)} examples have fewer than {least} scored tokens and aren't chosen. {TOO_SHORT}"
            ". rsr_min_tokens=0 lets them in."
        )
        if args.rsr_group_column is not None:
            group, names = labels_of(dataset, args.rsr_group_column)
            if empty := len(names) - len(np.unique(group[is_long])):
                lines.append(f"{empty} of {len(names)} groups have no longer one: nothing is chosen from them.")
    return lines


def check_prepared(dataset: Dataset, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Check what SFTTrainer prepared. Returns tokens and scored tokens of each row: int64 arrays of shape `(n,)`."""
    if len(dataset) == 0:
        raise RSRError("No example is left: SFTTrainer drops rows whose prompt alone fills max_length. Raise it.")
    lengths, num_scored, highest = [], [], 0
    for batch in dataset.select_columns(["input_ids", SCORED]).with_format("arrow").iter(1000):
        ids, scored = (batch[name].combine_chunks() for name in ("input_ids", SCORED))
        highest = max(highest, pc.max(ids.flatten()).as_py())
        of_ids, of_mask = (pc.list_value_length(column).to_numpy() for column in (ids, scored))
        if (wrong := np.flatnonzero((of_mask != of_ids) & (of_mask > 0))).size:
            raise RSRError(
                f"Example {sum(map(len, lengths)) + wrong[0]} has {of_ids[wrong[0]]} tokens in SFTTrainer and "
                f"{of_mask[wrong[0]]} in RSRScorer: the two tokenize this format differently. Please report it."
            )
        lengths.append(of_ids)
        rows_of_scored = pc.list_parent_indices(scored).filter(scored.flatten())
        num_scored.append(np.bincount(rows_of_scored, minlength=len(scored)))
    if highest >= vocab_size:
        raise RSRError(
            f"The tokenizer gives token id {highest}, but the student knows {vocab_size} ids only. Pass the student's "
            "own tokenizer, or resize its embeddings (`model.resize_token_embeddings(len(tokenizer))`)."
        )
    lengths, num_scored = np.concatenate(lengths).astype(np.int64), np.concatenate(num_scored).astype(np.int64)
    if not num_scored.any():
        raise RSRError(f"None of the {len(dataset)} examples has a token to score: there is no response in them.")
    return lengths, num_scored


def unmeasured(dataset: Dataset, score: str, num_scored: np.ndarray) -> ScoreTable:
    """A table of prepared rows with `num_scored` tokens each, with the values of a score that isn't live."""
    name = known_score(score)
    if name in LIVE:
        return ScoreTable(num_scored, score)
    if name not in OF_TOKENS:
        return ScoreTable(num_scored, score, read_score(dataset, score))
    values = num_scored
    if name == "random":
        values = random(ScoredTokens(num_scored, ranks=None, surprisals=None, content=_content(dataset)))
    return ScoreTable(num_scored, score, np.where(num_scored > 0, values, np.nan))


def _content(dataset: Dataset) -> np.ndarray:
    """[`content_hash`] of each prepared row: uint64 of shape `(n,)`."""
    hashes, names = [], [name for name in ("input_ids", SCORED, DIGEST) if name in dataset.column_names]
    for batch in dataset.select_columns(names).with_format("numpy").iter(1000):
        hashes += map(content_hash, batch["input_ids"], batch[SCORED], map(int, batch.get(DIGEST, repeat(0))))
    return np.array(hashes, dtype=np.uint64)


def take_own_scores(dataset: Dataset, table: ScoreTable, student: str) -> str | None:
    """
    Fill the table with the dataset's scores if they are of the student so fingerprinted, computed in whatever dtype,
    and of the very same tokens. Returns what is wrong with them otherwise.
    """
    if CONTENT not in dataset.column_names:
        return f"don't say of which tokens they are (column {CONTENT!r})"
    data = read_table(dataset, [STUDENT, CONTENT])
    theirs = data[STUDENT].unique().to_pylist()
    if len(theirs) != 1 or not same_student(theirs[0], student):
        return "aren't of this student as it is here"
    theirs, ours = data[CONTENT].to_pylist(), map(content_name, _content(dataset).tolist())
    names = (name if count else None for name, count in zip(ours, table.num_tokens, strict=True))
    if changed := sum(name != own for name, own in zip(names, theirs, strict=True)):
        why = "another max_length, template or text"
        return f"are of other tokens than it trains on in {changed} of {len(theirs)} rows ({why})"
    table.take(dataset)
    return None
