"""`map` finds earlier results in the cache of datasets exactly when nothing that decides them has changed."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset, load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer

from rsr_trl import RSRScorer
from rsr_trl.rsr import STUDENT
from rsr_trl.scoring import fingerprint, scorer
from rsr_trl.scoring.student import Student


ROWS = [{"prompt": f"{n}+{n}=", "completion": f" it makes {2 * n}"} for n in range(6)]
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    """A dataset on disk: those in memory are never cached."""
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "data")
    return load_from_disk(tmp_path / "data")


@pytest.fixture
def computed(monkeypatch) -> Callable[[], int]:
    """Number of examples scored since the last call."""
    counts, score = [], Student.score

    def counting(self, examples, *args, **kwargs):
        counts.append(len(examples))
        return score(self, examples, *args, **kwargs)

    def since_last() -> int:
        number = sum(counts)
        counts.clear()
        return number

    monkeypatch.setattr(Student, "score", counting)
    return since_last


def retrain(path: str) -> None:
    """What a training run does to a student's folder: other weights under the same names."""
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    model.save_pretrained(path)


def test_another_definition_is_computed_again(dataset, tiny_student_path, computed, monkeypatch):
    first = dataset.map(RSRScorer(tiny_student_path), batched=True)
    assert computed() == len(ROWS)
    for module in (scorer, fingerprint):
        monkeypatch.setattr(module, "DEFINITION", "another")
    second = dataset.map(RSRScorer(tiny_student_path), batched=True)
    assert computed() == len(ROWS) and first[STUDENT] != second[STUDENT]


SETTINGS = [{"r_max": 50}, {"max_length": 12}, {"token_stats": True}, {"scores": ["surprisal"]}]
SETTINGS += [{"logits_dtype": "model"}, {"assistant_only_loss": True}]
FOR_LOADING = [{"dtype": "bfloat16"}, {"attn_implementation": "eager"}]
CASES = [(False, setting) for setting in SETTINGS + FOR_LOADING] + [(True, setting) for setting in SETTINGS]


@pytest.mark.parametrize(("live", "setting"), CASES)
def test_other_settings_are_computed_again(dataset, tiny_student_path, make_scorer, computed, setting, live):
    make = make_scorer if live else lambda **given: RSRScorer(tiny_student_path, **given)
    dataset.map(make())
    dataset.map(make(**setting))
    assert computed() == 12
    dataset.map(make(**setting))
    assert computed() == 0


class TestById:
    def test_a_second_run_is_read_from_the_cache(self, dataset, tiny_student_path, computed):
        scorer = RSRScorer(tiny_student_path)
        first = dataset.map(scorer)
        assert computed() == 6
        again = dataset.map(scorer)  # the scorer has loaded and used its student and tokenizer meanwhile
        other = dataset.map(RSRScorer(tiny_student_path))
        assert computed() == 0
        assert again.to_list() == other.to_list() == first.to_list()
        assert dataset.map(scorer, batched=True)["rsr"] == pytest.approx(list(first["rsr"]), rel=1e-5)

    def test_another_process_reads_it_too(self, dataset, tmp_path, tiny_student_path):
        first = dataset.map(RSRScorer(tiny_student_path))
        files = {file: file.stat().st_mtime_ns for file in (tmp_path / "data").glob("*.arrow")}
        script = (
            "import json, sys; from datasets import load_from_disk; from rsr_trl import RSRScorer\n"
            "from rsr_trl.scoring.student import Student\n"
            "path, student = sys.argv[1:]\n"
            "scorer = RSRScorer(student)\n"
            "name = scorer.fingerprint\n"
            "Student.score = None\n"  # the first computation fails
            "print(json.dumps([name, list(load_from_disk(path).map(scorer)['rsr'])]))\n"
        )
        environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(REPOSITORY)}
        arguments = [sys.executable, "-c", script, str(tmp_path / "data"), tiny_student_path]
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == [first["rsr_student"][0], list(first["rsr"])]
        assert files == {file: file.stat().st_mtime_ns for file in (tmp_path / "data").glob("*.arrow")}

    @pytest.mark.parametrize("same_scorer", [True, False])
    def test_a_student_retrained_into_the_same_folder(self, dataset, tiny_student_path, computed, same_scorer):
        scorer = RSRScorer(tiny_student_path)
        first = dataset.map(scorer)
        retrain(tiny_student_path)
        make = (lambda: scorer) if same_scorer else lambda: RSRScorer(tiny_student_path)
        second = dataset.map(make())
        assert computed() == 12
        truth = RSRScorer(AutoModelForCausalLM.from_pretrained(tiny_student_path), scorer.processing_class)
        for scored in (second, make().score(dataset)):
            assert scored["rsr"] == pytest.approx(list(truth.score(dataset)["rsr"]), rel=1e-5)
            assert set(scored["rsr_student"]).isdisjoint(first["rsr_student"])

    @pytest.mark.parametrize("file", ["chat_template.jinja", "config.json"])
    def test_a_changed_template_or_config(self, dataset, tiny_student_path, computed, file):
        first = dataset.map(RSRScorer(tiny_student_path))
        path = Path(tiny_student_path, file)
        if file == "config.json":
            config = json.loads(path.read_text())
            config["rope_parameters"]["rope_theta"] = 123.0
            path.write_text(json.dumps(config))
        else:
            path.write_text(path.read_text().replace("<|im_end|>", "<|im_end|> "))
        second = dataset.map(RSRScorer(tiny_student_path))
        assert computed() == 12
        assert second["rsr_student"][0] != first["rsr_student"][0]

    def test_a_changed_tokenizer(self, dataset, tiny_student_path):
        dataset.map(RSRScorer(tiny_student_path))
        tokenizer = AutoTokenizer.from_pretrained(tiny_student_path)
        tokenizer.add_tokens(["makes"])  # it has no row in the embeddings
        tokenizer.save_pretrained(tiny_student_path)
        with pytest.raises(ValueError, match="token id 262, but the student's vocabulary has 262"):
            dataset.map(RSRScorer(tiny_student_path))

    def test_a_tokenizer_of_the_users_own(self, dataset, tiny_student_path, tiny_tokenizer, computed):
        scorer = RSRScorer(tiny_student_path, tiny_tokenizer)
        dataset.map(scorer)
        tiny_tokenizer("a", truncation=True, max_length=3, padding="max_length")  # leaves its settings behind
        dataset.map(scorer)
        assert computed() == 6
        tiny_tokenizer.chat_template = tiny_tokenizer.chat_template + " "
        dataset.map(scorer)
        assert computed() == 6

    def test_the_base_model_of_an_adapter(self, dataset, tmp_path, tiny_student_path, tiny_tokenizer, computed):
        peft = pytest.importorskip("peft")
        base = AutoModelForCausalLM.from_pretrained(tiny_student_path)
        adapter = str(tmp_path / "adapter")
        peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(adapter)
        tiny_tokenizer.save_pretrained(adapter)
        dataset.map(RSRScorer(adapter))
        retrain(tiny_student_path)
        dataset.map(RSRScorer(adapter))
        assert computed() == 12

    @pytest.mark.distributed
    def test_worker_processes(self, dataset, tiny_student_path, computed):
        scorer = RSRScorer(tiny_student_path, token_stats=True)
        alone = scorer.score(dataset)
        computed()
        for with_rank in (False, True):
            together = dataset.map(scorer, num_proc=2, with_rank=with_rank)
            assert computed() == 0  # not in this process
            assert together["rsr"] == pytest.approx(list(alone["rsr"]), rel=1e-5)
            assert together["rsr_student"] == alone["rsr_student"]


class TestLive:
    def test_a_second_run_is_read_from_the_cache(self, dataset, scorer, make_scorer, tiny_tokenizer, computed):
        first = dataset.map(scorer)
        dataset.map(scorer)
        scorer.student.model.train()
        dataset.map(RSRScorer(scorer.student.model, tiny_tokenizer))
        again = dataset.map(make_scorer())  # another object with the same weights
        assert computed() == 6
        assert again.to_list() == first.to_list()

    @pytest.mark.parametrize("how", ["optimizer", "data", "load_state_dict", "adapter"])
    def test_a_trained_student_is_another_one(self, dataset, scorer, tiny_student, computed, how):
        model = scorer.student.model
        first, before = dataset.map(scorer), scorer.score(dataset)
        if how == "optimizer":
            ids = torch.arange(10, 30)[None]
            model(input_ids=ids, labels=ids).loss.backward()
            torch.optim.SGD(model.parameters(), lr=0.1).step()
        elif how == "data":
            model.model.norm.weight.data.mul_(1.5)  # leaves no trace in autograd's counters
        elif how == "load_state_dict":
            model.load_state_dict(tiny_student(seed=5).state_dict())
        else:
            peft = pytest.importorskip("peft")
            config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
            peft.get_peft_model(model, config)  # goes into the model's own layers
        computed()
        after = scorer.score(dataset)
        second = dataset.map(scorer)
        assert computed() == 12
        assert second["rsr"] == pytest.approx(list(after["rsr"]), rel=1e-5)
        assert second["rsr_student"] == after["rsr_student"]
        assert set(after["rsr_student"]).isdisjoint(before["rsr_student"])
        assert first["rsr_student"] == before["rsr_student"]
        assert after["rsr"] != pytest.approx(list(before["rsr"]), rel=1e-4)


def test_copies_carry_no_weights(tiny_student_path, scorer, dataset):
    """What datasets hashes, and what goes to workers, is small."""
    by_path = RSRScorer(tiny_student_path)
    dataset.map(by_path)  # it holds its student from now on
    assert len(pickle.dumps(by_path)) < 10_000 and len(pickle.dumps(scorer)) < 10_000
