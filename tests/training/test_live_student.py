"""Scores from the student in training. As a script, one process under FSDP2: `torchrun ... folder student`."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, Llama4ForCausalLM, Llama4TextConfig, set_seed
from trl.trainer.utils import add_fused_lm_head

from rsr_trl.rsr import RSRError, trajectory_means
from rsr_trl.training.live_student import ScoringPass, add_rsr_head, token_means, undisturbed
from tests.training.runs import leave, on_processes


LENGTHS = [9, 7, 7, 5, 3]


def scoring_pass(model, kind=ScoringPass, layout: str | None = "padded") -> ScoringPass:
    """Of five rows of different lengths, whose first two tokens aren't scored."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 262, length).tolist() for length in LENGTHS]
    scored = [[i > 1 for i in range(length)] for length in LENGTHS]
    rows = Dataset.from_dict({"input_ids": ids, "rsr_scored": scored})
    scoring = kind(model, Accelerator(cpu=True), rows, np.array(LENGTHS), pad_token_id=0, r_max=100, show_bar=False)
    scoring.layout = layout or scoring.layout
    return scoring


def train_forward(model, ids, targets=None, mask=None):
    """The training forward and backward of a model with TRL's and our head: its loss."""
    labels = torch.tensor(ids) if mask is None else torch.tensor(ids).masked_fill(torch.tensor(mask) == 0, -100)
    given = {} if targets is None else {"rsr_targets": torch.tensor(targets)}
    given |= {} if mask is None else {"attention_mask": torch.tensor(mask)}
    loss = model(input_ids=torch.tensor(ids), labels=labels, fused_lm_head=True, **given).loss
    loss.backward()
    return loss.item()


@torch.no_grad()
def naive(model, ids: list[int], scored: list[bool]) -> tuple[list[int], list[float]]:
    """Ranks and surprisals from the model's own logits, in float64."""
    logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    ranks, surprisals = [], []
    for position in np.flatnonzero(scored):
        row, target = logits[position - 1], ids[position]
        ranks.append(1 + int((row > row[target]).sum()))
        surprisals.append(float(row.logsumexp(-1) - row[target]))
    return ranks, surprisals


@pytest.mark.parametrize("layout", ["padded", "packed"])  # packed: transformers' mask from positions keeps rows apart
@pytest.mark.parametrize("batches", [[[0], [1], [2], [3], [4]], [[4, 0, 2], [1, 3]], [[0, 1, 2, 3, 4]]], ids=str)
def test_scores_are_those_of_the_definition_however_rows_are_batched(tiny_student, batches, layout):
    model = tiny_student()
    scoring = scoring_pass(model, layout=layout)
    tokens = [naive(model, row["input_ids"].tolist(), row["rsr_scored"]) for row in scoring._rows]
    expected = [trajectory_means(*of_row, [len(of_row[0])], 100) for of_row in tokens]
    add_rsr_head(model)
    rows, ranks, surprisals = scoring.score(model, batches)
    assert rows.tolist() == sum(batches, [])
    np.testing.assert_allclose(ranks, [expected[row][0][0] for row in rows])
    np.testing.assert_allclose(surprisals, [expected[row][1][0] for row in rows], rtol=1e-5)


def test_the_training_forward_is_the_same_with_and_without_scores(tiny_student):
    losses, gradients, mask = [], [], [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    for targets in (None, [[-100, -100, 5, 6, -100], [-100, 3, 7, -100, -100]]):
        model = tiny_student(attention_dropout=0.1).train()
        add_fused_lm_head(model)
        in_forward = add_rsr_head(model)
        torch.manual_seed(0)
        losses.append(train_forward(model, [[1, 4, 5, 6, 2], [8, 3, 7, 2, 0]], targets, mask))
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert losses[0] == losses[1]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    stats = in_forward.pop()
    assert stats.ranks.shape == stats.surprisals.shape == (4,) and not stats.surprisals.requires_grad
    assert in_forward == []
    assert not model.model._forward_hooks


def test_without_targets_the_model_is_what_it_was(tiny_student):
    model, ids = tiny_student(), torch.tensor([[1, 2, 3]])
    before, generated = model(input_ids=ids).logits, model.generate(ids, max_new_tokens=3)
    add_rsr_head(model)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert torch.equal(model.generate(ids, max_new_tokens=3, do_sample=False), generated)


def test_a_head_that_is_not_known_is_refused(tiny_student):
    model, ids = tiny_student(), torch.tensor([[1, 4, 5, 6, 2]])
    add_fused_lm_head(model)
    add_rsr_head(model)
    assert model(input_ids=ids, rsr_targets=ids, rsr_only=True)["ranks"].shape == (4,)
    capped = tiny_student()
    capped.lm_head.register_forward_hook(lambda module, inputs, output: 15 * torch.tanh(output / 15))
    add_fused_lm_head(capped)
    add_rsr_head(capped)
    with pytest.raises(RSRError, match="Qwen3ForCausalLM doesn't compute its logits in a way that is known"):
        capped(input_ids=ids, rsr_targets=ids, rsr_only=True)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_local_experts": 2, "vocab_size": 262, "pad_token_id": 0}
    with pytest.raises(RSRError, match="Llama4ForCausalLM can't be scored: .* backbone stands apart"):
        add_rsr_head(Llama4ForCausalLM(Llama4TextConfig(**shape)))


def test_a_row_with_broken_logits_is_nan_and_the_others_are_not():
    ranks, surprisals = torch.tensor([1, 2, 3, 4]), torch.tensor([1.0, 2.0, float("nan"), 4.0])
    found = token_means(ranks, surprisals, [1, 0, 2, 1], r_max=3)
    np.testing.assert_array_equal(found, [[1, np.nan, np.nan, 3], [1, np.nan, np.nan, 4]])


@pytest.mark.parametrize("processes", [1, 2])
def test_whole_models_read_a_problem_once_for_all_its_rows(tiny_student, monkeypatch, processes):
    model, rng = tiny_student(), np.random.default_rng(0)
    problems = [rng.integers(3, 262, 40) for _ in range(2)]
    ids = [np.concatenate([problems[i % 2], rng.integers(3, 262, 3 + i)]) for i in range(10)]
    rows = Dataset.from_dict({"input_ids": ids, "rsr_scored": [np.arange(len(row)) >= 40 for row in ids]})
    scoring = ScoringPass(
        model, Accelerator(cpu=True), rows, np.array([*map(len, ids)]), pad_token_id=0, r_max=100, show_bar=False
    )
    add_rsr_head(model)
    read = []
    model.base_model.register_forward_hook(
        lambda _, __, given, ___: read.append(given["input_ids"].numel()), with_kwargs=True
    )
    parts = []  # what each process found
    monkeypatch.setattr(type(scoring.accelerator), "num_processes", processes)
    monkeypatch.setattr(type(scoring.accelerator), "reduce", lambda _, means, how: means)
    for rank in range(processes):
        monkeypatch.setattr(type(scoring.accelerator), "process_index", rank)
        scoring(model, Modes(), np.arange(1))  # the first pass checks the model
        read.clear()
        parts.append(np.stack(scoring(model, Modes(), np.arange(10))[1:]))
        assert sum(read) == sum(map(len, ids)) - 40 * 8 if processes == 1 else sum(read) < 300
    monkeypatch.undo()
    scoring.as_wrapped = True
    rows, *expected = scoring(model, Modes(), np.arange(10))
    np.testing.assert_allclose(sum(parts)[:, rows], expected, rtol=1e-5)


def test_broken_logits_are_nan_for_their_rows(tiny_student):
    model = tiny_student()
    scoring = scoring_pass(model)
    model.model.embed_tokens.weight.data[int(scoring._rows[0]["input_ids"][3])] = torch.nan
    _, ranks, surprisals = scoring(model, Modes(), np.arange(5))
    assert np.isnan(ranks[0]) and np.isnan(surprisals[0])


class Modes:
    """An optimizer that notes the mode it is in, as schedule-free ones have them."""

    mode = "train"

    def train(self):
        self.mode = "train"

    def eval(self):
        self.mode = "eval"


def test_undisturbed_leaves_everything_as_it_was(tiny_student):
    model, optimizer = tiny_student().train(), Modes()
    model.model.layers[0].eval()  # a user's frozen part
    modes = [module.training for module in model.modules()]
    set_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    set_seed(1)
    with undisturbed(model, optimizer):
        assert not any(module.training for module in model.modules()) and optimizer.mode == "eval"
        random.random(), np.random.rand(), torch.rand(3)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    assert [module.training for module in model.modules()] == modes and optimizer.mode == "train"
    with pytest.raises(KeyError), undisturbed(model, optimizer):
        raise KeyError
    assert [module.training for module in model.modules()] == modes and optimizer.mode == "train"


class SmallMemory(ScoringPass):
    """Runs out of memory above so many tokens, and notes the tokens that it tried."""

    memory, tried = 64, ()

    def score(self, model, batches):
        self.tried = [*self.tried, max(len(batch) * self.lengths[batch].max() for batch in batches)]
        if self.tried[-1] > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().score(model, batches)

    def measure(self):
        return self(self.model, Modes(), np.arange(5))


@pytest.fixture
def scoring(tiny_student) -> SmallMemory:
    model = tiny_student()
    scoring = scoring_pass(model, SmallMemory)
    add_rsr_head(model)
    scoring.model, scoring.max_batch_tokens, scoring.as_wrapped = model, 64, True
    return scoring


def test_out_of_memory_goes_on_in_smaller_batches_now_and_later(scoring, caplog):
    expected = scoring.measure()
    scoring.memory = 20
    np.testing.assert_allclose(scoring.measure(), expected, rtol=1e-5)
    assert scoring.tried == [45, 45, 27, 14], "two halvings, which hold for the passes to come"
    scoring.measure()
    assert scoring.tried[4:] == [14]
    said = [record.message for record in caplog.records if "Out of GPU memory" in record.message]
    assert [message.split("=")[1].split(".")[0] for message in said] == ["32", "16"]


# A plan whose budget the longest row fills alone is the last that is tried.
@pytest.mark.parametrize(("processes", "memory", "tried"), [(1, 5, [45, 27, 14, 9]), (2, 20, [45])])
def test_out_of_memory_that_smaller_batches_cannot_help_says_what_to_set(
    scoring, monkeypatch, processes, memory, tried
):
    monkeypatch.setattr(type(scoring.accelerator), "num_processes", processes)
    scoring.memory = memory
    with pytest.raises(torch.OutOfMemoryError) as raised:
        scoring.measure()
    assert "rsr_max_batch_tokens" in raised.value.__notes__[0] and "max_length" in raised.value.__notes__[0]
    assert scoring.tried == tried


def score(student: str, shard: bool) -> dict:
    """Scores of a pass and of a training forward, and its loss. On two processes the last round has work for one."""
    model = AutoModelForCausalLM.from_pretrained(student, dtype="float32").eval()
    scoring = scoring_pass(model, layout=None)
    add_fused_lm_head(model)
    in_forward = add_rsr_head(model)
    if shard:
        for part in (*model.model.layers, model):
            fully_shard(part)
        assert isinstance(model.get_output_embeddings().weight, DTensor)
    rows, ranks, surprisals = (values.tolist() for values in scoring.score(model, [[0], [1, 2], [3, 4]]))
    ids = scoring._rows[0]["input_ids"].tolist()
    loss = train_forward(model, [ids], [[-100, -100, *ids[2:]]])
    online = in_forward.pop()
    exact = {"rows": rows, "ranks": ranks, "online": online.ranks.tolist()}
    return {"exact": exact, "near": [*surprisals, *online.surprisals.tolist(), loss]}


@pytest.mark.distributed
def test_under_fsdp2_scores_are_those_of_one_process(tmp_path, tiny_student_path):
    found, _ = on_processes(__file__, tmp_path, tiny_student_path)
    expected = score(tiny_student_path, shard=False)
    assert found["exact"] == expected["exact"]
    assert found["near"] == pytest.approx(expected["near"], rel=1e-5)


if __name__ == "__main__":
    leave(Path(sys.argv[1]), score(sys.argv[2], shard=True))
