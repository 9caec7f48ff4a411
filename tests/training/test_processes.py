"""One training on one and on two real processes: the same steps, the same scores, and each resumed on the other."""

import shutil
from pathlib import Path

import pytest

from tests.training.runs import Job, examples, losses_of_steps, rows_of_steps, run, run_on_processes


pytestmark = pytest.mark.distributed

CASES = {
    "epoch-weighted": {"rsr_rescore_strategy": "epoch"},
    "steps-ordered-fraction": {
        "rsr_rescore_strategy": "steps",
        "rsr_rescore_steps": 2,
        "rsr_sampling": "ordered",
        "rsr_keep_fraction": 0.8,
    },
    "steps-groups-workers": {
        "rsr_rescore_strategy": "steps",
        "rsr_rescore_steps": 1,
        "rsr_group_column": "problem",
        "rsr_keep_per_group": 2,
        "dataloader_num_workers": 1,
        # A fork of a process with gloo's threads hangs now and then, in the child, before any Python runs.
        "dataloader_multiprocessing_context": "forkserver",
    },
    "online-threshold": {"rsr_rescore_strategy": "online", "rsr_score_threshold": 10.5},
    "no-random": {"rsr_rescore_strategy": "no", "rsr_sampling": "random"},
}
ON_ONE = {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 1}
ON_TWO = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1}  # the same global batch of 4


STEP = 11  # in the middle of the second of two epochs (10 steps; 8 with a fraction, 7 with groups)
_results: dict[str, dict[str, list]] = {}


@pytest.fixture
def trained(tmp_path_factory, tiny_student, tiny_tokenizer) -> dict[str, dict[str, list]]:
    """
    Case -> name of the run -> result of each of its processes. Trained once, in a single launch of two processes.
    """
    if not _results:
        folder = tmp_path_factory.mktemp("processes")
        tiny_student().save_pretrained(folder / "student")
        tiny_tokenizer.save_pretrained(folder / "student")
        _results.update(train_all(folder))
    return _results


def train_all(folder: Path) -> dict[str, dict[str, list]]:
    results: dict[str, dict[str, list]] = {case: {} for case in CASES}

    def jobs(name: str, on: dict, begun: str | None = None) -> list[Job]:
        checkpoint = f"{folder}/{begun}/{{}}/checkpoint-{STEP}"
        return [
            Job(
                student=str(folder / "student"),
                output_dir=f"{folder}/{name}/{case}",
                rows=examples(38),  # the last step of an epoch is not full, so that one process has fewer rows or none
                args=args | on | {"save_strategy": "steps", "save_steps": STEP, "num_train_epochs": 2},
                resume_from=begun and checkpoint.format(case),
            )
            for case, args in CASES.items()
        ]

    for case, job in zip(CASES, jobs("one", ON_ONE), strict=True):
        results[case]["one"] = [run(job)]
    names = {"two": None, "two, resumed": "two", "two, begun on one": "one"}
    order = [(case, name) for name in names for case in CASES]
    launched = [job for name, begun in names.items() for job in jobs(name, ON_TWO, begun)]
    for (case, name), result in zip(order, run_on_processes(launched, 2, folder / "launch"), strict=True):
        results[case][name] = result
    for case, job in zip(CASES, jobs("one, begun on two", ON_ONE, "two"), strict=True):
        results[case]["one, begun on two"] = [run(job)]
    return results


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_on_the_same_examples_in_the_same_steps(case, trained):
    one, two = trained[case]["one"], trained[case]["two"]
    assert rows_of_steps(two) == rows_of_steps(one)
    assert losses_of_steps(two) == pytest.approx(losses_of_steps(one), rel=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_both_processes_hold_the_same_table(case, trained):
    first, second = trained[case]["two"]
    assert first["table"] == second["table"]
    assert first["steps_measured"] == second["steps_measured"] == trained[case]["one"][0]["steps_measured"]
    assert first["table"] == pytest.approx(trained[case]["one"][0]["table"], rel=1e-2, nan_ok=True)


@pytest.mark.parametrize("case", CASES)
def test_resumed_on_two_processes_is_bitwise_the_same(case, trained):
    for whole, resumed in zip(trained[case]["two"], trained[case]["two, resumed"], strict=True):
        assert resumed["record"] == [entry for entry in whole["record"] if entry[0] >= STEP]
        assert resumed["table"] == whole["table"] and resumed["weights"] == whole["weights"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("resumed", "begun"), [("two, begun on one", "one"), ("one, begun on two", "two")])
def test_resumed_on_other_processes_the_same_examples_make_up_the_same_steps(case, resumed, begun, trained):
    whole, rest = trained[case][begun], trained[case][resumed]
    expected = {step: rows for step, rows in rows_of_steps(whole).items() if step >= STEP}
    assert rows_of_steps(rest) == expected
    losses = {step: loss for step, loss in losses_of_steps(whole).items() if step >= STEP}
    assert losses_of_steps(rest) == pytest.approx(losses, rel=1e-3)


@pytest.mark.parametrize("strategy", ["epoch", "online"])
def test_under_zero3_scores_and_steps_are_those_of_one_process(strategy, tmp_path, tiny_student_path, monkeypatch):
    pytest.importorskip("deepspeed", reason="DeepSpeed isn't installed (pip install -e '.[deepspeed]')")
    if not shutil.which("g++"):
        pytest.skip("DeepSpeed builds its exchange between CPU processes with g++, which isn't here")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    zero3 = {
        "zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True},
        "zero_force_ds_cpu_optimizer": False,
        **dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), "auto"),
    }
    args = {"rsr_rescore_strategy": strategy, "num_train_epochs": 2, "optim": "adamw_torch"}
    one = run(Job(tiny_student_path, str(tmp_path / "one"), examples(), args | ON_ONE))
    sharded = Job(tiny_student_path, str(tmp_path / "two"), examples(), args | ON_TWO | {"deepspeed": zero3})
    two = run_on_processes([sharded], 2, tmp_path / "launch")[0]
    assert two[0]["table"] == two[1]["table"]
    assert two[0]["table"] == pytest.approx(one["table"], rel=1e-4)
    assert rows_of_steps(two) == rows_of_steps([one])
