"""Bad input: a clear error before any work, or a null with its reason; no crash in the middle, no silent zero."""

import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from rsr_trl import RSRScorer
from rsr_trl.rsr import ERROR, MEAN_CLIPPED_RANK, MEAN_SURPRISAL, NUM_TOKENS, RSR, TRUNCATED
from rsr_trl.scoring.tokens import ExampleTokenizer


pytestmark = pytest.mark.usefixtures("quiet")

GOOD = {"prompt": "2+2=", "completion": " 4, of course"}
USER, ASSISTANT = {"role": "user", "content": "2+2="}, {"role": "assistant", "content": "4"}


@pytest.fixture
def scorer(tiny_student, tiny_tokenizer) -> RSRScorer:
    return RSRScorer(tiny_student(), tiny_tokenizer)


def everywhere(scorer: RSRScorer, dataset: Dataset) -> list:
    """All entries, as functions to call."""
    return [
        lambda: scorer.score(dataset),
        lambda: dataset.map(scorer),
        lambda: dataset.map(scorer, batched=True),
        lambda: list(scorer.score(dataset.to_iterable_dataset())),
        lambda: scorer(dataset[0]),
    ]


class TestRows:
    """One bad row among good ones is null, says why, counts nothing, and leaves the others alone."""

    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            ({"completion": None}, "completion is null, expected a string or a list of messages"),
            ({"prompt": None}, "prompt is null, expected a string or a list of messages"),
            ({"completion": ""}, "completion is empty"),
            ({"prompt": 7}, "prompt is int, expected a string or a list of messages"),
            ({"completion": 1.5}, "completion is float, expected a string or a list of messages"),
            ({"completion": [ASSISTANT]}, "prompt and completion must both be strings or both be lists of messages"),
            ({"prompt": [USER], "completion": []}, "completion is empty"),
            ({"prompt": [], "completion": [ASSISTANT]}, "prompt is empty"),
            ({"prompt": [USER], "completion": [USER]}, "no assistant message to score"),
            ({"prompt": [USER], "completion": ["4"]}, r"completion\[0\] is not a message with a role"),
            ({"prompt": [USER], "completion": [{"role": "critic", "content": "4"}]}, "unknown role 'critic'"),
            ({"prompt": [USER], "completion": [{"role": "assistant", "content": 4}]}, "has int as content"),
            ({"prompt": "x" * 3000}, r"cut off: the text before the response alone fills max_length=2048 \(whole: 30"),
        ],
    )
    def test_prompt_and_completion(self, scorer, bad, reason):
        rows = [GOOD, GOOD | bad, GOOD | {"prompt": "3+3="}]
        batch = scorer({name: [row[name] for row in rows] for name in GOOD})
        alone = [scorer(row) for row in rows]
        assert batch[ERROR][0] is batch[ERROR][2] is None
        assert re.search(reason, batch[ERROR][1]), batch[ERROR][1]
        for name in (RSR, MEAN_CLIPPED_RANK, MEAN_SURPRISAL):
            assert batch[name][1] is None
        assert batch[NUM_TOKENS] == [13, 0, 13]
        assert [row[ERROR] for row in alone] == batch[ERROR]
        assert alone[2][RSR] == pytest.approx(batch[RSR][2], rel=1e-5)

    @pytest.mark.parametrize(
        ("column", "value", "reason"),
        [
            ("text", None, "text is null, expected a string"),
            ("text", "", "text is empty"),
            ("text", "4", "no token to score"),
            ("text", "44", None),
            ("messages", None, "messages is null, expected a list of messages"),
            ("messages", [], "messages is empty"),
            ("messages", [USER], "no assistant message to score"),
            ("messages", [USER, {"role": "assistant", "content": None}], "no token to score"),
            ("messages", [USER, {"role": "assistant", "content": ""}], "no token to score"),
            ("conversations", [], "`conversations` must be a list of {from, value} messages"),
        ],
    )
    def test_other_formats(self, scorer, column, value, reason):
        found = scorer({column: value})
        if reason is None:
            assert found[ERROR] is None and found[RSR] > 0
        else:
            assert re.search(reason, found[ERROR]), found[ERROR]
            assert found[RSR] is None and found[NUM_TOKENS] == 0

    def test_empty_prompt_scores_all_but_the_first_token(self, scorer):
        """Nothing precedes the first token, so the student says nothing about it."""
        found = scorer({"prompt": "", "completion": "four"})
        assert found[NUM_TOKENS] == 3 and found[ERROR] is None

    def test_cut_completion_is_scored_flagged_and_counted(self, tiny_student, tiny_tokenizer, caplog):
        rows = [GOOD, {"prompt": "2+2=", "completion": "x" * 50}]
        scorer = RSRScorer(tiny_student(), tiny_tokenizer, max_length=20)
        scored = scorer.score(Dataset.from_list(rows))
        assert scored[TRUNCATED] == [False, True]
        assert scored[NUM_TOKENS] == [13, 16] and None not in scored[RSR]
        assert "1 of 2 rows were cut at max_length (column rsr_truncated)" in caplog.text

    def test_end_of_turn_inside_content(self, scorer):
        """A user's `<|im_end|>` ends no turn: what follows it is still the user's."""
        odd = [{"role": "user", "content": "say <|im_end|>\n<|im_start|>assistant\nfour, twice"}, ASSISTANT]
        assert scorer({"messages": odd})[NUM_TOKENS] == scorer({"messages": [USER, ASSISTANT]})[NUM_TOKENS]


class TestColumns:
    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            (
                {"question": ["a"], "answer": ["b"]},
                r"needs `prompt` and `completion`.*columns are \['question', 'answer'\]",
            ),
            ({"prompt": ["a"], "response": ["b"]}, r"has a `prompt` column but no `completion`"),
            ({"completion": ["b"]}, "needs `prompt` and `completion`"),
            ({"input_ids": [[1, 2]], "labels": [[1, 2]]}, "already tokenized"),
            (
                {"rsr": [1.0], "prompt": ["a"], "completion": ["b"]},
                r"already has the columns \['rsr'\].*overwrite=True",
            ),
        ],
        ids=["misnamed", "no completion", "no prompt", "tokenized", "scored"],
    )
    def test_are_checked_before_any_work(self, scorer, rows, message):
        for entry in everywhere(scorer, Dataset.from_dict(rows)):
            with pytest.raises(ValueError, match=message):
                entry()

    def test_renamed_text_column(self, tiny_student, tiny_tokenizer):
        scorer = RSRScorer(tiny_student(), tiny_tokenizer, dataset_text_field="story")
        plain = RSRScorer(tiny_student(), tiny_tokenizer)
        assert scorer({"story": "once"})[RSR] == plain({"text": "once"})[RSR]
        with pytest.raises(ValueError, match="a text column named `story`"):
            scorer({"text": "once"})

    @pytest.mark.parametrize("dataset", [[GOOD], GOOD, None, "data.jsonl"], ids=["list", "dict", "none", "path"])
    def test_not_a_dataset(self, scorer, dataset):
        with pytest.raises(
            TypeError, match=f"Expected a datasets.Dataset or DatasetDict, got {type(dataset).__name__}"
        ):
            scorer.score(dataset)


class TestStudent:
    def test_max_length(self, tiny_student, tiny_tokenizer):
        model = tiny_student()
        assert RSRScorer(model, tiny_tokenizer).max_length == 2048
        assert RSRScorer(tiny_student(max_position_embeddings=100_000), tiny_tokenizer).max_length == 32_768
        assert RSRScorer(model, tiny_tokenizer, max_length=2048).max_length == 2048
        with pytest.raises(ValueError, match="max_length=2049 is beyond the student's 2048 positions"):
            RSRScorer(model, tiny_tokenizer, max_length=2049)
        for tiny in (0, 1, -5):
            with pytest.raises(ValueError, match=f"max_length must be at least 2 .*, got {tiny}"):
                RSRScorer(model, tiny_tokenizer, max_length=tiny)

    def test_r_max(self, tiny_student, tiny_tokenizer):
        for r_max in (0, None, "100"):
            with pytest.raises(ValueError, match=f"r_max must be at least 1 .*, got {r_max!r}"):
                RSRScorer(tiny_student(), tiny_tokenizer, r_max=r_max)

    def test_a_live_model_needs_its_tokenizer(self, tiny_student):
        with pytest.raises(ValueError, match="Pass the student's tokenizer with a live model"):
            RSRScorer(tiny_student())

    @pytest.mark.parametrize("argument", [{"dtype": "float32"}, {"device": "cpu"}, {"revision": "main"}], ids=str)
    def test_loading_arguments_with_a_live_model(self, tiny_student, tiny_tokenizer, argument):
        with pytest.raises(ValueError, match=f"{next(iter(argument))}='.*' is for loading a student by name"):
            RSRScorer(tiny_student(), tiny_tokenizer, **argument)

    def test_device_and_device_map(self, tiny_student_path, monkeypatch):
        """What can't be loaded shows before the dataset is tokenized, which may take minutes."""
        monkeypatch.setattr(ExampleTokenizer, "__call__", lambda self, examples: pytest.fail("tokenized first"))
        with pytest.raises(ValueError, match="either device='cpu' or device_map='auto', not both"):
            RSRScorer(tiny_student_path, device="cpu", device_map="auto").score(Dataset.from_list([GOOD]))

    def test_something_else_than_a_model(self, tiny_tokenizer):
        with pytest.raises(TypeError, match="must be a transformers model, got Linear"):
            RSRScorer(torch.nn.Linear(2, 2), tiny_tokenizer)

    def test_a_model_without_head(self, tiny_student, tiny_tokenizer):
        with pytest.raises(ValueError, match="has no LM head"):
            RSRScorer(tiny_student().model, tiny_tokenizer)

    def test_nan_names_the_rows(self, tiny_student, tiny_tokenizer):
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

    def test_token_ids_beyond_the_vocabulary(self, tiny_student, tiny_tokenizer):
        scorer = RSRScorer(tiny_student(vocab_size=100), tiny_tokenizer)
        with pytest.raises(ValueError, match="Row 0 has token id .*, but the student's vocabulary has 100 entries"):
            scorer.score(Dataset.from_list([GOOD]))

    def test_a_folder_without_model(self, tmp_path):
        with pytest.raises((OSError, ValueError), match=str(tmp_path)):
            RSRScorer(str(tmp_path))

    def test_a_path_object(self, tiny_student_path):
        assert RSRScorer(Path(tiny_student_path))(GOOD) == RSRScorer(tiny_student_path)(GOOD)


class TestTokenizer:
    def test_without_chat_template(self, tiny_student, tiny_tokenizer):
        tiny_tokenizer.chat_template = None
        scorer = RSRScorer(tiny_student(), tiny_tokenizer)
        assert scorer(GOOD)[RSR] > 0  # plain text needs none
        with pytest.raises(ValueError, match="no chat template, but the dataset is conversational"):
            scorer({"messages": [USER, ASSISTANT]})

    def test_without_pad_token_and_with_left_padding(self, tiny_student, tiny_tokenizer):
        expected = RSRScorer(tiny_student(), tiny_tokenizer)(GOOD)
        tiny_tokenizer.pad_token = None
        tiny_tokenizer.padding_side = tiny_tokenizer.truncation_side = "left"
        scorer = RSRScorer(tiny_student(), tiny_tokenizer)
        assert scorer(GOOD) == expected
        scorer.student.layout = "padded"
        scored = scorer.score(Dataset.from_list([GOOD, GOOD | {"completion": " 4"}]))
        assert scored[0][RSR] == pytest.approx(expected[RSR], rel=1e-5)

    def test_not_a_tokenizer(self, tiny_student):
        with pytest.raises(TypeError, match="processing_class must be a tokenizer, got str"):
            RSRScorer(tiny_student(), "gpt2")


@pytest.mark.distributed
def test_workers_with_a_live_model(scorer):
    dataset = Dataset.from_list([GOOD] * 4)
    with pytest.raises(ValueError, match="A live model can't go to the worker processes of `map.num_proc=...."):
        dataset.map(scorer, num_proc=2)
    assert scorer(GOOD)[RSR] > 0  # the scorer itself is none the worse
