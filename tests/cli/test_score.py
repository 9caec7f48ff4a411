import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from huggingface_hub import DatasetCard, HfApi
from huggingface_hub.utils import filter_repo_objects

from rsr_trl import RSRScorer
from rsr_trl.cli.main import main
from rsr_trl.data import card_facts
from rsr_trl.rsr import SCORE_COLUMNS


ROWS = [
    {"problem_id": "a", "teacher": "one", "prompt": "2+2=", "completion": "4, since 2+2 is 4", "correct": True},
    {"problem_id": "a", "teacher": "two", "prompt": "2+2=", "completion": "5", "correct": False},
    {"problem_id": "b", "teacher": "one", "prompt": "Is 7 prime? ", "completion": "Yes: no divisor.", "correct": True},
    {"problem_id": "b", "teacher": "two", "prompt": "Is 7 prime? ", "completion": "", "correct": False},
]


@pytest.fixture
def raw(tmp_path):
    path = tmp_path / "raw.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    return str(path)


@pytest.fixture
def score(raw, tiny_student_path, tmp_path):
    """`score(*more)` runs `rsr score` and returns its exit code."""
    output_dir = str(tmp_path / "scored")

    def run(*more, dataset_name=raw):
        student = ["--model_name_or_path", tiny_student_path]
        return main(["score", "--dataset_name", dataset_name, *student, "--output_dir", output_dir, *more])

    run.output_dir, run.raw = output_dir, raw
    return run


def _naive_rsr(model, before: list[int], ids: list[int]) -> float:
    """Eq. 7 from the whole logits in float64."""
    with torch.no_grad():
        logits = model(torch.tensor([before + ids])).logits[0].double()
    ranks = surprisals = 0.0
    for place, token in enumerate(ids, start=len(before)):
        row = logits[place - 1]
        ranks += min(1 + int((row > row[token]).sum()), 100)
        surprisals -= float(row.log_softmax(-1)[token])
    return ranks / surprisals


def test_plain_text_scores_are_those_of_the_equation(score, tiny_student, tiny_tokenizer):
    assert score() == 0
    scored = load_dataset(score.output_dir, split="train")
    assert scored.column_names == [*ROWS[0], *SCORE_COLUMNS]
    model = tiny_student()
    for row in scored.select(range(3)):
        before, ids = (tiny_tokenizer(row[name])["input_ids"] for name in ("prompt", "completion"))
        assert row["rsr"] == pytest.approx(_naive_rsr(model, before, ids), rel=1e-5)
        assert row["rsr_num_tokens"] == len(ids)


def test_other_scores(score, tiny_student, tiny_tokenizer):
    assert score("--scores", "lark, surprisal") == 0
    scored = load_dataset(score.output_dir, split="train")
    assert scored.column_names == [*ROWS[0], *SCORE_COLUMNS, "score_surprisal", "score_lark"]
    expected = RSRScorer(tiny_student(), tiny_tokenizer, scores=["surprisal", "lark"]).score(
        load_dataset("json", data_files=score.raw, split="train")
    )
    assert scored["score_lark"][:] == pytest.approx(expected["score_lark"][:])
    card = DatasetCard.load(f"{score.output_dir}/README.md").text
    assert "`score_surprisal` (lower first), `score_lark` (higher first)." in card


def test_an_unknown_score_is_named_at_once(score, capsys):
    assert score("--scores", "surprisal,larc") == 1
    assert "There is no score 'larc'. There are rsr, " in " ".join(capsys.readouterr().err.split())


def test_provenance_is_computed_after_scoring(score, capsys):
    assert score("--scores", "provenance") == 1
    assert "rsr_trl.experimental.provenance.score_provenance" in capsys.readouterr().err


def test_a_student_that_is_worse_than_a_blind_guess_is_pointed_out(score, capsys):
    assert score() == 0  # random, so it is
    captured = " ".join(capsys.readouterr().err.split())
    surprisal = load_dataset(score.output_dir, split="train")["rsr_mean_surprisal"]
    mean = statistics.mean(value for value in surprisal if value is not None)
    assert mean > math.log(262) and f"(mean surprisal {mean:.2f} nats, ln 262 = {math.log(262):.2f})" in captured


def test_nulls_of_another_score_are_counted(score, capsys, tmp_path):
    path = tmp_path / "single.jsonl"
    rows = [{**ROWS[0], "completion": "7"}, *ROWS[1:]]  # a single token, as the next one
    path.write_text("\n".join(json.dumps(row) for row in rows))
    assert score("--scores", "drop,surprisal", dataset_name=str(path)) == 0
    values = load_dataset(score.output_dir, split="train")
    missing = [p is None and rsr is not None for p, rsr in zip(values["score_drop"], values["rsr"], strict=True)]
    assert missing == [True, True, False, False]
    text = " ".join(capsys.readouterr().err.split())
    assert "score_drop is null for 2 (67%) of the scored" in text and "score_surprisal is" not in text


def test_as_chat_scores_the_answer_within_the_template(score, tiny_student, tiny_tokenizer):
    assert score("--as_chat", "--system_prompt", "Be brief.") == 0
    row = load_dataset(score.output_dir, split="train")[0]
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    assert row["completion"] == [{"role": "assistant", "content": ROWS[0]["completion"]}]
    before = tiny_tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
    ids = tiny_tokenizer(ROWS[0]["completion"])["input_ids"]
    assert row["rsr"] == pytest.approx(_naive_rsr(tiny_student(), before, ids), rel=1e-5)


def test_summary_is_on_standard_error_and_says_what_to_do(score, capsys):
    assert score() == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    text = captured.err
    assert "Scored 3 of 4 trajectories" in text
    assert "lower = more suitable" in text
    assert "Not scored: 1 (25%)" in text and "completion is empty" in text
    assert f"Next: rsr select --dataset_name {score.output_dir} --group_column problem_id" in text
    assert f"See it: rsr report --dataset_name {score.output_dir} --output {score.output_dir}-report.html" in text


def test_json_is_all_there_is_on_standard_output(score, capsys):
    assert score("--json") == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert captured.err == ""
    assert (result["trajectories"], result["scored"], result["not_scored"]) == (4, 3, {"completion is empty": 1})
    assert result["direction"] == "lower = more suitable"
    assert [one["teacher"] for one in result["teachers"]] == sorted(
        ["one", "two"], key=lambda name: next(one["rsr"] for one in result["teachers"] if one["teacher"] == name)
    )
    assert math.isfinite(result["rsr_median"])


def test_renamed_columns(score, tmp_path, tiny_student, tiny_tokenizer):
    path = tmp_path / "other.jsonl"
    path.write_text(json.dumps({"question": "2+2=", "answer": "4, since 2+2 is 4", "text": "unrelated"}))
    assert score("--prompt_column", "question", "--completion_column", "answer", dataset_name=str(path)) == 0
    row = load_dataset(score.output_dir, split="train")[0]
    before, ids = (tiny_tokenizer(ROWS[0][name])["input_ids"] for name in ("prompt", "completion"))
    assert row["rsr"] == pytest.approx(_naive_rsr(tiny_student(), before, ids), rel=1e-5)
    assert row["source_text"] == "unrelated"


def test_output_is_not_overwritten_unless_asked(score, capsys):
    assert score() == 0
    assert score("--r_max", "5") == 1
    error = capsys.readouterr().err
    assert "another run" in error and "r_max: 100 -> 5" in error and "--overwrite" in error
    assert max(load_dataset(score.output_dir, split="train")["rsr_mean_clipped_rank"][:3]) > 5
    assert score("--r_max", "5", "--overwrite") == 0
    assert max(load_dataset(score.output_dir, split="train")["rsr_mean_clipped_rank"][:3]) <= 5


def test_scored_dataset_is_scored_again_only_if_asked(score, capsys, tmp_path):
    assert score() == 0
    again = str(tmp_path / "again")
    assert score("--output_dir", again, dataset_name=score.output_dir) == 1
    assert "overwrite" in capsys.readouterr().err
    assert score("--output_dir", again, "--overwrite", dataset_name=score.output_dir) == 0
    first, second = (load_dataset(path, split="train")["rsr"][:] for path in (score.output_dir, again))
    assert first == second


def test_nothing_scored_fails_but_leaves_the_reasons(score, capsys, tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_text(json.dumps({"prompt": "2+2=", "completion": ""}))
    assert score(dataset_name=str(path)) == 1
    text = capsys.readouterr().err
    assert "Scored 0 of 1" in text and "Next:" not in text
    assert load_dataset(score.output_dir, split="train")[0]["rsr_error"] == "completion is empty"


@pytest.mark.parametrize(
    "more, message",
    [
        (["--prompt_column", "question"], "'question'"),
        (["--teacher_column", "author"], "'author'"),
        (["--dataset_split", "test"], "train"),
        (["--max_length", "9999"], "2048"),
        (["--as_chat", "--completion_column", "correct"], "Row 0, column 'completion'"),
    ],
)
def test_wrong_options_are_said_before_anything_is_written(score, capsys, tmp_path, more, message):
    assert score(*more) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "scored").exists()


def test_student_that_gives_nan_stops_the_run(score, capsys, tiny_student, tiny_student_path, tmp_path):
    broken = tiny_student()
    with torch.no_grad():
        broken.model.embed_tokens.weight.fill_(math.nan)
    broken.save_pretrained(tiny_student_path)
    assert score() == 1
    assert "NaN" in capsys.readouterr().err
    assert not list((tmp_path / "scored" / "data").iterdir())
    tiny_student().save_pretrained(tiny_student_path)
    assert score() == 0, "nothing was done, so the folder is free for another student"


@pytest.mark.slow
def test_real_student_on_real_trajectories(gsm8k_rows, gsm8k_student, tmp_path, capsys):
    # Dataset RSR on the first 25 problems by a plain full-logits check, as the student's own README gives it.
    expected = {
        "Qwen2-72B-Instruct": 4.758,
        "Llama-3.1-8B-Instruct": 4.994,
        "Mistral-Nemo-Instruct-2407": 5.042,
        "Qwen2-7B-Instruct": 5.201,
        "Llama-3.1-70B-Instruct": 5.308,
        "Yi-1.5-9B-Chat": 5.383,
        "DeepSeek-V2.5-0908": 5.409,
        "Mixtral-8x7B-Instruct-v0.1": 5.747,
        "Phi-3.5-mini-instruct": 5.786,
        "gemma-2-2b-it": 5.976,
        "gemma-2-9b-it": 6.627,
        "gemma-2-27b-it": 6.807,
    }
    problems = sorted({row["problem_id"] for row in gsm8k_rows})[:25]
    path = tmp_path / "gsm8k.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in gsm8k_rows if row["problem_id"] in problems))
    command = ["score", "--dataset_name", str(path), "--model_name_or_path", gsm8k_student, "--as_chat"]
    assert main([*command, "--dtype", "float32", "--output_dir", str(tmp_path / "scored"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {one["teacher"]: round(one["rsr"], 3) for one in result["teachers"]} == expected
    assert [one["teacher"] for one in result["teachers"]] == list(expected)
    assert (result["scored"], result["truncated"], result["not_scored"]) == (300, 0, {})


def _parts(output_dir) -> list[str]:
    return sorted(path.name for path in Path(output_dir, "data").iterdir())


class TestLargeDatasets:
    def test_independent_parts_in_any_order(self, score, capsys):
        assert score("--shard_rows", "1", "--shard", "2/2") == 0
        assert _parts(score.output_dir) == ["train-000001.parquet", "train-000003.parquet"]
        said = capsys.readouterr().err
        assert "2 of 4 shards are done" in said and "The rest belongs to other shares (--shard i/n)" in said
        assert score("--shard_rows", "1", "--shard", "2/2", "--json") == 0
        part = json.loads(capsys.readouterr().out)
        assert (part["complete"], part["shards_done"], part["rows_done"]) == (False, 2, 2)
        assert score("--shard_rows", "1", "--shard", "1/2") == 0
        assert "Scored 3 of 4 trajectories" in capsys.readouterr().err
        scored = load_dataset(score.output_dir, split="train")
        assert scored.select_columns(list(ROWS[0])).to_list() == ROWS

    @pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2"])
    def test_part_that_does_not_exist(self, score, capsys, shard):
        assert score(f"--shard={shard}") == 1
        assert "--shard must be i/n with i from 1 to n" in capsys.readouterr().err

    def test_part_within_a_launch(self, score, capsys, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert score("--shard", "1/2") == 1
        assert "one of 2 launched processes" in capsys.readouterr().err

    def test_launched_process_that_is_not_the_main_one_says_nothing(self, score, capsys, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "1")
        assert score("--shard_rows", "2") == 0
        assert capsys.readouterr() == ("", "")
        monkeypatch.setenv("RANK", "0")
        assert score("--shard_rows", "2") == 0
        assert "Scored 3 of 4 trajectories" in capsys.readouterr().err

    def test_stream(self, score, tmp_path):
        assert score() == 0
        table = load_dataset(score.output_dir, split="train").to_list()
        assert score("--dataset_streaming", "--shard_rows", "3", "--overwrite") == 0
        assert load_dataset(score.output_dir, split="train").to_list() == table

    def test_stream_as_chat(self, score):
        assert score("--as_chat", "--dataset_streaming") == 0
        row = load_dataset(score.output_dir, split="train")[0]
        assert row["completion"] == [{"role": "assistant", "content": ROWS[0]["completion"]}]
        assert row["rsr"] > 0

    def test_bad_row_stops_the_run_if_asked(self, score, capsys):
        assert score("--on_error", "raise") == 1
        assert "Row 3 can't be scored: completion is empty" in capsys.readouterr().err
        assert _parts(score.output_dir) == []
        assert score() == 0
        assert "rows 3" in capsys.readouterr().err

    def test_dry_run_writes_nothing(self, score, capsys, tmp_path):
        assert score("--dry_run", "--json", "--shard_rows", "3") == 0
        result = json.loads(capsys.readouterr().out)
        assert (result["rows"], result["files"], result["sampled_without_score"]) == (4, 2, 1)
        assert result["seconds"] == pytest.approx(result["tokens"] / result["tokens_per_second"], rel=0.1)
        assert 2**27 < result["host_bytes"] < 2**33  # torch and a tiny student, in bytes
        assert not (tmp_path / "scored").exists()
        assert score("--dry_run", "--dataset_streaming") == 0
        assert "an unknown number of rows" in capsys.readouterr().err

    def test_upload_is_of_the_card_and_the_data(self, score, monkeypatch, capsys):
        calls = {}
        monkeypatch.setattr(HfApi, "whoami", lambda self: {"name": "me"})
        monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **how: calls.update(how) or f"hub/{repo_id}")
        monkeypatch.setattr(HfApi, "upload_folder", lambda self, **how: calls.update(how))
        assert score("--push_to_hub", "me/scored", "--json") == 0
        assert json.loads(capsys.readouterr().out)["pushed_to"] == "hub/me/scored"
        assert (calls["repo_type"], calls["private"], calls["folder_path"]) == ("dataset", True, score.output_dir)
        files = [
            str(path.relative_to(score.output_dir)) for path in Path(score.output_dir).rglob("*") if path.is_file()
        ]
        kept = list(filter_repo_objects(files, ignore_patterns=calls["ignore_patterns"]))
        assert sorted(kept) == ["README.md", "data/train-000000.parquet"]

    def test_upload_without_login_is_said_before_the_work(self, score, capsys, tmp_path):
        assert score("--push_to_hub", "me/scored") == 1
        assert "hf auth login" in capsys.readouterr().err
        assert not (tmp_path / "scored").exists()

    def test_card_cites_the_paper_and_names_the_data(self, score, raw, tiny_student_path):
        assert score() == 0
        card = DatasetCard.load(Path(score.output_dir, "README.md"))
        assert card.data.configs[0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
        for said in (raw, tiny_student_path, "float32", "2,048", "lower `rsr`", "2601.14249", "bibtex"):
            assert said in card.text
        facts = card_facts(score.output_dir)
        assert (facts["command"], facts["student"], facts["dataset"]) == ("score", tiny_student_path, raw)
        assert {"dtype": "float32", "max_length": 2048, "r_max": 100}.items() <= facts["settings"].items()


@pytest.mark.slow
@pytest.mark.distributed
def test_launched_processes_share_the_work(raw, score, tmp_path, tiny_student_path):
    assert score() == 0
    alone = load_dataset(score.output_dir, split="train").to_list()
    out = str(tmp_path / "launched")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "rsr_trl"]
    command += ["score", "--dataset_name", raw, "--model_name_or_path", tiny_student_path, "--output_dir", out]
    done = subprocess.run([*command, "--shard_rows", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Scored 3 of 4 trajectories") == 1
    assert load_dataset(out, split="train").to_list() == alone
