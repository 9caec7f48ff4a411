"""The student: a causal language model that gives rank and surprisal of tokens.

Knows tokens and the model, but neither datasets nor their columns.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.utils import is_peft_available

from rsr_trl.rsr import RSRError
from rsr_trl.scoring import fingerprint, prefix_attention, prefixes, seeing
from rsr_trl.scoring.architecture import (
    best_layout,
    check_architecture,
    default_batch_tokens,
    evaluation_mode,
    length_border,
    on_device,
)
from rsr_trl.scoring.batches import HEAD_POSITIONS, lay_out
from rsr_trl.scoring.lm_head import BrokenLogits, LMHead, compiles, own_logits, unknown_logits
from rsr_trl.scoring.pictures import stack
from rsr_trl.scoring.prefixes import Places, Prefix, Prefixes, Reading
from rsr_trl.scoring.scores import ScoredTokens
from rsr_trl.scoring.tokens import TokenizedExample


if is_peft_available():
    from peft import PeftModel, PromptLearningConfig


logger = logging.getLogger(__name__)

VERIFIED = 16  # tokens on which a student is compared with itself before it scores


class Student:
    """
    A live causal language model seen as a scorer of tokens. It leaves the model as it finds it: train mode, gradients,
    caches, random state. Raises `TypeError` or `RSRError` for a model that can't be scored.
    """

    def __init__(
        self,
        model: "PreTrainedModel | PeftModel",
        max_batch_tokens: int | None = None,
        logits_dtype: str = "float32",
        share_prefixes: bool = True,
        max_prefix_tokens: int | None = None,
    ):
        self.model = model
        if is_peft_available() and isinstance(model, PeftModel):
            if any(isinstance(config, PromptLearningConfig) for config in model.peft_config.values()):
                raise RSRError(
                    "Prompt-learning PEFT adapters change the sequence itself and can't be scored. Use LoRA."
                )
            model = model.get_base_model()
        if not isinstance(model, PreTrainedModel):
            raise TypeError(f"The student must be a transformers model, got {type(model).__name__}.")
        self._base = model
        check_architecture(model)
        if any(parameter.is_meta for parameter in model.parameters()):
            raise RSRError(
                "Part of the student's weights was left on the CPU or on disk, because the devices don't hold them. "
                "Quantize it (quantization_config), load a narrower dtype, or use more or larger GPUs."
            )
        self.logits_dtype = logits_dtype
        self.max_batch_tokens = default_batch_tokens(self.device) if max_batch_tokens is None else max_batch_tokens
        self.layout = best_layout(model, self.device)
        self._border = length_border(model)
        self._share_prefixes, self._max_prefix_tokens = share_prefixes, max_prefix_tokens
        self._verified, self._split, self._cache_bytes = False, False, 0.0
        self._sees_verified, self._shares_images = False, False

    @property
    def head(self) -> LMHead:
        """The LM head as it is now: PEFT and `resize_token_embeddings` replace the module."""
        return LMHead.of(self._base)

    @property
    def device(self) -> torch.device:
        return self._base.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self._base.dtype

    @property
    def num_parameters(self) -> int:
        return self.model.num_parameters()

    @property
    def vocab_size(self) -> int:
        return min(self._base.get_input_embeddings().weight.shape[0], self.head.vocab_size)

    def score(
        self,
        examples: Sequence[TokenizedExample],
        with_top1: bool = False,
        with_moments: bool = False,
        first_row: int = 0,
        progress: Callable[[int, int, int], None] | None = None,
    ) -> ScoredTokens:
        """
        Rank and surprisal of every scored token, computed longest example first.

        Args:
            examples (sequence of [`TokenizedExample`]): Those with an `error` have no tokens.
            with_top1 (`bool`, *optional*, defaults to `False`): Also the student's most likely token at each place.
            with_moments (`bool`, *optional*, defaults to `False`): Also entropy and sum of squared probabilities.
            first_row (`int`, *optional*, defaults to `0`): What messages call the first example.
            progress (`Callable`, *optional*): Called with the examples and the tokens that are done since the last
                call, and how many tokens the student has read for it.

        Returns:
            [`ScoredTokens`]: flat arrays in the order of `examples`; `token_ids`, `ranks` and `top1` in int32, the
            others in float32.

        Raises:
            RSRError: if a token id is beyond the student's vocabulary.
            BrokenLogits: if the student gives NaN or infinite logits; names the rows.
        """
        lengths = np.array([0 if e.error else len(e.input_ids) for e in examples], dtype=np.int64)
        counts = np.array([int(e.scored.sum()) for e in examples], dtype=np.int64)
        self._check_ids(examples, lengths, first_row)
        ends = np.cumsum(counts)  # example i has the places ends[i] - counts[i] to ends[i] of every array
        names = ["token_ids", "ranks", *["top1"] * with_top1]
        flat = {name: np.zeros(counts.sum(), np.int32) for name in names}
        names = ["surprisals", *["entropies", "sum_squares"] * with_moments]
        flat |= {name: np.zeros(counts.sum(), np.float32) for name in names}
        compile = compiles(self.device, int(counts.sum()) * self.head.vocab_size)
        with evaluation_mode(self.model), seeing.positions_kept(self._base.base_model):
            for hidden, targets, places, read in self._forward_all(examples, lengths, ends - counts):
                stats = self.head.score(
                    hidden,
                    targets,
                    with_top1=with_top1,
                    with_moments=with_moments,
                    logits_dtype=self.logits_dtype,
                    compile=compile,
                )
                for name, array in flat.items():
                    values = targets if name == "token_ids" else getattr(stats, name)
                    array[places.target] = values.cpu().numpy()[places.source]
                broken = places.target[~np.isfinite(flat["surprisals"][places.target])]
                if broken.size:
                    rows = first_row + np.unique(np.searchsorted(ends, broken, side="right"))
                    raise BrokenLogits(rows, self._base.dtype)
                if progress is not None:
                    progress(len(places.done), int(lengths[places.done].sum()), read)
        return ScoredTokens(num_tokens=counts, **flat)

    def _check_ids(self, examples: Sequence[TokenizedExample], lengths: np.ndarray, first_row: int) -> None:
        for i in np.flatnonzero(lengths):
            if (largest := int(examples[i].input_ids.max())) >= self.vocab_size:
                raise RSRError(
                    f"Row {first_row + i} has token id {largest}, but the student's vocabulary has {self.vocab_size} "
                    "entries. Tokenizer and student don't belong together, or the embeddings need "
                    "`model.resize_token_embeddings`."
                )

    def _forward_all(
        self, examples: Sequence[TokenizedExample], lengths: np.ndarray, firsts: np.ndarray
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, Places, int]]:
        """
        Hidden states `(N, H)` that predict scored tokens, and those `(N,)`, of as many batches as are worth a pass of
        the head; where their results belong, given the first place of each row; and the tokens that were read.
        """
        left, scored = lengths.copy(), [example.scored for example in examples]
        waiting: list[tuple[torch.Tensor, torch.Tensor, Places, int]] = []
        if left.any() and not self._verified:
            self._verify(examples[np.argmax(left)])
        if not self._sees_verified and (
            seen := [e for e in examples if e.pictures and len(e.input_ids) > e.pictures.end]
        ):
            self._shares_images = seeing.verify(self, min(seen, key=lambda example: len(example.input_ids)))
            self._sees_verified = True
        while left.any():
            plan = self.plan(examples, left)
            kept = Prefixes(plan)
            for number, reading in enumerate(plan):
                try:
                    hidden, targets, prefix = self._read(reading, examples, scored, kept.before(reading))
                except torch.OutOfMemoryError as error:
                    if reading.after is None and len(reading.pieces) == 1 and not reading.followers:
                        raise torch.OutOfMemoryError(
                            f"One trajectory of {prefixes.tokens_of(reading)} tokens doesn't fit into the GPU's "
                            "memory. Lower max_length, use a narrower dtype, or spread the student with "
                            "device_map='auto'."
                        ) from error
                    # It stays so: the next examples would run out of memory too.
                    self._max_prefix_tokens = self._longest_prefix(left.max()) // 2
                    self.max_batch_tokens = max(1, self.max_batch_tokens // 2)
                    logger.warning(
                        "Out of GPU memory: going on with max_batch_tokens=%d. Pass it next time.",
                        self.max_batch_tokens,
                    )
                    break  # outside this handler: the failed batch's tensors are freed before the next try
                kept.done(number, prefix)
                places = prefixes.places_of(reading, scored, firsts, lengths)
                waiting.append((hidden, targets, places, prefixes.tokens_of(reading)))
                left[places.done] = 0
                if sum(len(targets) for _, targets, _, _ in waiting) >= HEAD_POSITIONS:
                    yield _together(waiting)
                    waiting = []
        if waiting:
            yield _together(waiting)

    def tokens_to_read(self, examples: Sequence[TokenizedExample]) -> int:
        """How many tokens the student reads to score these examples together, once it has scored some."""
        lengths = np.array([0 if example.error else len(example.input_ids) for example in examples])
        return sum(map(prefixes.tokens_of, self.plan(examples, lengths)))

    def plan(self, examples: Sequence[TokenizedExample], lengths: np.ndarray) -> list[Reading]:
        """The forward passes over examples of these lengths; 0 leaves one out."""
        return prefixes.plan_readings(
            [example.input_ids[:length] for example, length in zip(examples, lengths, strict=True)],
            self.max_batch_tokens,
            self.layout,
            self._border,
            self._longest_prefix(lengths.max(initial=0)),
            prefixes.PASS_TOKENS.get(self.device.type, prefixes.PASS_TOKENS["cuda"]),
            [example.pictures for example in examples],
            self._shares_images,
        )

    def _longest_prefix(self, longest_row: int) -> int:
        """Tokens of a prefix that the cache may hold: by default, with half of what reading takes at most."""
        if not self._cache_bytes or self.layout == "packed":
            return 0
        if self._max_prefix_tokens is not None:
            return self._max_prefix_tokens
        # Reading takes about 16 hidden states for each token (the MLP's and some more), whatever the model's depth.
        weight = self.head.module.weight
        half = max(self.max_batch_tokens, longest_row) * 8 * weight.shape[1] * weight.element_size()
        return int(half / self._cache_bytes)

    def _read(
        self, reading: Reading, examples: Sequence[TokenizedExample], scored: list, before: Prefix | None
    ) -> tuple[torch.Tensor, torch.Tensor, Prefix | None]:
        """What [`_forward`] returns of a reading's pieces."""
        pieces = []
        for piece in reading.pieces:
            first = examples[piece.rows[0]]
            pictures = first.pictures and first.pictures.cut(piece.stop) if piece.start == 0 else None
            ids = first.input_ids[piece.start : piece.stop]
            pieces.append(TokenizedExample(ids, prefixes.scored_in(piece, scored), pictures=pictures))
        return self._forward(pieces, before, keep=reading.followers > 0)

    @torch.no_grad()
    def _forward(
        self, rows: Sequence[TokenizedExample], before: Prefix | None = None, keep: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, Prefix | None]:
        """
        Hidden states that predict the scored tokens of one batch `(N, H)`, and those tokens `(N,)`; with `keep`, which
        takes one row, also the prefix that it makes. The rows follow the prefix `before`, if there is one.
        """
        arrays = lay_out([row.input_ids for row in rows], [row.scored for row in rows], self.layout)
        ids, scored = arrays.pop("input_ids"), arrays.pop("scored")
        if rows[0].pictures is not None:
            arrays |= stack([row.pictures for row in rows], ids.shape[1])
        if before is not None and "attention_mask" in arrays:
            read = np.ones((len(rows), before.length), dtype=np.int64)
            arrays["attention_mask"] = np.concatenate([read, arrays["attention_mask"]], axis=1)
        given = on_device(arrays, self.device)
        given |= seeing.positions(self._base.base_model, before, ids.shape)
        with prefixes.cache_for(self._base, before, len(rows), keep, self._split) as cache:
            given |= {} if cache is None else {"past_key_values": cache}
            hidden = self.hidden_states(torch.from_numpy(ids).to(self.device), **given)
        # The state before a token predicts it. A row's first token is never scored, so none is predicted across rows.
        #
        #   ids       a  b  c  d | e  f  g  0      two rows, padded; packed rows lie in the same way, without padding
        #   scored    -  -  x  x | -  x  x  -
        #   place     0  1  2  3   4  5  6  7      of the flattened batch
        #   selected        2  3      5  6
        #   hidden       1  2      4  5            selected - 1
        #
        # After a prefix the first token may be scored: the prefix's last state predicts it.
        selected = torch.from_numpy(np.flatnonzero(scored))
        targets = torch.from_numpy(ids.reshape(-1))[selected].to(hidden.device)
        predicting = hidden.reshape(-1, hidden.shape[-1])[(selected - 1).clamp(min=0).to(hidden.device)]
        if before is not None:
            predicting[(selected % ids.shape[1] == 0).to(hidden.device)] = before.last
        length = ids.shape[1] + (0 if before is None else before.length)
        if not keep:
            return predicting, targets, None
        deltas = seeing.deltas_of(self._base.base_model, before)
        return predicting, targets, Prefix(cache, hidden[0, -1].clone(), length, deltas)

    def hidden_states(self, input_ids: torch.Tensor, **given: torch.Tensor) -> torch.Tensor:
        """
        Last hidden states of shape `(B, T, H)`, on the LM head's device, by the backbone alone; `given` are its
        `attention_mask`, `position_ids` or `past_key_values`.
        """
        outputs = self._base.base_model(input_ids=input_ids, use_cache="past_key_values" in given, **given)
        return outputs.last_hidden_state.to(self.head.module.weight.device)

    @torch.no_grad()
    def _verify(self, example: TokenizedExample) -> None:
        """
        Compare with the model's own logits once, on a few tokens and, beside them in the batch, on half as many:
        neither an unknown logit scale nor attention to later tokens or to another row may pass unnoticed.
        """
        ids = example.input_ids[:VERIFIED]
        parts = [ids, ids[: len(ids) // 2 + 1]]
        hidden, targets, _ = self._forward([TokenizedExample(part, np.arange(len(part)) > 0) for part in parts])
        ours = self.head.score(hidden, targets).surprisals
        whole = torch.from_numpy(ids.astype(np.int64)).to(self.device)[None]
        # accelerate leaves autocast in the forward of a model that was trained in mixed precision, and scoring is
        # without it: what stood there before is compared.
        forward = vars(self._base).get("_original_forward", self._base)
        logits = own_logits(self._base, forward, input_ids=whole)[0].to(ours.device)
        logits = torch.cat([logits[: len(part) - 1] for part in parts])
        own = logits.logsumexp(-1) - logits.gather(-1, targets[:, None])[:, 0]
        # Reduced precision rounds both. NaN passes here: the error for broken weights names the rows that show it.
        tolerance = 0.01 if self._is_exact else 0.1
        if (ours - own).abs().mean() > tolerance * (1 + own.mean()):
            how = f"mean surprisal {ours.mean():.4g} in a batch, {own.mean():.4g} nats alone, on {len(ours)} tokens"
            raise unknown_logits(self._base, how)
        self._cache_bytes = self._verify_cache(ids) if self._share_prefixes else 0.0
        self._verified = True

    def _verify_cache(self, ids: np.ndarray) -> float:
        """
        Bytes that the student's cache takes for a token; 0 where prefixes can't be shared. Whether they can is seen
        from the cache's classes and on 16 tokens: some recurrent layers forget their state before several tokens.
        """
        if self.layout == "packed" or not prefixes.takes_cache(self._base):
            return 0.0
        # A short row goes on with other tokens: one of two tokens would show nothing. And what is forgotten shows most
        # right after a long prefix.
        ids = (np.resize(ids, VERIFIED) + np.arange(VERIFIED) // len(ids)) % self.vocab_size
        half = VERIFIED - 2
        whole = torch.from_numpy(ids.astype(np.int64)).to(self.device)[None]
        outputs = self._base.base_model(input_ids=whole, use_cache=True)
        if not prefixes.can_share(cache := outputs.get("past_key_values")):
            return 0.0
        every, expected = np.ones(len(ids), dtype=bool), outputs.last_hidden_state[0]
        before = self._forward([TokenizedExample(ids[:half], ~every[:half])], keep=True)[2]
        tails = [TokenizedExample(ids[half:stop], every[half:stop]) for stop in (len(ids), len(ids) - 1)]
        expected = torch.cat([expected[half - 1 : half - 1 + len(tail.input_ids)] for tail in tails])
        for split in [True, False] if prefix_attention.fits(self._base, before.cache) else [False]:
            self._split = split
            try:
                *_, after = self._forward([TokenizedExample(ids[half:], ~every[half:])], before, keep=True)
                found = self._forward(tails, before)[0]
            except (AttributeError, NotImplementedError, RuntimeError):  # attention of another kind, or no such kernel
                if not split:
                    raise
                continue
            error = prefixes.relative_error(found, expected.to(found.device))
            error = max(error, prefixes.difference(after.cache, cache, len(ids) - half))
            if error <= (0.001 if self._is_exact else 0.1):
                return prefixes.bytes_per_token(before.cache)
        return 0.0

    @property
    def _is_exact(self) -> bool:
        """Whether the student computes in float32 or better."""
        kind = self.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self._base.dtype
        return torch.finfo(dtype).eps < 1e-6

    def weights_fingerprint(self) -> str:
        """See [`fingerprint.weights_fingerprint`]."""
        return fingerprint.weights_fingerprint(self._base)

    def weights_version(self) -> tuple:
        """
        Cheap key that changes when an optimizer or `load_state_dict` changes the weights in place. Changes through
        `param.data` leave no trace but in the numbers: some of each tensor are in it.
        """
        parameters = list(self._base.parameters())
        samples: dict[torch.device, list[torch.Tensor]] = {}
        for part in chain.from_iterable(fingerprint.plain_tensors(p.detach()) for p in parameters):
            samples.setdefault(part.device, []).append(part.flatten()[:: part.numel() // 64 + 1].float())
        numbers = [torch.cat(parts).cpu().numpy().tobytes() for parts in samples.values()]
        return *((p.data_ptr(), p._version) for p in parameters), *numbers, *fingerprint.adapters(self._base)


def _together(waiting: list[tuple[torch.Tensor, torch.Tensor, Places, int]]) -> tuple:
    hidden, targets, places, read = zip(*waiting, strict=True)
    return torch.cat(hidden), torch.cat(targets), Places.together(places, map(len, targets)), sum(read)
