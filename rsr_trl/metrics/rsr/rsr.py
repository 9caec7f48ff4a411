"""Rank-Surprisal Ratio as a module for Hugging Face evaluate: from token ranks and surprisals, or from texts."""

import datasets
import evaluate
import numpy as np

from rsr_trl.rsr import CITATION, R_MAX, RSRError, dataset_rsr, rsr_from_means, trajectory_means


_DESCRIPTION = """\
Rank-Surprisal Ratio (RSR) of reasoning trajectories under a student model: the sum of token ranks (clipped at r_max)
over the sum of token surprisals. LOWER means that a trajectory suits the student better: the student would nearly have
said it (low rank) and still has something to learn from it (high surprisal).
"""

_INPUTS = """
With the configuration "tokens" (the default):
    ranks (list of lists of int): 1-based rank of each token under the student, not clipped, one list per trajectory.
    surprisals (list of lists of float): -ln p of each token, in nats.
    r_max (float, defaults to 100): ranks are clipped here; None doesn't clip.

With the configuration "texts":
    prompts (list of str), completions (list of str): the trajectories.
    model (str or model), and other arguments of rsr_trl.RSRScorer: the student, and how it scores.
    chat (bool, defaults to False): wrap prompt and completion into a user and an assistant message.

Returns:
    rsr (list of float): RSR of each trajectory (Eq. 7); None for one without tokens. Lower suits the student better.
    dataset_rsr (float): RSR of all together (Eq. 9): a ratio of means over trajectories, not the mean of `rsr`.
    mean_clipped_rank, mean_surprisal (lists of float): its two parts, of each trajectory.

Example:
    >>> rsr = evaluate.load("path/to/rsr_trl/metrics/rsr")
    >>> rsr.compute(ranks=[[1, 4, 300], [1, 2]], surprisals=[[0.5, 1.5, 8.0], [0.1, 1.4]])["rsr"]
    [10.5, 2.0]
"""

_FEATURES = {
    "tokens": {
        "ranks": datasets.Sequence(datasets.Value("int64")),
        "surprisals": datasets.Sequence(datasets.Value("float64")),
    },
    "texts": {"prompts": datasets.Value("string"), "completions": datasets.Value("string")},
}


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class RankSurprisalRatio(evaluate.Measurement):
    def _info(self) -> evaluate.MeasurementInfo:
        if self.config_name == "default":
            self.config_name = "tokens"
        if self.config_name not in _FEATURES:
            raise RSRError(f"The configuration must be one of {list(_FEATURES)}, got {self.config_name!r}.")
        return evaluate.MeasurementInfo(
            module_type="measurement",
            description=_DESCRIPTION,
            citation=CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(_FEATURES[self.config_name]),
            homepage="https://arxiv.org/abs/2601.14249",
        )

    def _compute(self, **inputs) -> dict:
        means = _of_tokens(**inputs) if self.config_name == "tokens" else _of_texts(**inputs)
        rank, surprisal = (np.asarray(part, dtype=np.float64) for part in means)
        return {
            "rsr": _nullable(rsr_from_means(rank, surprisal)),
            "dataset_rsr": dataset_rsr(rank, surprisal),
            "mean_clipped_rank": _nullable(rank),
            "mean_surprisal": _nullable(surprisal),
        }


def _of_tokens(ranks: list, surprisals: list, r_max: float | None = R_MAX) -> tuple[np.ndarray, np.ndarray]:
    lengths = [len(tokens) for tokens in ranks]
    for row, (length, other) in enumerate(zip(lengths, map(len, surprisals), strict=True)):
        if length != other:
            raise RSRError(f"Trajectory {row} has {length} ranks and {other} surprisals.")
    flat = [np.concatenate([np.zeros(0), *map(np.asarray, lists)]) for lists in (ranks, surprisals)]
    return trajectory_means(*flat, np.array(lengths, dtype=np.int64), r_max)


def _of_texts(prompts: list, completions: list, model: object, chat: bool = False, **options) -> tuple[list, list]:
    from rsr_trl import RSRScorer
    from rsr_trl.rsr import MEAN_CLIPPED_RANK, MEAN_SURPRISAL

    if chat:
        prompts = [[{"role": "user", "content": text}] for text in prompts]
        completions = [[{"role": "assistant", "content": text}] for text in completions]
    rows = datasets.Dataset.from_dict({"prompt": list(prompts), "completion": list(completions)})
    scored = RSRScorer(model, **options).score(rows)
    return scored[MEAN_CLIPPED_RANK][:], scored[MEAN_SURPRISAL][:]


def _nullable(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
