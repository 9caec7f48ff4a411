"""Bad input: a clear error before any work, or a null with its reason; no crash in the middle, no silent zero.

The reasons themselves are in test_tokens_bad_input.py.
"""

import inspect
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from rsr_trl import RSRScorer
from rsr_trl.scoring.tokens import ExampleTokenizer


GOOD = {"prompt": "2+2=", "completion": " 4, of course"}


def test_one_bad_row(scorer):
    """One bad row among good ones is null, says why, counts nothing, and leaves the others alone."""
    too_long = r"cut off: the text before the response alone fills max_length=2048 \(whole: 30"
    for bad, reason in (({"completion": None}, "completion is null"), ({"prompt": "x" * 3000}, too_long)):
        rows = [GOOD, GOOD | bad, GOOD | {"prompt": "3+3="}]
        batch, alone = scorer({name: [row[name] for row in rows] for name in GOOD}), [scorer(row) for row in rows]
        assert batch["rsr_error"][0] is batch["rsr_error"][2] is None
        assert re.search(reason, batch["rsr_error"][1]), batch["rsr_error"][1]
        assert [batch[name][1] for name in ("rsr", "rsr_mean_clipped_rank", "rsr_mean_surprisal")] == [None] * 3
        assert batch["rsr_num_tokens"] == [13, 0, 13]
        assert [row["rsr_error"] for row in alone] == batch["rsr_error"]
        assert alone[2]["rsr"] == pytest.approx(batch["rsr"][2], rel=1e-5)


def test_cut_completion_is_scored_flagged_and_counted(make_scorer, caplog):
    rows = [GOOD, {"prompt": "2+2=", "completion": "x" * 50}]
    scored = make_scorer(max_length=20).score(Dataset.from_list(rows))
    assert scored["rsr_truncated"] == [False, True]
    assert scored["rsr_num_tokens"] == [13, 16] and None not in scored["rsr"]
    assert "1 of 2 rows were cut at max_length (column rsr_truncated)" in caplog.text


class TestColumns:
    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ("question b", r"needs `prompt` and `completion`.*columns are \['question', 'b'\]"),
            ("completion", "The dataset needs `prompt` and `completion`, `messages`, `conversations`, or a text colu"),
            ("prompt response", r"`prompt` column but no `completion`. Its columns are \['prompt', 'response'\]. Ren"),
            ("prompt messages", "or remove `prompt` if the conversation is in `messages`"),
            ("input_ids labels", r"The dataset is already tokenized \(columns \['input_ids', 'labels'\]\)"),
            ("rsr prompt completion", r"already has the columns \['rsr'\].*overwrite="),
        ],
    )
    def test_are_checked_before_any_work(self, scorer, columns, message):
        dataset = Dataset.from_dict(dict.fromkeys(columns.split(), ["x"]))
        for entry in (
            lambda: scorer.score(dataset),
            lambda: dataset.map(scorer),
            lambda: dataset.map(scorer, batched=True),
            lambda: list(scorer.score(dataset.to_iterable_dataset())),
            lambda: scorer(dataset[0]),
        ):
            with pytest.raises(ValueError, match=message):
                entry()

    def test_renamed_text_column(self, make_scorer, scorer):
        other = make_scorer(dataset_text_field="story")
        assert other({"story": "once"})["rsr"] == scorer({"text": "once"})["rsr"]
        with pytest.raises(ValueError, match="a text column named `story`"):
            other({"text": "once"})

    @pytest.mark.parametrize("dataset", [[GOOD], GOOD, None, "data.jsonl"], ids=["list", "dict", "none", "path"])
    def test_not_a_dataset(self, scorer, dataset):
        with pytest.raises(TypeError, match=f"a datasets.Dataset or DatasetDict, got {type(dataset).__name__}"):
            scorer.score(dataset)


class TestSettings:
    def test_max_length(self, tiny_student, tiny_tokenizer, make_scorer):
        assert make_scorer().max_length == make_scorer(max_length=2048).max_length == 2048
        assert RSRScorer(tiny_student(max_position_embeddings=100_000), tiny_tokenizer).max_length == 32_768
        with pytest.raises(ValueError, match="max_length=2049 is beyond the student's 2048 positions"):
            make_scorer(max_length=2049)

    @pytest.mark.parametrize(
        ("settings", "error", "message"),
        [
            ({"max_length": 0}, ValueError, "max_length must be at least 2 .*, got 0"),
            ({"max_length": 1}, ValueError, "max_length must be at least 2 .*, got 1"),
            ({"max_length": -3}, ValueError, "max_length must be at least 2 .*, got -3"),
            ({"r_max": 0}, ValueError, "r_max must be at least 1 .*, got 0"),
            ({"r_max": None}, ValueError, "r_max must be at least 1 .*, got None"),
            ({"r_max": "100"}, ValueError, "r_max must be at least 1 .*, got '100'"),
            ({"dtype": "float32"}, ValueError, "dtype='float32' is for loading a student by name"),
            ({"device": "cpu"}, ValueError, "device='cpu' is for loading a student by name"),
            ({"revision": "main"}, ValueError, "revision='main' is for loading a student by name"),
            ({"processing_class": None}, ValueError, "Pass the student's tokenizer with a live model"),
            ({"processing_class": "gpt2"}, TypeError, "processing_class must be a tokenizer, got str"),
            ({"rmax": 50}, TypeError, "unexpected keyword argument 'rmax'"),
        ],
        ids=str,
    )
    def test_impossible_ones(self, tiny_student, tiny_tokenizer, settings, error, message):
        with pytest.raises(error, match=message):
            RSRScorer(tiny_student(), **{"processing_class": tiny_tokenizer, **settings})

    def test_device_and_device_map(self, tiny_student_path, monkeypatch):
        """What can't be loaded shows before the dataset is tokenized, which may take minutes."""
        monkeypatch.setattr(ExampleTokenizer, "__call__", lambda self, examples: pytest.fail("tokenized first"))
        with pytest.raises(ValueError, match="either device='cpu' or device_map='auto', not both"):
            RSRScorer(tiny_student_path, device="cpu", device_map="auto").score(Dataset.from_list([GOOD]))

    def test_a_path_object_and_a_folder_without_model(self, tiny_student_path, tmp_path):
        assert RSRScorer(Path(tiny_student_path))(GOOD) == RSRScorer(tiny_student_path)(GOOD)
        (tmp_path / "empty").mkdir()
        with pytest.raises((OSError, ValueError), match=str(tmp_path / "empty")):
            RSRScorer(str(tmp_path / "empty"))


def test_settings_are_shown_by_help():
    assert {"model", "processing_class", "r_max", "scores"} <= set(inspect.signature(RSRScorer).parameters)


def test_nan_names_the_rows(tiny_student, tiny_tokenizer):
    """Some token's embedding is broken: rows that have it can't be scored, and no row may look as if it were."""
    model = tiny_student(tie_word_embeddings=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[tiny_tokenizer.convert_tokens_to_ids("Q")] = torch.nan
    scorer = RSRScorer(model, tiny_tokenizer)
    bad = {"prompt": "2+2=Q", "completion": " 4"}
    dataset = Dataset.from_list([GOOD, bad, GOOD, bad])
    with pytest.raises(FloatingPointError, match=r"NaN or infinite logits on rows \[1, 3\]"):
        scorer.score(dataset)
    # map doesn't say which rows of the dataset it passes, so a note says what is counted.
    for batched, rows, passed in ((False, [0], 1), (True, [1, 3], 4)):
        with pytest.raises(FloatingPointError, match=re.escape(f"on rows {rows}")) as error:
            dataset.map(scorer, batched=batched)
        assert f"Rows are counted within the {passed} that map passed" in error.value.__notes__[0]


def test_a_tokenizer_without_chat_template(scorer, tiny_tokenizer):
    tiny_tokenizer.chat_template = None
    assert scorer(GOOD)["rsr"] > 0  # plain text needs none
    for entry in (scorer, lambda row: scorer.score(Dataset.from_list([row]))):
        with pytest.raises(
            ValueError, match="no chat template, but the dataset is conversational.*chat_template_path"
        ):
            entry({"messages": [{"role": "user", "content": "2+2="}, {"role": "assistant", "content": "4"}]})


@pytest.mark.distributed
def test_workers_with_a_live_model(scorer):
    dataset = Dataset.from_list([GOOD] * 4)
    with pytest.raises(ValueError, match="A live model can't go to the worker processes of `map.num_proc=...."):
        dataset.map(scorer, num_proc=2)
    assert scorer(GOOD)["rsr"] > 0  # the scorer itself is none the worse
