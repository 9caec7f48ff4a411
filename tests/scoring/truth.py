"""Rank and surprisal by definition: all logits in float64, one row at a time. Scoring tests compare with it."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch


@dataclass
class Truth:
    """
    Args:
        logits (float64 tensor of shape `(N, V)`): Logits of the whole vocabulary at each scored place.
        targets (int64 tensor of shape `(N,)`): The tokens that stand there.
    """

    logits: torch.Tensor
    targets: torch.Tensor

    @cached_property
    def target_logits(self) -> torch.Tensor:
        return self.logits.gather(1, self.targets[:, None])

    @cached_property
    def ranks(self) -> np.ndarray:
        return (1 + (self.logits > self.target_logits).sum(1)).numpy()

    @cached_property
    def surprisals(self) -> np.ndarray:
        return (self.logits.logsumexp(1) - self.target_logits[:, 0]).numpy()

    @cached_property
    def entropies(self) -> np.ndarray:
        return torch.distributions.Categorical(logits=self.logits).entropy().numpy()

    @cached_property
    def sum_squares(self) -> np.ndarray:
        return self.logits.softmax(1).square().sum(1).numpy()

    def assert_stats(self, stats, rounding: float, decided: float = 0.9, atol: float = 1e-5) -> None:
        """All that the head says of these places; `rounding` is that of a logit."""
        self.assert_ranks(stats.ranks, rounding, decided)
        np.testing.assert_allclose(stats.surprisals, self.surprisals, rtol=1e-5, atol=atol)
        if stats.top1 is not None:
            self.assert_top1(stats.top1, rounding)
        if stats.entropies is not None:
            self.assert_moments(stats)

    def assert_moments(self, stats, atol: float = 2e-5) -> None:
        np.testing.assert_allclose(stats.entropies, self.entropies, rtol=1e-5, atol=atol)
        np.testing.assert_allclose(stats.sum_squares, self.sum_squares, rtol=1e-4, atol=1e-7)

    def rsr(self, r_max: float = 100) -> float:
        return np.minimum(self.ranks, r_max).sum() / self.surprisals.sum()

    def assert_ranks(self, ranks: Sequence[int], rounding: float, decided: float = 0.9) -> None:
        """
        Ranks must be equal wherever logits differ by more than `rounding`: the number of *other* tokens clearly above
        the target, and of those not clearly below, bracket the rank. At a share `decided` of places or more, this must
        leave no choice; a near tie at one place of a few is nobody's fault.
        """
        difference = (self.logits - self.target_logits).scatter(1, self.targets[:, None], -torch.inf)
        least = 1 + (difference > rounding).sum(1).numpy()
        most = 1 + (difference > -rounding).sum(1).numpy()
        undecided = (least != most).sum()
        assert undecided <= max(1, (1 - decided) * len(least)), "rounding is set too wide to say anything"
        ranks = np.asarray(ranks)
        assert ranks.shape == least.shape
        wrong = np.flatnonzero((ranks < least) | (ranks > most))
        assert wrong.size == 0, [(int(i), int(least[i]), int(ranks[i]), int(most[i])) for i in wrong[:5]]

    def assert_top1(self, top1: Sequence[int], rounding: float) -> None:
        """The most likely token must be one whose logit is the highest, up to rounding."""
        reached = self.logits.gather(1, torch.as_tensor(np.asarray(top1, dtype=np.int64))[:, None])[:, 0]
        assert (reached >= self.logits.max(1).values - rounding).all()


def in_float64(model: torch.nn.Module) -> torch.nn.Module:
    """A float64 copy of a student, in eval mode."""
    return copy.deepcopy(model).double().eval()


@torch.no_grad()
def truth_of(model64: torch.nn.Module, input_ids: Sequence[int], places: Sequence[int]) -> Truth:
    """One row, alone and unpadded, through the whole model. Logits for a place are those one position before it."""
    ids, places = torch.as_tensor(np.asarray(input_ids, dtype=np.int64)), torch.as_tensor(np.asarray(places))
    assert len(places) and places[0] > 0
    # A real vocabulary in float64 takes gigabytes for a long row: let the model leave out the places between.
    keep = {"logits_to_keep": places - 1} if model64.config.get_text_config().vocab_size > 10_000 else {}
    logits = model64(input_ids=ids[None], use_cache=False, **keep).logits[0]
    return Truth((logits if keep else logits[places - 1]).double(), ids[places])
