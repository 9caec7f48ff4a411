"""What is read of a scored dataset: scores by a name or a column, with their directions, and groups."""

import json

import numpy as np
import pytest
from datasets import Dataset, Features, Json, List

from rsr_trl.data import Columns, read_table
from rsr_trl.rsr import RSRError
from rsr_trl.scoring.scores import SCORES, ScoredTokens, casl, content_name, direction_of, known_score, random
from rsr_trl.selection.table import ScoredTable, available_scores, labels, read_score
from tests.selection.pools import clean_pool, column, scored


class TestDirection:
    @pytest.mark.parametrize("name", SCORES)
    def test_a_known_score_brings_its_own(self, name):
        assert direction_of(name) == direction_of(f"score_{name}") == SCORES[name].prefer
        assert direction_of(name, "high") == "high" and direction_of(name, "low") == "low"

    @pytest.mark.parametrize(
        "asked, message",
        [
            (("judge",), "Which end of the column 'judge' is the better one(?!.*did you mean)"),
            (("judge", "up"), "'low' or 'high', got 'up'"),
            (("suprisal",), "did you mean the score 'surprisal'"),
        ],
    )
    def test_a_column_of_ones_own_has_none(self, asked, message):
        with pytest.raises(RSRError, match=message):
            direction_of(*asked)
        assert direction_of(asked[0], "high") == "high" and known_score(asked[0]) is None


class TestReadScore:
    def test_what_every_pass_stores(self):
        dataset = scored()
        for name, stored in (("rsr", "rsr"), ("surprisal", "rsr_mean_surprisal"), ("rank", "rsr_mean_clipped_rank")):
            np.testing.assert_array_equal(read_score(dataset, name), np.array(dataset[stored][:], dtype=float))
        np.testing.assert_array_equal(read_score(dataset, "length"), [110, 120, 130, 140, 150, np.nan])
        assert available_scores(dataset) == ["rsr", "surprisal", "rank", "length"]

    def test_random_is_made_from_the_hash_of_the_tokens(self):
        contents = np.array([1 << 63, 1 << 62, 2**64 - 1], dtype=np.uint64)
        dataset = Dataset.from_dict({"rsr_content": [*map(content_name, contents.tolist()), None]})
        truth = random(ScoredTokens(np.ones(3), None, None, content=contents))
        np.testing.assert_array_equal(read_score(dataset, "random"), [*truth, np.nan])
        assert truth[:2].tolist() == [0.5, 0.25] and available_scores(dataset) == ["random"]

    def test_a_column_in_the_datasets_order(self):
        dataset = scored(score_lark=[1.0, 2, 3, 4, 5, None], judge=[6, 5, 4, 3, 2, 1])
        for name in ("lark", "score_lark"):
            np.testing.assert_array_equal(read_score(dataset, name), [1, 2, 3, 4, 5, np.nan])
        np.testing.assert_array_equal(read_score(dataset, "judge"), [6, 5, 4, 3, 2, 1])
        np.testing.assert_array_equal(read_score(dataset.select([4, 0, 5]), "lark"), [5, 1, np.nan])
        assert available_scores(dataset) == ["rsr", "surprisal", "rank", "lark", "length"]

    def test_one_name_for_two_things(self):
        dataset = scored(length=[100, 90, 80, 70, 60, 50])
        with pytest.raises(RSRError, match="'length' may mean .* pass score='score_length'.* or rename the column"):
            read_score(dataset, "length")
        np.testing.assert_array_equal(read_score(dataset, "score_length"), [110, 120, 130, 140, 150, np.nan])

    @pytest.mark.parametrize(
        "dataset, name, message",
        [
            (scored(), "entropy", r"no score 'entropy'.*scores=\['entropy'\].*rsr score --scores entropy"),
            (scored(), "judge", "no column 'judge'"),
            (scored(), "teacher", "'teacher' must hold numbers, but it is string"),
            (Dataset.from_dict({"prompt": ["a"]}), "surprisal", "no column 'rsr_mean_surprisal'.*Score it first"),
            (scored(score_lark=[1.0] * 6, rsr_student=list("aaabbb")), "lark", "2 different students"),
        ],
    )
    def test_what_cannot_be_read(self, dataset, name, message):
        with pytest.raises(RSRError, match=message):
            read_score(dataset, name)

    def test_casl_of_the_rows_that_are_there(self):
        rng = np.random.default_rng(0)
        parts = {"score_drop": rng.uniform(1, 2, 30), "rsr_step_share": rng.uniform(0.01, 0.2, 30)}
        dataset = scored(30, **{name: [*part[:-1], None] for name, part in parts.items()})
        surprisals = np.array(dataset["rsr_mean_surprisal"][:], dtype=float)
        expected = casl(surprisals[:-1], *(part[:-1] for part in parts.values()))
        np.testing.assert_allclose(read_score(dataset, "casl"), [*expected, np.nan])
        assert "casl" in available_scores(dataset)
        half = dataset.select(range(15))
        assert np.abs(read_score(half, "casl") - expected[:15]).max() > 1e-6  # another pool, another gamma


class TestScoredTable:
    def test_columns_as_arrays(self):
        dataset = clean_pool(problems=2, teachers=3, correct=[True, None, False] * 2, quality=range(6))
        dataset = dataset.remove_columns("rsr_error").add_column("rsr_error", [None] * 4 + ["empty (0)", "empty (9)"])
        columns = Columns("teacher", "problem_id", "correct")
        table = ScoredTable.read(dataset, columns, ["rsr", "length", "quality"], {"quality": "high"})
        np.testing.assert_array_equal(table.cost(), column(dataset, "rsr"))
        np.testing.assert_array_equal(table.cost("length"), -column(dataset, "rsr_num_tokens"))
        np.testing.assert_array_equal(table.cost("quality"), -np.arange(6))
        np.testing.assert_array_equal(table.correct, [1, np.nan, 0] * 2)  # unknown is neither right nor wrong
        assert table.teachers == ["t0", "t1", "t2"] and table.teacher.tolist() == [0, 1, 2] * 2
        assert table.problems == ["p0", "p1"] and table.problem.tolist() == [0] * 3 + [1] * 3
        assert table.reasons == {"empty": 2} and table.students == ["one"] and table.scored.all()
        assert table.prefer == {"rsr": "low", "length": "high", "quality": "high"}

    def test_some_of_the_rows_keep_their_places_and_numbers(self):
        table = ScoredTable.read(clean_pool(problems=4, teachers=3), Columns("teacher", "problem_id"))
        assert table.problems_per_teacher().tolist() == [4, 4, 4]
        part = table.where(np.arange(12) % 3 > 0)
        assert part.row.tolist() == [1, 2, 4, 5, 7, 8, 10, 11] and part.correct is None
        assert [part.teachers[i] for i in part.teacher] == ["t1", "t2"] * 4 and len(part.values["rsr"]) == 8
        assert part.problems_per_teacher().tolist() == [0, 4, 4]
        assert part.shared_problems().tolist() == [True] * 4  # of the teachers that are left
        assert table.where(table.row != 4).shared_problems().tolist() == [True, False, True, True]
        nothing = table.where(np.zeros(12, dtype=bool))
        assert len(nothing) == 0 and nothing.problems_per_teacher().tolist() == [0, 0, 0]

    def test_columns_of_a_scoring_pass_may_be_optional(self):
        dataset = Dataset.from_dict({"teacher": ["a", "b"], "judge": [1, 2], "rsr_student": ["one", "two"]})
        with pytest.raises(RSRError, match="Score it first"):
            ScoredTable.read(dataset, scores=())
        table = ScoredTable.read(dataset, Columns(teacher="teacher"), scores=(), optional=True)
        assert np.isnan(table.rank).all() and not table.scored.any() and not table.truncated.any()
        with pytest.raises(RSRError, match="2 different students"):
            ScoredTable.read(dataset, None, ["judge"], {"judge": "low"}, optional=True)

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"teacher": [["a"]] * 6}, "'teacher' must hold strings or whole numbers to group by"),
            ({"teacher": ["a", None] * 3}, "'teacher' is null in 3 of 6 rows .the first is row 1"),
            ({"rsr_num_tokens": ["1"] * 6}, "'rsr_num_tokens' must hold numbers, but it is string"),
            ({"rsr_truncated": ["no"] * 6}, "'rsr_truncated' must hold true or false, but it is string"),
        ],
    )
    def test_what_cannot_be_read(self, changes, message):
        with pytest.raises(RSRError, match=message):
            ScoredTable.read(scored(**changes), Columns(teacher="teacher"))


def test_problems_are_named_by_the_text_of_their_chats():
    """As `--as_chat` leaves prompts, with and without a system message, and as JSON keeps messages of many shapes."""
    user = {"role": "user", "content": "b?"}
    system, part = {"role": "system", "content": "Be brief."}, [{"type": "text", "text": "b?"}]
    chats = [[user], [user], [{**user, "content": "a?"}], [system, user], [{**user, "content": part}], [user]]
    for rows, features in (
        (chats[:4], None),
        (chats, Features({"prompt": List(Json())})),
    ):
        dataset = Dataset.from_dict({"prompt": rows}, features=features).select(range(len(rows)))
        number, names = labels(read_table(dataset, ["prompt"]), "prompt")
        assert [names[i] for i in number[:3]] == ["b?", "b?", "a?"]
        assert len(set(number)) == len(rows) - 1 - (len(rows) == 6)
        assert json.loads(names[number[3]]) == [system, user]
    with pytest.raises(RSRError, match="'prompt' is null in 1 of 2"):
        labels(read_table(Dataset.from_dict({"prompt": [[user], None]}), ["prompt"]), "prompt")
