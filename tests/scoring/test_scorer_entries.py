"""One scorer, many entries: map, map(batched=True), score, iterables, dicts, formats. All give the same columns."""

import copy
import logging
import pickle

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, Features, IterableDatasetDict

from rsr_trl import RSRScorer
from rsr_trl.rsr import RSR, STUDENT, RSRError, score_schema


ROWS = [
    {"id": 0, "prompt": "1+1=", "completion": "", "weights": [0.5, 1.5], "note": None},
    {"id": 1, "prompt": "2+2=", "completion": " 4, of course.", "weights": [], "note": "a"},
    {"id": 2, "prompt": "Name a colour.", "completion": " Blue", "weights": [2.0], "note": None},
    {"id": 3, "prompt": "3+4=", "completion": None, "weights": [1.0], "note": "b"},
    {"id": 4, "prompt": "2+5=", "completion": " 7, if I'm right.", "weights": [1.0], "note": "c"},
]


def messages(row: dict) -> list[dict[str, str]]:
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"] or "?"}]


CHATS = [messages(row) for row in ROWS]
SHAPES = {
    "plain": ROWS,
    "text": [{"id": row["id"], "text": row["completion"], "n": 1} for row in ROWS],
    "messages": [{"messages": chat, "n": [i]} for i, chat in enumerate(CHATS)],
    "prompt and completion": [{"prompt": c[:1], "completion": c[1:], "n": [i]} for i, c in enumerate(CHATS)],
    "conversations": [{"conversations": [{"from": m["role"], "value": m["content"]} for m in c]} for c in CHATS],
}


@pytest.fixture
def scorer_with_tokens(make_scorer) -> RSRScorer:
    return make_scorer(token_stats=True)


@pytest.fixture
def dataset() -> Dataset:
    return Dataset.from_list(ROWS)


def warnings_of(caplog) -> list[str]:
    said = [record.getMessage() for record in caplog.records if record.name.startswith("rsr_trl")]
    caplog.clear()
    return said


def assert_same(found, expected: Dataset) -> None:
    """Rows equal: scores up to rounding, all else exactly."""
    found = list(found)
    assert len(found) == len(expected)
    for row, wanted in zip(found, expected, strict=True):
        assert set(row) == set(wanted)
        for name, value in wanted.items():
            if value is not None and name in ("rsr", "rsr_mean_clipped_rank", "rsr_mean_surprisal"):
                assert row[name] == pytest.approx(value, rel=1e-5)
            elif name == "rsr_token_surprisals":
                np.testing.assert_allclose(row[name], value, rtol=1e-4, atol=1e-5)
            else:
                assert row[name] == value


@pytest.mark.parametrize("shape", SHAPES)
def test_all_entries_agree(scorer_with_tokens, shape):
    scorer, rows = scorer_with_tokens, SHAPES[shape]
    dataset = Dataset.from_list(rows)
    expected = scorer.score(dataset)
    # Nothing else changes, rows stay in order, and every column has its type.
    assert expected.select_columns(dataset.column_names).to_list() == dataset.to_list()
    added = Features.from_arrow_schema(pa.schema(score_schema(token_stats=True)))
    assert expected.features == Features({**dataset.features, **added})
    assert any(expected["rsr"])

    batched = {"batched": True, "batch_size": 2}
    for entry in (dataset.map(scorer), dataset.map(scorer, batched=True), dataset.map(scorer, **batched)):
        assert_same(entry, expected)
        assert entry.features == expected.features
    iterable = dataset.to_iterable_dataset()
    for entry in (scorer.score(iterable), iterable.map(scorer), iterable.map(scorer, **batched)):
        assert_same(entry, expected)
    assert scorer.score(iterable).features == expected.features
    assert_same([row | scorer(row) for row in dataset], expected)  # without datasets
    assert_same(Dataset.from_dict(dataset[:] | scorer(dataset[:])), expected)


def test_dicts_of_splits(scorer, dataset):
    splits = DatasetDict(train=dataset, test=dataset.select([4, 2]))
    scored = scorer.score(splits)
    assert isinstance(scored, DatasetDict) and list(scored) == ["train", "test"]
    assert_same(splits.map(scorer)["test"], scored["test"])
    assert_same(scored["train"], scorer.score(dataset))
    iterables = scorer.score(IterableDatasetDict(train=dataset.to_iterable_dataset()))
    assert isinstance(iterables, IterableDatasetDict)
    assert_same(iterables["train"], scored["train"])


class TestNulls:
    @pytest.mark.parametrize("batched", [False, True])
    def test_first_thousand_rows_are_null(self, scorer_with_tokens, batched):
        """datasets takes a column's type from the first rows that it writes (1,000 by default)."""
        rows = [{"prompt": "a", "completion": None}] * 1100 + [{"prompt": "2+2=", "completion": " 4"}]
        dataset = Dataset.from_list(rows)
        scored = dataset.map(scorer_with_tokens, batched=batched)
        assert scored["rsr"][:1100] == [None] * 1100 and scored["rsr"][1100] > 0
        assert scored["rsr_token_ranks"][0] == [] and len(scored["rsr_token_ranks"][1100]) == 2
        assert scored.features == scorer_with_tokens.score(dataset).features

    @pytest.mark.parametrize(("rows", "batched"), [([0, 3], False), ([1, 2], True)], ids=["all", "none"])
    def test_all_rows_are_null_or_none_is(self, scorer, dataset, rows, batched):
        scored = dataset.select(rows).map(scorer, batched=batched)
        assert scored.features["rsr"].dtype == "float64" and scored.features["rsr_error"].dtype == "string"
        assert [value is None for value in scored["rsr"]] == [not batched] * 2
        assert [error is None for error in scored["rsr_error"]] == [batched] * 2

    def test_are_warned_of_once_by_map_and_counted_by_score(self, scorer, dataset, caplog):
        dataset.map(scorer)
        assert warnings_of(caplog) == [
            "So far, 1 of 1 rows couldn't be scored: their rsr is null, rsr_error says why (completion is empty). "
            "(Shown once; check rsr_error afterwards.)"
        ]
        scorer.score(dataset.select([1, 0, 2, 3]))
        assert warnings_of(caplog) == [
            "2 of 4 rows couldn't be scored: their rsr is null, rsr_error says why (row 1: completion is empty).",
            "2 of 4 trajectories are plain text: the student's chat template isn't applied. For an instruct student, "
            "turn them into chats with --as_chat (in Python: rsr_trl.data.as_trl_format(dataset, as_chat=True)).",
        ]

    def test_good_rows_are_silent(self, scorer, caplog, capfd, recwarn):
        with caplog.at_level(logging.INFO):
            scored = scorer.score(Dataset.from_list(SHAPES["messages"][:2]))
        assert None not in scored["rsr"][:]
        assert not caplog.records and not recwarn
        assert capfd.readouterr() == ("", "")


class TestDatasetsOwnThings:
    @pytest.mark.parametrize("shape", ["plain", "messages", "prompt and completion"])
    @pytest.mark.parametrize("format", ["numpy", "torch", "pandas", "arrow"])
    def test_formats_are_kept(self, scorer, shape, format):
        dataset = Dataset.from_list(SHAPES[shape])
        formatted = dataset.with_format(format)
        scored = scorer.score(formatted)
        assert scored.format["type"] == format
        assert_same(scored.with_format(None), scorer.score(dataset))
        if format in ("pandas", "arrow"):
            with pytest.raises(TypeError, match="map passed a .*, not columns: score a dataset in a table format wi"):
                formatted.map(scorer)
            return
        for batched in (False, True):
            mapped = formatted.map(scorer, batched=batched)
            assert mapped.format["type"] == format
            assert_same(mapped.with_format(None), scorer.score(dataset))

    def test_formatted_columns_are_kept_and_the_new_ones_shown(self, scorer, dataset):
        scored = scorer.score(dataset.with_format("numpy", columns=["weights"], output_all_columns=True))
        assert scored.format["columns"] == ["weights", *score_schema()]
        assert scored.format["output_all_columns"]
        hidden = scorer.score(dataset.with_format("numpy", columns=["id"]))
        assert set(hidden[1]) == {"id", *score_schema()}

    def test_a_transform_is_applied_by_map_and_refused_where_the_columns_are_read(self, scorer):
        dataset = Dataset.from_list(ROWS)

        def louder(batch):
            return {**batch, "completion": [None if c is None else c.upper() for c in batch["completion"]]}

        shown, done = dataset.with_transform(louder), dataset.map(louder, batched=True)
        for refused in (shown, DatasetDict(train=shown), shown.select([2, 0])):
            with pytest.raises(RSRError, match=r"transform .*dataset\.map\(transform"):
                scorer.score(refused)
        with pytest.raises(RSRError, match="with_transform"):
            scorer.score_rows(shown, None)
        expected = scorer.score(done).select_columns(list(score_schema()))
        for batched in (False, True):
            mapped = shown.map(scorer, batched=batched).with_format(None)
            assert_same(mapped.select_columns(list(score_schema())), expected)

    def test_selected_and_shuffled_rows(self, scorer, dataset):
        part = dataset.shuffle(seed=3).select([4, 0, 2])
        assert_same(scorer.score(part), scorer.score(dataset).select(part["id"]))

    def test_split_and_description_are_kept(self, scorer):
        dataset = Dataset.from_list(ROWS, split="validation")
        dataset.info.description = "sums"
        for scored in (scorer.score(dataset), dataset.map(scorer)):
            assert scored.split == "validation" and scored.info.description == "sums"

    @pytest.mark.parametrize("rows", [ROWS, SHAPES["messages"]], ids=["plain", "messages"])
    def test_an_empty_dataset(self, scorer, rows):
        scored = scorer.score(Dataset.from_list(rows).select([]))
        assert len(scored) == 0 and scored.features == scorer.score(Dataset.from_list(rows)).features

    def test_other_columns_are_not_even_looked_at(self, scorer):
        """They may hold images or audio, which cost much to decode."""
        seen = set()

        class Watched(dict):
            def __getitem__(self, name):
                seen.add(name)
                return super().__getitem__(name)

        scorer(Watched(ROWS[1]))
        assert seen == {"prompt", "completion"}


class TestOverwrite:
    @pytest.fixture
    def scored(self, scorer_with_tokens, dataset) -> Dataset:
        return scorer_with_tokens.score(dataset)

    def test_is_asked_for(self, scorer, scored):
        for entry in (scorer.score, lambda d: d.map(scorer), lambda d: scorer.score(d.to_iterable_dataset())):
            with pytest.raises(ValueError, match=r"already has the columns \['rsr', .*Pass overwrite=True"):
                entry(scored)

    def test_replaces_all_of_the_earlier_scoring(self, scored, make_scorer, dataset):
        other, with_tokens = (make_scorer(seed=1, overwrite=True, token_stats=tokens) for tokens in (False, True))
        expected = other.score(dataset)
        assert_same(other.score(scored), expected)  # the old token columns are gone
        assert other.score(scored).features == expected.features
        for entry in (with_tokens.score(scored), scored.map(with_tokens), scored.map(with_tokens, batched=True)):
            assert_same(entry, with_tokens.score(dataset))
            assert expected[1]["rsr_student"] == entry[1]["rsr_student"] != scored[1]["rsr_student"]
        with pytest.raises(ValueError, match="rsr_token_ids.* of an earlier scoring, and map can't drop columns"):
            scored.map(other)


class TestChatTemplatePath:
    """As SFTTrainer's: a .jinja file, or the tokenizer that has the template."""

    @pytest.fixture
    def template(self, tiny_tokenizer) -> str:
        return tiny_tokenizer.chat_template.replace("<|im_start|>", "<|im_start|>the ")

    def test_scores_are_those_under_the_template_and_named_after_it(
        self, tiny_student, tiny_student_path, tiny_tokenizer, template, tmp_path
    ):
        dataset, student = Dataset.from_list(SHAPES["messages"]), tiny_student()
        own = RSRScorer(student, tiny_tokenizer).score(dataset)
        file, folder = tmp_path / "other.jinja", tmp_path / "other"
        file.write_text(template)
        before, eos = tiny_tokenizer.chat_template, tiny_tokenizer.eos_token
        results = {}
        for path in (str(file), str(folder)):
            if path == str(folder):
                tiny_tokenizer.chat_template, tiny_tokenizer.eos_token = template, "<|endoftext|>"
                tiny_tokenizer.save_pretrained(folder)
                expected = RSRScorer(student, tiny_tokenizer).score(dataset)
                tiny_tokenizer.chat_template, tiny_tokenizer.eos_token = before, eos
            for scorer in (
                RSRScorer(student, tiny_tokenizer, chat_template_path=path),
                RSRScorer(tiny_student_path, chat_template_path=path),
                pickle.loads(pickle.dumps(RSRScorer(tiny_student_path, chat_template_path=path))),
            ):
                results[path] = scorer.score(dataset)
                assert results[path][RSR] == pytest.approx(results[str(file)][RSR], rel=1e-6)
            assert tiny_tokenizer.chat_template == before and tiny_tokenizer.eos_token == eos, "the given one stays"
        assert_same(results[str(folder)], expected)
        assert own[RSR] != pytest.approx(expected[RSR], rel=1e-3)
        assert len({own[0][STUDENT], *(scored[0][STUDENT] for scored in results.values())}) == 3  # the eos counts too

    def test_what_cannot_be_taken_is_said(self, tiny_student, tiny_tokenizer, tmp_path):
        tiny_tokenizer.chat_template, template = None, tiny_tokenizer.chat_template
        tiny_tokenizer.save_pretrained(tmp_path / "bare")
        tiny_tokenizer.chat_template = template
        more = copy.deepcopy(tiny_tokenizer)
        more.add_tokens(["<|new|>"], special_tokens=True)
        more.save_pretrained(tmp_path / "more")
        for name, message in {
            "absent.jinja": "no file that can be read",
            "absent": "no tokenizer with a chat template",
            "bare": "no tokenizer with a chat template",
            "more": r"1 special tokens that the student doesn't know \(first: '<\|new\|>'\).*clone_chat_template",
        }.items():
            with pytest.raises(RSRError, match=message):
                RSRScorer(tiny_student(), tiny_tokenizer, chat_template_path=str(tmp_path / name))
