import sys

import pytest
import torch
from datasets import Dataset

from rsr_trl.data import as_trl_format
from rsr_trl.pilot.held_out import HeldOut, check_apart, generate, load_checker, same_number


def chat(question: str, answer: str, **columns) -> dict:
    prompt, completion = [{"role": "user", "content": question}], [{"role": "assistant", "content": answer}]
    return {"prompt": prompt, "completion": completion, **columns}


ROWS = [
    chat("2+2?", "The answer is 4.", problem="b", gold="4"),
    chat("What is 3 times 3, please?", "9", problem="a", gold="9"),
    chat("2+2?", "Four, which is 4", problem="b", gold="4"),
]


def naive_loss(model, tokenizer, row) -> float:
    """Mean surprisal of the completion's own text, in float64, one row at a time."""
    text = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
    answer = row["completion"][0]["content"]
    ids = tokenizer(text)["input_ids"]  # every byte is a token; markers are one each
    head = tokenizer(text[: text.rindex(answer)])["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    surprisal = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    return float(surprisal[len(head) - 1 : len(head) - 1 + len(answer.encode())].mean())


def naive_greedy(model, ids: list[int], limit: int, ends: set[int]) -> tuple[list[int], bool]:
    response: list[int] = []
    while len(response) < limit:
        with torch.no_grad():
            token = int(model(torch.tensor([ids + response])).logits[0, -1].argmax())
        if token in ends:
            return response, False
        response.append(token)
    return response, True


def test_loss_is_that_of_the_references_by_problem(tiny_student, tiny_tokenizer):
    model = tiny_student()
    of_row = [naive_loss(model, tiny_tokenizer, row) for row in ROWS]
    held_out = HeldOut(Dataset.from_list(ROWS), "problem")
    assert held_out.problems == ["a", "b"]
    by_problem = [of_row[1], (of_row[0] + of_row[2]) / 2]
    assert held_out.loss(model, tiny_tokenizer) == pytest.approx(by_problem, rel=1e-5)
    # Without a column of problems every row is one.
    assert HeldOut(Dataset.from_list(ROWS)).loss(model, tiny_tokenizer) == pytest.approx(of_row, rel=1e-5)


@pytest.mark.filterwarnings("error")
def test_responses_are_greedy_whatever_the_batch_and_the_student_s_own_settings(tiny_student, tiny_tokenizer):
    model = tiny_student(seed=1)
    end = tiny_tokenizer.eos_token_id
    model.generation_config.update(do_sample=True, temperature=0.7, top_p=0.8, top_k=20)
    prompts = [tiny_tokenizer(text)["input_ids"] for text in ("2+2=", "a much longer prompt than that:", "x")]
    with torch.no_grad():  # an end that some reach
        model.get_input_embeddings().weight[end] *= 3
    own, expected = model.generation_config, [naive_greedy(model, ids, 12, {end}) for ids in prompts]
    model.train()
    responses = generate(model, tiny_tokenizer, prompts, max_new_tokens=12)
    assert responses == [(tiny_tokenizer.decode(ids, skip_special_tokens=True), cut) for ids, cut in expected]
    assert model.training and model.generation_config is own


def test_a_response_ends_at_the_student_s_last_position(tiny_student, tiny_tokenizer):
    model = tiny_student(max_position_embeddings=10)
    ids = [7, 8, 9, 10, 11, 12, 13]
    expected, _ = naive_greedy(model, ids, 3, {tiny_tokenizer.eos_token_id})
    responses = generate(model, tiny_tokenizer, [ids], max_new_tokens=100)
    assert responses == [(tiny_tokenizer.decode(expected, skip_special_tokens=True), True)]
    with pytest.raises(ValueError, match="has 11 tokens, and the student only 10 positions"):
        generate(model, tiny_tokenizer, [list(range(11))], max_new_tokens=5)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_what_is_measured_of_each_problem(tiny_student, tiny_tokenizer, batch_size):
    model = tiny_student()
    held_out = HeldOut(Dataset.from_list(ROWS), "problem", "gold", lambda response, answer: answer == "9", 6)
    measured = held_out.measure(model, tiny_tokenizer, batch_size)
    chats = [tiny_tokenizer.apply_chat_template(ROWS[i]["prompt"], add_generation_prompt=True) for i in (1, 0)]
    responses = [generate(model, tiny_tokenizer, [chat["input_ids"]], 6)[0] for chat in chats]
    assert [(one["response"], one["cut"]) for one in measured] == responses
    assert [(one["problem"], one["correct"]) for one in measured] == [("a", True), ("b", False)]
    assert [one["loss"] for one in measured] == held_out.loss(model, tiny_tokenizer).tolist()
    without_answers = HeldOut(Dataset.from_list(ROWS), "problem").measure(model, tiny_tokenizer, batch_size)
    assert without_answers[0] == measured[0] | {"correct": None, "cut": None, "response": None}


def test_prompts_of_plain_text_and_of_messages(tiny_student, tiny_tokenizer):
    messages, model = ROWS[0]["prompt"] + ROWS[0]["completion"], tiny_student()
    plain, whole, parts = (
        HeldOut(Dataset.from_list([row]), None, "gold", same_number, 6).measure(model, tiny_tokenizer, 4)[0]
        for row in ({"prompt": "2+2=", "gold": "4"}, {"messages": messages, "gold": "4"}, ROWS[0])
    )
    assert plain["response"] == generate(model, tiny_tokenizer, [tiny_tokenizer("2+2=")["input_ids"]], 6)[0][0]
    assert plain["loss"] is None
    assert whole["response"] == parts["response"]


OTHER = {"prompt": [{"role": "user", "content": "2 + 2?"}]}


@pytest.mark.parametrize(
    ("rows", "answer_column", "message"),
    [
        ([], "gold", "no rows"),
        ([{"prompt": "2+2="}], None, "nothing to measure"),
        ([ROWS[0], ROWS[2] | {"gold": "5"}], "gold", "Rows 0 and 1 .* same problem .'b'., but differ in 'gold'"),
        ([ROWS[0] | {"gold": None}], "gold", "Row 0 .* has no answer in 'gold'"),
        ([ROWS[0] | {"gold": "four"}], "gold", "Row 0 .* column 'gold': there is no number in the answer 'four'"),
        ([ROWS[0], ROWS[2] | OTHER], "gold", "Rows 0 and 1 .* differ in 'prompt'"),
        ([{"text": "2+2=4", "gold": "4"}], "gold", "need a prompt, or messages"),
        ([ROWS[0], chat("3*3?", "", problem="a")], None, "Row 1 of the held-out set has no token to score"),
    ],
)
def test_errors(tiny_student, tiny_tokenizer, rows, answer_column, message):
    with pytest.raises(ValueError, match=message):
        HeldOut(Dataset.from_list(rows), "problem", answer_column, same_number).loss(tiny_student(), tiny_tokenizer)


def test_a_pool_of_chats_and_plain_held_out_problems_are_refused():
    plain = Dataset.from_list([{"prompt": "2+2=", "completion": "4"}])
    chats = as_trl_format(Dataset.from_list([{"prompt": "3+3=", "completion": "6"}]), as_chat=True)
    for pool, held_out, chat in ((chats, plain, "pool"), (plain, chats, "held-out set")):
        with pytest.raises(ValueError, match=f"The {chat} holds chats and the .* plain text.*Pass as_chat=True"):
            check_apart(pool, held_out)
    check_apart(chats, as_trl_format(plain, as_chat=True))


@pytest.mark.parametrize(
    ("checker", "response", "answer", "right"),
    [
        ("number", "6 * 7 = 42. The answer is 42.", "42", True),
        ("number", "The answer is **1,234.50**.", "1234.5", True),
        ("number", "#### -3", "reasoning 1 2\n#### -3", True),
        ("number", "10-4 = 6", "6", True),
        ("number", "it is 10-4", "4", True),  # a minus between two terms is no sign
        ("number", "$\\boxed{18}$", 18, True),
        ("number", "The answer is 42, or 43", "42", False),
        ("number", "No idea", "42", False),
        ("number", "", "0", False),
        ("number", "42", "Paris", "no number in the answer 'Paris'"),
        ("line", "So:\n Paris \n\n", "Paris", True),
        ("line", "Paris.", "Paris", False),
        ("line", "Paris\nor Rome", "Paris", False),
        ("line", "", "x", False),
        ("line", "42", " \n", "answer is empty"),
        ("math", r"Hence $\boxed{\frac{1}{2}}$.", "0.5", True),
        ("math", r"The result is $x^2 + 2x + 1$.", "$(x+1)^2$", True),
        ("math", r"Hence $\boxed{\frac{1}{3}}$.", r"\frac{1}{2}", False),
        ("math", "", "0.5", False),
    ],
)
def test_right_and_wrong_responses_and_answers_that_can_not_be_compared(checker, response, answer, right):
    if checker == "math":
        pytest.importorskip("math_verify")
    check = load_checker(checker)
    if isinstance(right, bool):
        assert check(response, answer) is right
    else:
        with pytest.raises(ValueError, match=right):
            check(response, answer)


def test_a_function_of_the_user_and_what_can_not_be_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    (tmp_path / "my_checks.py").write_text("def longer(response, answer):\n    return len(response) > answer\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    check = load_checker("my_checks:longer")
    assert check("abc", 2) and not check("abc", 3)
    for name, message in (
        ("my_checks:shorter", "'my_checks' has no attribute 'shorter'"),
        ("nowhere:f", "No module named 'nowhere'"),
        ("math", r"pip install 'rsr-trl\[pilot\]'"),
        ("exact", "must be number, line, math or module:function, got 'exact'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_checker(name)


def test_number_agrees_with_the_labels_of_gsm8k(gsm8k_rows):
    check = load_checker("number")
    pairs = [(check(row["completion"], row["gold"]), row["correct"]) for row in gsm8k_rows]
    # The labels also want the answer's own format, so a few that come to the right number are labelled wrong.
    assert (False, True) not in pairs
    assert pairs.count((True, False)) < 0.02 * len(pairs)


def test_math_agrees_with_the_labels_of_math500(math500_rows):
    pytest.importorskip("math_verify")
    check = load_checker("math")
    rows = [row for row in math500_rows[::10] if row["gold"]]
    assert sum(check(row["completion"], row["gold"]) == row["correct"] for row in rows) >= 0.95 * len(rows) > 50
