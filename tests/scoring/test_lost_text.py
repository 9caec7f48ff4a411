"""What a chat template leaves out of a trajectory is counted and said; the score stays that of the rest."""

import copy
import logging

import pytest
from datasets import Dataset

from rsr_trl import RSRScorer
from rsr_trl.rsr import RSRError
from rsr_trl.scoring.chat_spans import marks_of_prompt
from rsr_trl.scoring.job import Job
from rsr_trl.scoring.own_text import CALLS, CONTENT, EARLIER, REASONING
from rsr_trl.scoring.rows import describe_notes
from rsr_trl.scoring.tokens import NO_TEMPLATE, SECOND_BOS, ExampleTokenizer
from tests.scoring.conversations import TEMPLATES, TOOLS, assistant, call, tool, user
from tests.scoring.renderers import INST, NO_PROMPT


THOUGHT = "<think>\nwhy that is\n</think>\n\nanswer"
CALLING = [user("q"), assistant("words", tool_calls=[call({"b": "two"})]), tool("result"), assistant("answer")]
ASKED_AGAIN = [user("q"), assistant(THOUGHT), user("q2"), assistant("answer2")]
PARTS = [{"type": "thinking", "thinking": "why that is"}, {"type": "text", "text": "answer"}]
CASES = {
    "reasoning key": [user("q"), assistant("answer", reasoning_content="why that is")],
    "think block": [user("q"), assistant(THOUGHT)],
    "open think block": [user("q"), assistant("why that is\n</think>\n\nanswer")],
    "earlier think block": ASKED_AGAIN,
    "earlier key": [user("q"), assistant("answer", thinking="why that is"), user("q2"), assistant("answer2")],
    "calls": CALLING,
    "call at the end": CALLING[:2],
    "old call": [user("q"), assistant("words", function_call={"name": "add", "arguments": '{"b": "two"}'})],
    "two contents": [user("q"), assistant("one<think>a</think>two<think>b</think>three")],
}
LOST = {
    "qwen3": {
        "earlier think block": (EARLIER,),
        "earlier key": (EARLIER,),
        "old call": (CALLS,),
        "two contents": (CONTENT, REASONING),
    },
    "qwen3_training": {"old call": (CALLS,), "two contents": (CONTENT, REASONING)},
    "llama3": {
        "reasoning key": (REASONING,),
        "earlier key": (EARLIER,),
        "calls": (CALLS,),
        "call at the end": (CALLS,),
        "old call": (CALLS,),
    },
    "deepseek_r1_distill": {
        "reasoning key": (REASONING,),
        "think block": (REASONING,),
        "open think block": (REASONING,),
        "earlier think block": (EARLIER,),
        "earlier key": (EARLIER,),
        "calls": (CALLS,),
        "call at the end": (CALLS,),
        "old call": (CALLS,),
        "two contents": (CONTENT, REASONING),
    },
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", LOST)
def test_what_templates_leave_out(name, case, qwen3):
    """Read off the templates by hand."""
    qwen3.chat_template, qwen3.bos_token = TEMPLATES[name], "<|endoftext|>"
    (example,) = ExampleTokenizer(qwen3)([{"messages": CASES[case]}])
    assert example.error is None and example.notes == LOST[name].get(case, ())


ARGUMENTS = ['{"b": "two\\n\\"quoted\\" caf\\u00e9 \\\\ end"}', {"b": 'two\n"quoted" café \\ end', "a": 1.50}]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=["text", "mapping"])
@pytest.mark.parametrize("name", ["qwen3", "qwen2_5", "glm4moe", "llama3_1", "gemma4", "nemotron_3_nano", "gptoss"])
def test_no_false_alarm_about_calls(name, arguments, qwen3):
    """However a template writes quotes, line ends and other scripts."""
    qwen3.chat_template, qwen3.bos_token = TEMPLATES[name], "<|endoftext|>"
    messages = [user("q"), assistant("", tool_calls=[call(arguments)]), tool("result"), assistant("  answer\n")]
    (example,) = ExampleTokenizer(qwen3)([{"messages": messages, "tools": TOOLS}])
    assert example.notes == ()


def test_same_call_again(qwen3):
    """A template that writes the first call only."""
    qwen3.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% endif %}<|im_end|>\n{% endfor %}"
    )
    one, three = ([user("q"), assistant("w", tool_calls=[call({"a": 1})] * n)] for n in (1, 3))
    notes = [example.notes for example in ExampleTokenizer(qwen3)([{"messages": one}, {"messages": three}])]
    assert notes == [(), (CALLS,)]


def test_no_false_alarm_on_real_data(airline_rows, gsm8k_rows, airline_tools, qwen3):
    agents = [row for row in airline_rows if not any(m.get("reasoning_content") for m in row["messages"])]
    rows = [{"messages": row["messages"], "tools": airline_tools} for row in agents[::10]]
    rows += [
        {"messages": [user(row["prompt"]), assistant(row["completion"])], "tools": None} for row in gsm8k_rows[::20]
    ]
    assert {example.notes for example in ExampleTokenizer(qwen3)(rows)} == {()}


ROWS = [{"messages": messages} for messages in (CASES["reasoning key"], CALLING[:2], [user("q"), assistant("a")])]
SAID = (
    "1 of 3 trajectories lose their reasoning, 1 their tool calls in the student's chat template. The scores are of "
    "what it leaves, which is what SFTTrainer trains on."
)


@pytest.fixture
def scorer(tiny_student, tiny_tokenizer) -> RSRScorer:
    return RSRScorer(tiny_student(), tiny_tokenizer)


def test_said_once_with_its_share(scorer, caplog):
    dataset = Dataset.from_list([{"messages": [{"tool_calls": None, **m} for m in row["messages"]]} for row in ROWS])
    with caplog.at_level(logging.WARNING, "rsr_trl"):
        scored = scorer.score(dataset)
        assert [record.message for record in caplog.records] == [SAID]
        kept = [{"messages": [user("q"), assistant(text)]} for text in ("answer", "words", "a")]
        assert scored["rsr"][:] == pytest.approx(scorer.score(Dataset.from_list(kept))["rsr"][:])
        caplog.clear()
        dataset.map(scorer, batched=True)
    assert [record.message for record in caplog.records] == [
        f"So far, {SAID} (Shown once; check rsr_error afterwards.)"
    ]


def test_in_shards_and_on_error_raise(scorer, tmp_path):
    job = Job(scorer, Dataset.from_list(ROWS), tmp_path / "out", {"files": []}, shard_rows=1)
    with pytest.raises(RSRError, match="Row 0 loses its reasoning in the student's chat template. Nothing was scored"):
        job.check_rows()
    job = Job(scorer, Dataset.from_list(ROWS), tmp_path / "out", {"files": []}, shard_rows=1)
    job.run(show_bar=False)
    assert job.totals()["notes"] == {REASONING: 1, CALLS: 1}
    assert describe_notes(job.totals()["notes"], 3) == [SAID]


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("What is 2 + 3?", True),
        ("Think first.\n<think>\n", True),
        ("<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\n", False),
        ([user("What is 2 + 3?")], False),
        ("", False),  # nothing that a template could wrap
    ],
)
def test_plain_prompts_of_a_student_with_a_chat_template(qwen3, prompt, plain):
    completion = "<think>\n2 + 3\n</think>\n5"
    row = {"prompt": prompt, "completion": completion if isinstance(prompt, str) else [assistant(completion)]}
    rows = [row, {"text": "Once upon a time."}, {"messages": [user("q"), assistant("a")]}]
    notes = [(NO_TEMPLATE,) if plain else (), (), ()]
    assert [one.notes for row in rows for one in ExampleTokenizer(qwen3)([row])] == notes
    base = copy.deepcopy(qwen3)
    base.chat_template = None
    assert isinstance(prompt, list) or ExampleTokenizer(base)([row])[0].notes == ()


@pytest.mark.parametrize(("template", "marks"), [(INST, ("[/INST]",)), (NO_PROMPT, ("<|end|>",)), ("{{ 1 / 0 }}", ())])
def test_what_a_template_writes_behind_the_prompt(qwen3, template, marks):
    """Where no special token stands there it is the text, and a template that breaks is no reason to warn."""
    tokenizer = copy.deepcopy(qwen3)
    tokenizer.chat_template = template
    assert marks_of_prompt(tokenizer) == marks
    row = {"prompt": "[INST] q [/INST]", "completion": "a"}
    noted = NO_TEMPLATE in ExampleTokenizer(tokenizer)([row])[0].notes
    assert noted == (template == NO_PROMPT)


def test_second_beginning_of_sequence(stories260k, caplog):
    """Text that was rendered before begins with the token that the tokenizer adds, as in SFTTrainer."""
    scorer = RSRScorer(stories260k, dtype="float32")
    rows = [{"prompt": bos + "Once upon a time, ", "completion": "there was."} for bos in ("", "<s>")]
    examples = scorer.tokenize(rows)
    assert [example.notes for example in examples] == [(), (SECOND_BOS,)]
    assert examples[1].input_ids[:2].tolist() == [scorer.processing_class.bos_token_id] * 2
    with caplog.at_level(logging.WARNING, "rsr_trl"):
        scorer.score(Dataset.from_list(rows))
    assert "1 of 2 trajectories begin with two beginning-of-sequence tokens" in caplog.text
