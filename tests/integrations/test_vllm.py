import gzip
import json
import logging
import pickle
import random
import string
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset

from rsr_trl import RSRScorer
from rsr_trl.cli.main import main
from rsr_trl.demo import STUDENT_PATH
from rsr_trl.integrations.vllm import VLLMEngine, VLLMServer
from rsr_trl.rsr import RSRError
from tests.integrations.vllm_stub import RecordedServer, StubServer


RECORDED = Path(__file__).with_name("vllm_recorded.json.gz")  # by vllm_record.py
ROWS = [
    {"prompt": "2+2=", "completion": "4, since 2+2 is 4"},
    {"prompt": "Is 7 prime? ", "completion": "Yes: no number from 2 to 6 divides it."},
    {"prompt": "Is 8 prime? ", "completion": ""},
    {"prompt": "3+3=", "completion": "6"},
]


@pytest.fixture
def student(tiny_student_path) -> str:
    return tiny_student_path


@pytest.fixture
def server(student, tiny_student, tiny_tokenizer):
    with StubServer(tiny_student(), tiny_tokenizer, student, max_model_len=2048) as stub:
        yield stub


def scorer_of(student: str, server, retries: int = 0, **settings) -> RSRScorer:
    return RSRScorer(student, engine=VLLMServer(server.url, retries=retries), **settings)


def test_scores_are_those_of_the_student_loaded_here(student, server):
    settings = {"token_stats": True, "scores": ["rsr_filtered", "casl", "surprisal"]}
    dataset = Dataset.from_list(ROWS * 8)
    ours = RSRScorer(student, **settings).score(dataset)
    theirs = scorer_of(student, server, **settings).score(dataset)
    assert theirs.features == ours.features
    for name in set(ours.column_names) - {"rsr_student"}:
        for one, other in zip(ours[name], theirs[name], strict=True):
            exact = not isinstance(one, (float, list))
            assert one == other if exact else np.allclose(one, other, rtol=1e-4, atol=1e-4), name
    assert theirs["rsr_error"][2] == "completion is empty" and theirs["rsr"][2] is None
    assert server.most_in_flight > 1
    # Another definition of rank, so another name; the same from every server, and none of its address.
    assert set(theirs["rsr_student"]).isdisjoint(ours["rsr_student"])


def test_a_tie_counts_for_the_rank_and_a_narrow_dtype_is_said(student, server, caplog):
    server.dtype = torch.float8_e5m2
    text = "".join(random.Random(0).choices(string.printable, k=400))
    dataset = Dataset.from_list([*ROWS[:2], {"prompt": "Say it: ", "completion": text}])
    with caplog.at_level(logging.WARNING, "rsr_trl"):
        scored = scorer_of(student, server, token_stats=True).score(dataset)
    assert "computes logits in few bits" in caplog.text
    kinds = set()
    for ids, ranks in zip(scored["rsr_token_ids"], scored["rsr_token_ranks"], strict=True):
        (whole,) = (whole for whole in server.rows if whole[-len(ids) - 1 : -1] == ids)
        logprobs = server.logprobs(whole)[-len(ids) - 2 : -2]
        given, first = logprobs.gather(1, torch.tensor(ids)[:, None]), logprobs.amax(1, keepdim=True)
        ours, theirs = 1 + (logprobs > given).sum(1), (logprobs >= given).sum(1)
        assert ranks == torch.where((given == first)[:, 0], 1, theirs).tolist()
        kinds |= set(zip((given == first)[:, 0].tolist(), (ours != theirs).tolist(), strict=True))
    assert {(False, True), (True, True)} <= kinds  # ties of the most likely token, and of others
    assert scorer_of(student, server).score(dataset)["rsr"] == scored["rsr"]


def _each_place(change):
    """A change of the answer's entries for given tokens and others."""

    def changed(answer: dict) -> dict:
        for place in filter(None, answer["choices"][0]["prompt_logprobs"]):
            for entry in place.values():
                entry |= change(entry)
        return answer

    return changed


BAD = {
    "no prompt_logprobs": (lambda answer: {"choices": [{"text": ""}]}, "without prompt_logprobs"),
    "another tokenizer": (_each_place(lambda entry: {"decoded_token": "x"}), "token .* is 'x' there"),
    "other weights": (_each_place(lambda entry: {"logprob": entry["logprob"] * 3}), "mean surprisal"),
    "no ranks": (_each_place(lambda entry: {"rank": None}), "without ranks"),
    "other tokens": (lambda answer: {"choices": [{"prompt_logprobs": [None, {"1": {}}]}]}, "for other tokens"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_server_is_seen_before_the_work(case, student, server):
    server.change, message = BAD[case]
    with pytest.raises(RSRError, match=message):
        scorer_of(student, server).student  # noqa: B018


def test_a_server_of_another_name_needs_to_be_named(student, server):
    server.card |= {"id": "mine", "root": "elsewhere/another"}
    with pytest.raises(RSRError, match="serves 'mine', not .*served_model_name"):
        scorer_of(student, server)
    named = RSRScorer(student, engine=VLLMServer(server.url + "/v1/", served_model_name="mine"))
    assert named.score(Dataset.from_list(ROWS[:1]))["rsr"][0] > 0


def test_what_the_server_does_not_take(student, server):
    server.card["max_model_len"] = 40
    scorer = scorer_of(student, server)
    assert scorer.max_length == 39
    scored, ours = (s.score(Dataset.from_list(ROWS)) for s in (scorer, RSRScorer(student, max_length=39)))
    assert scored["rsr_truncated"] == ours["rsr_truncated"] == [False, True, False, False]
    np.testing.assert_allclose(scored["rsr"][1], ours["rsr"][1], rtol=1e-5)
    with pytest.raises(RSRError, match="max_length=40 is beyond the 39 tokens"):
        scorer_of(student, server, max_length=40)
    server.fault = lambda number, body: (400, "too long for me") if len(body["prompt"]) < 10 else None
    with pytest.raises(RSRError, match=r"refuses row 3 of 6 tokens .*status 400.*too long for me"):
        scorer.score(Dataset.from_list(ROWS))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scores": ["entropy", "surprisal"]}, r"\['entropy'\] need the student's whole distribution"),
        ({"device": "cpu"}, "device='cpu' is for a student that is loaded here"),
        ({"logits_dtype": "model"}, "logits_dtype='model' is for a student"),
    ],
)
def test_settings_that_a_server_cannot_follow(settings, message, student, server):
    with pytest.raises(RSRError, match=message):
        scorer_of(student, server, **settings)


def test_retries_and_their_end(student, server):
    server.fault = lambda number, body: {0: (503, "busy"), 3: (200, "broken"), 4: (200, "broken")}.get(number)
    assert scorer_of(student, server, retries=3).score(Dataset.from_list(ROWS[:2]))["rsr"][0] > 0
    server.fault = lambda number, body: (200, "broken")
    with pytest.raises(RSRError, match="doesn't answer /v1/completions"):
        scorer_of(student, server, retries=1).student  # noqa: B018
    server.fault = lambda number, body: (500, "out of memory")
    with pytest.raises(RSRError, match="status 500.*out of memory"):
        scorer_of(student, server, retries=1).student  # noqa: B018


def test_no_server_and_broken_numbers(student, server):
    scorer = scorer_of(student, server)
    scorer.student  # noqa: B018
    server.change = _each_place(lambda entry: {"logprob": None})
    with pytest.raises(FloatingPointError, match=r"rows \[\d\]"):
        scorer.score(Dataset.from_list(ROWS[:2]))
    with pytest.raises(RSRError, match="doesn't answer /v1/models"):
        RSRScorer(student, engine=VLLMServer("http://127.0.0.1:9", retries=0))


def test_a_scorer_goes_to_a_worker_process(student, server):
    scorer = pickle.loads(pickle.dumps(scorer_of(student, server)))
    assert scorer({**ROWS[0]})["rsr"] > 0


def test_the_command_goes_on_where_the_server_died(student, server, tmp_path, capsys):
    raw, out = tmp_path / "raw.jsonl", tmp_path / "scored"
    Dataset.from_list([{**row, "n": i} for i, row in enumerate(ROWS * 4)]).to_json(raw)
    command = ["score", "--model_name_or_path", student, "--dataset_name", raw, "--shard_rows", 4, "--output_dir"]
    served = [*command, out, "--vllm_server_url", server.url]
    server.fault = lambda number, body: (400, "killed") if number > 7 else None
    assert main(list(map(str, served))) == 1
    assert "killed" in capsys.readouterr().err
    before = len(server.rows)
    server.fault = lambda number, body: None
    assert main(list(map(str, served))) == 0
    assert "4 of 16" in (said := capsys.readouterr().err) or "8 of 16" in said
    assert len(server.rows) - before < 12 + 1  # a sample, and the rows of what was left
    assert main(list(map(str, [*command, tmp_path / "ours"]))) == 0
    there, here = (load_dataset(str(path), split="train") for path in (out, tmp_path / "ours"))
    assert there["n"] == list(range(16)) and there["rsr_error"] == here["rsr_error"]
    np.testing.assert_allclose(*([x for x in d["rsr"] if x is not None] for d in (there, here)), rtol=1e-5)


class _LLM:
    """A vLLM engine whose answers are recorded ones, in vLLM's flat form."""

    def __init__(self, recorded: dict, model: str):
        self.answers = {(*prompt, top): flat for prompt, top, flat in recorded["flat"]}
        config = types.SimpleNamespace(model=model, max_model_len=1024, dtype=torch.float32)
        self.llm_engine = types.SimpleNamespace(model_config=config)

    def generate(self, prompts, params, use_tqdm):
        assert params["flat_logprobs"] and params["max_tokens"] == 1 and not use_tqdm
        for prompt in prompts:
            flat = self.answers[(*prompt["prompt_token_ids"], params["prompt_logprobs"])]
            yield types.SimpleNamespace(prompt_logprobs=types.SimpleNamespace(**flat))


@pytest.fixture(scope="module")
def recorded() -> dict:
    return json.loads(gzip.decompress(RECORDED.read_bytes()))


@pytest.mark.parametrize("kind", ["server", "engine"])
def test_recorded_answers_of_a_real_vllm(kind, recorded, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", types.SimpleNamespace(SamplingParams=dict))
    student, dataset = str(STUDENT_PATH), Dataset.from_list(recorded["rows"])
    settings = {"dtype": "float32", "token_stats": True}
    with RecordedServer(recorded, student) as server:
        engine = VLLMServer(server.url) if kind == "server" else VLLMEngine(_LLM(recorded, student))
        theirs = RSRScorer(student, engine=engine, **settings).score(dataset)
    ours = RSRScorer(student, **settings).score(dataset)
    for name in ("rsr_error", "rsr_truncated", "rsr_content", "rsr_token_ids", "rsr_token_ranks", "rsr_token_top1"):
        assert theirs[name] == ours[name]
    assert [error is None for error in ours["rsr_error"]] == [True] * (len(dataset) - 1) + [False]
    np.testing.assert_allclose(theirs["rsr"][:-1], ours["rsr"][:-1], rtol=1e-4)
    with pytest.raises(RSRError, match="isn't 'other'"):
        VLLMEngine(_LLM(recorded, student)).max_length("other")
