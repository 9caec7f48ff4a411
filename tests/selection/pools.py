"""Scored pools without a model: one in which nothing is wrong, to plant things in."""

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


def column(dataset: Dataset, name: str) -> np.ndarray:
    """A copy of a column, to change and to plant again."""
    return np.array(dataset[name][:])
