"""A tokenizer of bytes, made on the spot."""

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_tokenizer(
    more: Sequence[str] = (), merges: Sequence[tuple[str, str]] = (), **settings
) -> PreTrainedTokenizerFast:
    """ChatML's special tokens, `more` tokens, one for each byte, and those of `merges`, in this order."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIALS, *more, *letters, *map("".join, merges)]
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=list(merges)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    settings = {"additional_special_tokens": SPECIALS[1:], **settings}
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", **settings
    )
