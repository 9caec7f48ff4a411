import pytest

from rsr_trl.demo.problems import THEMES, generate_problems, split_of, work
from tests.demo.reading import answer_by_reading


def test_every_answer_is_what_the_words_say():
    problems = generate_problems(3000, seed=5)
    assert [(p.prompt, p.gold) for p in problems if answer_by_reading(p.prompt) != p.gold] == []


def test_problems_are_varied():
    problems = generate_problems(1000)
    assert len({p.prompt for p in problems}) == len({p.problem_id for p in problems}) == 1000
    assert {len(work(p.moves)) for p in problems} == {2, 3, 4}
    assert {p.words["items"] for p in problems} == {item for theme in THEMES for item in theme["items"]}
    assert len({p.gold for p in problems}) > 200
    assert all(0 < step.result < 1000 for p in problems for step in work(p.moves))
    with pytest.raises(ValueError, match="num_problems must be at least 1, got 0"):
        generate_problems(0)


def test_no_demo_problem_is_a_pretraining_problem_whatever_the_seeds():
    demo = {p.prompt for seed in range(5) for p in generate_problems(400, seed)}
    pretraining = {p.prompt for seed in range(5) for p in generate_problems(400, seed, split="pretrain")}
    assert not demo & pretraining
    assert {split_of(prompt) for prompt in demo} == {"demo"} and {split_of(x) for x in pretraining} == {"pretrain"}


def test_a_slip_is_carried_on():
    problem = next(p for p in generate_problems(200) if [m.kind for m in p.moves] == ["packs", "loss", "worth"])
    right, wrong = work(problem.moves), work(problem.moves, slip_at=1, slip=2)
    assert [step.result for step in wrong[:2]] == [right[0].result, right[1].result + 2]
    assert wrong[2].left == wrong[1].result
    assert wrong[2].result == right[2].result + 2 * problem.moves[2].b
