import pytest

from rsr_trl.cli import score, select
from rsr_trl.cli.options import StudentArguments, parse


REQUIRED = ["--dataset_name", "data.jsonl", "--output_dir", "out"]


def _usage_error(capsys, parser, argv) -> str:
    with pytest.raises(SystemExit) as stop:
        parse(parser, argv)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_command_line():
    data, choice, output = parse(select.make_parser(), [*REQUIRED, "--group_column", "id", "--keep_per_group", "2"])
    assert (data.dataset_name, data.dataset_split, output.output_dir) == ("data.jsonl", "train", "out")
    assert (choice.group_column, choice.keep_per_group, choice.prefer) == ("id", 2, None)


@pytest.mark.parametrize("as_one_word", [False, True])
def test_config_file_gives_defaults_and_the_command_line_wins(tmp_path, as_one_word):
    file = tmp_path / "select.yaml"
    file.write_text("dataset_name: data.jsonl\noutput_dir: out\nkeep_fraction: 0.5\nprefer: high\n")
    words = [f"--config={file}"] if as_one_word else ["--config", str(file)]
    data, choice, output = parse(select.make_parser(), [*words, "--prefer", "low"])
    assert (data.dataset_name, output.output_dir, choice.keep_fraction, choice.prefer) == (
        "data.jsonl",
        "out",
        0.5,
        "low",
    )


def test_misspelt_option_is_an_error_that_says_what_was_meant(capsys):
    error = _usage_error(capsys, select.make_parser("rsr select"), [*REQUIRED, "--group_colum", "id"])
    assert "--group_colum (did you mean --group_column?)" in error


def test_misspelt_required_option_is_named_before_the_missing_one(capsys):
    error = _usage_error(capsys, select.make_parser(), ["--dataset_nam", "x", "--output_dir", "out"])
    assert "--dataset_nam (did you mean --dataset_name?)" in error


def test_shortened_option_is_an_error(capsys):
    assert "--keep_frac" in _usage_error(capsys, select.make_parser(), [*REQUIRED, "--keep_frac", "0.5"])


def test_stray_word_is_an_error(capsys):
    assert "unknown option: data.jsonl" in _usage_error(capsys, select.make_parser(), [*REQUIRED, "data.jsonl"])


def test_misspelt_option_in_the_config_file_is_an_error(capsys, tmp_path):
    file = tmp_path / "select.yaml"
    file.write_text("keep_per_grup: 2\n")
    error = _usage_error(capsys, select.make_parser(), [*REQUIRED, "--config", str(file)])
    assert "in the config file: --keep_per_grup (did you mean --keep_per_group?)" in error


def test_config_without_a_file_is_an_error(capsys):
    assert "--config needs a file" in _usage_error(capsys, select.make_parser(), [*REQUIRED, "--config"])


def test_help_shows_one_spelling_and_only_telling_defaults():
    text = score.make_parser("rsr score").format_help()
    assert text.startswith(
        "usage: rsr score --dataset_name DATASET_NAME --model_name_or_path MODEL_NAME_OR_PATH --output_dir OUTPUT_DIR"
    )
    assert "--max-length" not in text and "--as_chat [" not in text
    assert "default: None" not in text and "(default: 100)" in text


def test_missing_student_folder_is_named():
    with pytest.raises(ValueError, match=r"no folder '\./absent' \(model_name_or_path\)"):
        StudentArguments(model_name_or_path="./absent").scorer()


def test_4bit_needs_a_dtype_to_compute_in():
    with pytest.raises(ValueError, match="--load_in_4bit computes in --dtype"):
        StudentArguments(model_name_or_path="org/student", load_in_4bit=True).scorer()


def test_settings_reach_the_scorer(tiny_student_path):
    scorer = StudentArguments(model_name_or_path=tiny_student_path, max_length=64, r_max=50, token_stats=True).scorer()
    assert (scorer.max_length, scorer.r_max, scorer.token_stats) == (64, 50, True)
