"""Pretrains the demo's student from scratch, on a CPU: `python -m benchmarks.pretrain_demo_student`.

It reads correct solutions of problems that the demo never uses: mostly in two of the teachers' dialects, a little in
others, and no LaTeX, so that teachers suit it differently. It stops long before it has learnt all it could: text known
by heart has no surprisal left, and scores of it look unlike those of a language model.
"""

import argparse
import copy
import math
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rsr_trl.demo import STUDENT_PATH
from rsr_trl.demo.problems import generate_problems
from rsr_trl.demo.teachers import TEACHERS


DIALECTS = {"plain": 0.48, "numbered": 0.25, "careful": 0.10, "terse": 0.06, "thinker": 0.06, "guesser": 0.05}
BATCH_SIZE = 16
VOCABULARY = 1280
MAX_LENGTH = 1024
NUM_HELD_OUT = 200
PAD, START, END = SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = """{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' }}
{%- generation %}
{{- message.content + '<|im_end|>' }}
{%- endgeneration %}
{{- '\\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}"""


def make_chats(num_problems: int, seed: int, dialects: dict[str, float]) -> list[tuple[list[dict], str]]:
    """Problems of the pretraining split as chats with one correct solution each, beside their true answers."""
    rng = random.Random(seed)
    chats = []
    for problem in generate_problems(num_problems, seed, split="pretrain"):
        teacher = TEACHERS[rng.choices(list(dialects), list(dialects.values()))[0]]
        response, answer = teacher.solve(problem, rng)
        while answer != problem.gold:
            response, answer = teacher.solve(problem, rng)
        messages = [{"role": "user", "content": problem.prompt}, {"role": "assistant", "content": response}]
        chats.append((messages, str(problem.gold)))
    return chats


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits and a ChatML template whose `{% generation %}` markers TRL understands."""
    bpe = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=PAD, model_max_length=MAX_LENGTH, padding_side="right"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of 1.3 million parameters with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, chats: list[tuple[list[dict], str]]) -> list[torch.Tensor]:
    """Token ids of whole chats, one 1-D tensor each."""
    return [
        torch.tensor(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"])
        for messages, _ in chats
    ]


def pad(rows: list[torch.Tensor], pad_token_id: int) -> dict[str, torch.Tensor]:
    """A right-padded batch whose loss covers every real token, the prompt's too."""
    input_ids = torch.nn.utils.rnn.pad_sequence(
        rows, batch_first=True, padding_value=pad_token_id
    )  # [batch, sequence]
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": input_ids.masked_fill(mask == 0, -100)}


def in_batches(rows: list[torch.Tensor], rng: random.Random) -> Iterator[list[torch.Tensor]]:
    """All rows in batches of similar lengths, which need little padding, in an order that doesn't follow length."""
    pool = 16 * BATCH_SIZE
    for start in range(0, len(rows), pool):
        drawn = sorted(rows[start : start + pool], key=len)
        batches = [drawn[i : i + BATCH_SIZE] for i in range(0, len(drawn), BATCH_SIZE)]
        rng.shuffle(batches)
        yield from batches


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, rows: list[torch.Tensor]) -> float:
    """Nats per token."""
    model.eval()
    nats, num_tokens = 0.0, 0
    for start in range(0, len(rows), BATCH_SIZE):
        batch = pad(rows[start : start + BATCH_SIZE], model.config.pad_token_id)
        predicted = int((batch["labels"][:, 1:] != -100).sum())
        nats, num_tokens = nats + model(**batch).loss.item() * predicted, num_tokens + predicted
    model.train()
    return nats / num_tokens


@torch.no_grad()
def accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, chats: list[tuple[list[dict], str]]
) -> float:
    """Share of problems whose greedy response ends in the true answer."""
    model.eval()
    num_right = 0
    for messages, gold in chats:
        inputs = tokenizer.apply_chat_template(
            messages[:1], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        generated = model.generate(**inputs, max_new_tokens=300, do_sample=False)
        response = tokenizer.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        numbers = "".join(c if c.isdigit() else " " for c in response).split()
        num_right += bool(numbers) and numbers[-1] == gold
    return num_right / len(chats)


def pretrain(num_steps: int, seed: int = 1, output_dir: Path = STUDENT_PATH) -> None:
    """Train for `num_steps` batches and write model, tokenizer and their configs to `output_dir`."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    # Every dialect has its words in the vocabulary, so that no teacher is read byte by byte.
    words = make_chats(6000, seed, dict.fromkeys(TEACHERS, 1.0))
    tokenizer = train_tokenizer(
        [f"{message['role']}\n{message['content']}\n" for messages, _ in words for message in messages]
    )
    chats = make_chats(BATCH_SIZE * num_steps + NUM_HELD_OUT, seed, DIALECTS)
    held_chats, rows = chats[:NUM_HELD_OUT], encode(tokenizer, chats[NUM_HELD_OUT:])
    held_rows = encode(tokenizer, held_chats)
    model = make_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.1)
    print(f"{model.num_parameters():,} parameters, {sum(map(len, rows)):,} tokens, each read once", flush=True)

    for step, batch in enumerate(in_batches(rows, rng)):
        cosine = 0.5 * (1 + math.cos(math.pi * step / num_steps))
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 100) * (0.02 + 0.98 * cosine)
        loss = model(**pad(batch, tokenizer.pad_token_id)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step} loss {loss.item():.3f} held-out {held_out_loss(model, held_rows):.3f}", flush=True)

    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    shipped = copy.deepcopy(model).to(torch.bfloat16)
    shipped.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    # The figures of the model card are those of the weights as they are read back, bf16 rounding included.
    model = LlamaForCausalLM.from_pretrained(output_dir, dtype=torch.float32)
    print(f"held-out nats/token {held_out_loss(model, held_rows):.3f} (uniform: {math.log(len(tokenizer)):.3f})")
    print(f"held-out greedy accuracy {accuracy(model, tokenizer, held_chats):.3f} of {len(held_chats)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--num_steps", type=int, default=1000, help="Batches to train on; about 7 minutes on one core."
    )
    parser.add_argument("--seed", type=int, default=1, help="Seed of problems, weights and order.")
    parser.add_argument("--output_dir", type=Path, default=STUDENT_PATH, help="Where the student goes.")
    args = parser.parse_args()
    pretrain(args.num_steps, args.seed, args.output_dir)
