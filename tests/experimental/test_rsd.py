"""Reverse speculative decoding against the rule enumerated, and against a loop without caches and batches."""

import json
import subprocess
import sys
import time
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from rsr_trl.experimental.generation import Reader
from rsr_trl.experimental.rsd import ReverseSpeculativeDecoder, SharedTokens, choose_traces, draw_token
from rsr_trl.rsr import RSRError
from tests.conftest import CHATML
from tests.scoring.students import build


ENDS = list(range(100, 108))  # bytes that end a turn here: traces of random models end too
PROMPTS = ["2+3?", "How many?", "Ä"]


@pytest.fixture
def teacher_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as the student's, other ids, no tags for thinking, an end of its own; its template opens them."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True), "<|im_start|>", "<|end|>"]
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    own = CHATML.replace("<|im_end|>", "<|end|>").replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", chat_template=own)


@pytest.fixture
def decoder(tiny_student, tiny_tokenizer, teacher_tokenizer) -> ReverseSpeculativeDecoder:
    student, teacher = tiny_student().double(), tiny_student(258, seed=3).double()
    student.generation_config.eos_token_id = ENDS
    return ReverseSpeculativeDecoder(student, tiny_tokenizer, teacher, teacher_tokenizer)


@pytest.fixture
def dataset() -> Dataset:
    return Dataset.from_list([{"prompt": [{"role": "user", "content": text}], "gold": "5"} for text in PROMPTS])


@pytest.mark.parametrize(
    ("pool", "own"),
    [
        ({1: 0.5, 2: 0.3, 3: 0.1}, {1: 0.009, 3: 0.2, 4: 0.3}),  # 1 is too rare for the student, 2 isn't in its top
        ({1: 0.9, 2: 0.001}, {2: 0.0099, 5: 0.4, 6: 0.1}),  # none is accepted
        ({3: 0.2, 4: 0.2}, {3: 0.01, 4: 0.5}),  # all are
        ({}, {7: 0.6, 8: 0.1}),  # nothing is comparable
    ],
)
def test_distribution_of_a_token(pool, own):
    expected, total = Counter(), sum(own.values())
    for draws in product(pool, repeat=5) if pool else [()]:
        chance = np.prod([pool[token] / sum(pool.values()) for token in draws])
        accepted = next((token for token in draws if own.get(token, 0) >= 0.01), None)
        if accepted is not None:
            expected[accepted, False] += chance
        else:
            for token, p in own.items():
                expected[token, True] += chance * p / total
    assert sum(expected.values()) == pytest.approx(1)
    count, generator = 20_000, np.random.default_rng(0)
    found = Counter(draw_token(pool, own, generator) for _ in range(count))
    assert found.keys() <= expected.keys()
    for key, chance in expected.items():
        assert found[key] / count == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / count) + 1e-9)


def by_definition(decoder, prompt: str, line: dict, seed: int, max_new_tokens: int) -> tuple[list[int], int]:
    """A trace token by token, both models reading all of it every time."""
    (student, teacher), (own, other) = decoder.models, decoder.tokenizers
    chat = [{"role": "user", "content": prompt}]
    texts = [t.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for t in (own, other)]
    texts[0] += "<think>"
    assert texts[1].endswith("<think>\n")
    contexts = [t.encode(text, add_special_tokens=False) for t, text in zip((own, other), texts, strict=True)]
    generator, ids, fallbacks = np.random.default_rng([seed, line["prompt"], line["sample"]]), [], 0
    while len(ids) < max_new_tokens and not (ids and ids[-1] in [*ENDS, 2]):
        tops = []
        for model, context in zip((student, teacher), contexts, strict=True):
            p = model(torch.tensor([context])).logits[0, -1].softmax(-1)
            tops.append({int(token): float(p[token]) for token in p.argsort(descending=True)[:20]})
        pool = {}
        for token, p in tops[1].items():
            text = other.convert_ids_to_tokens(token)
            student_token = 2 if text == "<|end|>" else own.get_vocab().get(text)
            if student_token is not None:
                pool[student_token] = pool.get(student_token, 0) + p
        top = {token: p for token, p in tops[0].items() if token < 262}
        token, fallback = draw_token(pool, top, generator)
        ids, fallbacks = [*ids, token], fallbacks + fallback
        pieces = other.encode(own.convert_ids_to_tokens(token)) if token < 6 else None
        contexts[0].append(token)
        contexts[1] += pieces or [other.get_vocab()[own.convert_ids_to_tokens(token)]]
    return ids, fallbacks


@torch.no_grad()
def test_equals_its_definition_in_any_batch(decoder, dataset, tmp_path):
    traces = decoder.generate(dataset, tmp_path / "1.jsonl", 2, 30, batch_size=1, seed=5)
    lines = [json.loads(line) for line in (tmp_path / "1.jsonl").read_text().splitlines()]
    lines.sort(key=lambda line: (line["row"], line["sample"]))
    assert traces["rsd_row"] == [0, 0, 1, 1, 2, 2] and len(lines) == 6
    assert {True, False} == set(traces["rsd_ended"])  # some are cut
    assert 0 < np.mean(traces["rsd_fallback_share"]) < 1
    for trace, line in zip(traces, lines, strict=True):
        ids, fallbacks = by_definition(decoder, PROMPTS[trace["rsd_row"]], line, 5, 30)
        ended = ids[-1] in [*ENDS, 2]
        text = "<think>" + decoder.tokenizers[0].decode(ids[: len(ids) - ended])
        assert trace["completion"] == [{"role": "assistant", "content": text}]
        assert trace["rsd_num_tokens"] == len(ids) and trace["rsd_ended"] == ended
        assert trace["rsd_fallback_share"] == fallbacks / len(ids)
    for batch_size in (4, 6):
        again = decoder.generate(dataset, tmp_path / f"{batch_size}.jsonl", 2, 30, batch_size, seed=5)
        assert again.to_list() == traces.to_list()


def test_resumes_after_a_stop_at_any_byte(decoder, dataset, tmp_path):
    path = tmp_path / "t.jsonl"
    expected = decoder.generate(dataset, path, 2, 6).to_list()
    whole = path.read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for stop in (0, start, start + 1, len(whole) - 1):
        path.write_bytes(whole[:stop])
        assert decoder.generate(dataset, path, 2, 6, batch_size=5).to_list() == expected
    more = decoder.generate(dataset, path, 3, 6)  # more samples later
    assert [trace for i, trace in enumerate(more.to_list()) if i % 3 < 2] == expected
    assert len(path.read_bytes().splitlines()) == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "line 1, was written with other models or settings"),
        ({"rows": [1, 0]}, "line 1, was written .* for another prompt in row 1"),
        ({"text": '{"a": 1}\n'}, "line 1, isn't a result"),
        ({"columns": ["prompt", "completion"]}, "writes completion; the columns are"),
    ],
)
def test_refuses(decoder, dataset, tmp_path, change, message):
    path = tmp_path / "t.jsonl"
    decoder.generate(dataset.select([0, 1]), path, 1, 3)
    if "text" in change:
        path.write_text(change["text"])
    other = dataset.select(change.get("rows", [0, 1]))
    if "columns" in change:
        other = other.add_column("completion", ["a", "b"])
    with pytest.raises(RSRError, match=message):
        decoder.generate(other, path, 1, 3, seed=change.get("seed", 0))


def test_models_and_tokenizers_that_do_not_fit(gpt2_tokenizer, mistral_tokenizer):
    with pytest.raises(RSRError, match="share only"):
        SharedTokens(gpt2_tokenizer, mistral_tokenizer)
    for family in ("gemma2", "mamba"):
        with pytest.raises(RSRError, match="full attention in all layers"):
            Reader(build(family), 1)


def test_every_token_is_read_by_the_teacher_as_its_text(qwen3_tokenizer, gpt2_tokenizer):
    shared = SharedTokens(qwen3_tokenizer, gpt2_tokenizer)
    assert gpt2_tokenizer.decode(shared.pieces(qwen3_tokenizer.convert_tokens_to_ids("</think>"))) == "</think>"
    for token in range(0, len(qwen3_tokenizer), 97):  # parts of characters among them
        said = gpt2_tokenizer.convert_ids_to_tokens(shared.pieces(token))
        assert "".join(said) == qwen3_tokenizer.convert_ids_to_tokens(token)


def test_choice_of_traces():
    def trace(text="<think>a</think>5", row=0, length=9, fallbacks=0.5, ended=True) -> dict:
        values = {"rsd_row": row, "rsd_num_tokens": length, "rsd_fallback_share": fallbacks, "rsd_ended": ended}
        return {"completion": text, "gold": "5", **values}

    traces = [
        (trace(), "another right one is shorter"),
        (trace(length=8), None),
        (trace("<think>5", length=3), "0 times </think>"),
        (trace("<think></think></think>5", length=3), "2 times </think>"),
        (trace(length=3, ended=False), "no end"),
        (trace(length=3, fallbacks=0.51), "51% fallbacks"),
        (trace("<think>5</think>4", length=3), "wrong answer"),
        (trace("so 5", row=1, length=20), None),  # one that doesn't think
        (trace("so 4", row=2), "wrong answer"),
    ]
    chosen = choose_traces(Dataset.from_list([given for given, _ in traces]), "gold", "number")
    assert chosen["rsd_error"][:] == [error for _, error in traces]
    chats = [{**given, "completion": [{"role": "assistant", "content": given["completion"]}]} for given, _ in traces]
    assert choose_traces(Dataset.from_list(chats), "gold", "number")["rsd_error"][:] == chosen["rsd_error"][:]


@pytest.mark.slow
def test_killed(tiny_student_path, tmp_path):
    """SIGKILL while lines are written: the next run has the traces of one that wasn't stopped."""
    dataset = Dataset.from_list([{"prompt": f"{i}+{i}?"} for i in range(40)])
    dataset.save_to_disk(tmp_path / "data")
    code = f"""
from datasets import load_from_disk
from tests.experimental.test_rsd import at_folder
at_folder("{tiny_student_path}").generate(load_from_disk("{tmp_path}/data"), "{tmp_path}/t.jsonl", 2, 60, batch_size=4)
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "t.jsonl").exists() or (tmp_path / "t.jsonl").stat().st_size < 2000:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert 0 < len((tmp_path / "t.jsonl").read_bytes().splitlines()) < 80
    found = at_folder(tiny_student_path).generate(dataset, tmp_path / "t.jsonl", 2, 60, batch_size=7)
    expected = at_folder(tiny_student_path).generate(dataset, tmp_path / "whole.jsonl", 2, 60)
    assert found.to_list() == expected.to_list()


def at_folder(path: str) -> ReverseSpeculativeDecoder:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).double(), AutoTokenizer.from_pretrained(path)
    return ReverseSpeculativeDecoder(model, tokenizer, model, tokenizer)
