import pytest
from datasets import Dataset, load_dataset

from rsr_trl.data import card_facts, scoring_settings, write_scored


BY_PROBLEM = ("--group_column", "problem_id")


@pytest.fixture
def select(rsr, scored_path, tmp_path):
    """`select(*more)` runs `rsr select`."""
    output_dir = str(tmp_path / "chosen")

    def run(*more, dataset_name=scored_path):
        return rsr("select", "--dataset_name", dataset_name, "--output_dir", output_dir, *more)

    run.output_dir = output_dir
    return run


# The ratios of the fixture: a: short 2.0, long 3.75; b: short 15.0, long 2.0; c: short 3.5, long null.
@pytest.mark.parametrize(
    "options, expected",
    [
        (BY_PROBLEM, [("a", "short"), ("b", "long"), ("c", "short")]),
        ([*BY_PROBLEM, "--prefer", "high"], [("a", "long"), ("b", "short"), ("c", "short")]),
        (["--keep_fraction", "0.4"], [("a", "short"), ("b", "long")]),
        (["--score_threshold", "3.6"], [("a", "short"), ("b", "long"), ("c", "short")]),
        ([*BY_PROBLEM, "--max_tokens", "40"], [("a", "short"), ("b", "short")]),
        ([*BY_PROBLEM, "--min_tokens", "41"], [("a", "long"), ("b", "long"), ("c", "short")]),
        ([*BY_PROBLEM, "--score", "length"], [("a", "long"), ("b", "long"), ("c", "short")]),
        ([*BY_PROBLEM, "--score", "rank"], [("a", "short"), ("b", "long"), ("c", "short")]),
    ],
)
def test_chooses_as_asked(select, options, expected):
    assert select(*options).code == 0
    rows = load_dataset(select.output_dir, split="train")
    assert list(zip(rows["problem_id"][:], rows["teacher"][:], strict=True)) == expected


def test_summary_shows_before_and_after(select):
    text = select(*BY_PROBLEM).text
    assert "Chose 3 of 6 trajectories" in text and "3 problems (column 'problem_id')" in text
    # Eq. 9 by hand: before (2 + 5 + 75 + 2 + 7) / (1 + 4/3 + 5 + 1 + 2), chosen (2 + 2 + 7) / (1 + 1 + 2).
    assert "RSR (lower = more suitable) 8.806 2.750" in text
    assert "short 10.500 3 (60%) 2 (67%)" in text  # (2 + 75 + 7) / (1 + 5 + 2)
    assert "1 (17%) of all trajectories (no finite score)" in text
    assert f"Next: rsr sft --model_name_or_path STUDENT --dataset_name {select.output_dir} --output_dir" in text


def test_the_student_that_scored_is_passed_on(select, scored_rows, tmp_path):
    write_scored(
        Dataset.from_list(scored_rows),
        tmp_path / "scored",
        "",
        facts={"command": "score", "student": "me/student", "settings": {"r_max": 50}},
    )
    text = select(*BY_PROBLEM, dataset_name=tmp_path / "scored").text
    assert "Next: rsr sft --model_name_or_path me/student " in text
    assert card_facts(select.output_dir)["student"] == "me/student"
    assert scoring_settings(select.output_dir) == {"r_max": 50}
    with open(f"{select.output_dir}/README.md") as card:
        assert "scored with the student `me/student`, chosen by `rsr select`" in " ".join(card.read().split())


@pytest.mark.parametrize("dtype, calls", [("bfloat16", 2), ("float32", 1), ("float64", None)])
def test_choices_closer_than_the_numerical_error_are_told(select, scored_rows, tmp_path, dtype, calls):
    rows = [scored_rows[0] | {"problem_id": str(i // 2), "rsr": value} for i, value in enumerate([2, 2.0001, 3, 2.95])]
    rows += [scored_rows[0] | {"problem_id": "far", "rsr": value} for value in (2.0, 2.1)]
    facts = {"command": "score", "settings": {"dtype": dtype}}
    write_scored(Dataset.from_list(rows), tmp_path / "scored", "", facts=facts)
    run = select(*BY_PROBLEM, "--json", dataset_name=tmp_path / "scored")
    assert run.json["close_calls"] == calls and run.json["dtype"] == dtype
    text = select(*BY_PROBLEM, "--overwrite", dataset_name=tmp_path / "scored").text
    said = f"For {calls} ({calls / 3:.0%}) of the problems the next best" if calls else None
    assert (said in text) if said else ("next best" not in text)
    assert ("--dtype float32" in text) == (dtype == "bfloat16")


def test_what_is_read_is_never_overwritten(select, scored_rows, tmp_path):
    source = tmp_path / "scored"
    write_scored(Dataset.from_list(scored_rows), source, "Made by `rsr score`.")
    for name in (source, source / "data"):
        done = select(*BY_PROBLEM, "--overwrite", "--output_dir", source, dataset_name=name)
        assert done.code == 1 and "is the input and lies in --output_dir" in done.err
    assert len(load_dataset(str(source), split="train")) == len(scored_rows)


def test_json(select):
    done = select(*BY_PROBLEM, "--json")
    result = done.json
    assert done.err == "" and (result["chosen"], result["groups"], result["empty_groups"]) == (3, 3, {})
    assert (result["score"], result["prefer"]) == ("rsr", "low")
    assert result["after"]["rsr"] == pytest.approx(2.75)


@pytest.mark.parametrize(
    "options, said",
    [
        (["--max_tokens", "60"], "1 of 3 problems have no scored trajectory"),
        (["--score", "length"], "mean length (higher first) 54.000 63.333"),  # (40+60+40+60+70) / 5, (60+60+70) / 3
    ],
)
def test_what_else_is_said(select, options, said):
    assert said in select(*BY_PROBLEM, *options).text


def test_bare_answers_and_correctness_come_first(select, scored_rows, tmp_path):
    """Of 4 problems a bare answer with the lowest RSR, wrong; and reasoning, right but for one."""
    rows = []
    for i in range(4):
        reasoning = scored_rows[1] | {"problem_id": str(i), "correct": i > 0}
        rows += [reasoning, reasoning | {"teacher": "bare", "rsr": 0.5, "rsr_num_tokens": 5, "correct": False}]
    Dataset.from_list(rows).to_parquet(tmp_path / "bare.parquet")
    text = select(*BY_PROBLEM, dataset_name=tmp_path / "bare.parquet").text
    said = "Correct: 75% of the chosen, 38% before. Chosen at random: 38%, without the short ones 75%;"
    assert text.index(said) < text.index("RSR (lower")
    assert "Never chosen: 4 (50%) of all trajectories (fewer than 32 scored tokens)" in text
    assert "RSR isn't made for bare answers" in text and "--min_tokens 0 lets them in" in text
    done = select(*BY_PROBLEM, "--min_tokens", "0", "--overwrite", dataset_name=tmp_path / "bare.parquet")
    assert "Correct: 0% of the chosen" in done.text and "4 (100%) of the chosen have fewer than 32" in done.text


def test_one_teacher_for_most_is_pointed_out(select, scored_rows, tmp_path):
    rows = [{**row, "teacher": f"{row['teacher']}-{row['problem_id']}"} for row in scored_rows]
    rows += [{**scored_rows[0], "problem_id": f"more {i}", "teacher": "short-a"} for i in range(5)]
    Dataset.from_list(rows).to_parquet(tmp_path / "one.parquet")
    assert "--max_share_per_teacher" in select(*BY_PROBLEM, dataset_name=tmp_path / "one.parquet").text


@pytest.mark.parametrize(
    "options, message",
    [
        (["--problem_column", "none"], "Pass one of --group_column (the best of each problem), --keep_fraction"),
        (["--keep_fraction", "1.5"], "keep_fraction"),
        (["--group_column", "problem"], "'problem'"),
        (["--keep_fraction", "0.5", "--score", "entropy"], "rsr score --scores entropy"),
        (["--keep_fraction", "0.5", "--score", "rsr_truncated"], "Which end of the column 'rsr_truncated'"),
        (["--score_threshold", "0.1"], "Nothing was chosen of 6"),
    ],
)
def test_wrong_options_are_one_message_and_write_nothing(select, tmp_path, options, message):
    done = select(*options)
    assert done.code == 1 and message in done.err
    assert not (tmp_path / "chosen").exists()


def test_a_dataset_without_scores_is_chosen_from_by_a_column_of_its_own(select, tmp_path):
    raw = tmp_path / "raw.parquet"
    Dataset.from_dict({"prompt": ["a", "b"], "quality": [1.0, 2.0]}).to_parquet(raw)
    done = select("--keep_fraction", "0.5", dataset_name=raw)
    assert done.code == 1 and "rsr score" in done.err
    text = select("--keep_fraction", "0.5", "--score", "quality", "--prefer", "high", dataset_name=raw).text
    assert load_dataset(select.output_dir, split="train")["prompt"][:] == ["b"]
    assert "RSR (lower = more suitable) – –" in text and "mean quality (higher first) 1.500 2.000" in text
