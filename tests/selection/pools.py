"""Scored pools without a model."""

import numpy as np
from datasets import Dataset


def clean_pool(seed: int = 0, problems: int = 100, teachers: int = 6, **changes) -> Dataset:
    """Problems x teachers with the spread of real reasoning and none of RSR's failure modes; `changes` are columns."""
    rng = np.random.default_rng(seed)
    size = problems * teachers
    surprisal = np.exp(rng.normal(-0.4, 0.2, size))
    rank = 1 + surprisal * rng.uniform(3.5, 6, size)
    rows = {
        "problem_id": [f"p{i // teachers}" for i in range(size)],
        "teacher": [f"t{i % teachers}" for i in range(size)],
        "correct": (rng.random(size) < 0.7).tolist(),
        "rsr": rank / surprisal,
        "rsr_mean_clipped_rank": rank,
        "rsr_mean_surprisal": surprisal,
        "rsr_num_tokens": rng.integers(100, 400, size),
        "rsr_truncated": np.zeros(size, dtype=bool),
        "rsr_error": [None] * size,
        "rsr_student": ["one"] * size,
    }
    return Dataset.from_dict(rows | changes)


def scored(num_rows: int = 6, **changes) -> Dataset:
    """Rows as a plain scoring pass leaves them, of two problems by three teachers; the last one has no score."""
    ranks = [*np.linspace(2, 4, num_rows - 1), None]
    surprisals = [*np.linspace(1.5, 0.5, num_rows - 1), None]
    rows = {
        "rsr": [None if r is None else r / s for r, s in zip(ranks, surprisals, strict=True)],
        "rsr_mean_clipped_rank": ranks,
        "rsr_mean_surprisal": surprisals,
        "rsr_num_tokens": [*range(110, 100 + 10 * num_rows, 10), 0],
        "rsr_truncated": [False] * num_rows,
        "rsr_student": ["s"] * num_rows,
        "problem_id": [i // 3 for i in range(num_rows)],
        "teacher": ["abc"[i % 3] for i in range(num_rows)],
    }
    return Dataset.from_dict(rows | changes)


def column(dataset: Dataset, name: str) -> np.ndarray:
    """A copy of a column, to change and to plant again."""
    return np.array(dataset[name][:])
