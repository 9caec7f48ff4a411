import os

import pytest
from datasets import Dataset

from rsr_trl.cli import compare, report, score, select
from rsr_trl.cli.options import ColumnArguments, StudentArguments, as_options, parse
from rsr_trl.rsr import RSRError


REQUIRED = ["--dataset_name", "data.jsonl", "--output_dir", "out"]


@pytest.mark.parametrize("as_one_word", [False, True])
def test_config_file_gives_defaults_and_the_command_line_wins(tmp_path, as_one_word):
    file = tmp_path / "select.yaml"
    file.write_text("dataset_name: data.jsonl\noutput_dir: out\nkeep_fraction: 0.5\nprefer: high\n")
    words = [f"--config={file}"] if as_one_word else ["--config", str(file)]
    data, choice, output = parse(select.make_parser(), [*words, "--prefer", "low", "--keep_per_group", "2"])
    assert (data.dataset_name, data.dataset_train_split, output.output_dir) == ("data.jsonl", "train", "out")
    assert (choice.keep_fraction, choice.prefer, choice.keep_per_group, choice.group_column) == (0.5, "low", 2, None)


@pytest.mark.parametrize(
    "argv, message",
    [
        ([*REQUIRED, "--group_colum", "id"], "--group_colum (did you mean --group_column?)"),
        # Named before the option that is then missing.
        (["--dataset_nam", "x", "--output_dir", "out"], "--dataset_nam (did you mean --dataset_name?)"),
        ([*REQUIRED, "--keep_frac", "0.5"], "--keep_frac"),
        ([*REQUIRED, "data.jsonl"], "unknown option: data.jsonl"),
        ([*REQUIRED, "--dataset", "x"], "--dataset (did you mean --dataset_name?)"),  # the beginning of several
        ([*REQUIRED, "--out", "x"], "--out (did you mean --output_dir?)"),
        ([*REQUIRED, "--prefer", "hihg"], "--prefer 'hihg' is none of low, high. Did you mean high?"),
        ([*REQUIRED, "--config", "FILE"], "in the config file: --keep_per_grup (did you mean --keep_per_group?)"),
        ([*REQUIRED, "--config"], "--config needs a file"),
    ],
)
def test_what_is_no_option_is_an_error_that_says_what_was_meant(capsys, tmp_path, argv, message):
    file = tmp_path / "select.yaml"
    file.write_text("keep_per_grup: 2\n")
    with pytest.raises(SystemExit) as stop:
        parse(select.make_parser("rsr select"), [str(file) if word == "FILE" else word for word in argv])
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    "lines, message",
    [
        ("prefer: hihg", "--prefer 'hihg' is none of low, high. Did you mean high?"),
        ("- prefer", "must hold options, one per line"),
        ("prefer: [", "isn't valid YAML"),
        (None, "No such file"),
    ],
)
def test_what_is_wrong_with_a_config_file_is_said(capsys, tmp_path, lines, message):
    file = tmp_path / "select.yaml"
    if lines is not None:
        file.write_text(lines)
    with pytest.raises(SystemExit):
        parse(select.make_parser("rsr select"), [*REQUIRED, "--config", str(file)])
    assert f"--config {file}" in (said := capsys.readouterr().err) or "--prefer" in said
    assert message in said


def test_a_config_file_may_hold_lists_and_mappings(tmp_path, monkeypatch):
    monkeypatch.delenv("RSR_TEST", raising=False)
    file = tmp_path / "config.yaml"
    file.write_text(
        "env: {RSR_TEST: 1}\nscores: [surprisal, length]\nown_scores: {quality: high, cost: low}\n"
        "group_column: question\ndataset_split: test\n"
    )
    data, args = parse(compare.make_parser(), ["--dataset_name", "d", "--config", str(file)])
    assert (args.scores, args.own_scores) == ("surprisal,length", "quality:high,cost:low")
    assert (args.problem_column, data.source) == ("question", ("d", None, "test")) and os.environ.pop(
        "RSR_TEST"
    ) == "1"
    file.write_text("prompt_column: [instruction, input]\ntoken_stats: true\n")
    options = ["--model_name_or_path", "m", *REQUIRED, "--config", str(file)]
    _, columns, student, *_ = parse(score.make_parser(), options)
    assert columns.prompt_column == "instruction,input" and student.token_stats is True
    file.write_text("rows: 3\n")
    assert parse(report.make_parser(), [*REQUIRED, "--config", str(file)])[1].rows == [3]


@pytest.mark.parametrize(
    "message, said",
    [
        (
            "Pass group_column (the best), keep_fraction or x.",
            "Pass --group_column (the best), --keep_fraction or x.",
        ),
        ("prefer='high' and overwrite=True. Or min_tokens=5.", "--prefer high and --overwrite. Or --min_tokens 5."),
        ("'group_column' of `group_column` in a.group_column", "'group_column' of `group_column` in a.group_column"),
        ("Use --keep_fraction (in Python: f(keep_fraction=1)) now", "Use --keep_fraction now"),
        ("the score and the json of other_column=1", "the score and the json of other_column=1"),
        ("keep_fraction(x) and require a column", "keep_fraction(x) and require a column"),
        ("pass source_column=a,b or teacher_column='a b'.", "pass source_column=a,b or --teacher_column 'a b'."),
    ],
)
def test_messages_for_python_name_the_options_of_a_command(message, said):
    assert as_options(message, select.make_parser()) == said


def test_push_to_hub_is_a_switch(capsys):
    for words, push in (([], False), (["--push_to_hub"], True), (["--push_to_hub", "False"], False)):
        job = parse(score.make_parser(), ["--model_name_or_path", "m", *REQUIRED, *words])[-1]
        assert (job.push_to_hub, job.hub_dataset_id) == (push, None)
    with pytest.raises(SystemExit):
        parse(score.make_parser(), ["--model_name_or_path", "m", *REQUIRED, "--push_to_hub", "me/scored"])
    assert "--push_to_hub takes no name: pass --push_to_hub --hub_dataset_id me/scored" in capsys.readouterr().err


def test_help_shows_one_spelling_and_only_telling_defaults():
    text = score.make_parser("rsr score").format_help()
    assert text.startswith(
        "usage: rsr score --dataset_name DATASET_NAME --model_name_or_path MODEL_NAME_OR_PATH --output_dir OUTPUT_DIR"
    )
    assert "--max-length" not in text and "--as_chat [" not in text
    assert "default: None" not in text and "(default: 100)" in text


def test_columns_are_those_asked_for_else_well_known_ones():
    rows = {"teacher": ["a", "a", "b"], "problem_id": ["p", "p", "q"], "correct": [True, False, True]}
    dataset = Dataset.from_dict(rows | {"author": ["b", "c", "c"]})
    assert ColumnArguments().columns(dataset).names == ["teacher", "problem_id", "correct"]
    assert ColumnArguments("author", "none", "none").columns(dataset).names == ["author"]
    with pytest.raises(RSRError, match="no column 'writer'.*'author'"):
        ColumnArguments(teacher_column="writer").columns(dataset)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model_name_or_path": "./absent"}, r"no folder '\./absent' \(--model_name_or_path\)"),
        ({"model_name_or_path": "org/student", "load_in_4bit": True}, "--load_in_4bit computes in --dtype"),
        (
            {"model_name_or_path": "org/student"},
            r"Can't load the student 'org/student' \(no such folder here, so a",
        ),
    ],
)
def test_a_student_that_cannot_be_loaded(options, message):
    with pytest.raises(RSRError, match=message):
        StudentArguments(**options).scorer()


def test_settings_reach_the_scorer(tiny_student_path):
    scorer = StudentArguments(model_name_or_path=tiny_student_path, max_length=64, r_max=50, token_stats=True).scorer()
    assert (scorer.max_length, scorer.r_max, scorer.token_stats) == (64, 50, True)
