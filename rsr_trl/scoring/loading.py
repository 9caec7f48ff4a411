"""Finding and loading a named student: its config, tokenizer, chat template and weights; an adapter or GGUF file too.

Knows names and files, and nothing of scores.
"""

import copy
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.integrations.gguf import GgufHeader
from transformers.utils import cached_file, find_adapter_config_file, is_gguf_available, is_peft_available

from rsr_trl.rsr import RSRError


if is_peft_available():
    from peft import PeftConfig
    from peft.utils import load_peft_weights


@contextmanager
def _naming(model_id: str) -> Iterator[None]:
    """Errors of files that can't be had name the student: those of the Hub don't always."""
    try:
        yield
    except OSError as error:
        where = "" if Path(model_id).exists() else " (no such folder here, so a Hub id)"
        why = str(error).strip().split("\n")[0]
        raise RSRError(f"Can't load the student {model_id!r}{where}: {why}") from error


def student_name(model_id: str, gguf_file: str | None = None) -> str:
    """One name for what `from_pretrained` takes as two: `folder/file.gguf`, a file in a folder or repository."""
    if gguf_file is None:
        return model_id
    if not gguf_file.endswith(".gguf"):
        raise RSRError(f"gguf_file={gguf_file!r} isn't the name of a .gguf file.")
    return os.path.join(model_id, gguf_file)


def split_gguf(name: str) -> tuple[str, dict[str, str]]:
    """A student's name as `from_pretrained` takes it: folder or Hub id, and `gguf_file` if it is in one."""
    if not name.endswith(".gguf"):
        return name, {}
    if not is_gguf_available():
        raise RSRError(f"{name!r} is a GGUF file, and reading it needs the package gguf: pip install gguf")
    folder, file = os.path.split(os.path.expanduser(name))
    if os.path.isfile(os.path.join(folder, file)):
        return folder or ".", {"gguf_file": file}
    owner, repository, file = [*name.split("/", 2), "", ""][:3]
    if not owner or not file or Path(owner).is_dir():
        raise RSRError(f"There is no file {name!r}.")
    return f"{owner}/{repository}", {"gguf_file": file}


def find_config(model_id: str, **hub) -> tuple[str, PreTrainedConfig]:
    """The name of a student's weights, which are its base model's where it is an adapter, and their config."""
    base, revision = model_id, hub.get("revision")
    is_whole = model_id.endswith(".gguf") or (Path(model_id) / "config.json").is_file()
    with _naming(model_id):
        if not is_whole and find_adapter_config_file(model_id, revision=revision) is not None:
            base = PeftConfig.from_pretrained(model_id, revision=revision).base_model_name_or_path
        name, gguf = split_gguf(base)
        return base, AutoConfig.from_pretrained(name, **hub, **gguf)


def find_tokenizer(name: str, **hub) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, Hub repository or GGUF file."""
    name, gguf = split_gguf(name)
    return AutoTokenizer.from_pretrained(name, **hub, **gguf)


def find_processor(model_id: str, **hub) -> ProcessorMixin:
    """The processor of a student that sees; an adapter has that of its base model."""
    base, _ = find_config(model_id, **hub)
    name, gguf = split_gguf(base)
    if gguf:
        raise RSRError(f"{base!r} is a GGUF file, which holds no processor for images. Score the student's own files.")
    from transformers import AutoProcessor  # with all kinds of processors

    try:
        processor = AutoProcessor.from_pretrained(name, **hub)
    except (OSError, ValueError, ImportError, AttributeError) as error:  # some need torchvision, and say it so or so
        raise RSRError(f"Can't load the processor of the student {name!r}, which its images need: {error}") from error
    if not isinstance(processor, ProcessorMixin):
        raise RSRError(f"The student {name!r} comes without a processor for images. Pass one as processing_class.")
    return processor


def tokenizer_of(processor: ProcessorMixin) -> PreTrainedTokenizerBase:
    """A processor's tokenizer, with the processor's chat template."""
    if processor.chat_template in (None, processor.tokenizer.chat_template):
        return processor.tokenizer
    tokenizer = copy.copy(processor.tokenizer)
    tokenizer.chat_template = processor.chat_template
    return tokenizer


def find_config_and_tokenizer(
    model_id: str, processing_class: PreTrainedTokenizerBase | None = None, **hub
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """
    Config and tokenizer (unless one is given) of a named student, without its weights; an adapter has those of its
    base model. `hub` is `revision` and `trust_remote_code`, as `from_pretrained` takes them.
    """
    base, config = find_config(model_id, **hub)
    if processing_class is None:
        try:
            processing_class = find_tokenizer(model_id, **hub)
        except (OSError, ValueError):
            if base == model_id:
                raise
            processing_class = find_tokenizer(base, **hub)  # PEFT saves none with an adapter
    return config, processing_class


def with_chat_template(processing_class: PreTrainedTokenizerBase, path: str | None) -> PreTrainedTokenizerBase:
    """
    A copy of the tokenizer with the chat template at `path`, as SFTTrainer reads its `chat_template_path`: a `.jinja`
    or `.j2` file, or a tokenizer (folder or hub id), which brings its end-of-sequence token too.
    """
    if path is None:
        return processing_class
    processing_class, is_file = copy.deepcopy(processing_class), path.endswith((".jinja", ".j2"))
    try:
        if is_file:
            processing_class.chat_template = Path(path).read_text(encoding="utf-8")
            return processing_class
        source = find_tokenizer(path)
        processing_class.chat_template = source.get_chat_template()
    except (OSError, ValueError) as error:
        what = "file" if is_file else ".jinja file, and no tokenizer with a chat template"
        raise RSRError(f"chat_template_path={path!r} is no {what} that can be read: {error}") from error
    known, added = processing_class.get_vocab(), source.added_tokens_decoder.values()
    if missing := [token.content for token in added if token.content not in known]:
        raise RSRError(
            f"chat_template_path={path!r}: this tokenizer has {len(missing)} special tokens that the student doesn't "
            f"know (first: {missing[0]!r}). SFTTrainer would add them, untrained. Give the template alone, as a "
            ".jinja file, or save the student with them first (trl.clone_chat_template) and score that one."
        )
    processing_class.eos_token = source.eos_token
    return processing_class


def load_model(
    model_id: str,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: str | dict | None = None,
    **kwargs,
) -> PreTrainedModel:
    """
    Load a student from a hub id or folder; an adapter's folder loads its base model and applies it. It goes to the GPU
    if there is one, unless `device` says otherwise or `device_map` spreads it. `kwargs` are passed to
    `from_pretrained` of `AutoModelForCausalLM`, or of `AutoModelForImageTextToText` for a model that has its language
    model inside. Of a GGUF file, weights are dequantized: the student is one like any other, to score and to train.
    """
    if device_map is not None and device is not None:
        raise RSRError(f"Pass either device={device!r} or device_map={device_map!r}, not both.")
    if device is not None and torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise RSRError(
            f"device={str(device)!r}: PyTorch {torch.__version__} finds no CUDA GPU here. Leave device unset, or "
            "install a PyTorch for your GPU."
        )
    hub = {name: kwargs[name] for name in ("revision", "trust_remote_code") if name in kwargs}
    base, config = find_config(model_id, **hub)
    name, gguf = split_gguf(base)
    if gguf and kwargs.get("quantization_config") is not None:
        raise RSRError(f"{base!r} is a GGUF file: its weights can't be quantized again. Leave the quantization out.")
    kwargs |= gguf and {"config": config, "quantization_config": GgufConfig(dequantize=True), **gguf}
    inside = type(config) in AutoModelForImageTextToText._model_mapping
    only_inside = inside and type(config) not in AutoModelForCausalLM._model_mapping
    kind = AutoModelForImageTextToText if only_inside else AutoModelForCausalLM
    with _naming(model_id):
        model = kind.from_pretrained(name, dtype=dtype, device_map=device_map, **kwargs)
    if gguf:
        model.name_or_path = model.config.name_or_path = base  # what an adapter of it notes
    if base != model_id:
        _add_adapter(model, model_id, hub.get("revision"))
    if device_map is None and not getattr(model, "is_quantized", False):
        model.to(device or default_device())
    return model.eval()


def for_trainer(model: object, init_kwargs: dict | None, quantization_config: object = None) -> dict:
    """
    `model` and `processing_class` of a student in a GGUF file, loaded as SFTTrainer loads one by name, which it can't
    do with such a file; empty for any other student. `init_kwargs` are SFTConfig's `model_init_kwargs`.
    """
    kwargs = dict(init_kwargs or {})
    gguf_file = kwargs.pop("gguf_file", None)
    if not isinstance(model, str) or not (name := student_name(model, gguf_file)).endswith(".gguf"):
        return {}
    hub = {one: kwargs[one] for one in ("revision", "trust_remote_code") if one in kwargs}
    kwargs = {"dtype": "float32", "device": "cpu", "quantization_config": quantization_config} | kwargs
    return {"model": load_model(name, **kwargs), "processing_class": find_tokenizer(name, **hub)}


def weight_bits(name: str | None, revision: str | None = None) -> int | None:
    """Bits of most weights in a GGUF file, by the name of their format (Q4_1: 4); `None` for any other student."""
    if name is None or not name.endswith(".gguf"):
        return None
    from gguf import GGMLQuantizationType

    folder, gguf = split_gguf(name)
    sizes = Counter()
    for tensor in GgufHeader.from_file(cached_file(folder, gguf["gguf_file"], revision=revision)).tensors:
        sizes[GGMLQuantizationType(tensor.ggml_type).name] += prod(tensor.shape)
    kind = max(sizes, key=sizes.get)
    return None if kind in ("F64", "F32", "F16", "BF16") else int(re.search(r"\d+", kind)[0])


def _add_adapter(model: PreTrainedModel, adapter: str, revision: str | None) -> None:
    """Apply an adapter, with as many embeddings as it was saved with: its training may have added tokens."""
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    names = tuple(f"base_model.model.{name}." for name, module in model.named_modules() if module in embeddings)
    saved = load_peft_weights(adapter, device="cpu", revision=revision)
    whole = [name for name in saved if name.startswith(names) and name.endswith("weight") and ".lora_" not in name]
    sizes = {saved[name].shape[0] for name in whole}
    if sizes:
        model.resize_token_embeddings(max(sizes), mean_resizing=False)
    model.load_adapter(adapter, adapter_kwargs={"revision": revision})


def default_device() -> torch.device:
    """The GPU (or other accelerator) if there is one, else the CPU."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def refuse_live_model(*args, **kwargs) -> None:
    """A live student's scorer in a worker process: raises when called, because raising before hangs the pool."""
    raise RSRError(
        "A live model can't go to the worker processes of `map(num_proc=...)`. Leave `num_proc` unset, or build the "
        "scorer from a model id or path: RSRScorer('path/to/student')."
    )
