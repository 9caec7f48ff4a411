import pytest
from datasets import Dataset

from rsr_trl.cli import score, select
from rsr_trl.cli.options import ColumnArguments, StudentArguments, parse
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
    ],
)
def test_a_student_that_cannot_be_loaded(options, message):
    with pytest.raises(RSRError, match=message):
        StudentArguments(**options).scorer()


def test_settings_reach_the_scorer(tiny_student_path):
    scorer = StudentArguments(model_name_or_path=tiny_student_path, max_length=64, r_max=50, token_stats=True).scorer()
    assert (scorer.max_length, scorer.r_max, scorer.token_stats) == (64, 50, True)
