"""For methods that let models write: a file of results that is safe to kill, and a batch whose rows advance apart."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from xxhash import xxh3_64_intdigest

from rsr_trl.rsr import RSRError
from rsr_trl.scoring.prefixes import takes_cache


def name_of(*parts: object) -> int:
    """64-bit hash of plain values."""
    return xxh3_64_intdigest(json.dumps(parts).encode())


class Lines:
    """
    Results by row and sample, those of earlier runs and new ones, as lines of a .jsonl file.

    Args:
        path (`str` or `Path`): The file; made if it isn't there. One process at a time writes it.
        run (`int`): [`name_of`] what decides the results: models and settings.
        prompts (list of `int`): [`name_of`] what each row asks.

    Raises:
        RSRError: if a line is of another run or of another prompt.
    """

    def __init__(self, path: str | Path, run: int, prompts: Sequence[int]):
        self.path, self.run, self.prompts = Path(path), run, dict(enumerate(prompts))
        self.found: dict[tuple[int, int], dict] = {}
        self.path.touch()
        with self.path.open("rb+") as file:
            whole, _, torn = (text := file.read()).rpartition(b"\n")
            file.truncate(len(text) - len(torn))  # a stop may have cut the last line
        for number, text in enumerate(whole.splitlines(), start=1):
            try:
                line = json.loads(text)
                key, same = (line["row"], line["sample"]), line["run"] == run
            except (ValueError, KeyError, TypeError):
                raise RSRError(f"{path}, line {number}, isn't a result of this method. Take another file.") from None
            if not same or self.prompts.get(line["row"]) != line["prompt"]:
                raise RSRError(
                    f"{path}, line {number}, was written with other models or settings, or for another prompt in row "
                    f"{line['row']}. Take another file."
                )
            self.found[key] = line

    def add(self, row: int, sample: int, **values) -> None:
        """Write a result. Values are plain ones, as JSON holds them."""
        line = {"run": self.run, "prompt": self.prompts[row], "row": row, "sample": sample, **values}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.found[row, sample] = line

    def columns(self, dataset: Dataset, names: Sequence[str], num_samples: int = 1) -> Dataset:
        """The rows of the dataset, each once per sample, with these values as columns."""
        keys = [(row, sample) for row in range(len(dataset)) for sample in range(num_samples)]
        rows = dataset.with_format(None).select([row for row, _ in keys])
        for name in names:
            rows = rows.add_column(name, [self.found[key][name] for key in keys])
        return rows


class Reader:
    """
    A model that reads the rows of a batch, which may advance by different numbers of tokens; all its layers have full
    attention (else `RSRError`), so that padding between a row's tokens is nothing but masked.
    """

    def __init__(self, model: PreTrainedModel, num_rows: int):
        self.model, self.cache = model, DynamicCache(config=model.config)
        if not takes_cache(model) or any(type(layer) is not DynamicLayer for layer in self.cache.layers):
            raise RSRError(
                f"{type(model).__name__} can't be read with rows that advance apart: that needs full attention in all "
                "layers, with attn_implementation 'sdpa' or 'eager', and an adapter to be merged."
            )
        self.mask = torch.zeros(num_rows, 0, dtype=torch.long, device=model.device)

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only."""
        self.mask = self.mask[rows]
        self.cache.batch_select_indices(torch.tensor(rows, device=self.mask.device))

    def read(self, tokens: Sequence[list[int]]) -> torch.Tensor:
        """Read one token or more in each row: log-probabilities of the next ones, of shape `(rows, V)`."""
        width = max(map(len, tokens))
        padded = [([0] * (width - len(row)) + row, [0] * (width - len(row)) + [1] * len(row)) for row in tokens]
        ids, mask = torch.tensor(padded, device=self.mask.device).unbind(1)
        self.mask = torch.cat([self.mask, mask], dim=1)
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -width:]
        given = {"attention_mask": self.mask, "position_ids": positions, "past_key_values": self.cache}
        logits = self.model(input_ids=ids, use_cache=True, logits_to_keep=1, **given).logits[:, -1]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if not torch.isfinite(total := logits.logsumexp(1, keepdim=True)).all():
            raise FloatingPointError(f"{type(self.model).__name__} gives NaN or infinite logits.")
        return logits - total
