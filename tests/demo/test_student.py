import math
from statistics import mean

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.chat_template_utils import get_training_chat_template

from benchmarks.pretrain_demo_student import DIALECTS
from rsr_trl.demo import STUDENT_PATH
from rsr_trl.demo.teachers import TEACHERS, make_pool


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(STUDENT_PATH)


@pytest.fixture(scope="module")
def responses(tokenizer) -> dict[str, tuple[float, float]]:
    """Mean surprisal (nats) and mean rank of each teacher's response tokens, straight from the full logits."""
    model = AutoModelForCausalLM.from_pretrained(STUDENT_PATH, dtype=torch.float32)
    by_teacher: dict[str, list[tuple[float, float]]] = {name: [] for name in TEACHERS}
    for row in make_pool(12, seed=11):
        encoded = tokenizer.apply_chat_template(
            row["prompt"] + row["completion"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        input_ids = torch.tensor([encoded["input_ids"]])
        answered = torch.tensor(encoded["assistant_masks"][1:]).bool()
        with torch.no_grad():
            log_probs = model(input_ids).logits[0, :-1].log_softmax(-1)[answered]
        of_token = log_probs.gather(1, input_ids[0, 1:][answered][:, None])
        ranks = 1 + (log_probs > of_token).sum(1)
        by_teacher[row["teacher"]].append((-of_token.mean().item(), ranks.double().mean().item()))
    return {teacher: tuple(map(mean, zip(*values, strict=True))) for teacher, values in by_teacher.items()}


def test_shipped_folder_is_complete_and_small():
    files = {path.name: path.stat().st_size for path in STUDENT_PATH.iterdir()}
    weights = {"config.json", "generation_config.json", "model.safetensors"}
    assert set(files) == {"README.md", *weights, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert sum(files.values()) < 4_000_000


def test_teachers_suit_the_student_differently(responses, tokenizer):
    surprisal = {teacher: values[0] for teacher, values in responses.items()}
    # It read the first three most, the next two a little, and no LaTeX at all.
    for teacher in ("plain", "numbered", "careful"):
        assert surprisal[teacher] < min(surprisal["thinker"], math.log(len(tokenizer)) / 10)
        assert responses[teacher][1] < 3
    assert surprisal["thinker"] < surprisal["terse"] < surprisal["latex"]
    assert responses["latex"][1] > 5 * responses["terse"][1]
    assert "latex" not in DIALECTS


def test_tokenizer_and_template(tokenizer):
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    text = "Step 1: 12 × 4 = 48 ✓\n$\\boxed{48}$"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert [tokenizer.decode([i]) for i in tokenizer("480=481")["input_ids"]] == ["4", "8", "0", "=", "4", "8", "1"]
    chat = [{"role": "user", "content": "2 and 2?"}, {"role": "assistant", "content": "4"}]
    encoded = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    marked = [i for i, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(marked) == "4<|im_end|>"
    assert get_training_chat_template(tokenizer) is None  # TRL needs no other template to train on it
