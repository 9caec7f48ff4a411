"""The student as vLLM's answers show it: ranks and log-probabilities of tokens, and whether it is this student at all.

Token ids and scored positions are this package's own; rank and log-probability of each given token are vLLM's. vLLM
counts the tokens at least as likely as the given one, [`Student`] only the likelier ones and itself: where two
log-probabilities are equal, vLLM's rank is higher. The most likely token, which is asked for too, shows ties with
itself: there, both ranks are 1. Knows neither a server nor a dataset.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from rsr_trl.rsr import RSRError
from rsr_trl.scoring.lm_head import BrokenLogits
from rsr_trl.scoring.loading import find_config, load_model
from rsr_trl.scoring.scores import ScoredTokens
from rsr_trl.scoring.student import Student
from rsr_trl.scoring.tokens import TokenizedExample


logger = logging.getLogger(__name__)

PROBE = "The train leaves at 9:45 and needs 2 hours and 40 minutes. When does it arrive? It arrives at 12:25. "
PROBE_TOP = 5  # most likely tokens at each place of the probe, among which equal values show a narrow dtype
AT_HAND = 4 * 2**30  # bytes of a local checkpoint that is loaded to compare a few tokens with
INFINITE = 9999.0  # what the server writes for the surprisal of a token without probability
Prompts = dict[int | str, list[int]]  # by the row's number, or what messages call it
# By place: log-probability (nats), rank and text (where known) of the given token and of the most likely ones.
Answer = list[dict[int, tuple[float | None, int, str | None]] | None]


class VLLMStudent:
    """
    Stands in for [`Student`]: `ask` gives vLLM's answers for prompts. Raises `RSRError` if it is seen to be another
    student: by the texts of some tokens, and by their surprisals where a local checkpoint is small enough to load.
    """

    device = torch.device("meta")  # nobody here knows
    num_parameters = 0
    max_batch_tokens = 32_768  # asked for together, where that is to be said

    def __init__(
        self,
        ask: Callable[[Prompts, int], Iterator[tuple[int | str, Answer]]],
        name: str,
        model_id: str,
        tokenizer: PreTrainedTokenizerBase,
        checkpoint: str,
        dtype: str | torch.dtype = "auto",
        **hub,
    ):
        config = find_config(model_id, **hub)[1]
        self.vocab_size = config.get_text_config().vocab_size
        dtype = (config.dtype or torch.float32) if dtype == "auto" else dtype
        self.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self._ask, self._name, self._checkpoint = ask, name, checkpoint
        self._check(tokenizer, model_id, hub.get("trust_remote_code", False))

    def weights_fingerprint(self) -> str:
        """Of the checkpoint that vLLM is said to run: its weights can't be seen."""
        return self._checkpoint

    def tokens_to_read(self, examples: Sequence[TokenizedExample]) -> int:
        """See [`Student.tokens_to_read`]: all, as prompts with log-probabilities don't use vLLM's prefix cache."""
        return sum(len(example.input_ids) for example in examples if example.error is None)

    def score(
        self,
        examples: Sequence[TokenizedExample],
        with_top1: bool = False,
        with_moments: bool = False,
        first_row: int = 0,
        progress: Callable[[int, int, int], None] | None = None,
    ) -> ScoredTokens:
        """See [`Student.score`]; without moments."""
        counts = np.array([int(example.scored.sum()) for example in examples], dtype=np.int64)
        ends = np.cumsum(counts)
        flat = {"token_ids": np.zeros(counts.sum(), np.int32), "ranks": np.zeros(counts.sum(), np.int32)}
        flat["surprisals"] = np.zeros(counts.sum(), np.float32)
        if with_top1:
            flat["top1"] = np.zeros(counts.sum(), np.int32)
        good = {first_row + i: e for i, e in enumerate(examples) if e.error is None}
        longest_first = sorted(good, key=lambda row: -len(good[row].input_ids))
        prompts = {row: good[row].input_ids.tolist() for row in longest_first}
        for row, answer in self._ask(prompts, 1):
            places = slice(ends[row - first_row] - counts[row - first_row], ends[row - first_row])
            values = self._values(f"row {row}", prompts[row], answer, np.flatnonzero(good[row].scored))
            for name, array in flat.items():
                array[places] = values[name]
            if not np.isfinite(flat["surprisals"][places]).all():
                raise BrokenLogits(np.array([row]), self.dtype)
            if progress is not None:
                progress(1, len(prompts[row]), len(prompts[row]))
        return ScoredTokens(num_tokens=counts, **flat)

    def _values(self, what: str, ids: list[int], answer: Answer, scored: np.ndarray) -> dict[str, list]:
        """The answer at the scored places `(K,)`, as the arrays of [`ScoredTokens`]."""
        if len(answer) != len(ids) or any(answer[k] is None or ids[k] not in answer[k] for k in scored):
            raise RSRError(f"{self._name} answers {what} for other tokens than it was asked for.")
        values = {"token_ids": [ids[k] for k in scored], "ranks": [], "surprisals": [], "top1": []}
        for entries, token in zip((answer[k] for k in scored), values["token_ids"], strict=True):
            logprobs = {t: -np.inf if p is None or p <= -INFINITE else p for t, (p, _, _) in entries.items()}
            top1 = max(logprobs, key=logprobs.__getitem__)
            rank = 1 if logprobs[token] == logprobs[top1] else entries[token][1]
            if rank is None:
                raise RSRError(f"{self._name} answers {what} without ranks: it is no vLLM, or too old.")
            values["ranks"].append(rank)
            values["surprisals"].append(-logprobs[token])
            values["top1"].append(top1)
        return values

    def _check(self, tokenizer: PreTrainedTokenizerBase, model_id: str, trust_remote_code: bool) -> None:
        ids = tokenizer(PROBE, add_special_tokens=False)["input_ids"][:32]
        ((_, answer),) = self._ask({"a sample": ids}, PROBE_TOP)
        places = np.arange(1, len(ids))
        surprisals = np.array(self._values("a sample", ids, answer, places)["surprisals"])
        if any((p or 0) > 0.01 for k in places for p, _, _ in answer[k].values()):
            raise RSRError(f"{self._name} answers with numbers that are no log-probabilities: see its logprobs_mode.")
        for k in places:
            there, here = answer[k][ids[k]][2], tokenizer.decode([ids[k]])
            if there and there.isascii() and here.isascii() and there.strip() != here.strip():
                raise RSRError(
                    f"{self._name} runs another student than {model_id!r}: token {ids[k]} is {there!r} there, and "
                    f"{here!r} in this tokenizer."
                )
        tied = np.mean([len({p for p, _, _ in answer[k].values()}) < len(answer[k]) for k in places])
        if tied > 0.02:
            logger.warning(
                "%s computes logits in few bits: at %d%% of %d sampled places, some of the %d most likely tokens are "
                "equally likely. vLLM counts ties in a rank. For exact ranks, run the student there in float32.",
                self._name, round(100 * tied), len(places), PROBE_TOP,
            )  # fmt: skip
        folder = Path(model_id)
        files = [path for kind in ("*.safetensors", "*.bin") for path in folder.glob(kind)]
        if (folder / "config.json").is_file() and 0 < sum(path.stat().st_size for path in files) <= AT_HAND:
            local = Student(load_model(model_id, device="cpu", trust_remote_code=trust_remote_code))
            own = local.score([TokenizedExample(np.array(ids, np.int32), np.arange(len(ids)) > 0)]).surprisals
            if not np.abs(own - surprisals).mean() <= 0.1 * (1 + own.mean()):  # what narrow dtypes and quantization do
                raise RSRError(
                    f"{self._name} runs another student than {model_id!r}: mean surprisal {surprisals.mean():.4g} "
                    f"there, {own.mean():.4g} nats here, on {len(own)} tokens."
                )
