"""The held-out problems of a pilot, and how well a student does on them: loss on references, right answers.

On several processes each measures its share and all get the whole.
"""

import math
import pkgutil
import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from fractions import Fraction

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl import is_conversational

from rsr_trl.data import read_table
from rsr_trl.formats import check_no_images
from rsr_trl.rsr import MEAN_SURPRISAL, RSRError
from rsr_trl.scoring.architecture import num_positions
from rsr_trl.scoring.rows import TokenBar
from rsr_trl.scoring.scorer import RSRScorer
from rsr_trl.selection.table import labels


NUMBER = re.compile(r"(?:(?<![\w)])-)?\d+(?:,\d{3})*(?:\.\d+)?")  # a minus is a sign unless between two terms
REFERENCES = {"completion", "messages", "conversations", "text"}  # columns
PROBE_SECONDS, PROBE_ROWS = 12.0, 4  # of an estimate: how long, and how many rows (or new tokens) at first


class HeldOut:
    """
    Problems that no arm trains on: prompts with references (`completion`, or whole `messages`), with answers (which a
    checker of [`load_checker`] compares with responses), or both. The rows with one value of `problem_column` are
    references of one problem; without it every row is a problem.
    """

    def __init__(
        self, dataset: Dataset, problem_column=None, answer_column=None, checker=None, max_new_tokens: int = 512
    ):
        if not len(dataset):
            raise RSRError("The held-out set has no rows.")
        check_no_images(dataset, "A pilot", "held-out set")
        names, self.dataset = dataset.column_names, dataset.with_format(None)
        self.checker, self.max_new_tokens = checker, max_new_tokens
        self.has_references = not REFERENCES.isdisjoint(names)
        if not self.has_references and answer_column is None:
            raise RSRError(
                "The held-out set has neither references (completion or messages) nor answers (--answer_column): "
                f"there is nothing to measure. Its columns are {names}."
            )
        self._problem, self.problems = np.arange(len(dataset)), list(range(len(dataset)))
        if problem_column in names:
            self._problem, self.problems = labels(read_table(dataset, [problem_column]), problem_column)
        self._first = np.unique(self._problem, return_index=True)[1]
        self._answers = self._prompts = None
        if answer_column is not None:
            self._answers, self._prompts = self._one_per_problem(answer_column), self._read_prompts()
            self._check_answers(answer_column)

    def _one_per_problem(self, column: str) -> list:
        """The column's values, on which all rows of a problem must agree; nothing without such a column."""
        if column not in self.dataset.column_names:
            return [None] * len(self.problems)
        values = [_before_answer(value) if column == "messages" else value for value in self.dataset[column]]
        for row, first in enumerate(self._first[self._problem]):
            if values[row] != values[first]:
                raise RSRError(
                    f"Rows {first} and {row} of the held-out set are the same problem "
                    f"({self.problems[self._problem[row]]!r}), but differ in {column!r}."
                )
        return [values[row] for row in self._first]

    def _read_prompts(self) -> list[tuple]:
        """Prompt, tools and arguments of the chat template of each problem."""
        names = self.dataset.column_names
        if "prompt" not in names and "messages" not in names:
            raise RSRError(f"Responses need a prompt, or messages, in the held-out set; its columns are {names}.")
        columns = ("prompt" if "prompt" in names else "messages", "tools", "chat_template_kwargs")
        return list(zip(*map(self._one_per_problem, columns), strict=True))

    def _check_answers(self, column: str) -> None:
        for row, answer in zip(self._first, self._answers, strict=True):
            if answer is None:
                raise RSRError(f"Row {row} of the held-out set has no answer in {column!r}.")
            try:
                self.checker("", answer)
            except ValueError as error:
                where = f"Row {row} of the held-out set, column {column!r}"
                raise RSRError(f"{where}: {error}. Fix it or choose another --checker.") from error

    def measure(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, autocast=nullcontext
    ) -> list[dict]:
        """
        For each problem the student's `loss` in nats per token, its `response`, whether that was `cut` at the length
        limit and whether it is `correct`; `None` for what the held-out set has no references or answers for.
        """
        response = cut = correct = [None] * len(self.problems)
        loss = self.loss(model, tokenizer).tolist() if self.has_references else response
        if self._answers is not None:
            ids, state, mine = [prompt_ids(tokenizer, *prompt) for prompt in self._prompts], PartialState(), []
            order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))[state.process_index :: state.num_processes]
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                with autocast():
                    responses = generate(model, tokenizer, [ids[i] for i in batch], self.max_new_tokens)
                mine += [(i, *response) for i, response in zip(batch, responses, strict=True)]
            _, response, cut = zip(*sorted(gather_object(mine)), strict=True)
            correct = [bool(self.checker(text, answer)) for text, answer in zip(response, self._answers, strict=True)]
        problem = [name if isinstance(name, int) else str(name) for name in self.problems]
        keys = ("problem", "loss", "correct", "cut", "response")
        return [dict(zip(keys, row, strict=True)) for row in zip(problem, loss, correct, cut, response, strict=True)]

    def estimate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, autocast=nullcontext
    ) -> float:
        """Seconds that `measure` takes, from parts of it that take about [`PROBE_SECONDS`] each. Collective."""
        seconds = 0.0
        if self.has_references:
            scorer, done, start = RSRScorer(model, processing_class=tokenizer), 0, time.perf_counter()
            while done == 0 or (done < len(self.dataset) and time.perf_counter() - start < PROBE_SECONDS):
                rows = range(done, min(done + PROBE_ROWS, len(self.dataset)))
                with TokenBar(None, disable=True) as bar:
                    scorer.score_rows(self.dataset.select(rows), bar)
                done = rows.stop
            seconds += (time.perf_counter() - start) * len(self.dataset) / done
        if self._answers is not None:
            ids = sorted((prompt_ids(tokenizer, *prompt) for prompt in self._prompts), key=len)
            middle = max(0, (len(ids) - batch_size) // 2)
            num_tokens, taken, cut = PROBE_ROWS, 0.0, True
            while cut and (num_tokens == PROBE_ROWS or taken < PROBE_SECONDS / 4):
                num_tokens, start = min(4 * num_tokens, self.max_new_tokens), time.perf_counter()
                with autocast():
                    responses = generate(model, tokenizer, ids[middle : middle + batch_size], num_tokens)
                taken = time.perf_counter() - start
                cut = num_tokens < self.max_new_tokens and any(one for _, one in responses)
            # Of responses that go on, at most: none may be as long as the limit.
            seconds += taken * (self.max_new_tokens / num_tokens if cut else 1) * math.ceil(len(ids) / batch_size)
        return seconds / PartialState().num_processes

    def loss(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
        """Mean surprisal per token of a problem's references, in nats, mean over them: of shape `(problems,)`."""
        state = PartialState()
        rows = range(state.process_index, len(self.dataset), state.num_processes)
        with TokenBar(len(rows), disable=True) as bar:
            table = RSRScorer(model, processing_class=tokenizer).score_rows(self.dataset.select(rows), bar)
        measured = gather_object(list(zip(rows, table[MEAN_SURPRISAL].to_pylist(), strict=True)))
        surprisal = [value for _, value in sorted(measured)]
        if None in surprisal:
            row = surprisal.index(None)
            raise RSRError(f"Row {row} of the held-out set has no token to score: fix it or leave it out.")
        return np.bincount(self._problem, weights=surprisal) / np.bincount(self._problem)


def check_apart(pool: Dataset, held_out: Dataset) -> None:
    """Raise if a held-out problem is in the pool: its arm would have seen it; or if only one of the two is chats."""
    if is_conversational(pool[0]) != is_conversational(held_out[0]):
        chats, plain = ("pool", "held-out set") if is_conversational(pool[0]) else ("held-out set", "pool")
        raise RSRError(
            f"The {chats} holds chats and the {plain} plain text: the student would be measured on another format "
            "than it is trained on. Pass as_chat=True, which turns plain text into chats."
        )
    for column in {"prompt", "messages"}.intersection(pool.column_names, held_out.column_names):
        known = {_question(value) for value in pool[column]}
        if both := [row for row, value in enumerate(held_out[column]) if _question(value) in known]:
            raise RSRError(
                f"{len(both)} of the {len(held_out)} held-out rows have a prompt that is in the pool too (first: "
                f"row {both[0]}). Remove them from one of the two: a prompt can't be both trained on and held out."
            )


def _question(value: str | list[dict]) -> str:
    """What is asked: a plain prompt, or the first user turn of a chat, whatever the system message."""
    turns = [] if isinstance(value, str) else [turn["content"] for turn in value if turn["role"] == "user"]
    return str(turns[0] if turns else value)


def _before_answer(messages: list[dict]) -> list[dict]:
    """A conversation up to its last assistant turn."""
    return messages[: max((i for i, turn in enumerate(messages) if turn["role"] == "assistant"), default=None)]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str | list, tools, template_kwargs) -> list[int]:
    """A prompt as SFTTrainer tokenizes it: plain text as it is, a chat with its generation prompt."""
    if isinstance(prompt, str):
        return tokenizer(text=prompt)["input_ids"]
    options = {"add_generation_prompt": True, "return_dict": True, **(template_kwargs or {})}
    return tokenizer.apply_chat_template(prompt, tools=tools, **options)["input_ids"]


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens with which the model ends a response."""
    ends = model.generation_config.eos_token_id
    return {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}


@torch.no_grad()
def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], max_new_tokens: int
) -> list[tuple[str, bool]]:
    """Greedy responses to prompts of token ids, and whether each was cut: there, or at the student's last position."""
    positions, width = num_positions(model.config), max(map(len, prompts))
    room = min(max_new_tokens, positions - width)
    if room < 1:
        raise RSRError(f"A held-out prompt has {width} tokens, and the student only {positions} positions.")
    ends = end_tokens(model, tokenizer)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    # Instead of the student's own, which would warn about its sampling settings.
    own, was_training = model.generation_config, model.training
    greedy = {"do_sample": False, "max_new_tokens": room, "eos_token_id": sorted(ends), "pad_token_id": pad}
    model.generation_config = GenerationConfig(**greedy, use_cache=True)
    try:
        responses = model.eval().generate(input_ids=ids, attention_mask=mask)[:, width:].tolist()
    finally:
        model.generation_config = own
        model.train(was_training)
    results = []
    for response in responses:
        end = next((i for i, token in enumerate(response) if token in ends), None)
        results.append((tokenizer.decode(response[:end], skip_special_tokens=True), end is None))
    return results


def load_checker(name: str) -> Callable[[str, object], bool]:
    """
    What says whether a response is right: `"number"` (its last number is the answer's), `"line"` (its last line that
    isn't empty is), `"math"` (math-verify compares the mathematics), or the user's own `"module:function"`.
    """
    if name in ("number", "line"):
        return same_number if name == "number" else same_line
    if name == "math":
        return _math_checker()
    if ":" not in name:
        raise RSRError(f"--checker must be number, line, math or module:function, got {name!r}.")
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RSRError(f"--checker {name!r}: {error}. Is the name right, and its folder on PYTHONPATH?") from error


def same_number(response: str, answer: object) -> bool:
    """`"... so 1,234.50"` and `"1234.5"`."""
    expected, given = NUMBER.findall(str(answer)), NUMBER.findall(response)
    if not expected:
        raise RSRError(f"there is no number in the answer {str(answer)[:60]!r}")
    return bool(given) and Fraction(given[-1].replace(",", "")) == Fraction(expected[-1].replace(",", ""))


def same_line(response: str, answer: object) -> bool:
    if not str(answer).strip():
        raise RSRError("the answer is empty")
    last, expected = (text.strip().rpartition("\n")[2].strip() for text in (response, str(answer)))
    return last == expected


def _math_checker() -> Callable[[str, object], bool]:
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise RSRError("--checker math needs math-verify: pip install 'rsr-trl[pilot]'.") from error

    def same_mathematics(response: str, answer: object) -> bool:
        text = str(answer)
        marked = any(sign in text for sign in ("$", r"\boxed", r"\(", r"\["))
        expected = parse(text if marked else f"${text}$")
        if not expected:
            raise RSRError(f"math-verify can't read the answer {text[:60]!r}")
        return bool(verify(expected, parse(response)))

    return same_mathematics
