"""Finding and loading a named student: its config, tokenizer, chat template and weights, an adapter's too.

Knows names and files, and nothing of scores.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import find_adapter_config_file, is_peft_available

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


def find_config(model_id: str, **hub) -> tuple[str, PreTrainedConfig]:
    """The name of a student's weights, which are its base model's where it is an adapter, and their config."""
    base, revision = model_id, hub.get("revision")
    is_whole = (Path(model_id) / "config.json").is_file()
    with _naming(model_id):
        if not is_whole and find_adapter_config_file(model_id, revision=revision) is not None:
            base = PeftConfig.from_pretrained(model_id, revision=revision).base_model_name_or_path
        return base, AutoConfig.from_pretrained(base, **hub)


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
            processing_class = AutoTokenizer.from_pretrained(model_id, **hub)
        except (OSError, ValueError):
            if base == model_id:
                raise
            processing_class = AutoTokenizer.from_pretrained(base, **hub)  # PEFT saves none with an adapter
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
        source = AutoTokenizer.from_pretrained(path)
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
    model inside.
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
    inside = type(config) in AutoModelForImageTextToText._model_mapping
    only_inside = inside and type(config) not in AutoModelForCausalLM._model_mapping
    kind = AutoModelForImageTextToText if only_inside else AutoModelForCausalLM
    with _naming(model_id):
        model = kind.from_pretrained(base, dtype=dtype, device_map=device_map, **kwargs)
    if base != model_id:
        _add_adapter(model, model_id, hub.get("revision"))
    if device_map is None and not getattr(model, "is_quantized", False):
        model.to(device or default_device())
    return model.eval()


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
