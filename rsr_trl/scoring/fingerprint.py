"""Who a student is: hashes of weights, config, adapters, tokenizer and settings, the same in every process.

They let a later step know that scores are its own student's, and a cache that nothing has changed.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import is_peft_available
from xxhash import xxh3_128


if is_peft_available():
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer


DEFINITION = (
    "3"  # raise it when a change of this package changes scores by more than rounding, or their student's name
)
PIECE = 1 << 24  # numbers hashed at once: a float32 copy of a whole tensor may not fit
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.json", "*.py")
BASE_LAYER = re.compile(r"\.base_layer(?=\.)")
LORA = re.compile(r"\.lora_(\w+)\.")
# Entries of a model's config that change no score, or that show in the weights. Others do: RoPE scaling, for one.
NEUTRAL_CONFIG = re.compile(
    r"_name_or_path|transformers_version|architectures|dtype|use_cache|.*_token_id|.*dropout.*|quantization_config|"
    r"output_attentions|output_hidden_states|output_router_logits|router_aux_loss_coef"
)


def weights_fingerprint(model: PreTrainedModel) -> str:
    """
    Hash of all that makes the student's numbers: weights (names, shapes, values), config and which adapters are on.
    The same however the student was loaded, in whatever dtype holds its weights exactly, and that of the base model
    while LoRA adapters add nothing to it.
    """
    config = _deciding(model.config.to_dict())
    weights, active = model.state_dict(), adapters(model)
    if active and _adds_nothing(model, weights):
        weights = {BASE_LAYER.sub("", name): tensor for name, tensor in weights.items() if not LORA.search(name)}
        active = []
    digest = xxh3_128(_hash([config, active]).encode())
    for name, tensor in sorted(weights.items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        for part in plain_tensors(tensor.detach()):
            # float32 holds all numbers of fewer bits exactly.
            dtype = torch.float32 if part.is_floating_point() and part.itemsize < 4 else part.dtype
            digest.update(f"{name}{dtype}{tuple(part.shape)}".encode())
            for piece in part.flatten().split(PIECE):
                digest.update(piece.to(dtype).cpu().view(torch.uint8).numpy())
    return digest.hexdigest()


def _deciding(config: dict) -> dict:
    """The entries of a config, and of those inside it, that can change a score."""
    return {
        name: _deciding(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if not NEUTRAL_CONFIG.fullmatch(str(name))
    }


def plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors that one is made of: torchao's hold their numbers and scales inside."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from plain_tensors(getattr(tensor, name))


def _adds_nothing(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> bool:
    """Whether all adapters are LoRA's as they begin: with a product of zero."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if not all(isinstance(layer, LoraLayer) for layer in layers) or any("modules_to_save" in name for name in weights):
        return False
    added = [(match[1], tensor) for name, tensor in weights.items() if (match := LORA.search(name))]
    return {kind for kind, _ in added} <= {"A", "B", "embedding_A", "embedding_B"} and not any(
        tensor.any() for kind, tensor in added if kind in ("B", "embedding_A")
    )


def adapters(model: PreTrainedModel) -> list[tuple]:
    """Which PEFT adapters act on which layers, and how strongly: the weights don't say."""
    if not is_peft_available():
        return []
    return [  # `scaling` is LoRA's (and its kin's)
        (name, module.active_adapters, module.disable_adapters, dict(getattr(module, "scaling", {})))
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    ]


def tokenizer_fingerprint(processing_class: PreTrainedTokenizerBase) -> str:
    """Hash of what decides token ids: the tokenizer's model and rules, its special tokens and its chat template."""
    rules = json.loads(processing_class.backend_tokenizer.to_str())
    # Transient: set by whoever called the tokenizer last.
    rules.pop("padding", None)
    rules.pop("truncation", None)
    special = {name: str(token) for name, token in processing_class.special_tokens_map.items() if name != "pad_token"}
    return _hash([rules, special, processing_class.chat_template])


def student_fingerprint(
    weights: str, dtype: torch.dtype, processing_class: PreTrainedTokenizerBase, **settings
) -> str:
    """
    Short name of a student and of the settings that change a score by more than rounding (`r_max`,
    `assistant_only_loss`, `logits_dtype`), and of the dtype that it computes in, which changes scores by rounding:
    16 hexadecimal digits and the dtype, such as `1f0c5e7a9b3d2468-bfloat16`. The `rsr_student` column.
    """
    name = _hash([DEFINITION, weights, tokenizer_fingerprint(processing_class), sorted(settings.items())])[:16]
    return f"{name}-{str(dtype)[6:]}"


def dtype_of(fingerprint: str | None) -> str | None:
    """The dtype that a [`student_fingerprint`] names; `None` where it names none."""
    return (fingerprint or "").partition("-")[2] or None


def same_student(one: str | None, other: str | None) -> bool:
    """Whether two [`student_fingerprint`]s are of one student with the same settings, up to the dtype."""
    return None not in (dtype_of(one), dtype_of(other)) and one.partition("-")[0] == other.partition("-")[0]


def checkpoint_fingerprint(model_id: str, commit_hash: str | None) -> str:
    """
    What identifies the weights behind a model id without loading them: the hub's commit, or the bytes of a local
    folder's files (a student retrained into the same folder is another one), with those of an adapter's base model,
    or of a GGUF file.
    """
    folder = Path(model_id)
    if folder.suffix == ".gguf" and folder.is_file():
        return _file_digest(folder, (stat := folder.stat()).st_size, stat.st_mtime_ns)
    if not folder.is_dir():
        return f"{model_id}@{commit_hash}"
    files = sorted({path for pattern in WEIGHT_FILES for path in folder.glob(pattern)})
    parts = [(path.name, _file_digest(path, (stat := path.stat()).st_size, stat.st_mtime_ns)) for path in files]
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        parts.append(("base", checkpoint_fingerprint(base, None)))
    return _hash(parts)


@functools.lru_cache(maxsize=1024)
def _file_digest(path: Path, size: int, modified: int) -> str:
    """Hash of a file's bytes. With size and time of modification among the arguments, a changed file is read again."""
    return digest_of(path)


def digest_of(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxh3_128).hexdigest()


def _hash(value: object) -> str:
    return xxh3_128(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
