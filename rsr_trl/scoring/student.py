"""The student: a causal language model that says rank and surprisal of tokens.

Knows tokens and the model, but neither datasets nor their columns.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import is_peft_available

from rsr_trl.scoring import fingerprint
from rsr_trl.scoring.batches import Layout, lay_out, plan_batches
from rsr_trl.scoring.lm_head import LMHead, TokenStats, compiles
from rsr_trl.scoring.tokens import TokenizedExample


if is_peft_available():
    from peft import PeftModel, PromptLearningConfig


logger = logging.getLogger(__name__)

# By type of device. Measured with `rsr bench`: the CPU gains nothing from larger ones.
MAX_BATCH_TOKENS = {"cpu": 4096, "cuda": 32_768}
# Hidden states wait for each other until the head has this many positions: its weights are read once for all of them.
MIN_HEAD_POSITIONS = 512


@dataclass(frozen=True)
class TokenScores:
    """
    What the student says about the scored tokens of one example, in their order.

    Args:
        token_ids (int32 array of shape `(K,)`): The scored tokens.
        ranks (int32 array of shape `(K,)`): 1-based, unclipped.
        surprisals (float32 array of shape `(K,)`): In nats.
        top1 (int32 array of shape `(K,)`, *optional*): The student's own most likely token at each place.
        entropies (float32 array of shape `(K,)`, *optional*): Entropy of the student's prediction there, in nats.
        sum_squares (float32 array of shape `(K,)`, *optional*): Sum of squares of the predicted probabilities there.
    """

    token_ids: np.ndarray
    ranks: np.ndarray
    surprisals: np.ndarray
    top1: np.ndarray | None = None
    entropies: np.ndarray | None = None
    sum_squares: np.ndarray | None = None


def load_model(
    model_id: str,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: str | dict | None = None,
    **kwargs,
) -> PreTrainedModel:
    """
    Load a student from a hub id or folder; a folder with a PEFT adapter loads its base model and applies it.

    Args:
        model_id (`str`): Hub id or path.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`): `"auto"` takes the checkpoint's own.
        device (`str` or `torch.device`, *optional*): By default the GPU if there is one.
        device_map (`str` or `dict`, *optional*): Spread over devices; excludes `device`.
        kwargs: Passed to `AutoModelForCausalLM.from_pretrained`.
    """
    if device_map is not None and device is not None:
        raise ValueError(f"Pass either device={device!r} or device_map={device_map!r}, not both.")
    if device is not None and torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device={str(device)!r}: PyTorch {torch.__version__} finds no CUDA GPU here. Leave device unset, or "
            "install a PyTorch for your GPU."
        )
    model = AutoModelForCausalLM.from_pretrained(model_id, dtype=dtype, device_map=device_map, **kwargs)
    if device_map is None and not getattr(model, "is_quantized", False):
        model.to(device or default_device())
    return model.eval()


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module's own mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def default_device() -> torch.device:
    """The GPU (or other accelerator) if there is one, else the CPU."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def default_batch_tokens(device: torch.device) -> int:
    """Tokens of a batch when the user doesn't say."""
    return MAX_BATCH_TOKENS.get(device.type, MAX_BATCH_TOKENS["cuda"])


def best_layout(model: PreTrainedModel, device: torch.device) -> Layout:
    """
    How rows best lie in a batch: by equal lengths on the CPU, which computes on padding as slowly as on tokens;
    elsewhere without padding where all layers keep packed rows apart (FlashAttention sees where they begin, recurrent
    layers don't), else padded.
    """
    if device.type == "cpu":
        return "equal"
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or [])
    flash = "flash" in (model.config._attn_implementation or "")
    # Only a forward with **kwargs hands on where rows begin.
    hears = any(p.kind is p.VAR_KEYWORD for p in signature(model.base_model.forward).parameters.values())
    attends = not model._is_stateful and kinds <= {"full_attention", "sliding_attention", "chunked_attention"}
    return "packed" if flash and hears and attends else "padded"


def length_border(model: PreTrainedModel) -> int | None:
    """
    The length beyond which a student computes positions in another way: LongRoPE's (Phi-3) long factors hold for all
    rows of a batch whose longest row is longer.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in (
        rope,
        *(value for value in rope.values() if isinstance(value, dict)),
    ):  # one, or one a layer type
        if parameters.get("rope_type") == "longrope":
            return parameters["original_max_position_embeddings"]
    return None


def on_device(arrays: dict[str, np.ndarray | int], device: torch.device) -> dict[str, torch.Tensor | int]:
    """What [`lay_out`] made, as models take it."""
    return {
        name: torch.from_numpy(array).to(device) if isinstance(array, np.ndarray) else array
        for name, array in arrays.items()
    }


class Student:
    """
    A live model seen as a scorer of tokens. It leaves the model as it finds it: train mode, gradients, caches, random
    state.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): Causal language model.
        max_batch_tokens (`int`, *optional*): Tokens of a batch, padding included.
        logits_dtype (`str`, *optional*, defaults to `"float32"`): See [`LMHead.score`].

    Raises:
        TypeError: if `model` isn't a causal language model of transformers or PEFT.
        ValueError: if its LM head can't be read.
    """

    def __init__(
        self,
        model: "PreTrainedModel | PeftModel",
        max_batch_tokens: int | None = None,
        logits_dtype: str = "float32",
    ):
        self.model = model
        if is_peft_available() and isinstance(model, PeftModel):
            if any(isinstance(config, PromptLearningConfig) for config in model.peft_config.values()):
                raise ValueError(
                    "Prompt-learning PEFT adapters change the sequence itself and can't be scored. Use LoRA."
                )
            model = model.get_base_model()
        if not isinstance(model, PreTrainedModel):
            raise TypeError(f"The student must be a transformers model, got {type(model).__name__}.")
        self._base = model
        LMHead.of(model)  # says what is wrong with the head before any work
        if model.config.is_encoder_decoder or model.base_model is model:
            raise ValueError(
                f"{type(model).__name__} can't be scored: the student must be a decoder-only causal language model "
                "whose backbone stands apart from its LM head."
            )
        if any(parameter.is_meta for parameter in model.parameters()):
            raise ValueError(
                "Part of the student's weights was left on the CPU or on disk, because the devices don't hold them. "
                "Quantize it (quantization_config), load a narrower dtype, or use more or larger GPUs."
            )
        self.logits_dtype = logits_dtype
        if max_batch_tokens is None:
            max_batch_tokens = default_batch_tokens(self.device)
        self.max_batch_tokens = max_batch_tokens
        self.layout = best_layout(model, self.device)
        self._border = length_border(model)
        self._verified = False

    @property
    def head(self) -> LMHead:
        """The LM head as it is now: PEFT and `resize_token_embeddings` put another module in its place."""
        return LMHead.of(self._base)

    @property
    def device(self) -> torch.device:
        return self._base.get_input_embeddings().weight.device

    @property
    def vocab_size(self) -> int:
        return min(self._base.get_input_embeddings().weight.shape[0], self.head.vocab_size)

    def score(
        self,
        examples: Sequence[TokenizedExample],
        with_top1: bool = False,
        first_row: int = 0,
        with_moments: bool = False,
    ) -> Iterator[tuple[int, TokenScores]]:
        """
        Score examples, longest first.

        Args:
            examples (sequence of [`TokenizedExample`]): Those with an `error` are passed over.
            with_top1 (`bool`, *optional*, defaults to `False`): Also the student's most likely token at each place.
            first_row (`int`, *optional*, defaults to `0`): What messages call the first example.
            with_moments (`bool`, *optional*, defaults to `False`): Also entropy and sum of squared probabilities.

        Yields:
            Pairs of a position in `examples` and its [`TokenScores`].

        Raises:
            ValueError: if a token id is beyond the student's vocabulary.
            FloatingPointError: if the student gives NaN or infinite logits; names the rows.
        """
        lengths = np.array([0 if e.error else len(e.input_ids) for e in examples], dtype=np.int64)
        for i in np.flatnonzero(lengths):
            if (largest := int(examples[i].input_ids.max())) >= self.vocab_size:
                raise ValueError(
                    f"Row {first_row + i} has token id {largest}, but the student's vocabulary has {self.vocab_size} "
                    "entries. Tokenizer and student don't belong together, or the embeddings need "
                    "`model.resize_token_embeddings`."
                )
        compile = compiles(
            self.device, sum(int(e.scored.sum()) for e in examples if not e.error) * self.head.vocab_size
        )
        with evaluation_mode(self.model):
            for batch, hidden, targets in self._forward_all(examples, lengths):
                stats = self.head.score(
                    hidden,
                    targets,
                    with_top1=with_top1,
                    with_moments=with_moments,
                    logits_dtype=self.logits_dtype,
                    compile=compile,
                )
                yield from self._split(examples, batch, targets, stats, first_row)

    def _forward_all(
        self, examples: Sequence[TokenizedExample], lengths: np.ndarray
    ) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
        """
        Hidden states that predict the scored tokens, in groups that are worth a pass of the head.

        Yields:
            Row indices, hidden states of shape `(N, H)` and targets of shape `(N,)`, row after row.
        """
        budget, lengths = self.max_batch_tokens, lengths.copy()
        group: list[tuple[np.ndarray, torch.Tensor, torch.Tensor]] = []
        if lengths.any() and not self._verified:
            self._verify(examples[np.argmax(lengths)])
        while lengths.any():
            for batch in plan_batches(lengths, budget, self.layout, self._border):
                try:
                    group.append((batch, *self._forward(examples, batch)))
                except torch.OutOfMemoryError as error:
                    if len(batch) == 1:
                        raise torch.OutOfMemoryError(
                            f"One trajectory of {lengths[batch[0]]} tokens doesn't fit into the GPU's memory. Lower "
                            f"max_length, "
                            "use a narrower dtype, or spread the student with device_map='auto'."
                        ) from error
                    # It stays so: the next examples would run out of memory too.
                    budget = self.max_batch_tokens = budget // 2
                    logger.warning("Out of GPU memory: going on with max_batch_tokens=%d. Pass it next time.", budget)
                    break  # outside this handler: the failed batch's tensors are freed before the next try
                lengths[batch] = 0
                if sum(len(targets) for _, _, targets in group) >= MIN_HEAD_POSITIONS:
                    yield _merge(group)
                    group = []
        if group:
            yield _merge(group)

    @torch.no_grad()
    def _forward(self, examples: Sequence[TokenizedExample], batch: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """
        One pass of the backbone: hidden states that predict the batch's scored tokens `(N, H)`, and those tokens
        `(N,)`.
        """
        rows = [examples[i] for i in batch]
        arrays = lay_out([row.input_ids for row in rows], [row.scored for row in rows], self.layout)
        ids, scored = arrays.pop("input_ids"), arrays.pop("scored")
        given = on_device(arrays, self.device)
        hidden = self.hidden_states(torch.from_numpy(ids).to(self.device), **given)
        # The state before a token predicts it. A row's first token is never scored, so none is predicted across rows.
        selected = torch.from_numpy(np.flatnonzero(scored))
        targets = torch.from_numpy(ids.reshape(-1))[selected].to(hidden.device)
        return hidden.reshape(-1, hidden.shape[-1])[(selected - 1).to(hidden.device)], targets

    def _split(
        self,
        examples: Sequence[TokenizedExample],
        batch: list[int],
        targets: torch.Tensor,
        stats: TokenStats,
        first_row: int,
    ) -> Iterator[tuple[int, TokenScores]]:
        """The head's answer row by row, as arrays; `FloatingPointError` with the rows whose logits are broken."""
        ends = np.cumsum([int(examples[i].scored.sum()) for i in batch])
        parts = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        tensors = [targets.int(), stats.ranks.int(), stats.surprisals]
        tensors += [None if stats.top1 is None else stats.top1.int(), stats.entropies, stats.sum_squares]
        arrays = [None if tensor is None else tensor.cpu().numpy() for tensor in tensors]
        broken = sorted(
            first_row + i for i, part in zip(batch, parts, strict=True) if not np.isfinite(arrays[2][part]).all()
        )
        if broken:
            raise FloatingPointError(
                f"The student gives NaN or infinite logits on rows "
                f"{broken[:10]}{' and more' if len(broken) > 10 else ''}. Its "
                f"weights may be damaged, or {self._base.dtype} may be too narrow for it: try dtype='float32'."
            )
        for i, part in zip(batch, parts, strict=True):
            yield i, TokenScores(*(None if array is None else array[part] for array in arrays))

    def hidden_states(self, input_ids: torch.Tensor, **given: torch.Tensor) -> torch.Tensor:
        """
        Last hidden states of shape `(B, T, H)`, on the LM head's device, by the backbone alone; `given` are its
        `attention_mask` or `position_ids`.
        """
        outputs = self._base.base_model(input_ids=input_ids, use_cache=False, **given)
        return outputs.last_hidden_state.to(self.head.module.weight.device)

    @torch.no_grad()
    def _verify(self, example: TokenizedExample) -> None:
        """
        Compare with the model's own logits once, on a few tokens and, beside them in the batch, on half as many:
        neither an unknown logit scale nor attention to later tokens or to another row may pass unnoticed.
        """
        ids = example.input_ids[:16]
        parts = [ids, ids[: len(ids) // 2 + 1]]
        rows = [TokenizedExample(part, np.arange(len(part)) > 0) for part in parts]
        hidden, targets = self._forward(rows, np.arange(2))
        found = self.head.score(hidden, targets).surprisals
        whole = torch.from_numpy(ids.astype(np.int64)).to(self.device)[None]
        own = self._base(input_ids=whole, use_cache=False).logits[0].to(found.device).float()
        own = torch.cat([own[: len(part) - 1] for part in parts])
        expected = own.logsumexp(-1) - own.gather(-1, targets[:, None])[:, 0]
        # Reduced precision rounds both. NaN passes here: broken weights are told with the rows that show it.
        tolerance = 0.01 if torch.finfo(self._base.dtype).eps < 1e-6 else 0.1
        if (found - expected).abs().mean() > tolerance * (1 + expected.mean()):
            raise ValueError(
                f"{type(self._base).__name__} doesn't compute its logits in a way that is known here (mean surprisal "
                f"{found.mean():.4g} instead of its own {expected.mean():.4g} nats on {len(found)} tokens). Only "
                "causal language models can be scored; if it is one, please report the architecture."
            )
        self._verified = True

    def weights_fingerprint(self) -> str:
        """See [`fingerprint.weights_fingerprint`]."""
        return fingerprint.weights_fingerprint(self._base)

    def weights_version(self) -> tuple:
        """Cheap key that changes when an optimizer or `load_state_dict` changes the weights in place."""
        return *((p.data_ptr(), p._version) for p in self._base.parameters()), *fingerprint.adapters(self._base)


def _merge(group: list[tuple[np.ndarray, torch.Tensor, torch.Tensor]]) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    batches, hidden, targets = zip(*group, strict=True)
    return [int(i) for batch in batches for i in batch], torch.cat(hidden), torch.cat(targets)
