import numpy as np
import pytest

from rsr_trl.report.sections.provenance import NUM_SENTENCES, SENTENCES, by_class


CLASSES = ("teacher", "student", "boosted", "shared", "")


@pytest.fixture
def traced(rows) -> list[dict]:
    """Rows with sentences by chance, some of unknown class; the first two rows have none."""
    rng = np.random.default_rng(0)
    for i, row in enumerate(rows):
        names = rng.choice(CLASSES, 5).tolist() if i > 1 else []
        sentences = [
            {"text": f"s{i}.{j} <b>&\n", "class": name, "p_student": rng.random(), "p_teacher": rng.random()}
            for j, name in enumerate(names)
        ]
        row |= {SENTENCES: sentences or None, NUM_SENTENCES: len(names) - names.count("") or None}
    return rows


def of(rows: list[dict], name: str) -> list[dict]:
    return [one for row in rows for one in row[SENTENCES] or () if one["class"] == name]


def test_there_only_where_the_columns_are(write, rows, traced):
    assert "provenance" in write(traced).sections()
    without = write(traced, without=(SENTENCES, NUM_SENTENCES))
    assert "provenance" not in without.sections() and "Where sentences come from" not in without.html
    assert "provenance" not in write([row | {SENTENCES: row[SENTENCES] and []} for row in traced]).sections()


def test_counts_shares_and_means_of_each_class(write, traced):
    known = sum(len(of(traced, name)) for name in CLASSES[:-1])
    found = {one["class"]: one for one in by_class([row[SENTENCES] for row in traced])}
    words = write(traced).words("provenance")
    for name in CLASSES[:-1]:
        own = of(traced, name)
        assert found[name]["sentences"] == len(own) and found[name]["share"] == pytest.approx(len(own) / known)
        for model in ("p_student", "p_teacher"):
            assert found[name][model] == pytest.approx(np.mean([one[model] for one in own]))
        means = " ".join(f"{found[name][model]:.2f}" for model in ("p_student", "p_teacher"))
        assert f"{len(own)} {len(own) / known:.0%} {means}" in words
    assert f"of {len(traced) - 2} trajectories" in words


def test_sentences_in_the_colour_of_their_class(write, traced):
    page = write(traced, rows=[5])
    shown = [attrs["class"] for tag, attrs in page.tags if tag == "i" and attrs.get("class", "").startswith("origin")]
    counts = [sum(one["class"] == "teacher" for one in row[SENTENCES] or ()) for row in traced]
    most = int(np.argmax(counts))
    for i in (5, most):
        names = [f"origin {one['class'] or 'unknown'}" for one in traced[i][SENTENCES]]
        assert any(shown[k : k + 5] == names for k in range(len(shown)))
        assert f"s{i}.0 <b>& " in page.words("provenance")  # text, not markup
    assert f"{counts[most]} of {traced[most][NUM_SENTENCES]} sentences are the teacher's" in page.words("provenance")
    assert f"{traced[most]['rsr_num_tokens']} tokens" in page.words("provenance")  # length stands beside it
    assert "Asked for row 5" in page.words("provenance") and "row 0 " not in page.words("provenance")


def test_says_how_much_of_the_number_is_length(write, traced):
    for row in traced:
        row["score_provenance"] = float(row["rsr_num_tokens"])
    assert "rank correlation with scored tokens is +1.00" in write(traced).words("provenance")
