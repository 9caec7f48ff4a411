"""Is a response right? Small checkers of the final answer, math-verify, or a function of the user."""

import pkgutil
import re
from collections.abc import Callable
from fractions import Fraction

from rsr_trl.rsr import RSRError


Checker = Callable[[str, object], bool]  # response and answer in, right or wrong out

# A minus is a sign unless it stands between two terms.
_NUMBER = re.compile(r"(?:(?<![\w)])-)?\d+(?:,\d{3})*(?:\.\d+)?")


def load_checker(name: str) -> Checker:
    """
    A checker by name: `"number"` (the last numbers are equal), `"line"` (the last lines that aren't empty are the
    same), `"math"` (math-verify compares the mathematics), or the user's own `"module:function"`.
    """
    if name in ("number", "line"):
        return same_number if name == "number" else same_line
    if name == "math":
        return _math_checker()
    if ":" not in name:
        raise RSRError(f"checker must be number, line, math or module:function, got {name!r}.")
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RSRError(f"checker {name!r}: {error}. Is the name right, and its folder on PYTHONPATH?") from error


def same_number(response: str, answer: object) -> bool:
    """Whether the last number of the response equals that of the answer: `"... so 1,234.50"` and `"1234.5"`."""
    expected, given = _NUMBER.findall(str(answer)), _NUMBER.findall(response)
    if not expected:
        raise RSRError(f"there is no number in the answer {str(answer)[:60]!r}")
    return bool(given) and Fraction(given[-1].replace(",", "")) == Fraction(expected[-1].replace(",", ""))


def same_line(response: str, answer: object) -> bool:
    """Whether the last line that isn't empty is the same, spaces at its ends aside."""
    if not str(answer).strip():
        raise RSRError("the answer is empty")
    return response.strip().rpartition("\n")[2].strip() == str(answer).strip().rpartition("\n")[2].strip()


def _math_checker() -> Checker:
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise RSRError("The checker math needs math-verify: pip install 'rsr-trl[pilot]'.") from error

    def same_mathematics(response: str, answer: object) -> bool:
        text = str(answer)
        marked = any(sign in text for sign in ("$", r"\boxed", r"\(", r"\["))
        expected = parse(text if marked else f"${text}$")
        if not expected:
            raise RSRError(f"math-verify can't read the answer {text[:60]!r}")
        return bool(verify(expected, parse(response)))

    return same_mathematics
