"""Tiny random students that see, of four families, with processors made on the spot; they need no torchvision."""

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import PreTrainedTokenizerFast

from tests.byte_tokenizer import SPECIALS, byte_tokenizer


TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
}
LAYERS = ["sliding_attention", "full_attention"]
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 14,
}


def _template(image: str) -> str:
    """ChatML of parts, as those of vision-language models are."""
    return (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{% if part.type == 'image' %}" + image + "{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def _tokenizer(image: str, *more: str, **extra) -> PreTrainedTokenizerFast:
    return byte_tokenizer(
        more,
        [("Ċ", "Ċ"), ("o", "o")],
        additional_special_tokens=[*SPECIALS[1:], *more],
        chat_template=_template(image),
        **extra,
    )


def qwen():
    """Qwen2.5-VL: flat patches of any number, positions in three dimensions."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    class Processor(transformers.Qwen2_5_VLProcessor):
        def check_argument_for_proper_class(self, name, argument):
            """Without torchvision there is no video processor."""
            return type(argument) if argument is None else super().check_argument_for_proper_class(name, argument)

    pad = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>")
    tokenizer = _tokenizer("".join(pad[:3]), *pad)
    images = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=28 * 28 * 9)
    processor = Processor(images, tokenizer, None, chat_template=tokenizer.chat_template)
    ids = dict(
        zip(("vision_start", "image", "vision_end", "video"), tokenizer.convert_tokens_to_ids(pad), strict=True)
    )
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "depth": 2,
            "num_heads": 2,
            "out_hidden_size": 32,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        tie_word_embeddings=False,
        **{f"{name}_token_id": number for name, number in ids.items()},
    )
    return transformers.Qwen2_5_VLForConditionalGeneration, config, processor


def idefics():
    """Idefics3, as SmolVLM: large images are cut into tiles, whose number gives the shape of the tensors."""
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    tiles = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    tokenizer = _tokenizer(
        "<image>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *tiles
    )
    images = Idefics3ImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    processor = transformers.Idefics3Processor(
        images, tokenizer, image_seq_len=1, chat_template=tokenizer.chat_template
    )
    config = transformers.Idefics3Config(
        text_config={"model_type": "llama", **TEXT, "vocab_size": len(tokenizer)},
        vision_config={**VISION, "image_size": 28},
        scale_factor=2,
        image_token_id=processor.image_token_id,
        tie_word_embeddings=False,
    )
    return transformers.Idefics3ForConditionalGeneration, config, processor


def gemma():
    """Gemma 3: an image's tokens see each other, and line ends around it run into those of the text."""
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = _tokenizer("<start_of_image>", *names.values(), extra_special_tokens=names)
    images = Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    processor = transformers.Gemma3Processor(
        images, tokenizer, image_seq_length=4, chat_template=tokenizer.chat_template
    )
    config = transformers.Gemma3Config(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "sliding_window": 16,
            "layer_types": LAYERS,
            "query_pre_attn_scalar": 8,
        },
        vision_config={**VISION, "image_size": 28, "vision_use_head": False},
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        tie_word_embeddings=False,
    )
    return transformers.Gemma3ForConditionalGeneration, config, processor


def llava():
    """LLaVA: one square of pixels for each image."""
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    tokenizer = _tokenizer("<image>", "<image>")
    images = LlavaImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = transformers.LlavaProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
        num_additional_image_tokens=1,
    )
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **TEXT, "vocab_size": len(tokenizer)},
        vision_config={"model_type": "clip_vision_model", **VISION, "image_size": 28, "projection_dim": 16},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_seq_length=5,
        tie_word_embeddings=False,
    )
    return transformers.LlavaForConditionalGeneration, config, processor


FAMILIES = {"qwen": qwen, "idefics": idefics, "gemma": gemma, "llava": llava}


def build(family: str, seed: int = 0):
    """A random student of a family in fp32 whose images change its scores, and its processor."""
    kind, config, processor = FAMILIES[family]()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config).eval()
        for name, weight in model.named_parameters():  # vision towers begin with small numbers
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.3)
            elif "mm_soft_emb_norm" in name:
                torch.nn.init.normal_(weight)
    return model, processor


def picture(seed: int, width: int = 30, height: int = 30, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)
