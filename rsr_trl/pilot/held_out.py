"""The held-out problems of a pilot, and how well a student does on them: loss on references, right answers.

On several processes each measures its share and all get the whole.
"""

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl import is_conversational

from rsr_trl.data import read_table
from rsr_trl.pilot.answers import Checker
from rsr_trl.rsr import MEAN_SURPRISAL, RSRError
from rsr_trl.scoring.rows import TokenBar
from rsr_trl.scoring.scorer import RSRScorer
from rsr_trl.selection.table import labels


class HeldOut:
    """
    Problems that no arm trains on: prompts with references (`completion`, or whole `messages`), with answers, or both.

    The rows with one value of `problem_column` are references of one problem; without it every row is a problem. The
    checker, from [`load_checker`], says whether a response is right.
    """

    def __init__(
        self,
        dataset: Dataset,
        problem_column: str | None = None,
        answer_column: str | None = None,
        checker: Checker | None = None,
        max_new_tokens: int = 512,
    ):
        if not len(dataset):
            raise RSRError("The held-out set has no rows.")
        self.dataset, self.checker, self.max_new_tokens = dataset.with_format(None), checker, max_new_tokens
        names, self._problem, self.problems = dataset.column_names, np.arange(len(dataset)), list(range(len(dataset)))
        if problem_column in names:
            self._problem, self.problems = labels(read_table(dataset, [problem_column]), problem_column)
        self._first = np.unique(self._problem, return_index=True)[1]
        self.has_references = not {"completion", "messages", "conversations", "text"}.isdisjoint(names)
        if not self.has_references and answer_column is None:
            raise RSRError(
                "The held-out set has neither references (completion or messages) nor answers (answer_column): there "
                f"is nothing to measure. Its columns are {names}."
            )
        self._answers = None if answer_column is None else self._read_answers(answer_column)
        self._prompts = None if answer_column is None else self._read_prompts()

    def _one_per_problem(self, column: str, part: Callable = lambda value: value) -> list:
        """`part` of the column's values, on which all rows of a problem must agree; nothing without such a column."""
        if column not in self.dataset.column_names:
            return [None] * len(self.problems)
        values = [part(value) for value in self.dataset[column]]
        for row, first in enumerate(self._first[self._problem]):
            if values[row] != values[first]:
                raise RSRError(
                    f"Rows {first} and {row} of the held-out set are the same problem "
                    f"({self.problems[self._problem[row]]!r}), but differ in {column!r}."
                )
        return [values[row] for row in self._first]

    def _read_answers(self, column: str) -> list:
        answers = self._one_per_problem(column)
        for row, answer in zip(self._first, answers, strict=True):
            if answer is None:
                raise RSRError(f"Row {row} of the held-out set has no answer in {column!r}.")
            try:
                self.checker("", answer)
            except ValueError as error:
                where = f"Row {row} of the held-out set, column {column!r}"
                raise RSRError(f"{where}: {error}. Choose another checker or fix it.") from error
        return answers

    def _read_prompts(self) -> list[tuple]:
        """Prompt, tools and arguments of the chat template of each problem."""
        prompts = self._one_per_problem("prompt")
        if "prompt" not in self.dataset.column_names:
            prompts = self._one_per_problem("messages", _before_answer)
        if prompts[0] is None:
            names = self.dataset.column_names
            raise RSRError(f"Responses need a prompt, or messages, in the held-out set; its columns are {names}.")
        return list(zip(prompts, *map(self._one_per_problem, ("tools", "chat_template_kwargs")), strict=True))

    def measure(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, autocast=nullcontext
    ) -> list[dict]:
        """
        What the student does on each problem: `loss` in nats per token, its `response`, whether that was `cut` at the
        length limit and whether it is `correct`; `None` for what the held-out set has no references or answers for.
        """
        response = cut = correct = [None] * len(self.problems)
        loss = self.loss(model, tokenizer) if self.has_references else np.array(response)
        if self._answers is not None:
            with autocast():
                response, cut = self.respond(model, tokenizer, batch_size)
            correct = [bool(self.checker(text, answer)) for text, answer in zip(response, self._answers, strict=True)]
        names = [name if isinstance(name, int) else str(name) for name in self.problems]
        keys = ("problem", "loss", "correct", "cut", "response")
        rows = zip(names, loss.tolist(), correct, cut, response, strict=True)
        return [dict(zip(keys, row, strict=True)) for row in rows]

    def loss(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
        """
        Mean surprisal of the tokens of a problem's references, in nats, mean over its references: float array of shape
        `(problems,)`. Raises `RSRError` for a reference without a token to score.
        """
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

    def respond(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
    ) -> tuple[list[str], list[bool]]:
        """A greedy response to each problem, and whether it ran into the length limit or the student's positions."""
        ids, state = [prompt_ids(tokenizer, *prompt) for prompt in self._prompts], PartialState()
        order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))[state.process_index :: state.num_processes]
        mine = []
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            responses = generate(model, tokenizer, [ids[i] for i in batch], self.max_new_tokens)
            mine += [(i, *response) for i, response in zip(batch, responses, strict=True)]
        _, texts, cut = zip(*sorted(gather_object(mine)), strict=True)
        return list(texts), list(cut)


def check_apart(pool: Dataset, held_out: Dataset) -> None:
    """Raise if a held-out problem is in the pool: its arm would have seen it; or if only one of the two is chats."""
    if is_conversational(pool[0]) != is_conversational(held_out[0]):
        chats, plain = ("pool", "held-out set") if is_conversational(pool[0]) else ("held-out set", "pool")
        raise RSRError(
            f"The {chats} holds chats and the {plain} plain text: the student would be measured on another format "
            "than it is trained on. Pass as_chat, which wraps what is plain."
        )
    for column in {"prompt", "messages"}.intersection(pool.column_names, held_out.column_names):
        known = {_question(value) for value in pool[column]}
        if both := [row for row, value in enumerate(held_out[column]) if _question(value) in known]:
            raise RSRError(
                f"{len(both)} of the {len(held_out)} held-out rows have a prompt that is in the pool too (first: "
                f"row {both[0]}). What was trained on can't be measured on: take them out of one of the two."
            )


def _question(value: str | list[dict]) -> str:
    """What is asked: a plain prompt, or the first user turn of a chat, whatever the system message."""
    if isinstance(value, str):
        return value
    return str(next((message["content"] for message in value if message["role"] == "user"), value))


def _before_answer(messages: list[dict]) -> list[dict]:
    """A conversation up to its last assistant turn."""
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=len(messages))
    return messages[:last]


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str | list[dict], tools: list | None, template_kwargs: dict | None
) -> list[int]:
    """A prompt as SFTTrainer tokenizes it: plain text as it is, a chat with its generation prompt."""
    if isinstance(prompt, str):
        return tokenizer(text=prompt)["input_ids"]
    options = {"add_generation_prompt": True, "return_dict": True, **(template_kwargs or {})}
    return tokenizer.apply_chat_template(prompt, tools=tools, **options)["input_ids"]


@torch.no_grad()
def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], max_new_tokens: int
) -> list[tuple[str, bool]]:
    """Greedy responses to prompts of token ids, and whether each was cut; the student's positions lower the limit."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    width = max(map(len, prompts))
    room = max_new_tokens if positions is None else min(max_new_tokens, positions - width)
    if room < 1:
        raise RSRError(f"A held-out prompt has {width} tokens, and the student only {positions} positions.")
    ends = model.generation_config.eos_token_id
    ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    # Instead of the student's own, which would warn about its sampling settings.
    own, was_training = model.generation_config, model.training
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=room, eos_token_id=sorted(ends), pad_token_id=pad, use_cache=True
    )
    model.eval()
    try:
        responses = model.generate(input_ids=ids, attention_mask=mask)[:, width:].tolist()
    finally:
        model.generation_config = own
        model.train(was_training)
    results = []
    for response in responses:
        end = next((i for i, token in enumerate(response) if token in ends), None)
        results.append((tokenizer.decode(response[:end], skip_special_tokens=True), end is None))
    return results
