"""Every family of causal language models that is common: our rank and surprisal against the model's own logits."""

import pytest
import torch

from rsr_trl.scoring.student import Student
from tests.scoring.students import FAMILIES, assert_true, build, examples_of


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["equal", "padded"])  # the CPU never pads by itself
def test_rank_and_surprisal_are_those_of_the_models_own_logits(family, layout):
    model, examples = build(family), examples_of()
    student = Student(model, max_batch_tokens=100)
    student.layout = layout
    assert_true(model, examples, student.score(examples, with_top1=True))


@pytest.mark.parametrize(
    ("family", "unscaled"),
    [(name, {"scale": 1.0}) for name in ("cohere", "granite", "falcon_h1")] + [("gemma2", {"softcap": None})],
)
def test_the_scales_of_these_configurations_matter(family, unscaled):
    """Some scale their logits, Gemma 2 caps them: without that, surprisals would differ."""
    head = Student(build(family)).head
    hidden, targets = torch.randn(5, 32) * 3, torch.arange(5)
    plain = type(head)(head.module, **{"scale": head.scale, "softcap": head.softcap, **unscaled})
    found, other = (each.score(hidden, targets).surprisals for each in (head, plain))
    assert not torch.allclose(found, other, rtol=1e-2)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_rounding_is_not_taken_for_an_unknown_head(family, dtype):
    model = build(family).to(dtype)
    assert Student(model).score(examples_of((16,))).num_tokens.all()
