"""The world of limits_of_rsr.py: chains of sums that wrap at ten, and the styles in which teachers solve them."""

import random
from collections.abc import Callable
from dataclasses import dataclass


NUMBERS = range(1, 10)
WORDS = ("Adding {n} to {a} gives {r}.", "{a} and {n} more make {r}.", "Up {n} from {a} is {r}.")
FILLERS = ("well", "so", "now", "okay", "right", "then", "next", "hmm", "good", "fine")
ENDS = ("The answer is {}.", "It is {}.", "Answer: {}.")


@dataclass(frozen=True)
class Step:
    """`left + right = result`, wrapping at ten."""

    left: int
    right: int
    result: int


@dataclass(frozen=True)
class Problem:
    """A chain: where it starts, and what is added in turn."""

    start: int
    added: tuple[int, ...]

    @property
    def prompt(self) -> str:
        return f"What is {'+'.join(map(str, (self.start, *self.added)))}, wrapping at ten?"

    def work(self, slip_rate: float = 0.0, rng: random.Random | None = None) -> list[Step]:
        """Its steps; at `slip_rate` a result is a random digit, and what follows goes on from there."""
        total, steps = self.start, []
        for right in self.added:
            result = (total + right) % 10
            if slip_rate and rng.random() < slip_rate:
                result = rng.randrange(10)
            steps.append(Step(total, right, result))
            total = result
        return steps


def make_problems(number: int, steps: tuple[int, int], rng: random.Random, distinct: bool = True) -> list[Problem]:
    problems: dict[object, Problem] = {}
    while len(problems) < number:
        problem = Problem(rng.randrange(10), tuple(rng.choices(NUMBERS, k=rng.randint(*steps))))
        problems.setdefault(problem if distinct else len(problems), problem)
    return list(problems.values())


def equation(step: Step, result: int | None = None) -> str:
    return f"{step.left}+{step.right}={step.result if result is None else result}."


def plain(steps: list[Step], rng: random.Random) -> str:
    return " ".join([*map(equation, steps), ENDS[0].format(steps[-1].result)])


def worded(steps: list[Step], rng: random.Random) -> str:
    told = [rng.choice(WORDS).format(a=s.left, n=s.right, r=s.result) for s in steps]
    return " ".join([*told, ENDS[0].format(steps[-1].result)])


def terse(steps: list[Step], rng: random.Random) -> str:
    return ">".join(str(total) for total in [steps[0].left, *(s.result for s in steps)]) + f" #{steps[-1].result}"


def skipper(steps: list[Step], rng: random.Random) -> str:
    pairs = [steps[i : i + 2] for i in range(0, len(steps), 2)]
    told = [f"{'+'.join(map(str, [p[0].left, *(s.right for s in p)]))}={p[-1].result}." for p in pairs]
    return " ".join([*told, ENDS[0].format(steps[-1].result)])


def checker(steps: list[Step], rng: random.Random) -> str:
    told = [f"{equation(s)} Check: {s.result}-{s.right}={s.left}, good." for s in steps]
    return " ".join([*told, ENDS[0].format(steps[-1].result)])


def thinker(steps: list[Step], rng: random.Random) -> str:
    told = [f"{equation(s, rng.randrange(10))} No, wait: {equation(s)}" for s in steps]
    return f"<think>\n{' '.join(told)}\n</think>\n\n{ENDS[0].format(steps[-1].result)}"


def rambler(steps: list[Step], rng: random.Random) -> str:
    told = [f"{rng.choice(FILLERS)}, {equation(s)}" for s in steps]
    return " ".join([*told, ENDS[0].format(steps[-1].result)])


def foreign(steps: list[Step], rng: random.Random) -> str:
    told = [rf"\[ [{s.left}] \oplus [{s.right}] \equiv [{s.result}] \]" for s in steps]
    return "\n".join(told) + "\n" + rf"\boxed{{{steps[-1].result}}}"


def answer(steps: list[Step], rng: random.Random) -> str:
    return rng.choice(ENDS).format(steps[-1].result)


STYLES: dict[str, Callable[[list[Step], random.Random], str]] = {
    style.__name__: style for style in (plain, worded, terse, skipper, checker, thinker, rambler, foreign, answer)
}
