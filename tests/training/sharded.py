"""
Scores rows with a student under FSDP2 on CPU: one process of `torchrun ... sharded.py student_folder result.json`.
"""

import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from rsr_trl.training.live_student import ScoringPass, add_rsr_head


def rows() -> Dataset:
    """Five rows of different lengths: three batches, so that the last round has work for one of two processes only."""
    rng = np.random.default_rng(0)
    lengths = [9, 7, 7, 5, 3]
    ids = [rng.integers(0, 262, length).tolist() for length in lengths]
    return Dataset.from_dict({"input_ids": ids, "rsr_scored": [[i > 1 for i in range(length)] for length in lengths]})


ARGS = SimpleNamespace(rsr_r_max=100, rsr_max_batch_tokens=None, disable_tqdm=True)
BATCHES = [[0], [1, 2], [3, 4]]


def score(student: str, shard: bool) -> dict:
    accelerator = Accelerator(cpu=True)
    model = AutoModelForCausalLM.from_pretrained(student, dtype="float32").eval()
    add_fused_lm_head(model)
    in_forward = add_rsr_head(model)
    if shard:
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
        assert isinstance(model.get_output_embeddings().weight, DTensor)
    lengths = np.array([len(ids) for ids in rows()["input_ids"]])
    measured = ScoringPass(model, accelerator, rows(), lengths, ARGS, pad_token_id=0).score(model, BATCHES)
    # The training forward, which leaves its scores in the head.
    ids = torch.tensor([rows()[0]["input_ids"]])
    targets = ids.masked_fill(torch.arange(9) < 2, -100)
    output = model(input_ids=ids, labels=ids, rsr_targets=targets, fused_lm_head=True)
    output.loss.backward()
    stats = in_forward.pop()
    return {
        "rows": measured[0].tolist(),
        "ranks": measured[1].tolist(),
        "surprisals": measured[2].tolist(),
        "online": [stats.ranks.tolist(), stats.surprisals.tolist()],
        "loss": output.loss.item(),
    }


if __name__ == "__main__":
    result = score(sys.argv[1], shard=True)
    if torch.distributed.get_rank() == 0:
        with open(sys.argv[2], "w") as file:
            json.dump(result, file)
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads abort an ordinary exit now and then, after all is done
