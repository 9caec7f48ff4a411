import json
import os

import pytest
from datasets import Dataset, DatasetDict, IterableDataset, List, Value, load_dataset

from rsr_trl.data import as_trl_format, check_output_dir, load, source_files, write_scored


ROWS = [{"prompt": f"question {i}", "completion": f"answer {i}", "teacher": "t"} for i in range(4)]


def _write(path, rows=ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        getattr(Dataset.from_list(rows), f"to_{path.suffix[1:]}")(path)
    return str(path)


class TestLoad:
    @pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
    def test_file(self, tmp_path, suffix):
        assert load(_write(tmp_path / f"rows{suffix}")).to_list() == ROWS

    def test_slice(self, tmp_path):
        assert load(_write(tmp_path / "rows.jsonl"), split="train[1:3]").to_list() == ROWS[1:3]

    def test_streaming(self, tmp_path):
        dataset = load(_write(tmp_path / "rows.jsonl"), streaming=True)
        assert isinstance(dataset, IterableDataset) and list(dataset) == ROWS

    def test_changed_file_is_read_anew(self, tmp_path):
        load(_write(tmp_path / "rows.jsonl"))
        assert len(load(_write(tmp_path / "rows.jsonl", ROWS[:1]))) == 1

    def test_folder_of_files(self, tmp_path):
        _write(tmp_path / "a.jsonl", ROWS[:1])
        _write(tmp_path / "b.jsonl", ROWS[1:])
        (tmp_path / "notes.txt").write_text("not data")
        assert load(str(tmp_path)).to_list() == ROWS

    def test_folder_named_after_splits(self, tmp_path):
        _write(tmp_path / "train.jsonl", ROWS[:3])
        _write(tmp_path / "test.jsonl", ROWS[3:])
        assert load(str(tmp_path)).to_list() == ROWS[:3]
        assert load(str(tmp_path), split="test").to_list() == ROWS[3:]

    @pytest.mark.parametrize("other", ["more.jsonl", "more.csv", "deep/more.parquet"])
    def test_no_file_of_a_folder_is_left_out_silently(self, tmp_path, other):
        _write(tmp_path / "train.jsonl")
        _write(tmp_path / other)
        with pytest.raises(ValueError, match=f"1 data files .* left out .*{other}"):
            load(str(tmp_path))

    def test_folder_that_says_itself_which_files_it_means(self, tmp_path):
        _write(tmp_path / "train.jsonl")
        _write(tmp_path / "more.jsonl")
        card = "---\nconfigs:\n- config_name: default\n  data_files: train.jsonl\n---\n"
        (tmp_path / "README.md").write_text(card)
        assert len(load(str(tmp_path))) == 4

    @pytest.mark.parametrize("streaming", [False, True])
    def test_saved_to_disk(self, tmp_path, streaming):
        Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
        assert list(load(str(tmp_path / "one"), streaming=streaming)) == ROWS
        DatasetDict(test=Dataset.from_list(ROWS[:1])).save_to_disk(tmp_path / "splits")
        assert list(load(str(tmp_path / "splits"), split="test", streaming=streaming)) == ROWS[:1]

    def test_saved_split_keeps_its_name(self, tmp_path):
        dataset = DatasetDict(test=Dataset.from_list(ROWS))["test"]
        Dataset(dataset.data, split="test").save_to_disk(tmp_path)
        assert len(load(str(tmp_path))) == len(load(str(tmp_path), split="test")) == 4

    @pytest.mark.parametrize(
        "name, message",
        [
            ("absent.jsonl", "no file or folder"),
            ("./absent", "no file or folder"),
            ("notes.txt", "must end in .jsonl, .json, .csv, .parquet"),
            ("void.jsonl", "is empty"),
            ("void.csv", "void.csv"),
            ("broken.jsonl", "broken.jsonl.*JSON parse error"),
            ("broken.parquet", "broken.parquet"),
            ("folder", "folder.*data files"),
            ("nobody/nothing", "no file or folder here, so a Hub id"),
        ],
    )
    def test_what_cannot_be_read_is_said(self, tmp_path, monkeypatch, name, message):
        monkeypatch.chdir(tmp_path)
        for empty in ("void.jsonl", "void.csv", "notes.txt"):
            (tmp_path / empty).touch()
        (tmp_path / "broken.jsonl").write_text('{"prompt": \n')
        (tmp_path / "broken.parquet").write_text("no parquet")
        (tmp_path / "folder").mkdir()
        with pytest.raises(ValueError, match=message):
            load(name)

    def test_unknown_split_names_the_real_ones(self, tmp_path):
        with pytest.raises(ValueError, match=r"'dev'.*\['train'\]"):
            load(_write(tmp_path / "rows.jsonl"), split="dev")
        DatasetDict(a=Dataset.from_list(ROWS), b=Dataset.from_list(ROWS)).save_to_disk(tmp_path / "splits")
        with pytest.raises(ValueError, match="'train'; it has a, b"):
            load(str(tmp_path / "splits"))
        Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
        with pytest.raises(ValueError, match="without splits"):
            load(str(tmp_path / "one"), split="test")

    def test_configuration_of_a_single_file(self, tmp_path):
        with pytest.raises(ValueError, match="no configuration 'main'"):
            load(_write(tmp_path / "rows.jsonl"), config="main")

    def test_conversations_with_tools(self, airline_rows, shared):
        dataset = load(str(shared / "data" / "airline_tools_5_agents.jsonl"))
        # Every tool call has arguments of its own shape; none may gain keys of the others.
        assert dataset[7]["messages"] == airline_rows[7]["messages"]


class TestSourceFiles:
    def test_files_are_those_of_the_split(self, tmp_path):
        train, test = _write(tmp_path / "train.jsonl"), _write(tmp_path / "test.jsonl")
        assert source_files(train) == [train]
        for split, expected in {"train": [train], "test[:2]": [test], "train+test": [test, train]}.items():
            assert source_files(str(tmp_path), split=split) == expected

    def test_folder_from_save_to_disk(self, tmp_path):
        Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
        (file,) = source_files(str(tmp_path / "saved"))
        assert file.endswith(".arrow")


class TestAsTrlFormat:
    def test_nothing_asked_nothing_changed(self):
        dataset = Dataset.from_list(ROWS)
        assert as_trl_format(dataset) is dataset

    def test_columns_are_renamed_and_others_step_aside(self):
        dataset = Dataset.from_list([{"question": "q", "prompt": "templated q", "answer": "a", "text": "t", "id": 1}])
        dataset = as_trl_format(dataset, prompt_column="question", completion_column="answer")
        expected = {"prompt": "q", "source_prompt": "templated q", "completion": "a", "source_text": "t", "id": 1}
        assert dataset.to_list() == [expected]

    def test_messages_column(self):
        chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        dataset = as_trl_format(Dataset.from_list([{"dialogue": chat, "prompt": "q"}]), messages_column="dialogue")
        assert dataset.to_list() == [{"messages": chat, "source_prompt": "q"}]

    @pytest.mark.parametrize("iterable", [False, True])
    def test_as_chat(self, iterable):
        dataset = Dataset.from_list([*ROWS[:1], {"prompt": None, "completion": None, "teacher": "t"}])
        dataset = dataset.to_iterable_dataset() if iterable else dataset
        dataset = as_trl_format(dataset, as_chat=True, system_prompt="Be brief.")
        assert list(dataset) == [
            {
                "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "question 0"}],
                "completion": [{"role": "assistant", "content": "answer 0"}],
                "teacher": "t",
            },
            {"prompt": None, "completion": None, "teacher": "t"},
        ]
        assert dataset.features["completion"] == List({"role": Value("string"), "content": Value("string")})

    def test_column_of_nothing_but_null_has_the_type_of_a_chat(self):
        chat = {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}
        chats = Dataset.from_list([chat])
        for given in (chats, chats.to_iterable_dataset()):
            assert list(as_trl_format(given, as_chat=True)) == [chat], "chats stay as they are"
        dataset = as_trl_format(Dataset.from_list([{"prompt": "q", "completion": None}]), as_chat=True)
        assert dataset.features["completion"] == dataset.features["prompt"]

    def test_system_prompt_before_messages(self):
        chat = [{"role": "user", "content": "q"}]
        dataset = as_trl_format(Dataset.from_list([{"messages": chat}]), system_prompt="s")
        assert dataset[0]["messages"] == [{"role": "system", "content": "s"}, *chat]

    def test_system_prompt_keeps_the_shape_of_tool_calls(self, airline_rows, shared):
        dataset = load(str(shared / "data" / "airline_tools_5_agents.jsonl"), split="train[:3]")
        dataset = dataset.map(lambda row: {"messages": row["messages"][1:]})
        dataset = as_trl_format(dataset, system_prompt="s")
        assert dataset[2]["messages"] == [{"role": "system", "content": "s"}, *airline_rows[2]["messages"][1:]]

    @pytest.mark.parametrize(
        "row, options, message",
        [
            ({"q": "x"}, {"prompt_column": "question"}, "'question'.*It has: q"),
            ({"q": "x", "m": "y"}, {"prompt_column": "q", "messages_column": "m"}, "not both"),
            ({"q": "x"}, {"prompt_column": "q", "as_chat": True}, "'completion'.*completion_column"),
            ({"prompt": "x", "completion": 7}, {"as_chat": True}, "Row 0, column 'completion': .* int: '7'"),
            ({"text": "x"}, {"system_prompt": "s"}, "`messages` or `prompt`.*text"),
            ({"prompt": "x", "completion": "y"}, {"system_prompt": "s"}, "Row 0.*as_chat"),
            ({"messages": [{"role": "system", "content": "x"}]}, {"system_prompt": "s"}, "Row 0.*of its own"),
        ],
    )
    def test_what_does_not_fit_is_said(self, row, options, message):
        with pytest.raises(ValueError, match=message):
            as_trl_format(Dataset.from_list([row]), **options)


class TestWriteScored:
    def test_every_reader_reads_it(self, tmp_path):
        dataset = Dataset.from_list([{**row, "rsr": None if i else 1.5} for i, row in enumerate(ROWS)])
        write_scored(dataset, tmp_path / "new" / "out", card="# Rows")
        for read in (
            load(str(tmp_path / "new" / "out")),
            load_dataset(str(tmp_path / "new" / "out"), split="train"),
            load_dataset("parquet", data_files=str(tmp_path / "new" / "out" / "data" / "*.parquet"), split="train"),
        ):
            assert read.features == dataset.features and read.to_list() == dataset.to_list()
        assert (tmp_path / "new" / "out" / "README.md").read_text().endswith("# Rows\n")
        assert os.listdir(tmp_path / "new") == ["out"]

    def test_selected_rows_are_the_rows_written(self, tmp_path):
        write_scored(Dataset.from_list(ROWS).select([2, 0]), tmp_path / "out", card="")
        assert load(str(tmp_path / "out")).to_list() == [ROWS[2], ROWS[0]]

    def test_refuses_what_is_there_unless_it_is_its_own(self, tmp_path):
        out = tmp_path / "out"
        write_scored(Dataset.from_list(ROWS), out, card="first")
        with pytest.raises(ValueError, match="isn't empty"):
            write_scored(Dataset.from_list(ROWS[:1]), out, card="second")
        assert len(load(str(out))) == 4
        write_scored(Dataset.from_list(ROWS[:1]), out, card="second", overwrite=True)
        assert len(load(str(out))) == 1 and "second" in (out / "README.md").read_text()
        assert os.listdir(tmp_path) == ["out"]

    @pytest.mark.parametrize("foreign", ["thesis.tex", "data/raw.csv", ".git/config"])
    def test_never_overwrites_anything_else(self, tmp_path, foreign):
        (tmp_path / "out" / foreign).parent.mkdir(parents=True)
        (tmp_path / "out" / foreign).touch()
        with pytest.raises(ValueError, match=f"first: {foreign.split('/config')[0]}"):
            check_output_dir(tmp_path / "out", overwrite=True)

    def test_never_overwrites_a_dataset_of_another_origin(self, tmp_path):
        """With the same files as ours: so the Hub's datasets look."""
        (tmp_path / "out" / "data").mkdir(parents=True)
        (tmp_path / "out" / "data" / "train-0.parquet").write_bytes(b"")
        for card in (None, "---\ntags:\n- math\n---\n# Written beside rsr-trl, not by it\n"):
            if card is not None:
                (tmp_path / "out" / "README.md").write_text(card)
            with pytest.raises(ValueError, match="wasn't written by rsr-trl"):
                check_output_dir(tmp_path / "out", overwrite=True)
        (tmp_path / "out" / "README.md").write_text("---\ntags:\n- rsr-trl\n---\n")
        check_output_dir(tmp_path / "out", overwrite=True)

    def test_overwrites_the_dataset_it_was_made_from(self, tmp_path):
        write_scored(Dataset.from_list(ROWS), tmp_path / "out", card="")
        dataset = load(str(tmp_path / "out"))
        write_scored(dataset.select([1]), tmp_path / "out", card="", overwrite=True)
        assert load(str(tmp_path / "out")).to_list() == [ROWS[1]]

    def test_failure_leaves_nothing_behind(self, tmp_path, monkeypatch):
        def full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Dataset, "to_parquet", full)
        with pytest.raises(OSError, match="No space"):
            write_scored(Dataset.from_list(ROWS), tmp_path / "out", card="")
        assert os.listdir(tmp_path) == []

    def test_file_in_the_way(self, tmp_path):
        (tmp_path / "out").touch()
        with pytest.raises(ValueError, match="is a file"):
            write_scored(Dataset.from_list(ROWS), tmp_path / "out", card="")
