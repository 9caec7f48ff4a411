import gzip
import json
import lzma
import os

import pytest
from datasets import Dataset, DatasetDict, IterableDataset, List, Value, load_dataset
from huggingface_hub import DatasetCard

from rsr_trl.data import (
    Columns,
    as_trl_format,
    card_facts,
    check_output_dir,
    counted,
    dataset_card,
    find_columns,
    is_selection,
    load,
    read_table,
    scoring_settings,
    source_files,
    write_scored,
)
from rsr_trl.formats import as_booleans
from rsr_trl.rsr import RSRError


ROWS = [{"prompt": f"question {i}", "completion": f"answer {i}", "teacher": "t"} for i in range(4)]
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def _write(path, rows=ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        getattr(Dataset.from_list(rows), f"to_{path.suffix[1:].removesuffix('l')}")(path)
    return str(path)


class TestLoad:
    @pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
    def test_file(self, tmp_path, suffix):
        path = _write(tmp_path / f"rows{suffix}")
        assert load(path).to_list() == ROWS and source_files(path) == [path]

    def test_part_or_stream_of_a_file_that_changes(self, tmp_path):
        path = _write(tmp_path / "rows.jsonl")
        assert load(path, split="train[1:3]").to_list() == ROWS[1:3]
        stream = load(path, streaming=True)
        assert isinstance(stream, IterableDataset) and list(stream) == ROWS
        assert len(load(_write(tmp_path / "rows.jsonl", ROWS[:1]))) == 1

    @pytest.mark.parametrize("names, test", [(("a", "b"), None), (("train", "test"), ROWS[1:])])
    def test_folder_of_files_which_may_name_splits(self, tmp_path, names, test):
        for name, rows in zip(names, (ROWS[:1], ROWS[1:]), strict=True):
            _write(tmp_path / f"{name}.jsonl", rows)
        (tmp_path / "notes.txt").write_text("not data")
        assert load(str(tmp_path)).to_list() == (ROWS[:1] if test else ROWS)
        if test:
            assert load(str(tmp_path), split="test").to_list() == test

    @pytest.mark.parametrize(
        "name", ["rows.jsonl.gz", "rows.json.gz", "rows.csv.gz", "rows.ndjson", "rows.jsonlines", "rows.JSONL.xz"]
    )
    def test_compressed_files_and_other_endings(self, tmp_path, name):
        kind = "csv" if ".csv" in name else "json" if ".json." in name else "jsonl"
        plain, path = _write(tmp_path / f"plain.{kind}"), tmp_path / "folder" / name
        path.parent.mkdir()
        write = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
        with write(path, "wt") as file:
            file.write(open(plain).read())
        for streaming in (False, True):
            assert list(load(str(path), streaming=streaming)) == ROWS
        if name in ("rows.jsonlines", "rows.JSONL.xz"):  # `datasets` passes them over in a folder
            with pytest.raises(RSRError, match=f"by their own names: '{name}'"):
                load(str(path.parent))
        else:
            assert load(str(path.parent)).to_list() == ROWS

    @pytest.mark.parametrize(
        "other",
        ["more.jsonl", "more.csv", "deep/more.parquet", "more.jsonlines", "more.csv.gz", "more.tsv", "more.zip"],
    )
    def test_no_file_of_a_folder_is_left_out_silently(self, tmp_path, other):
        _write(tmp_path / "train.jsonl")
        if other.endswith((".jsonl", ".csv", ".parquet")):
            _write(tmp_path / other)
        else:
            (tmp_path / other).touch()
        with pytest.raises(RSRError, match=f"1 data files .* left out .*{other}"):
            load(str(tmp_path))
        card = "---\nconfigs:\n- config_name: default\n  data_files: train.jsonl\n---\n"
        (tmp_path / "README.md").write_text(card)  # which files it means is said
        assert len(load(str(tmp_path))) == 4

    @pytest.mark.parametrize("streaming", [False, True])
    def test_saved_to_disk(self, tmp_path, streaming):
        Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
        assert list(load(str(tmp_path / "one"), streaming=streaming)) == ROWS
        DatasetDict(test=Dataset.from_list(ROWS[:1])).save_to_disk(tmp_path / "splits")
        assert list(load(str(tmp_path / "splits"), split="test", streaming=streaming)) == ROWS[:1]
        Dataset(Dataset.from_list(ROWS).data, split="test").save_to_disk(tmp_path / "named")
        assert len(load(str(tmp_path / "named"))) == len(load(str(tmp_path / "named"), split="test")) == 4

    @pytest.mark.parametrize(
        "name, message",
        [
            ("absent.jsonl", "no file or folder"),
            ("./absent", "no file or folder"),
            ("notes.txt", "must end in .jsonl, .json, .ndjson, .*, .csv, .* in .gz"),
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
        with pytest.raises(RSRError, match=message):
            load(name)

    def test_unknown_split_names_the_real_ones(self, tmp_path):
        with pytest.raises(RSRError, match=r"'dev'.*\['train'\]"):
            load(_write(tmp_path / "rows.jsonl"), split="dev")
        DatasetDict(a=Dataset.from_list(ROWS), b=Dataset.from_list(ROWS)).save_to_disk(tmp_path / "splits")
        with pytest.raises(RSRError, match="'train'; it has a, b"):
            load(str(tmp_path / "splits"))
        Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
        with pytest.raises(RSRError, match="without splits"):
            load(str(tmp_path / "one"), split="test")
        with pytest.raises(RSRError, match="no configuration 'main'"):
            load(str(tmp_path / "rows.jsonl"), config="main")

    PROMPT = {"role": "user", "content": "q"}
    CALL = {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"line": 9}}}]}

    @pytest.mark.parametrize(
        "early, late",
        [
            ({"teacher": None}, {"teacher": "late"}),
            ({"tool_calls": None}, CALL),
            ({}, {"teacher": "late"}),
            ({"messages": [PROMPT, {"role": "assistant"}]}, {"messages": [PROMPT, {"role": "assistant"} | CALL]}),
            (
                {"messages": [PROMPT, {"role": "assistant", "reasoning_content": None}]},
                {"messages": [PROMPT, {"role": "assistant", "reasoning_content": "so"}]},
            ),
            ({"correct": 1}, {"correct": 0.5}),
            ({"gold": 7}, {"gold": "7/2"}),
            ({"made": "2026-01-31"}, {"made": "unknown"}),
        ],
    )
    @pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
    def test_a_value_that_comes_late_in_a_large_file(self, tmp_path, early, late, name):
        """`datasets` takes the types of the first 10 MB."""
        pad = {"prompt": "q" * 4000}
        rows = [*[{**pad, **early}] * 2800, {**pad, **late}, {**pad, **early}]
        small = tmp_path / "small.jsonl"
        small.write_text("\n".join(map(json.dumps, rows[-3:])))
        with (gzip.open if name.endswith(".gz") else open)(tmp_path / name, "wt") as file:
            file.write("\n".join(map(json.dumps, rows)))
        dataset, expected = load(str(tmp_path / name)), load(str(small))
        assert dataset.features == expected.features and len(dataset) == len(rows)
        assert dataset.select(range(len(rows) - 3, len(rows))).to_list() == expected.to_list()

    def test_a_value_that_comes_in_another_file_or_late_in_a_table(self, tmp_path):
        for name, rows in (("a", ROWS), ("b", [{**ROWS[0], "more": {"a": 1}}])):
            _write(tmp_path / "folder" / f"{name}.jsonl", rows)
        dataset = load(str(tmp_path / "folder"))
        assert dataset[0] == {**ROWS[0], "more": None} and dataset[4] == {**ROWS[0], "more": {"a": 1}}
        _write(tmp_path / "late.csv", [{"prompt": "q", "gold": "1"}] * 10_000 + [{"prompt": "q", "gold": "1/2"}])
        dataset = load(str(tmp_path / "late.csv"))
        assert (dataset[0]["gold"], dataset[10_000]["gold"]) == ("1", "1/2")

    def test_conversations_with_tools(self, airline_rows, shared):
        dataset = load(str(shared / "data" / "airline_tools_5_agents.jsonl"))
        # Every tool call has arguments of its own shape; none may gain keys of the others.
        assert dataset[7]["messages"] == airline_rows[7]["messages"]


def test_source_files_are_those_of_the_split(tmp_path):
    train, test = _write(tmp_path / "train.jsonl"), _write(tmp_path / "test.jsonl")
    for split, expected in {"train": [train], "test[:2]": [test], "train+test": [test, train]}.items():
        assert source_files(str(tmp_path), split=split) == expected
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    (file,) = source_files(str(tmp_path / "saved"))
    assert file.endswith(".arrow")


class TestAsTrlFormat:
    def test_columns_are_renamed_and_others_step_aside(self):
        row = {"question": "q", "prompt": "templated q", "answer": "a", "text": "t", "dialogue": CHAT, "id": 1}
        dataset = Dataset.from_list([row])
        assert as_trl_format(dataset) is dataset
        kept = {"source_prompt": "templated q", "source_text": "t", "id": 1}
        (pair,) = as_trl_format(dataset, prompt_column="question", completion_column="answer")
        assert pair == {**kept, "prompt": "q", "completion": "a", "dialogue": CHAT}
        (chat,) = as_trl_format(dataset, messages_column="dialogue")
        assert chat == {**kept, "messages": CHAT, "question": "q", "answer": "a"}

    @pytest.mark.parametrize("iterable", [False, True])
    def test_as_chat(self, iterable):
        dataset = Dataset.from_list([*ROWS[:1], {"prompt": None, "completion": None, "teacher": "t"}])
        dataset = dataset.to_iterable_dataset() if iterable else dataset
        dataset = as_trl_format(dataset, as_chat=True, system_prompt="Be brief.")
        prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "question 0"}]
        row = {"prompt": prompt, "completion": [{"role": "assistant", "content": "answer 0"}], "teacher": "t"}
        assert list(dataset) == [row, {"prompt": None, "completion": None, "teacher": "t"}]
        assert dataset.features["completion"] == List({"role": Value("string"), "content": Value("string")})

    def test_column_of_nothing_but_null_has_the_type_of_a_chat(self):
        chat = {"prompt": CHAT[:1], "completion": CHAT[1:]}
        chats = Dataset.from_list([chat])
        for given in (chats, chats.to_iterable_dataset()):
            assert list(as_trl_format(given, as_chat=True)) == [chat], "chats stay as they are"
        dataset = as_trl_format(Dataset.from_list([{"prompt": "q", "completion": None}]), as_chat=True)
        assert dataset.features["completion"] == dataset.features["prompt"]

    def test_system_prompt_before_messages(self, airline_rows, shared):
        dataset = as_trl_format(Dataset.from_list([{"messages": CHAT}]), system_prompt="s")
        assert dataset[0]["messages"] == [{"role": "system", "content": "s"}, *CHAT]
        dataset = load(str(shared / "data" / "airline_tools_5_agents.jsonl"), split="train[:3]")
        dataset = as_trl_format(dataset.map(lambda row: {"messages": row["messages"][1:]}), system_prompt="s")
        # The shape of tool calls stays.
        assert dataset[2]["messages"] == [{"role": "system", "content": "s"}, *airline_rows[2]["messages"][1:]]

    @pytest.mark.parametrize("iterable", [False, True])
    def test_sharegpts_names_of_roles(self, iterable):
        sharegpt = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
        known = [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]
        for column, options in (("conversations", {}), ("dialogue", {"messages_column": "dialogue"})):
            given = Dataset.from_list([{column: sharegpt}, {column: None}, {column: known}])
            dataset = as_trl_format(given.to_iterable_dataset() if iterable else given, **options)
            assert list(dataset) == [{"conversations": chat} for chat in (known, None, known)]
        given = Dataset.from_list([{"conversations": known}])
        assert as_trl_format(given) is given, "nothing to change"

    def test_system_messages_of_a_column(self, caplog):
        chat = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
        dataset = Dataset.from_list([{"system": "s1", "conversations": chat}, {"system": "", "conversations": chat}])
        first, second = as_trl_format(dataset, system_column="system")["conversations"]
        assert first == [{"from": "system", "value": "s1"}, *second] and second[0] == {"from": "user", "value": "q"}
        assert caplog.messages == []
        as_trl_format(dataset)
        assert caplog.messages == [
            "The column 'system' isn't part of the chats: system_column=system puts it before them."
        ]
        caplog.clear()
        has_one = [{"role": "system", "content": "s"}, *CHAT]
        for row in (
            {"system": "s", "messages": has_one},
            {"system": "", "messages": CHAT},
            {"system": 1, "text": "t"},
        ):
            as_trl_format(Dataset.from_list([row]))
        assert caplog.messages == []
        pair = Dataset.from_list([{"system": "s", "prompt": "q", "completion": "a"}])
        (row,) = as_trl_format(pair, as_chat=True, system_column="system")
        assert row["prompt"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]

    @pytest.mark.parametrize("iterable", [False, True])
    def test_a_prompt_of_several_columns(self, iterable, caplog):
        rows = [{"instruction": "Add.", "input": text, "output": "3"} for text in ("1 and 2", "", None)]
        dataset = Dataset.from_list(rows)
        dataset = dataset.to_iterable_dataset() if iterable else dataset
        joined = as_trl_format(dataset, prompt_column="instruction,input", completion_column="output")
        assert [row["prompt"] for row in joined] == ["Add.\n\n1 and 2", "Add.", "Add."]
        assert caplog.messages == []
        as_trl_format(dataset, prompt_column="instruction", completion_column="output")
        assert "prompt_column=instruction,input joins the two" in caplog.messages[0]

    @pytest.mark.parametrize("iterable", [False, True])
    def test_tools_of_an_empty_text_are_none(self, iterable):
        dataset = Dataset.from_list([{"messages": CHAT, "tools": tools} for tools in ("", "[]", None)])
        dataset = as_trl_format(dataset.to_iterable_dataset() if iterable else dataset)
        assert [row["tools"] for row in dataset] == [None, "[]", None]

    @pytest.mark.parametrize(
        "row, options, message",
        [
            ({"generations": ["a", "b"], "q": "x"}, {"completion_column": "generations"}, "list of texts.*from_list"),
            ({"conversations": CHAT}, {}, "pass messages_column=conversations"),
            ({"a": "x"}, {"prompt_column": "a,b"}, "prompt_column='b': the dataset has no such column"),
            ({"messages": CHAT, "s": "x"}, {"system_column": "s", "system_prompt": "x"}, "not both"),
            ({"messages": CHAT}, {"system_column": "s"}, "system_column='s': the dataset has no such column"),
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
        with pytest.raises(RSRError, match=message):
            as_trl_format(Dataset.from_list([row]), **options)


class TestWriteScored:
    def test_every_reader_reads_it(self, tmp_path):
        dataset = Dataset.from_list([{**row, "rsr": None if i else 1.5} for i, row in enumerate(ROWS)])
        out = tmp_path / "new" / "out"
        write_scored(dataset, out, card="# Rows")
        files = load_dataset("parquet", data_files=str(out / "data" / "*.parquet"), split="train")
        for read in (load(str(out)), load_dataset(str(out), split="train"), files):
            assert read.features == dataset.features and read.to_list() == dataset.to_list()
        assert (out / "README.md").read_text().endswith("# Rows\n") and os.listdir(out.parent) == ["out"]

    def test_refuses_what_is_there_unless_it_is_its_own(self, tmp_path):
        out = tmp_path / "out"
        write_scored(Dataset.from_list(ROWS), out, card="first")
        with pytest.raises(RSRError, match="isn't empty"):
            write_scored(Dataset.from_list(ROWS[:1]), out, card="second")
        assert len(load(str(out))) == 4
        write_scored(load(str(out)).select([2, 0]), out, card="second", overwrite=True)  # made from what it replaces
        assert load(str(out)).to_list() == [ROWS[2], ROWS[0]] and os.listdir(tmp_path) == ["out"]
        assert "second" in (out / "README.md").read_text()

    @pytest.mark.parametrize("foreign", ["thesis.tex", "data/raw.csv", ".git/config"])
    def test_never_overwrites_anything_else(self, tmp_path, foreign):
        (tmp_path / "out" / foreign).parent.mkdir(parents=True)
        (tmp_path / "out" / foreign).touch()
        with pytest.raises(RSRError, match=f"first: {foreign.split('/config')[0]}"):
            check_output_dir(tmp_path / "out", overwrite=True)

    def test_never_overwrites_a_dataset_of_another_origin(self, tmp_path):
        """With the same files as ours: so the Hub's datasets look."""
        out = tmp_path / "out"
        _write(out / "data" / "train-0.parquet")
        for card in ("No metadata.", "---\ntags:\n- math\n---\n# Written beside rsr-trl, not by it\n"):
            with pytest.raises(RSRError, match="wasn't written by rsr-trl"):
                check_output_dir(out, overwrite=True)
            (out / "README.md").write_text(card)
        (out / "README.md").write_text("---\ntags:\n- rsr-trl\n---\n")
        check_output_dir(out, overwrite=True)

    def test_failure_leaves_nothing_behind(self, tmp_path, monkeypatch):
        def full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Dataset, "to_parquet", full)
        with pytest.raises(OSError, match="No space"):
            write_scored(Dataset.from_list(ROWS), tmp_path / "out", card="")
        assert os.listdir(tmp_path) == []
        (tmp_path / "out").touch()
        with pytest.raises(RSRError, match="is a file"):
            write_scored(Dataset.from_list(ROWS), tmp_path / "out", card="")


class TestFindColumns:
    ROWS = {
        "teacher": ["a", "b", "a", "b"],
        "problem_id": [1, 1, 2, 2],
        "prompt": ["x", "x", "y", "y"],
        "correct": [True, None, False, True],
        "is_correct": [1, 0, 1, 0],
    }

    @pytest.mark.parametrize(
        "changes, expected",
        [
            ({}, ("teacher", "problem_id", "correct")),
            ({"teacher": [["a"]] * 4}, (None, "problem_id", "correct")),  # a list names nobody
            ({"teacher": [None] * 4}, (None, "problem_id", "correct")),
            ({"problem_id": [1, 2, 3, 4]}, ("teacher", "prompt", "correct")),  # names rows, not problems
            ({"problem_id": [1] * 4, "prompt": ["Solve:"] * 4}, ("teacher", None, "correct")),  # names nothing
            ({"problem_id": [1, 2, 3, 4], "prompt": [[{"role": "user"}]] * 4}, ("teacher", None, "correct")),
            (
                {"problem_id": [1, 2, 3, 4], "prompt": [[{"role": "user", "content": c}] for c in "xxyy"]},
                ("teacher", "prompt", "correct"),
            ),
            ({"correct": ["no", "B"] * 2, "is_correct": [2] * 4}, ("teacher", "problem_id", None)),
        ],
    )
    def test_well_known_columns_that_can_be_used(self, changes, expected):
        dataset = Dataset.from_dict(self.ROWS | changes)
        for rows in (dataset, dataset.shuffle(seed=0)):
            found = find_columns(rows)
            assert (found.teacher, found.problem, found.correct) == expected and found.notes == []
            assert found.names == [name for name in expected if name is not None]

    @pytest.mark.parametrize("values", [[1, 0, 1, 0], [1.0, 0.0, None, 1.0], ["True", "False", None, "true"]])
    def test_correctness_that_is_no_boolean_is_noted_and_taken_if_asked_for(self, values):
        rows = {name: column for name, column in self.ROWS.items() if name != "is_correct"} | {"correct": values}
        dataset = Dataset.from_dict(rows)
        found = find_columns(dataset)
        assert found.correct is None and len(found.notes) == 1, "booleans alone are taken unasked"
        assert "so it isn't used: correctness_column=correct takes it" in found.notes[0]
        found = find_columns(dataset, Columns(correct="correct"))
        expected = [value if value is None else str(value).lower() in ("1", "1.0", "true") for value in values]
        column = as_booleans(read_table(dataset, ["correct"])["correct"])
        assert found.correct == "correct" and column.to_pylist() == expected

    def test_nulls_are_noted(self):
        dataset = Dataset.from_dict(self.ROWS | {"teacher": ["a", None, None, "b"], "problem_id": [1, 1, None, 2]})
        found = find_columns(dataset)
        assert (found.teacher, found.problem) == (None, "prompt")
        nulls = {"teacher": "2 rows", "problem_id": "1 row"}
        assert found.notes == [f"Column {name!r} is null in {of}, so it isn't used." for name, of in nulls.items()]

    def test_what_is_asked_for_wins(self):
        found = find_columns(Dataset.from_dict(self.ROWS), Columns("prompt", "none", "is_correct"))
        assert found == Columns("prompt", None, "is_correct")
        assert find_columns(Dataset.from_dict({"text": ["a"]})) == Columns()
        constant = Dataset.from_dict(self.ROWS | {"problem_id": [1] * 4})
        assert find_columns(constant, Columns(problem="problem_id")).problem == "problem_id"
        for option, role, name in (
            ("teacher_column", "teacher", "techer"),
            ("problem_column", "problem", "problemid"),
            ("correctness_column", "correct", "corect"),
        ):
            with pytest.raises(RSRError, match=f"^{option}: the dataset has no column '{name}'.* Did you mean"):
                find_columns(Dataset.from_dict(self.ROWS), Columns(**{role: name}))


class TestCard:
    def test_facts_come_back_and_other_folders_have_none(self, tmp_path):
        facts = {"command": "select", "student": "me/student: é", "settings": {"r_max": 100, "scores": ["rsr"]}}
        write_scored(Dataset.from_list(ROWS), tmp_path / "out", "# Rows", facts=facts)
        assert card_facts(tmp_path / "out") == facts and is_selection(tmp_path / "out")
        assert scoring_settings(tmp_path / "out") == {}  # those of a choice say nothing of the scores
        assert load_dataset(str(tmp_path / "out"), split="train").to_list() == ROWS
        assert card_facts(None) == card_facts("me/dataset") == card_facts(tmp_path) == {}
        (tmp_path / "README.md").write_text("No metadata.")
        assert card_facts(tmp_path) == {} and not is_selection(tmp_path)

    def test_the_version_names_the_content(self):
        one, two = (DatasetCard(dataset_card("Text", version)) for version in ("1", "2"))
        (config,) = one.data.to_dict()["configs"]
        assert config["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
        assert str(one) != str(two) and one.text.strip() == "Text"


def test_counts_in_words():
    assert [counted(n, "trajectory") for n in (1, 2)] == ["1 trajectory", "2 trajectories"]
    assert counted(1200, "problem") == "1,200 problems"
