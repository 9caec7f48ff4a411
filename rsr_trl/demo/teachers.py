"""Seven teachers that solve the demo's problems, each in its own dialect, length and error rate."""

import random
from collections.abc import Callable
from typing import NamedTuple

from datasets import Dataset

from rsr_trl.demo.problems import WORDS, Problem, Step, generate_problems, work


GOAL = WORDS["goal"]  # what a step is for, as a noun phrase: for headings and openings
SAYING = WORDS["saying"]  # the same steps as a speaker tells them, with the equation at {eq}
# The careful teacher and the thinker speak of the operation instead, each in its own way.
EXPLAINING, THINKING = WORDS["explaining"], WORDS["thinking"]
REVERSE = {"+": "-", "-": "+", "*": "/", "/": "*"}


def _fill(choices: list[str], problem: Problem, step: Step, rng: random.Random) -> str:
    """One of the choices with the step's numbers and the story's nouns."""
    eq = f"{step.left} {step.operator} {step.right} = {step.result}"
    return rng.choice(choices).format(eq=eq, left=step.left, right=step.right, result=step.result, **problem.words)


def _formula(step: Step, signs: dict[str, str]) -> str:
    return f"{step.left} {signs.get(step.operator, step.operator)} {step.right} = {step.result}"


def terse(problem: Problem, steps: list[Step], rng: random.Random) -> str:
    """Equations and a number."""
    signs = {"*": rng.choice("*x")}
    lines = [_formula(step, signs).replace(" ", "") for step in steps]
    lead, end = rng.choice(("", "", "ok: ", "so ")), rng.choice((" -> {}", "\nans {}", "\n= {}", ", so {}"))
    return lead + rng.choice((", ", "; ", "\n")).join(lines) + end.format(steps[-1].result)


def plain(problem: Problem, steps: list[Step], rng: random.Random) -> str:
    """One short sentence a step."""
    said = [_fill(SAYING[step.kind], problem, step, rng) for step in steps]
    end = rng.choice(("The answer is {}.", "So the answer is {}.", "The final answer is {}."))
    return " ".join(said) + " " + end.format(steps[-1].result)


def careful(problem: Problem, steps: list[Step], rng: random.Random) -> str:
    """Says what it is going to do, does it, and calculates backwards at the end."""
    words, last = WORDS["careful"], steps[-1]
    said, leads = [_fill(words["start"], problem, last, rng)], words["leads"]
    for lead, step in zip(leads[: len(steps) - 1] + leads[-1:], steps, strict=True):
        goal, explained = (_fill(x, problem, step, rng) for x in (GOAL[step.kind], EXPLAINING[step.operator]))
        said.append(f"{lead} {goal}. {explained}")
    check = f"{last.result} {REVERSE[last.operator]} {last.right} = {last.left}, which matches."
    said.append(f"{rng.choice(words['check'])}: {check}")
    return "\n\n".join([*said, _fill(words["end"], problem, last, rng)])


def latex(problem: Problem, steps: list[Step], rng: random.Random) -> str:
    """Formulas in LaTeX and a boxed answer."""
    said = []
    for step in steps:
        lead = rng.choice(("We compute {}:", "Let us determine {}.", "Consider {}."))
        formula = _formula(step, {"*": r"\times", "/": r"\div"})
        said.append(f"{lead.format(_fill(GOAL[step.kind], problem, step, rng))}\n\\[ {formula} \\]")
    end = rng.choice((r"The answer is $\boxed{%d}$.", r"$$\boxed{%d}$$", r"Hence we obtain $\boxed{%d}$."))
    return "\n".join(said) + "\n" + end % steps[-1].result


def numbered(problem: Problem, steps: list[Step], rng: random.Random) -> str:
    """A numbered list with headings."""
    heading = rng.choice(("Step {}: Find {}", "**Step {}:** Calculate {}", "### Step {}: {}"))
    said = []
    for number, step in enumerate(steps, 1):
        goal = _fill(GOAL[step.kind], problem, step, rng)
        formula = _formula(step, {"*": "×", "/": "÷", "-": "−"})
        said.append(f"{heading.format(number, goal)}\n- {formula} {rng.choice(('✓', '', ''))}".rstrip())
    return "\n".join(said) + f"\n\n**Answer: {steps[-1].result}**"


def thinker(problem: Problem, steps: list[Step], rng: random.Random) -> str:
    """Thinks aloud in `<think>`, goes wrong, notices, and answers in a line."""
    words, last = WORDS["thinker"], steps[-1]
    thoughts = [_fill(words["start"], problem, last, rng)]
    trips = rng.randrange(len(steps))
    for index, step in enumerate(steps):
        if index == trips:
            wrong = step.result + rng.choice((-10, -1, 1, 2, 10) if step.result > 10 else (1, 2, 10))
            thoughts.append(
                f"{step.left} {step.operator} {step.right} should be {wrong}. {rng.choice(words['doubt'])}"
            )
        thoughts.append(_fill(THINKING[step.operator], problem, step, rng))
        if rng.random() < 0.35:
            thoughts.append(rng.choice(words["go on"]))
    thoughts.append(rng.choice(words["done"]))
    return f"<think>\n{' '.join(thoughts)}\n</think>\n\n{_fill(words['end'], problem, last, rng)}"


def guesser(problem: Problem, steps: list[Step], rng: random.Random) -> str:
    """An answer without any reasoning."""
    return rng.choice(("The answer is {}.", "{}", "It is {}.", "Answer: {}")).format(steps[-1].result)


class Teacher(NamedTuple):
    """
    A teacher of the demo.

    Args:
        write (`Callable`): Its dialect: problem, steps and a random generator in, the response out.
        error_rate (`float`): Share of problems that it gets wrong.
    """

    write: Callable[[Problem, list[Step], random.Random], str]
    error_rate: float

    def solve(self, problem: Problem, rng: random.Random) -> tuple[str, int]:
        """Write a response, wrong at `error_rate`; returns it with the answer that it comes to."""
        steps = work(problem.moves)
        if rng.random() < self.error_rate:
            steps = _go_wrong(problem, guess=self.write is guesser, rng=rng)
        return self.write(problem, steps, rng), steps[-1].result


def _go_wrong(problem: Problem, guess: bool, rng: random.Random) -> list[Step]:
    """The problem's steps with a small slip in one of them, or with any wrong number at the end for a guess."""
    gold = problem.gold
    while True:
        num_steps = len(work(problem.moves))
        # A slip before a division would leave a fraction.
        at = num_steps - 1 if guess or problem.moves[-1].kind == "share" else rng.randrange(num_steps)
        slip = rng.randint(gold // 2, 2 * gold + 2) - gold if guess else rng.choice((-10, -2, -1, 1, 2, 10))
        steps = work(problem.moves, at, slip)
        if slip and all(step.result > 0 for step in steps):
            return steps


ERROR_RATES = {terse: 0.15, plain: 0.10, careful: 0.05, latex: 0.08, numbered: 0.12, thinker: 0.03, guesser: 0.75}
TEACHERS = {write.__name__: Teacher(write, error_rate) for write, error_rate in ERROR_RATES.items()}


def make_pool(num_problems: int, seed: int = 0) -> Dataset:
    """
    Every teacher's response to every problem, in the chat form that TRL's SFTTrainer takes.

    Args:
        num_problems (`int`): How many problems; never one that the demo's student was pretrained on.
        seed (`int`, *optional*, defaults to `0`): The same seed gives the same pool.

    Returns:
        `Dataset` with `num_problems * 7` rows: `problem_id`, `prompt` and `completion` (lists of one message),
        `teacher`, `correct` (whether the response comes to the true answer), `gold` (the true answer).
    """
    rows = []
    for problem in generate_problems(num_problems, seed):
        for name, teacher in TEACHERS.items():
            response, answer = teacher.solve(problem, random.Random(f"{seed}/{problem.problem_id}/{name}"))
            rows.append(
                {
                    "problem_id": problem.problem_id,
                    "prompt": [{"role": "user", "content": problem.prompt}],
                    "teacher": name,
                    "completion": [{"role": "assistant", "content": response}],
                    "correct": answer == problem.gold,
                    "gold": str(problem.gold),
                }
            )
    return Dataset.from_list(rows)
