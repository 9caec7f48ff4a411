"""Word problems of two to four steps, made from a seed. Knows nothing of teachers, tokens or scores."""

import json
import random
import zlib
from pathlib import Path
from typing import Literal, NamedTuple


Split = Literal["demo", "pretrain"]
OPERATORS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}
WORDS = json.loads(Path(__file__).with_name("words.json").read_text(encoding="utf-8"))
THEMES = [WORDS["every theme"] | theme for theme in WORDS["themes"]]  # kind of move -> sentences; and nouns


class Move(NamedTuple):
    """What one part of the story does to the running total: `kind` names it, `a` and `b` are its numbers."""

    kind: Literal["packs", "sum", "more_packs", "gain", "loss", "scale", "share", "worth"]
    b: int
    a: int = 0


class Step(NamedTuple):
    """One line of a solution: `left operator right = result`. `kind` says what it is for."""

    kind: str
    left: int
    operator: str
    right: int
    result: int


class Problem(NamedTuple):
    """
    A word problem.

    Args:
        problem_id (`str`): Unique within one seed and split.
        prompt (`str`): The story and its question.
        words (`dict[str, str]`): The story's nouns, for teachers to use: `name`, `they`, `items`, `pack`, `packs`,
            `receivers`.
        moves (`tuple[Move, ...]`): The story as arithmetic.
    """

    problem_id: str
    prompt: str
    words: dict[str, str]
    moves: tuple[Move, ...]

    @property
    def gold(self) -> int:
        """The true answer."""
        return work(self.moves)[-1].result


def work(moves: tuple[Move, ...], slip_at: int | None = None, slip: int = 0) -> list[Step]:
    """
    Work a story through, optionally with one slip: the result of step `slip_at` is off by `slip`, and every later step
    goes on from the wrong number.
    """
    steps: list[Step] = []

    def calculate(kind: str, left: int, operator: str, right: int) -> int:
        result = OPERATORS[operator](left, right) + (slip if len(steps) == slip_at else 0)
        steps.append(Step(kind, left, operator, right, result))
        return result

    total = 0
    for move in moves:
        match move.kind:
            case "packs":
                total = calculate("packs", move.a, "*", move.b)
            case "sum":
                total = calculate("sum", move.a, "+", move.b)
            case "more_packs":
                more = calculate("more_packs", move.a, "*", move.b)
                total = calculate("gain", total, "+", more)
            case "gain":
                total = calculate("gain", total, "+", move.b)
            case "loss":
                total = calculate("loss", total, "-", move.b)
            case "scale" | "worth":
                total = calculate(move.kind, total, "*", move.b)
            case "share":
                total = calculate("share", total, "/", move.b)
    return steps


def _draw_moves(theme: dict, rng: random.Random) -> tuple[Move, ...]:
    """Two to four steps with numbers that stay whole, above zero and below 1,000."""
    opening = Move("packs", rng.randint(3, 20), rng.randint(2, 9))
    moves = [opening if rng.random() < 0.75 else Move("sum", rng.randint(5, 90), rng.randint(5, 90))]
    num_steps, ends = rng.randint(2, 4), rng.random() < 0.6
    while (steps := work(tuple(moves))) and len(steps) < num_steps:
        total = steps[-1].result
        if ends and len(steps) == num_steps - 1:
            divisors = [b for b in range(2, 10) if total % b == 0 and total > b]
            if theme["worth"] and (not divisors or rng.random() < 0.4):
                moves.append(Move("worth", rng.randint(2, 9)))
                break
            if divisors:
                moves.append(Move("share", rng.choice(divisors)))
                break
        used = [move.kind for move in moves]
        kinds = ["gain"] * 2 * (used.count("gain") < len(theme["gain"])) + ["scale"] * ("scale" not in used)
        kinds += ["loss"] * 2 * (used.count("loss") < len(theme["loss"]) and total > 3)
        kinds += ["more_packs"] * 2 * ("more_packs" not in used and len(steps) + 2 <= num_steps)
        match rng.choice(kinds):
            case "loss":
                moves.append(Move("loss", rng.randint(2, min(total - 1, 60))))
            case "scale":
                moves.append(Move("scale", rng.choice([2, 3])))
            case "more_packs":
                moves.append(Move("more_packs", rng.randint(3, 20), rng.randint(2, 9)))
            case _:
                moves.append(Move("gain", rng.randint(3, 60)))
    return tuple(moves)


def _tell(theme: dict, moves: tuple[Move, ...], words: dict[str, str], rng: random.Random) -> str:
    """The story in words, with its question at the end."""
    texts = []
    for move in moves:
        choices = theme["scale"][str(move.b)] if move.kind == "scale" else theme[move.kind]
        texts.append(rng.choice([choice for choice in choices if choice not in texts]))
    if moves[-1].kind not in ("share", "worth"):
        texts.append(rng.choice(theme["total"]))
    numbers = list(moves) + [moves[-1]] * (len(texts) - len(moves))
    return " ".join(text.format(a=move.a, b=move.b, **words) for text, move in zip(texts, numbers, strict=True))


def split_of(prompt: str) -> Split:
    """
    Which split a prompt belongs to. Its own text decides, so that no seed can put a problem that the student was
    pretrained on into the demo.
    """
    return "demo" if zlib.crc32(prompt.encode()) % 5 == 0 else "pretrain"


def generate_problems(num_problems: int, seed: int = 0, split: Split = "demo") -> list[Problem]:
    """
    Make word problems.

    Args:
        num_problems (`int`): How many; all prompts differ.
        seed (`int`, *optional*, defaults to `0`): The same seed gives the same problems; asking for more adds to them.
        split (`str`, *optional*, defaults to `"demo"`): `"demo"` or `"pretrain"`, which share no prompt, whatever the
            seeds.
    """
    if num_problems < 1:
        raise ValueError(f"num_problems must be at least 1, got {num_problems}.")
    rng = random.Random(f"{split}/{seed}")
    problems: dict[str, Problem] = {}
    while len(problems) < num_problems:
        theme = rng.choice(THEMES)
        (name, they), (pack, packs) = rng.choice(WORDS["names"]), rng.choice(theme["containers"])
        words = {"name": name, "they": they, "pack": pack, "packs": packs}
        words |= {"items": rng.choice(theme["items"]), "receivers": rng.choice(theme["receivers"])}
        moves = _draw_moves(theme, rng)
        prompt = _tell(theme, moves, words, rng)
        if work(moves)[-1].result < 1000 and split_of(prompt) == split and prompt not in problems:
            problems[prompt] = Problem(f"{split}-{seed}-{len(problems)}", prompt, words, moves)
    return list(problems.values())
