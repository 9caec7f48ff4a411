"""Chat templates that write today's date: one day for all rows of a job, and in the student's name."""

from datetime import date

import pytest
from datasets import Dataset

from rsr_trl import RSRScorer
from rsr_trl.rsr import RSRError
from rsr_trl.scoring import chat_spans, tokens
from rsr_trl.scoring.job import Job
from rsr_trl.scoring.tokens import ExampleTokenizer
from tests.scoring.conversations import SINGLE, TEMPLATES, prepared_by_trl


ROWS = Dataset.from_list([{"messages": SINGLE}] * 2)
TEMPLATE = (
    "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


PLAIN = TEMPLATE.removeprefix("{{ strftime_now('%Y-%m-%d') }}")
BROUGHT = Dataset.from_list([{"messages": SINGLE, "chat_template_kwargs": {"chat_template": TEMPLATE}}] * 2)


@pytest.fixture
def scorer_of(tiny_student, tiny_tokenizer):
    """`scorer_of(**settings)`: a scorer whose template writes the day."""
    tiny_tokenizer.chat_template = TEMPLATE
    return lambda **settings: RSRScorer(tiny_student(), tiny_tokenizer, **settings)


@pytest.mark.parametrize("name", ["llama3_2", "gptoss", "gptoss_training", "muse_glimmer"])
def test_templates_that_write_the_day(name, qwen3):
    qwen3.chat_template, qwen3.bos_token = TEMPLATES[name], "<|endoftext|>"
    rows = list(ROWS.select([0]))
    today, fixed = ExampleTokenizer(qwen3), ExampleTokenizer(qwen3, day="2025-03-31")
    assert today(rows)[0].input_ids.tolist() == prepared_by_trl(qwen3, ROWS, streamed=True)[0][0]
    text = qwen3.decode(fixed(rows)[0].input_ids)
    assert ("31 Mar 2025" if name == "llama3_2" else "2025-03-31") in text
    assert fixed.written_day == "2025-03-31" and today.written_day == str(date.today())
    assert fixed(rows)[0].scored.sum() == today(rows)[0].scored.sum()


def test_other_templates_know_no_day(qwen3):
    assert ExampleTokenizer(qwen3, day="2025-03-31").written_day is None


def test_day_is_part_of_the_students_name(scorer_of, tiny_tokenizer):
    one, other = scorer_of(day="2025-03-31"), scorer_of(day="2025-04-01")
    assert one.fingerprint != other.fingerprint and one.identity() != other.identity()
    assert one.score(ROWS)["rsr"] == scorer_of(day="2025-03-31").score(ROWS)["rsr"]
    tiny_tokenizer.chat_template = PLAIN
    assert one.fingerprint == other.fingerprint and one.identity() == other.identity()
    # One that rows bring counts from the first of them on.
    assert one.score(BROUGHT)["rsr_student"][0] == one.fingerprint
    assert other.score(BROUGHT)["rsr_student"][0] == other.fingerprint != one.fingerprint


@pytest.mark.parametrize("rows", [ROWS, BROUGHT], ids=["the tokenizer's", "the rows'"])
def test_job_goes_on_with_its_day(rows, scorer_of, tiny_tokenizer, tmp_path):
    """Half of it on one day, half on the next: as if in one go."""
    tiny_tokenizer.chat_template = TEMPLATE if rows is ROWS else PLAIN
    halves = [("2025-03-31", 0), ("2025-04-01", 1)]
    for day, process in halves:
        scorer = scorer_of(day=day)
        Job(scorer, rows, tmp_path / "out", {"files": []}, 1, process, num_processes=2).run(show_bar=False)
        assert scorer.written_day == "2025-03-31"
    files = sorted(str(path) for path in (tmp_path / "out" / "data").glob("*.parquet"))
    scored = Dataset.from_parquet(files)
    assert scored["rsr"][0] == scored["rsr"][1] and len(set(scored["rsr_student"])) == 1


def test_day_of_a_scorer_stays_over_midnight(scorer_of, monkeypatch):
    scorer = scorer_of(day=None)
    before = scorer.score(ROWS)["rsr"][0]

    class Tomorrow(date):
        @classmethod
        def today(cls):
            return cls(2100, 1, 1)

    monkeypatch.setattr(tokens, "date", Tomorrow)
    monkeypatch.setattr(chat_spans, "date", Tomorrow)
    assert scorer.score(ROWS)["rsr"][0] == before


def test_what_isnt_a_day(scorer_of):
    with pytest.raises(RSRError, match="day must be a date such as 2025-03-31, got 'today'"):
        scorer_of(day="today")
