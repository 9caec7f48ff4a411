"""PEFT students: live and by path, LoRA that changes the scores, and what can't be scored."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from rsr_trl import RSRScorer
from rsr_trl.scoring.student import Student
from tests.scoring.students import assert_true, build, examples_of, rsr_of


peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
ROWS = [{"prompt": f"{n}+{n}=", "completion": f" it makes {2 * n}"} for n in range(5)]


def adapted(spread: float = 0.3, tied: bool = False, **lora) -> "peft.PeftModel":
    """A LoRA whose weights are not the zeros that it starts from."""
    base, config = build("qwen3", tie_word_embeddings=tied), {"target_modules": ["q_proj", "up_proj"]} | lora
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = peft.get_peft_model(base, peft.LoraConfig(**config))
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("lora_B", "lora_embedding_B", "modules_to_save", "delta")):
                torch.nn.init.normal_(parameter, std=spread)
    return model.eval()


def rsr(model: torch.nn.Module) -> list[float]:
    return rsr_of(Student(model).score(examples_of()))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_dora": True},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        {"trainable_token_indices": [5, 6, 7]},
        {"trainable_token_indices": list(range(3, 200)), "tied": True},
    ],
    ids=str,
)
def test_equals_the_definition(config):
    model, examples = adapted(**config), examples_of()
    assert_true(model, examples, Student(model).score(examples))
    assert not np.allclose(rsr(model), rsr(build("qwen3", tie_word_embeddings="tied" in config)), rtol=1e-3)


def test_merged_scores_are_the_same():
    np.testing.assert_allclose(rsr(adapted().merge_and_unload()), rsr(adapted()), rtol=1e-5)


@pytest.mark.parametrize("spread", [0.0, 0.3])  # also at the start, when it still adds nothing
def test_an_adapter_on_the_head(spread):
    with pytest.raises(ValueError, match="merge the adapter first"):
        Student(adapted(spread, target_modules=["lm_head", "q_proj"]))


def test_prompt_tuning():
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(ValueError, match="Prompt-learning PEFT adapters .* can't be scored. Use LoRA"):
        Student(peft.get_peft_model(build("qwen3"), config))


def test_fingerprint_says_which_adapter_acts_and_how_strongly():
    model = adapted()
    prints = {"on": Student(model).weights_fingerprint(), "base": Student(build("qwen3")).weights_fingerprint()}
    with model.disable_adapter():
        prints["off"] = Student(model).weights_fingerprint()
        np.testing.assert_allclose(rsr(model), rsr(build("qwen3", tie_word_embeddings=False)), rtol=1e-6)
    model.add_adapter("other", peft.LoraConfig(target_modules=["q_proj", "up_proj"]))
    prints["two, first acts"] = Student(model).weights_fingerprint()
    model.set_adapter("other")
    prints["two, second acts"] = Student(model).weights_fingerprint()
    prints["twice as strong"] = Student(adapted(lora_alpha=16)).weights_fingerprint()
    assert len(set(prints.values())) == len(prints)
    assert Student(adapted()).weights_fingerprint() == prints["on"]


def test_a_live_scorer_notices_the_switch(tiny_student, tiny_tokenizer):
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(tiny_student(), config)
    scorer = RSRScorer(model, tiny_tokenizer)
    on = scorer(ROWS[0])
    with model.disable_adapter():
        off = scorer(ROWS[0])
    assert on["rsr"] != off["rsr"] and on["rsr_student"] != off["rsr_student"]
    assert scorer(ROWS[0]) == on


@pytest.fixture
def adapter_path(tmp_path, tiny_student_path, tiny_tokenizer) -> str:
    base = AutoModelForCausalLM.from_pretrained(tiny_student_path)
    config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = peft.get_peft_model(base, config)
    model.save_pretrained(tmp_path / "adapter")
    tiny_tokenizer.save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter")


def test_by_path_same_scores_and_fingerprint_as_live(adapter_path, tiny_student_path, tiny_tokenizer):
    dataset = Dataset.from_list(ROWS)
    by_path = RSRScorer(adapter_path).score(dataset)
    base = AutoModelForCausalLM.from_pretrained(tiny_student_path)
    live = RSRScorer(peft.PeftModel.from_pretrained(base, adapter_path), tiny_tokenizer).score(dataset)
    plain = RSRScorer(tiny_student_path).score(dataset)
    np.testing.assert_allclose(by_path["rsr"], live["rsr"], rtol=1e-6)
    assert by_path["rsr_student"] == live["rsr_student"]
    assert not np.allclose(by_path["rsr"], plain["rsr"], rtol=1e-3)
    assert set(by_path["rsr_student"]).isdisjoint(plain["rsr_student"])


def test_by_path_positions_and_a_lacking_tokenizer_come_from_the_base_model(adapter_path):
    assert RSRScorer(adapter_path).max_length == 2048
    with pytest.raises(ValueError, match="max_length=2049 is beyond the student's 2048 positions"):
        RSRScorer(adapter_path, max_length=2049)
    expected = RSRScorer(adapter_path)(ROWS[0])
    for file in Path(adapter_path).glob("*token*"):
        file.unlink()
    Path(adapter_path, "chat_template.jinja").unlink()
    assert RSRScorer(adapter_path)(ROWS[0]) == expected


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("embeddings", [264, 320], ids=["of the tokens", "rounded up"])
def test_an_adapter_whose_training_added_tokens(tmp_path, tiny_student, tiny_tokenizer, tied, embeddings):
    tiny_student(tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tiny_tokenizer.add_special_tokens({"additional_special_tokens": ["<step>", "</step>"]})
    base.resize_token_embeddings(embeddings)
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    live = peft.get_peft_model(base, config).eval()
    live.save_pretrained(tmp_path / "adapter")
    tiny_tokenizer.save_pretrained(tmp_path / "adapter")
    row = {"prompt": "2+3=", "completion": "<step> five </step> So 5."}
    expected = RSRScorer(live, tiny_tokenizer)(row)
    assert RSRScorer(str(tmp_path / "adapter"))(row) == expected
