import json
import os
import random
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import Llama4ForCausalLM, Llama4TextConfig
from trl.trainer.utils import add_fused_lm_head

from rsr_trl.rsr import RSRError, trajectory_means
from rsr_trl.training.live_student import ScoringPass, add_rsr_head, token_means, undisturbed
from tests.training import sharded
from tests.training.runs import REPOSITORY


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
    model, dataset = tiny_student(), sharded.rows()
    expected = [trajectory_means(*naive(model, *row.values()), [sum(row["rsr_scored"])], 100) for row in dataset]
    add_rsr_head(model)
    scoring = ScoringPass(model, Accelerator(cpu=True), dataset, np.ones(5), sharded.ARGS, pad_token_id=0)
    scoring.layout = layout
    rows, ranks, surprisals = scoring.score(model, batches)
    assert rows.tolist() == sum(batches, [])
    np.testing.assert_allclose(ranks, [expected[row][0][0] for row in rows])
    np.testing.assert_allclose(surprisals, [expected[row][1][0] for row in rows], rtol=1e-5)


def test_the_training_forward_is_the_same_with_and_without_scores(tiny_student):
    losses, gradients = [], []
    for targets in (None, torch.tensor([[-100, -100, 5, 6, -100], [-100, 3, 7, -100, -100]])):
        model = tiny_student(attention_dropout=0.1).train()
        add_fused_lm_head(model)
        in_forward = add_rsr_head(model)
        ids = torch.tensor([[1, 4, 5, 6, 2], [8, 3, 7, 2, 0]])
        mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
        torch.manual_seed(0)
        given = {} if targets is None else {"rsr_targets": targets}
        output = model(
            input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100), fused_lm_head=True, **given
        )
        output.loss.backward()
        losses.append(output.loss.item())
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert losses[0] == losses[1]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    stats = in_forward.pop()
    assert stats.ranks.shape == stats.surprisals.shape == (4,) and not stats.surprisals.requires_grad
    assert in_forward == []
    assert not model.model._forward_hooks


def test_training_scores_are_those_of_the_definition(tiny_student):
    model = tiny_student()
    ids, scored = [1, 4, 5, 6, 2, 9], [False, False, True, True, False, True]
    expected = naive(model, ids, scored)
    add_fused_lm_head(model)
    in_forward = add_rsr_head(model)
    targets = torch.tensor([[token if s else -100 for token, s in zip(ids, scored, strict=True)]])
    model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids]), rsr_targets=targets, fused_lm_head=True)
    stats = in_forward.pop()
    assert stats.ranks.tolist() == expected[0]
    assert stats.surprisals.tolist() == pytest.approx(expected[1], rel=1e-5)


def test_without_targets_the_model_is_what_it_was(tiny_student):
    model, ids = tiny_student(), torch.tensor([[1, 2, 3]])
    before = model(input_ids=ids).logits
    add_rsr_head(model)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert torch.equal(
        model.generate(ids, max_new_tokens=3, do_sample=False), tiny_student().generate(ids, max_new_tokens=3)
    )


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
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with undisturbed(model, optimizer):
        assert not any(module.training for module in model.modules()) and optimizer.mode == "eval"
        random.random(), np.random.rand(), torch.rand(3)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    assert [module.training for module in model.modules()] == modes and optimizer.mode == "train"
    with pytest.raises(KeyError), undisturbed(model, optimizer):
        raise KeyError
    assert [module.training for module in model.modules()] == modes and optimizer.mode == "train"


@pytest.fixture
def small_memory(tiny_student, monkeypatch):
    """
    `small_memory(tokens)`: a scoring pass that runs out of memory above so many tokens, what calls it, and the tokens
    that it tried.
    """
    model, dataset, tried, score = tiny_student(), sharded.rows(), [], ScoringPass.score
    lengths = np.array([len(ids) for ids in dataset["input_ids"]])
    args = SimpleNamespace(**vars(sharded.ARGS) | {"rsr_max_batch_tokens": 64})
    add_rsr_head(model)

    def build(tokens: float):
        def limited(self, model, batches):
            tried.append(max(len(batch) * lengths[batch].max() for batch in batches))
            if tried[-1] > tokens:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return score(self, model, batches)

        monkeypatch.setattr(ScoringPass, "score", limited)
        scoring = ScoringPass(model, Accelerator(cpu=True), dataset, lengths, args, pad_token_id=0)
        scoring.layout = "padded"
        return scoring, lambda: scoring(model, Modes(), np.arange(5)), tried

    return build


def test_out_of_memory_goes_on_in_smaller_batches_now_and_later(small_memory, caplog):
    expected = small_memory(tokens=64)[1]()
    _, measure, tried = small_memory(tokens=20)
    np.testing.assert_allclose(measure(), expected, rtol=1e-5)
    assert tried == [45, 45, 27, 14], "two halvings, which hold for the passes to come"
    measure()
    assert tried[4:] == [14]
    said = [record.message for record in caplog.records if "Out of GPU memory" in record.message]
    assert [message.split("=")[1].split(".")[0] for message in said] == ["32", "16"]


@pytest.mark.parametrize("processes", [1, 2])
def test_out_of_memory_that_smaller_batches_cannot_help_says_what_to_set(small_memory, monkeypatch, processes):
    scoring, measure, tried = small_memory(tokens=5 if processes == 1 else 20)
    monkeypatch.setattr(type(scoring.accelerator), "num_processes", processes)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        measure()
    assert "rsr_max_batch_tokens" in raised.value.__notes__[0] and "max_length" in raised.value.__notes__[0]
    # A plan whose budget the longest row fills alone is the last that is tried.
    assert tried == ([45] if processes == 2 else [45, 27, 14, 9])


@pytest.mark.distributed
def test_under_fsdp2_scores_are_those_of_one_process(tmp_path, tiny_student_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command += [sharded.__file__, tiny_student_path, str(tmp_path / "result.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "result.json").read_text())
    expected = sharded.score(tiny_student_path, shard=False)
    assert found["rows"] == expected["rows"] and found["ranks"] == expected["ranks"]
    assert found["surprisals"] == pytest.approx(expected["surprisals"], rel=1e-5)
    assert found["online"][0] == expected["online"][0] and found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert found["online"][1] == pytest.approx(expected["online"][1], rel=1e-5)
