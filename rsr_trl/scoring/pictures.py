"""What a processor makes of a row's images, and how those of several rows lie in one batch.

Knows tensors alone: neither the model, nor where an image comes from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from xxhash import xxh3_64


PATCH = 2 * 3 * 14 * 14  # numbers of a patch of Qwen's vision tower: it counts as a token of a batch
BYTES = 1024  # of images count as a token of a window, which then holds at most 1 GB of them


@dataclass(frozen=True)
class Pictures:
    """
    The images of one row of `T` tokens, as the student's processor gives them to the model.

    Args:
        tensors (`dict`): Such as `pixel_values` and `image_grid_thw`. The first dimension is that of rows, images or
            patches: those of several rows follow each other in it.
        token_kinds (`dict` of int arrays of shape `(T,)`): Such as `mm_token_type_ids`: which tokens are an image's.
        end (`int`): The place after the last token that belongs to an image.
        digest (`int`): [`digest_of`] the tensors: the same images in another row have the same one.
    """

    tensors: Mapping[str, torch.Tensor]
    token_kinds: Mapping[str, np.ndarray]
    end: int
    digest: int

    @cached_property
    def kind(self) -> tuple:
        """What the tensors of rows in one batch have in common."""
        return tuple((name, tuple(t.shape[1:])) for name, t in sorted(self.tensors.items()))

    @property
    def num_patches(self) -> int:
        """How much there is to look at, in patches of about [`PATCH`] numbers."""
        return sum(t.numel() for t in self.tensors.values() if t.is_floating_point()) // PATCH

    def cut(self, stop: int) -> "Pictures":
        """Those of the first `stop` tokens, which hold all images."""
        return replace(self, token_kinds={name: kinds[:stop] for name, kinds in self.token_kinds.items()})

    def without_numbers(self) -> "Pictures":
        """Their shapes alone, to plan with."""
        return replace(self, tensors={name: tensor.to("meta") for name, tensor in self.tensors.items()})


def digest_of(tensors: Mapping[str, torch.Tensor]) -> int:
    """63-bit hash of tensors, by name: an int64 of a column."""
    digest = xxh3_64()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.intdigest() >> 1


def stack(pictures: Sequence[Pictures], width: int) -> dict[str, torch.Tensor]:
    """
    Inputs of the model beside the ids for a batch of rows of one [`Pictures.kind`], filled up to `width` tokens on the
    right as the ids are.
    """
    inputs = {name: torch.cat([one.tensors[name] for one in pictures]) for name in pictures[0].tensors}
    for name in pictures[0].token_kinds:
        filled = np.zeros((len(pictures), width), dtype=np.int64)
        for line, one in zip(filled, pictures, strict=True):
            line[: len(one.token_kinds[name])] = one.token_kinds[name]
        inputs[name] = torch.from_numpy(filled)
    return inputs


def tokens_of_images(pictures: Sequence[Pictures]) -> int:
    """What images add to the tokens of a window of rows; tensors that rows share count once."""
    tensors = {id(tensor): tensor.nbytes for one in pictures for tensor in one.tensors.values()}
    return sum(tensors.values()) // BYTES
