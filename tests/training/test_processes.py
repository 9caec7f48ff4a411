"""One training on one, two and four real processes: the same steps and scores, and each resumed on another number."""

import itertools
import shutil

import pytest

from tests.training.runs import examples, losses_of_steps, rows_of_steps, run, run_on


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
    "online-threshold": {"rsr_rescore_strategy": "online", "rsr_score_threshold": 10.5, "lr_scheduler_type": "linear"},
    "no-random": {"rsr_rescore_strategy": "no", "rsr_sampling": "random"},
}
# The same global batch of 4.
ON_ONE = {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 1}
ON_TWO = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1}
ON_FOUR = {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 1}
AT_ONCE = {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 4}

STEP = 11  # in the middle of the second of two epochs (10 steps; 8 with a fraction, 7 with groups)
# Name of the run -> its processes, how they share a global batch, and the run from whose checkpoint it goes on. A run
# comes after those it needs, and each number of processes is launched once.
RUNS = {
    "one": (1, ON_ONE, None),
    "two": (2, ON_TWO, None),
    "two, resumed": (2, ON_TWO, "two"),
    "two, begun on one": (2, ON_TWO, "one"),
    "four": (4, ON_FOUR, None),
    "four, begun on two": (4, ON_FOUR, "two"),
    "one, begun on two": (1, ON_ONE, "two"),
    "one, begun on four": (1, AT_ONCE, "four"),
}
LAUNCHES = [["one"], ["two", "two, resumed", "two, begun on one"], ["four", "four, begun on two"]]
LAUNCHES += [["one, begun on two", "one, begun on four"]]
_results: dict[str, dict[str, list]] = {}


@pytest.fixture
def trained(tmp_path_factory, tiny_student, tiny_tokenizer) -> dict[str, dict[str, list]]:
    """Name of the run -> case -> result of each of its processes. Trained once."""
    if _results:
        return _results
    folder = tmp_path_factory.mktemp("processes")
    tiny_student().save_pretrained(folder / "student")
    tiny_tokenizer.save_pretrained(folder / "student")
    often = {"save_strategy": "steps", "save_steps": STEP, "num_train_epochs": 2}
    for names in LAUNCHES:
        jobs = [
            {
                "student": str(folder / "student"),
                "output_dir": f"{folder}/{name}/{case}",
                "rows": examples(38),  # the last step of an epoch is not full: one process has fewer rows or none
                "args": args | RUNS[name][1] | often,
                "resume_from": (begun := RUNS[name][2]) and f"{folder}/{begun}/{case}/checkpoint-{STEP}",
            }
            for name, (case, args) in itertools.product(names, CASES.items())
        ]
        done = run_on(RUNS[names[0]][0], jobs, folder)
        for (name, case), result in zip(itertools.product(names, CASES), done, strict=True):
            _results.setdefault(name, {})[case] = result
    return _results


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("number", ["two", "four"])
def test_processes_train_on_the_same_examples_in_the_same_steps_with_the_same_table(number, case, trained):
    one, two = trained["one"][case], trained[number][case]
    assert rows_of_steps(two) == rows_of_steps(one)
    assert losses_of_steps(two) == pytest.approx(losses_of_steps(one), rel=1e-3)
    first = two[0]
    rates = [[log["learning_rate"] for log in run["logs"] if "learning_rate" in log] for run in (first, one[0])]
    assert rates[0] == rates[1]
    empty = {step for step, rows in rows_of_steps(one).items() if not rows}
    assert bool(empty) == ("threshold" in case)
    assert all(rates[0][step] == rates[0][step - 1] for step in empty if step - 1 in empty)  # the schedule waits
    for other in two:
        assert other["table"] == first["table"] and other["steps_measured"] == one[0]["steps_measured"]
    assert first["table"] == pytest.approx(one[0]["table"], rel=1e-2, nan_ok=True)


@pytest.mark.parametrize("case", CASES)
def test_resumed_on_two_processes_is_bitwise_the_same(case, trained):
    for whole, resumed in zip(trained["two"][case], trained["two, resumed"][case], strict=True):
        assert resumed["record"] == [entry for entry in whole["record"] if entry[0] >= STEP]
        assert resumed["table"] == whole["table"] and resumed["weights"] == whole["weights"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("resumed", [name for name in RUNS if "begun" in name])
def test_resumed_on_other_processes_the_same_examples_make_up_the_same_steps(case, resumed, trained):
    whole, rest = trained[RUNS[resumed][2]][case], trained[resumed][case]
    assert rows_of_steps(rest) == rows_of_steps(whole, since=STEP)
    assert losses_of_steps(rest) == pytest.approx(losses_of_steps(whole, since=STEP), rel=1e-3)


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
    job = {"student": tiny_student_path, "rows": examples()}
    one = run(output_dir=str(tmp_path / "one"), args=args | ON_ONE, **job)
    sharded = job | {"output_dir": str(tmp_path / "two"), "args": args | ON_TWO | {"deepspeed": zero3}}
    two = run_on(2, [sharded], tmp_path)[0]
    assert two[0]["table"] == two[1]["table"]
    assert two[0]["table"] == pytest.approx(one["table"], rel=1e-4)
    assert rows_of_steps(two) == rows_of_steps([one])
