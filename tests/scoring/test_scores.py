"""Every score of the package under one contract: its definition, any batching, its direction, its nulls, its docs."""

import re
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from rsr_trl import RSRScorer
from rsr_trl.rsr import STEP_SHARE, RSRError
from rsr_trl.scoring.scores import ALL_COLUMNS, ONE_PASS, SCORES, ScoredTokens, check_scores
from rsr_trl.selection.table import available_scores, read_score
from tests.scoring.truth import Truth, in_float64, truth_of


NAMES = [name for name in SCORES if name != "provenance"]  # a scorer adds all but that one
# Responses by their steps: lines where there are some, else sentences.
RESPONSES = [
    ["First we add: 2+3=5. Right.\n\n", "Then 5*4=20.\n", "\t- and again\n", "So it is\n", "20, or\n", "twenty."],
    ["We add them.", " It is 5.", " Done"],
    ["No end and no line"],
    [*(f"{i} more\n" for i in range(9)), "ten"],
]
PROMPT = "Q:\n2+3?\nA:"


@pytest.fixture
def dataset() -> Dataset:
    return Dataset.from_list([row_of(steps) for steps in [*RESPONSES, [""]]])


def row_of(steps: list[str]) -> dict[str, str]:
    return {"prompt": PROMPT, "completion": "".join(steps)}


@pytest.fixture
def scorer(make_scorer) -> RSRScorer:
    return make_scorer(scores=NAMES)


class Row:
    """One response by definition: every byte is a token, so steps, prompt and context are plain slices."""

    def __init__(self, model64, tokenizer, steps: list[str]):
        ids = tokenizer(PROMPT + "".join(steps))["input_ids"]
        assert len(ids) == len(PROMPT) + sum(map(len, steps))
        self.ids, self.num_prompt = ids, len(PROMPT)
        starts = np.cumsum([0, *map(len, steps)])[:-1]  # at the first word, behind indentation
        self.starts = [int(start) + len(step) - len(step.lstrip()) for start, step in zip(starts, steps, strict=True)]
        self.steps = list(zip(self.starts, [*self.starts[1:], len(ids) - self.num_prompt], strict=True))
        self.model = model64
        self.truth = self.of(ids, range(self.num_prompt, len(ids)))
        self.rank, self.nats = np.minimum(self.truth.ranks, 100), self.truth.surprisals
        self.entropy = self.truth.entropies

    def of(self, ids, places) -> Truth:
        return truth_of(self.model, ids, list(places))


def filtered(row: Row) -> float:
    most = np.argsort(-row.nats, kind="stable")[: int(np.ceil(0.3 * len(row.nats)))]
    return np.mean(row.rank[most] / row.nats[most])


def lark(row: Row) -> float:
    probabilities = row.truth.logits.softmax(1).numpy()
    one_hot = np.eye(probabilities.shape[1])[row.truth.targets]
    return ((probabilities - one_hot) ** 2).sum(1).mean() / row.nats.mean()


def guess_share(row: Row) -> float:
    probabilities = row.truth.logits.softmax(1).numpy()
    gap = row.entropy + np.log((probabilities**2).sum(1))
    return np.mean((np.log(5) < row.entropy) & (row.entropy < np.log(20)) & (gap < 0.4))


def ifd(row: Row) -> float:
    response = row.ids[row.num_prompt :]
    return row.nats[1:].mean() / row.of(response, range(1, len(response))).surprisals.mean()


def lalp(row: Row) -> float:
    means = []
    for i, (start, stop) in enumerate(row.steps):
        near = row.steps[max(0, i - 4)][0]
        ids = row.ids[: row.num_prompt] + row.ids[row.num_prompt + near : row.num_prompt + stop]
        means.append(-row.of(ids, range(len(ids) - (stop - start), len(ids))).surprisals.mean())
    return np.mean(means)


DEFINITIONS = {
    "rsr": lambda row: row.rank.sum() / row.nats.sum(),
    "rsr_filtered": filtered,
    "surprisal": lambda row: row.nats.mean(),
    "rank": lambda row: row.rank.mean(),
    "entropy": lambda row: row.entropy.mean(),
    "rank_entropy": lambda row: row.rank.sum() / row.entropy.sum(),
    "drop": lambda row: np.mean([nats for k, nats in enumerate(row.nats) if k not in row.starts]),
    "rsd_share": lambda row: np.mean((row.rank > 20) | (np.exp(-row.nats) < 0.01)),
    "guess_share": guess_share,
    "lark": lark,
    "length": lambda row: len(row.nats),
    "ifd": ifd,
    "lalp": lalp,
}


def casl_by_definition(rows: list[Row]) -> np.ndarray:
    """Ordinary least squares with a constant, by the normal equations."""
    first = [np.mean([row.nats[k] for k in row.starts]) for row in rows]
    other = [np.mean(np.delete(row.nats, row.starts)) for row in rows]
    share = np.array([len(row.starts) / len(row.nats) for row in rows])
    mean = np.array([row.nats.mean() for row in rows])
    x = np.stack([np.ones(len(rows)), other, first, share], axis=1)
    return mean - np.linalg.solve(x.T @ x, x.T @ mean)[3] * share


@pytest.mark.parametrize("name", [name for name in NAMES if name != "random"])
def test_equals_its_definition(name, scorer, make_scorer, tiny_tokenizer):
    model64 = in_float64(scorer.student.model)
    responses = [*RESPONSES, ["Just.", " Two"], ["Ten words\n", "or more."]]  # casl is fitted to six
    truths = [Row(model64, tiny_tokenizer, steps) for steps in responses]
    expected = casl_by_definition(truths) if name == "casl" else [DEFINITIONS[name](row) for row in truths]
    found = read_score(make_scorer(scores=[name]).score(Dataset.from_list(list(map(row_of, responses)))), name)
    np.testing.assert_allclose(found, expected, rtol=1e-4 if name == "casl" else 1e-5)


def test_random_is_uniform_and_of_the_tokens(make_scorer):
    dataset = Dataset.from_list([row_of([f"answer {i % 300}"]) for i in range(301)])
    values = make_scorer(scores="random").score(dataset)["score_random"][:]
    assert values[-1] == values[0] and len(set(values)) == 300
    assert 0 <= min(values) and max(values) < 1
    counts = np.histogram(values, bins=10, range=(0, 1))[0]
    assert ((counts - 30) ** 2 / 30).sum() < 27.9  # chi-squared with 9 degrees of freedom: 99.9%


def test_real_tokens_and_a_real_student(gsm8k_rows, gsm8k_student):
    """Tokens of several letters: where a step begins is found again from the decoded pieces."""
    scorer = RSRScorer(gsm8k_student, dtype="float32", scores=["drop", "entropy", "lark", "casl"], token_stats=True)
    rows = gsm8k_rows[::500]
    scored = scorer.score(Dataset.from_list(rows))
    model64 = in_float64(scorer.student.model)
    for row, example in zip(scored, scorer.tokenize(rows), strict=True):
        pieces = [scorer.processing_class.decode([i]) for i in row["rsr_token_ids"]]
        text, starts = "", [0]
        for k, piece in enumerate(pieces):
            if k and piece.strip() and text.strip() and "\n" in text[len(text.rstrip()) :]:
                starts.append(k)
            text += piece
        if "\n" in text.strip():
            assert row[STEP_SHARE] == pytest.approx(len(starts) / len(pieces))
            expected = np.delete(row["rsr_token_surprisals"], starts).mean()
            assert row["score_drop"] == pytest.approx(expected, rel=1e-5)
        truth = truth_of(model64, example.input_ids, np.flatnonzero(example.scored))
        assert row["score_entropy"] == pytest.approx(truth.entropies.mean(), rel=1e-5)
        brier = 1 - 2 * np.exp(-truth.surprisals) + truth.sum_squares
        assert row["score_lark"] == pytest.approx(brier.mean() / truth.surprisals.mean(), rel=1e-5)


@pytest.mark.parametrize("entry", ["map", "batched map", "small batches", "backwards", "stream", "splits"])
def test_the_same_by_every_entry_and_in_every_batch(entry, scorer, make_scorer, dataset):
    expected, backwards = scorer.score(dataset), range(len(dataset))[::-1]
    small = make_scorer(scores=NAMES, max_batch_tokens=64)
    found = {
        "map": lambda: dataset.map(scorer),
        "batched map": lambda: dataset.map(scorer, batched=True, batch_size=2),
        "small batches": lambda: small.score(dataset),
        "backwards": lambda: scorer.score(dataset.select(backwards)).select(backwards),
        "stream": lambda: Dataset.from_list(list(scorer.score(dataset.to_iterable_dataset()))),
        "splits": lambda: scorer.score(DatasetDict(only=dataset))["only"],
    }[entry]()
    assert found.features == expected.features
    for name in NAMES:
        np.testing.assert_allclose(read_score(found, name), read_score(expected, name), rtol=1e-5, err_msg=name)


def tokens(**fields) -> ScoredTokens:
    """One trajectory of four tokens, a step every two."""
    fields = {"ranks": [2, 2, 2, 2], "surprisals": [1.0, 1.0, 1.0, 1.0], "entropies": [1.0] * 4} | fields
    fields = {"sum_squares": [0.3] * 4, "step_starts": [True, False, True, False]} | fields
    arrays = {name: np.asarray(value) for name, value in fields.items()}
    return ScoredTokens(num_tokens=np.array([len(arrays["ranks"])]), **arrays)


# What the authors of each score call better, and worse.
PAIRS = {
    "rsr": (tokens(ranks=[1, 2, 1, 2]), tokens(ranks=[1, 90, 1, 2])),
    "rsr_filtered": (tokens(ranks=[1, 2, 1, 2]), tokens(ranks=[9, 90, 1, 2])),
    "surprisal": (tokens(surprisals=[0.1] * 4), tokens(surprisals=[2.0] * 4)),  # the likely response
    "rank": (tokens(ranks=[1] * 4), tokens(ranks=[50] * 4)),
    "entropy": (tokens(entropies=[0.1] * 4), tokens(entropies=[2.0] * 4)),  # a student that is sure
    "rank_entropy": (tokens(ranks=[1] * 4), tokens(ranks=[50] * 4)),
    "drop": (tokens(surprisals=[9.0, 0.1, 9.0, 0.1]), tokens(surprisals=[0.1, 2.0, 0.1, 2.0])),
    "rsd_share": (  # 1% is 4.6 nats
        tokens(ranks=[20] * 4, surprisals=[4.6, 4.7, 4.6, 4.6]),
        tokens(ranks=[20, 20, 21, 20], surprisals=[4.6, 4.7, 4.6, 4.6]),
    ),
    "guess_share": (tokens(entropies=[0.7] * 4), tokens(entropies=[2.3] * 4, sum_squares=[0.1] * 4)),  # ten words
    "lark": (tokens(sum_squares=[0.9] * 4), tokens(sum_squares=[0.2] * 4)),  # a larger share of loss to go
    "length": (tokens(), tokens(ranks=[2], surprisals=[1.0])),
    "ifd": (tokens(surprisals_alone=[1.0] * 4), tokens(surprisals_alone=[5.0] * 4)),  # the prompt explains less
    "lalp": (tokens(surprisals_local=[0.1] * 4), tokens(surprisals_local=[3.0] * 4)),  # steps that follow
}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("random", "casl")])
def test_direction(name):
    better, worse = (float(SCORES[name].of(side)[0]) for side in PAIRS[name])
    assert better < worse if SCORES[name].prefer == "low" else better > worse


def test_nulls(scorer, dataset):
    scored, nothing = scorer.score(dataset), scorer.score(dataset.select([len(dataset) - 1]))
    for name in NAMES:
        values = read_score(scored, name)
        assert np.isnan(values[-1]) and np.isfinite(values[:-1]).all(), name
        assert np.isnan(read_score(nothing, name)).all(), name
        if (column := f"score_{name}") in scored.column_names:
            assert scored[column][-1] is None, name  # not NaN, which the null of rsr isn't either
            assert str(scored.features[column]) == "Value('float64')", name


def test_undefined_is_null(scorer):
    """A response of which every token begins a step; and a text without a prompt."""
    single = scorer.score(Dataset.from_list([row_of(["7"])]))
    assert single["score_drop"][0] is None and single["score_ifd"][0] is None and single["rsr"][0] is not None
    assert np.isnan(read_score(single, "casl")).all()
    text = scorer.score(Dataset.from_list([{"text": "All of it.\nIs scored."}]))
    assert text["score_ifd"][0] is None and np.isfinite(text["score_lalp"][0])


def test_conversations_begin_anew_with_every_turn(scorer, tiny_tokenizer):
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "one.\ntwo"}]
    messages += [{"role": "user", "content": "?"}, {"role": "assistant", "content": "three"}]
    (example,) = scorer.tokenize([{"messages": messages}])
    places = np.flatnonzero(example.step_starts)
    letters = [tiny_tokenizer.decode([i]) for i in example.input_ids]
    assert ["".join(letters[p : p + 3]) for p in places] == ["one", "two", "thr"]
    scored = scorer.score(Dataset.from_list([{"messages": messages}]))
    model64, ids = in_float64(scorer.student.model), example.input_ids.tolist()
    sees_all = truth_of(model64, ids, np.flatnonzero(example.scored)).surprisals
    steps = np.split(sees_all, [5, 8])  # with fewer than five steps a turn, nothing is out of sight
    assert scored["score_lalp"][0] == pytest.approx(-np.mean([step.mean() for step in steps]), rel=1e-5)
    first = np.argmax(example.scored)
    alone = truth_of(model64, ids[first:], np.flatnonzero(example.scored)[1:] - first).surprisals
    assert scored["score_ifd"][0] == pytest.approx(sees_all[1:].mean() / alone.mean(), rel=1e-5)


def test_a_beginning_of_sequence_token_stays_without_the_prompt(stories260k):
    scorer = RSRScorer(stories260k, scores=["ifd"])
    row = {"prompt": "Once upon a time", "completion": " there was a cat."}
    ids = scorer.processing_class(row["prompt"] + row["completion"])["input_ids"]
    first = len(scorer.processing_class(row["prompt"])["input_ids"])
    model64 = in_float64(scorer.student.model)
    given = truth_of(model64, ids, range(first, len(ids))).surprisals
    alone = truth_of(model64, ids[:1] + ids[first:], range(1, len(ids) - first + 1)).surprisals
    assert ids[0] == scorer.processing_class.bos_token_id and len(given) == len(alone)
    found = scorer.score(Dataset.from_list([row]))["score_ifd"][0]
    assert found == pytest.approx(given.mean() / alone.mean(), rel=1e-5)


def test_asking_for_scores_changes_nothing_else(scorer, make_scorer, dataset):
    plain, scored = make_scorer().score(dataset), scorer.score(dataset)
    assert scored.column_names == [*plain.column_names, *(c for c in ALL_COLUMNS if c != "score_provenance")]
    assert scored.select_columns(plain.column_names).to_list() == plain.to_list()  # rsr_student too
    assert available_scores(scored) == NAMES
    assert available_scores(plain) == ["rsr", "surprisal", "rank", "length", "random"]
    assert scored["score_surprisal"][:] == scored["rsr_mean_surprisal"][:]  # the very numbers
    assert scored["score_rank"][:] == scored["rsr_mean_clipped_rank"][:]


def test_names():
    assert check_scores(None) == () and check_scores("all") == ONE_PASS
    assert check_scores(["rank", "surprisal", "rank"]) == ("surprisal", "rank")
    assert set(NAMES) - set(ONE_PASS) == {"ifd", "lalp"}
    with pytest.raises(ValueError, match=r"There is no score 'suprisal'. Did you mean surprisal\?"):
        RSRScorer("not loaded", scores=["suprisal"])
    with pytest.raises(RSRError, match=r"rsr_trl\.experimental\.provenance\.score_provenance"):
        RSRScorer("not loaded", scores=["provenance"])


def test_columns_of_an_earlier_scoring(scorer, make_scorer, dataset):
    scored, again = scorer.score(dataset), make_scorer(scores=["rank"], overwrite=True)
    with pytest.raises(ValueError, match="already has the columns .*'score_lark'"):
        make_scorer(scores=["rank"]).score(scored)
    assert again.score(scored).column_names == again.score(dataset).column_names  # the other scores are gone
    with pytest.raises(ValueError, match="'score_lark'.* of an earlier scoring, and map can't drop columns"):
        scored.map(again)
    own = dataset.add_column("score_lark", [1.0] * len(dataset))  # the user's own, as nothing is scored yet
    assert again.score(own)["score_lark"][:] == [1.0] * len(dataset)
    with pytest.raises(ValueError, match="already has the columns .'score_lark'.*overwrite=True"):
        make_scorer(scores=["lark"]).score(own)


DOCS = (Path(__file__).resolve().parents[2] / "docs" / "scores.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_code_of_the_docs_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", DOCS, flags=re.MULTILINE | re.DOTALL):
        exec(block, names)
    assert len(names["best"]) == 20 and names["own"].rsr_prefer == "high"


def test_the_docs_list_every_score():
    lines = [line for line in DOCS.splitlines() if line.startswith("| `")]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0].strip("`") for row in table] == list(SCORES)
    for name, _, prefer, needs, source in table:
        score = SCORES[name.strip("`")]
        assert prefer == score.prefer
        assert ("another pass" in needs) == score.passes and ("steps" in needs) == ("steps" in score.needs)
        if score.of is not None:  # the docstring is the source of the table
            ids = [word.strip("().,;") for word in source.split() if "arXiv:" in word]
            assert all(arxiv in score.of.__doc__ for arxiv in ids)
            assert f"{score.prefer.capitalize()}" in score.of.__doc__
