import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, load_dataset
from huggingface_hub import DatasetCard, HfApi, RepoUrl
from huggingface_hub.utils import filter_repo_objects

from rsr_trl import RSRScorer
from rsr_trl.data import card_facts
from rsr_trl.report.tokens import load_tokenizer
from rsr_trl.rsr import SCORE_COLUMNS


ROWS = [
    {"problem_id": "a", "teacher": "one", "prompt": "2+2=", "completion": "4, since 2+2 is 4", "correct": True},
    {"problem_id": "a", "teacher": "two", "prompt": "2+2=", "completion": "5", "correct": False},
    {"problem_id": "b", "teacher": "one", "prompt": "Is 7 prime? ", "completion": "Yes: no divisor.", "correct": True},
    {"problem_id": "b", "teacher": "two", "prompt": "Is 7 prime? ", "completion": "", "correct": False},
]


@pytest.fixture
def score(rsr, tiny_student_path, tmp_path):
    """`score(*more, rows=ROWS)` runs `rsr score` on a file of these rows; `score.rows()` are what it has written."""
    output_dir, raw = str(tmp_path / "scored"), tmp_path / "raw.jsonl"

    def run(*more, rows=ROWS, dataset_name=str(raw)):
        raw.write_text("\n".join(map(json.dumps, rows)))
        student = ["--model_name_or_path", tiny_student_path]
        return rsr("score", "--dataset_name", dataset_name, *student, "--output_dir", output_dir, *more)

    run.output_dir, run.raw, run.rows = output_dir, str(raw), lambda: load_dataset(output_dir, split="train")
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


def _rsr_of(model, tokenizer, prompt: str, completion: str) -> float:
    return _naive_rsr(model, *(tokenizer(text)["input_ids"] for text in (prompt, completion)))


def test_plain_text_scores_are_those_of_the_equation(score, tiny_student, tiny_tokenizer):
    assert score().code == 0
    assert score.rows().column_names == [*ROWS[0], *SCORE_COLUMNS]
    for row in score.rows().select(range(3)):
        expected = _rsr_of(tiny_student(), tiny_tokenizer, row["prompt"], row["completion"])
        assert row["rsr"] == pytest.approx(expected, rel=1e-5)
        assert row["rsr_num_tokens"] == len(tiny_tokenizer(row["completion"])["input_ids"])


def test_other_scores(score, tiny_student, tiny_tokenizer):
    assert score("--scores", "lark, surprisal").code == 0
    assert score.rows().column_names == [*ROWS[0], *SCORE_COLUMNS, "score_surprisal", "score_lark"]
    expected = RSRScorer(tiny_student(), tiny_tokenizer, scores=["surprisal", "lark"]).score(Dataset.from_list(ROWS))
    assert score.rows()["score_lark"][:] == pytest.approx(expected["score_lark"][:])
    card = DatasetCard.load(f"{score.output_dir}/README.md").text
    assert "`score_surprisal` (lower first), `score_lark` (higher first)." in card


def test_a_student_that_is_worse_than_a_blind_guess_is_pointed_out(score):
    text = score().text  # random, so it is
    mean = statistics.mean(value for value in score.rows()["rsr_mean_surprisal"] if value is not None)
    assert mean > math.log(262) and f"(mean surprisal {mean:.2f} nats, ln 262 = {math.log(262):.2f})" in text


def test_nulls_of_another_score_are_counted(score):
    rows = [{**ROWS[0], "completion": "7"}, *ROWS[1:]]  # a single token, as the next one
    text = score("--scores", "drop,surprisal", rows=rows).text
    values = score.rows()
    missing = [p is None and rsr is not None for p, rsr in zip(values["score_drop"], values["rsr"], strict=True)]
    assert missing == [True, True, False, False]
    assert "score_drop is undefined (null) for 2 (67%) of the scored" in text and "score_surprisal is" not in text


@pytest.mark.parametrize("more", [(), ("--dataset_streaming",)])
def test_as_chat_scores_the_answer_within_the_template(score, tiny_student, tiny_tokenizer, more):
    assert score("--as_chat", "--system_prompt", "Be brief.", *more).code == 0
    row = score.rows()[0]
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    assert row["completion"] == [{"role": "assistant", "content": ROWS[0]["completion"]}]
    before = tiny_tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
    ids = tiny_tokenizer(ROWS[0]["completion"])["input_ids"]
    assert row["rsr"] == pytest.approx(_naive_rsr(tiny_student(), before, ids), rel=1e-5)


def test_a_student_without_a_template_is_scored_under_a_given_one(
    score, tiny_student, tiny_student_path, tiny_tokenizer, tmp_path
):
    file, template = Path(tiny_student_path, "chat_template.jinja"), tmp_path / "base.jinja"
    template.write_text(file.read_text().replace("<|im_start|>", "<|im_start|>the "))
    file.unlink()
    assert score("--as_chat").code == 1
    assert score("--as_chat", "--overwrite", "--chat_template_path", str(template)).code == 0
    row, tiny_tokenizer.chat_template = score.rows()[0], template.read_text()
    before = tiny_tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
    ids = tiny_tokenizer(ROWS[0]["completion"])["input_ids"]
    assert row["rsr"] == pytest.approx(_naive_rsr(tiny_student(), before, ids), rel=1e-5)
    assert card_facts(score.output_dir)["settings"]["chat_template_path"] == str(template)
    assert load_tokenizer(score.output_dir).chat_template == template.read_text()


def test_summary_is_on_standard_error_and_says_what_to_do(score, tiny_student_path):
    text = score().text
    assert "Scored 3 of 4 trajectories" in text
    assert "lower = more suitable" in text
    assert "Not scored: 1 (25%)" in text and "completion is empty" in text and "rows 3" in text
    assert "have fewer than 32 scored tokens" in text
    assert f"Next: rsr compare --dataset_name {score.output_dir} See it:" in text
    assert f"Then: rsr select --dataset_name {score.output_dir} --group_column problem_id" in text
    assert f"See it: rsr report --dataset_name {score.output_dir} --output_dir {score.output_dir}-report" in text
    card = DatasetCard.load(Path(score.output_dir, "README.md"))
    assert card.data.configs[0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    for said in (score.raw, tiny_student_path, "float32", "2,048", "lower `rsr`", "2601.14249", "bibtex"):
        assert said in card.text
    facts = card_facts(score.output_dir)
    assert (facts["command"], facts["student"], facts["dataset"]) == ("score", tiny_student_path, score.raw)
    assert {"dtype": "float32", "max_length": 2048, "r_max": 100}.items() <= facts["settings"].items()


def test_json_is_all_there_is_on_standard_output(score):
    done = score("--json")
    result = done.json
    assert done.err == "" and result["direction"] == "lower = more suitable"
    assert (result["trajectories"], result["scored"], result["not_scored"]) == (4, 3, {"completion is empty": 1})
    ratios = {one["teacher"]: one["rsr"] for one in result["teachers"]}
    assert list(ratios) == sorted(["one", "two"], key=ratios.get)
    assert math.isfinite(result["rsr_median"])


def test_plain_text_for_a_student_with_a_chat_template_is_said_once_before_the_work(score, rsr, tiny_student_path):
    text = score().text
    said = "3 of 4 sampled trajectories are plain text: the student's chat template isn't applied."
    assert text.count("plain text") == 1 and text.index(said) < text.index("Scored 3 of 4")
    assert "turn them into chats with --as_chat." in text and "Python" not in text
    assert score("--overwrite", "--json").json["notes"] == {"no chat template": 3}  # the fourth row isn't scored
    streamed = score("--overwrite", "--dataset_streaming").text  # which is read once
    assert streamed.count("plain text") == 1 and "3 of 4 trajectories are plain text" in streamed
    assert "plain text" not in score("--overwrite", "--as_chat").text
    teachers = ("teachers", "--model_name_or_path", tiny_student_path, "--dataset_name", score.raw, "--goal", "all")
    assert rsr(*teachers).err.count("plain text") == 1


def test_what_an_earlier_run_scored_is_said(score):
    assert "earlier run" not in score("--shard_rows", "2").text
    shard, state = (Path(score.output_dir, folder) for folder in ("data/train-000001.parquet", ".rsr"))
    shard.unlink()
    text = score().text
    assert "2 of 4 trajectories were scored by an earlier run. Resuming with the rest." in text
    assert (state / "complete.json").is_file() and "Scored 3 of 4 trajectories" in text
    assert "4 of 4 trajectories were scored by an earlier run. Nothing is left to score." in score().text


def test_renamed_columns(score, tiny_student, tiny_tokenizer):
    rows = [{"question": "2+2=", "answer": "4, since 2+2 is 4", "text": "unrelated"}]
    assert score("--prompt_column", "question", "--completion_column", "answer", rows=rows).code == 0
    row = score.rows()[0]
    assert row["rsr"] == pytest.approx(_rsr_of(tiny_student(), tiny_tokenizer, "2+2=", "4, since 2+2 is 4"), rel=1e-5)
    assert row["source_text"] == "unrelated"


def test_output_is_not_overwritten_unless_asked(score):
    assert score().code == 0
    done = score("--r_max", "5")
    assert done.code == 1
    assert "another run" in done.err and "r_max: 100 -> 5" in done.err and "--overwrite" in done.err
    assert max(score.rows()["rsr_mean_clipped_rank"][:3]) > 5
    assert score("--r_max", "5", "--overwrite").code == 0
    assert max(score.rows()["rsr_mean_clipped_rank"][:3]) <= 5


def test_scored_dataset_is_scored_again_only_if_asked(score, tmp_path):
    assert score().code == 0
    again, options = str(tmp_path / "again"), {"dataset_name": score.output_dir}
    done = score("--output_dir", again, **options)
    assert done.code == 1 and "overwrite" in done.err
    assert score("--output_dir", again, "--overwrite", **options).code == 0
    assert load_dataset(again, split="train")["rsr"][:] == score.rows()["rsr"][:]


def test_nothing_scored_fails_but_leaves_the_reasons(score):
    done = score(rows=[{"prompt": "2+2=", "completion": ""}])
    assert done.code == 1 and "Scored 0 of 1" in done.text and "Next:" not in done.text
    assert score.rows()[0]["rsr_error"] == "completion is empty"


@pytest.mark.parametrize(
    "more, message",
    [
        (["--prompt_column", "question"], "--prompt_column question: "),
        (["--teacher_column", "author"], "--teacher_column author: "),
        (["--dataset_split", "test"], "train"),
        (["--max_length", "9999"], "2048"),
        (["--as_chat", "--completion_column", "correct"], "Row 0, column 'completion'"),
        (["--push_to_hub", "--hub_dataset_id", "me/scored"], "Uploading to 'me/scored' needs a login: run `hf auth"),
        (["--push_to_hub"], "Uploading to 'scored' needs a login"),
        (["--hub_dataset_id", "me/scored"], "--hub_dataset_id needs --push_to_hub"),
        (["--scores", "surprisal,larc"], "There is no score 'larc'. Did you mean lark? Scores are rsr, "),
        (["--prompt_column", "promt"], "--prompt_column promt: the dataset has no such column. Did you mean prompt?"),
        (["--teacher_column", "techer"], "--teacher_column techer: there is no such column. Did you mean teacher?"),
        (["--scores", "provenance"], "rsr_trl.experimental.provenance.score_provenance"),
        *((["--shard=" + shard], "i/n with i from 1 to n") for shard in ("0/2", "3/2", "1", "1/0", "a/b", "-1/2")),
    ],
)
def test_wrong_options_are_said_before_anything_is_written(score, tmp_path, more, message):
    done = score(*more)
    assert done.code == 1 and message in done.text
    assert not (tmp_path / "scored").exists()


def test_student_that_gives_nan_stops_the_run(score, tiny_student, tiny_student_path, tmp_path):
    broken = tiny_student()
    with torch.no_grad():
        broken.model.embed_tokens.weight.fill_(math.nan)
    broken.save_pretrained(tiny_student_path)
    done = score()
    assert done.code == 1 and "NaN" in done.err
    assert not list((tmp_path / "scored" / "data").iterdir())
    tiny_student().save_pretrained(tiny_student_path)
    assert score().code == 0, "nothing was done, so the folder is free for another student"


@pytest.mark.slow
def test_real_student_on_real_trajectories(rsr, gsm8k_rows, gsm8k_student, tmp_path):
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
    command = ["score", "--dataset_name", path, "--model_name_or_path", gsm8k_student, "--as_chat"]
    result = rsr(*command, "--dtype", "float32", "--output_dir", tmp_path / "scored", "--json").json
    assert {one["teacher"]: round(one["rsr"], 3) for one in result["teachers"]} == expected
    assert [one["teacher"] for one in result["teachers"]] == list(expected)
    assert (result["scored"], result["truncated"], result["not_scored"]) == (300, 0, {})


def _files(output_dir) -> list[str]:
    return sorted(path.name for path in Path(output_dir, "data").iterdir())


class TestLargeDatasets:
    def test_independent_parts_in_any_order(self, score):
        text = score("--shard_rows", "1", "--shard", "2/2").text
        assert _files(score.output_dir) == ["train-000001.parquet", "train-000003.parquet"]
        assert "This share is done: 2 of 4 shards are done (2 trajectories)" in text
        assert "The rest belongs to other shares (--shard i/n)" in text
        part = score("--shard_rows", "1", "--shard", "2/2", "--json").json
        assert (part["complete"], part["shards_done"], part["rows_done"]) == (False, 2, 2)
        assert "Scored 3 of 4 trajectories" in score("--shard_rows", "1", "--shard", "1/2").text
        assert score.rows().select_columns(list(ROWS[0])).to_list() == ROWS

    def test_part_within_a_launch(self, score, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        done = score("--shard", "1/2")
        assert done.code == 1 and "one of 2 launched processes" in done.err

    def test_launched_process_that_is_not_the_main_one_says_nothing(self, score, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "1")
        done = score("--shard_rows", "2")
        assert (done.code, done.out, done.err) == (0, "", "")
        monkeypatch.setenv("RANK", "0")
        assert "Scored 3 of 4 trajectories" in score("--shard_rows", "2").text

    def test_stream(self, score):
        assert score().code == 0
        table = score.rows().to_list()
        assert score("--dataset_streaming", "--shard_rows", "3", "--overwrite").code == 0
        assert score.rows().to_list() == table

    def test_bad_row_stops_the_run_if_asked(self, score):
        done = score("--on_error", "raise")
        assert done.code == 1 and "Row 3 can't be scored: completion is empty" in done.err
        assert _files(score.output_dir) == []
        assert score().code == 0

    def test_dry_run_writes_nothing(self, score, tmp_path):
        result = score("--dry_run", "--json", "--shard_rows", "3").json
        assert (result["rows"], result["files"], result["sampled_without_score"]) == (4, 2, 1)
        assert result["seconds"] == pytest.approx(result["tokens"] / result["tokens_per_second"], rel=0.1)
        assert 2**27 < result["host_bytes"] < 2**33  # torch and a tiny student, in bytes
        assert not (tmp_path / "scored").exists()
        assert "an unknown number of rows" in score("--dry_run", "--dataset_streaming").text

    def test_what_is_read_once_is_said(self, score, tiny_tokenizer):
        rows = [{"prompt": "How many apples are left? " * 8, "completion": str(i) * 9} for i in range(4)]
        tokens = sum(len(tiny_tokenizer(row[name])["input_ids"]) for row in rows for name in row) + len(rows)  # ends
        found = score("--dry_run", "--json", rows=rows).json
        share = 1 - found["sampled_neighbours_read"] / found["sampled_neighbours"]
        assert found["sampled_neighbours"] == tokens and 0.5 < share < 0.75, "of four prompts one is read"
        said = f"{share:.0%} of the tokens are shared prefixes, computed once"
        assert said in score("--dry_run", rows=rows).text and said in score(rows=rows).text
        assert "read once" not in score("--dry_run", "--no_share_prefixes", rows=rows).text

    def test_upload_is_of_the_card_and_the_data(self, score, monkeypatch):
        def repo(name):
            return RepoUrl(f"https://huggingface.co/datasets/{name if '/' in name else f'me/{name}'}")

        calls = {}
        monkeypatch.setattr(HfApi, "whoami", lambda self: {"name": "me"})
        monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **how: calls.update(how) or repo(repo_id))
        monkeypatch.setattr(HfApi, "upload_folder", lambda self, **how: calls.update(how))
        for options in (("--hub_dataset_id", "me/scored"), ()):  # the folder is called so too
            assert score("--push_to_hub", *options, "--json").json["pushed_to"] == str(repo("me/scored"))
            assert calls["repo_id"] == "me/scored"
        assert (calls["repo_type"], calls["private"], calls["folder_path"]) == ("dataset", True, score.output_dir)
        files = [path for path in Path(score.output_dir).rglob("*") if path.is_file()]
        names = [str(path.relative_to(score.output_dir)) for path in files]
        kept = filter_repo_objects(names, ignore_patterns=calls["ignore_patterns"])
        assert sorted(kept) == ["README.md", "data/train-000000.parquet"]


@pytest.mark.slow
@pytest.mark.distributed
def test_launched_processes_share_the_work(score, tmp_path, tiny_student_path):
    assert score().code == 0
    alone = score.rows().to_list()
    out = str(tmp_path / "launched")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "rsr_trl"]
    command += ["score", "--dataset_name", score.raw, "--model_name_or_path", tiny_student_path, "--output_dir", out]
    done = subprocess.run([*command, "--shard_rows", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Scored 3 of 4 trajectories") == 1
    assert load_dataset(out, split="train").to_list() == alone
