"""Is a response right? Small checkers of the final answer, a well-kept one for mathematics, or the user's own."""

import re
from collections.abc import Callable
from fractions import Fraction
from importlib import import_module


Checker = Callable[[str, object], bool]  # response and answer in, right or wrong out

# A minus is a sign unless it stands between two terms.
_NUMBER = re.compile(r"(?:(?<![\w)])-)?\d+(?:,\d{3})*(?:\.\d+)?")


def load_checker(name: str) -> Checker:
    """
    A checker by name.

    Args:
        name (`str`): `"number"` (the last number of the response equals the last one of the answer), `"line"` (the
            last line that isn't empty is the same), `"math"` (math-verify compares the mathematics), or
            `"module:function"`, a function that takes the response (`str`) and the value of the answer column and
            returns whether the response is right.

    Raises:
        ValueError: if there is no such checker or function, or math-verify isn't installed.
    """
    if name in _CHECKERS:
        return _CHECKERS[name]
    if name == "math":
        return _math_checker()
    module, _, function = name.partition(":")
    if not module or not function:
        raise ValueError(f"checker must be number, line, math or module:function, got {name!r}.")
    try:
        found = vars(import_module(module)).get(function)
    except ModuleNotFoundError as error:
        raise ValueError(f"checker {name!r}: {error}. Is its folder on PYTHONPATH?") from error
    if not callable(found):
        raise ValueError(f"checker {name!r}: the module {module!r} has no function {function!r}.")
    return found


def same_number(response: str, answer: object) -> bool:
    """Whether the last number of the response equals that of the answer: `"... so 1,234.50"` and `"1234.5"`."""
    expected = _last_number(str(answer))
    if expected is None:
        raise ValueError(f"there is no number in the answer {str(answer)[:60]!r}")
    return _last_number(response) == expected


def same_line(response: str, answer: object) -> bool:
    """Whether the last line that isn't empty is the same, spaces at its ends aside."""
    expected = _last_line(str(answer))
    if not expected:
        raise ValueError("the answer is empty")
    return _last_line(response) == expected


_CHECKERS: dict[str, Checker] = {"number": same_number, "line": same_line}


def _last_number(text: str) -> Fraction | None:
    found = _NUMBER.findall(text)
    return Fraction(found[-1].replace(",", "")) if found else None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _math_checker() -> Checker:
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise ValueError("The checker math needs math-verify: pip install 'rsr-trl[pilot]'.") from error

    def same_mathematics(response: str, answer: object) -> bool:
        text = str(answer)
        marked = any(sign in text for sign in ("$", r"\boxed", r"\(", r"\["))
        expected = parse(text if marked else f"${text}$")
        if not expected:
            raise ValueError(f"math-verify can't read the answer {str(answer)[:60]!r}")
        return bool(verify(expected, parse(response)))

    return same_mathematics
