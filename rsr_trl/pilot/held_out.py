"""The held-out problems of a pilot, and how well a student does on them: loss on references, right answers.

On several processes each measures its share and all get the whole.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl import is_conversational

from rsr_trl.data import read_table
from rsr_trl.pilot.answers import Checker
from rsr_trl.rsr import MEAN_SURPRISAL, score_schema
from rsr_trl.scoring.rows import TokenBar
from rsr_trl.scoring.scorer import RSRScorer
from rsr_trl.selection.table import labels


@dataclass(frozen=True)
class Scores:
    """
    How a student does on the held-out problems.

    Args:
        loss (float array of shape `(problems,)`, *optional*): Nats per token on its references, mean over them.
        correct (bool array of shape `(problems,)`, *optional*): Whether its response is right.
        responses (`list[str]`, *optional*): What it wrote.
        cut (bool array of shape `(problems,)`, *optional*): Whether the response ran into the length limit.
    """

    loss: np.ndarray | None
    correct: np.ndarray | None
    responses: list[str] | None
    cut: np.ndarray | None


class HeldOut:
    """
    Problems that no arm trains on.

    Args:
        dataset (`Dataset`): Prompts with references (`completion`, or whole `messages`), with answers, or both.
        group_column (`str`, *optional*): Column that names the problem, where it has several references. By default
            every row is a problem.
        answer_column (`str`, *optional*): Column with the true answer.
        checker (`Callable`, *optional*): Says whether a response is right, from [`load_checker`].

    Raises:
        ValueError: if there is nothing to measure, a problem has two prompts or two answers, or the checker can't read
            an answer.
    """

    def __init__(
        self, dataset: Dataset, group_column: str | None, answer_column: str | None, checker: Checker | None = None
    ):
        names = dataset.column_names
        if not len(dataset):
            raise ValueError("The held-out set has no rows.")
        self.dataset = dataset.with_format(None)
        self.checker = checker
        if group_column in names:
            self._problem, self.problems = labels(read_table(dataset, [group_column]), group_column)
        else:
            self._problem, self.problems = np.arange(len(dataset)), list(range(len(dataset)))
        self._first = np.unique(self._problem, return_index=True)[1]
        self.has_references = bool({"completion", "messages", "conversations", "text"} & set(names))
        if not self.has_references and answer_column is None:
            raise ValueError(
                "The held-out set has neither references (completion or messages) nor answers (answer_column): there "
                f"is nothing to measure. Its columns are {names}."
            )
        self.answers = None if answer_column is None else self._one_a_problem(answer_column)
        if self.answers is not None:
            self._check_answers(answer_column)

    def prompts(self) -> list[list | str]:
        """The prompt of each problem."""
        names = self.dataset.column_names
        if "prompt" in names:
            return self._one_a_problem("prompt")
        if "messages" in names:
            return [_before_answer(messages) for messages in self._one_a_problem("messages", alike=_before_answer)]
        raise ValueError(f"Responses need a prompt, or messages, in the held-out set; its columns are {names}.")

    def _one_a_problem(self, column: str, alike: Callable = lambda value: value) -> list:
        values = self.dataset[column][:]
        for row, problem in enumerate(self._problem):
            first = self._first[problem]
            if alike(values[row]) != alike(values[first]):
                raise ValueError(
                    f"Rows {first} and {row} of the held-out set are the same problem "
                    f"({self.problems[problem]!r}), but differ in {column!r}."
                )
        return [values[row] for row in self._first]

    def _check_answers(self, column: str) -> None:
        for row, answer in zip(self._first, self.answers, strict=True):
            if answer is None:
                raise ValueError(f"Row {row} of the held-out set has no answer in {column!r}.")
            try:
                self.checker("", answer)
            except ValueError as error:
                raise ValueError(
                    f"Row {row} of the held-out set, column {column!r}: {error}. Choose another checker or mend it."
                ) from error

    # ------------------------------------------------------------------------------------------------- measuring

    def loss(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, process: int = 0, of: int = 1
    ) -> np.ndarray:
        """
        Loss of each problem: mean surprisal of its references' tokens, in nats, mean over its references.

        Raises:
            ValueError: for a reference without a token to score.
            FloatingPointError: if the student gives NaN.
        """
        rows = np.arange(process, len(self.dataset), of)
        scorer = RSRScorer(model, processing_class=tokenizer)
        given = self.dataset.remove_columns([name for name in score_schema(True) if name in self._names])
        with TokenBar(len(rows), disable=True) as bar:
            table = scorer.score_rows(given.select(rows), bar)
        found = list(zip(rows.tolist(), table[MEAN_SURPRISAL].to_pylist(), strict=True))
        surprisal = np.full(len(self.dataset), np.nan)
        for row, value in gather_object(found):
            if value is None:
                raise ValueError(f"Row {row} of the held-out set has no token to score: mend it or leave it out.")
            surprisal[row] = value
        count = np.bincount(self._problem)
        return np.bincount(self._problem, weights=surprisal) / count

    @property
    def _names(self) -> list[str]:
        return self.dataset.column_names

    def respond(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: int,
        batch_size: int,
        process: int = 0,
        of: int = 1,
        autocast: Callable = nullcontext,
    ) -> tuple[list[str], np.ndarray]:
        """
        A greedy response to each problem.

        Returns:
            Responses, and whether each ran into `max_new_tokens` or the student's positions: bool array of shape
            `(problems,)`.
        """
        ids = self._prompt_ids(tokenizer)
        order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))[process::of]
        found = []
        with autocast():
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                texts = generate(model, tokenizer, [ids[i] for i in batch], max_new_tokens)
                found += [(i, *text) for i, text in zip(batch, texts, strict=True)]
        of_problem = {i: (text, cut) for i, text, cut in gather_object(found)}
        ordered = [of_problem[i] for i in range(len(ids))]
        return [text for text, _ in ordered], np.array([cut for _, cut in ordered])

    def check(self, responses: Sequence[str]) -> np.ndarray:
        """Which responses are right: bool array of shape `(problems,)`."""
        return np.array([bool(self.checker(*pair)) for pair in zip(responses, self.answers, strict=True)])

    def _prompt_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """The prompts as SFTTrainer tokenizes them: plain text as it is, a chat with its generation prompt."""
        prompts, found = self.prompts(), []
        rows = self.dataset.select(self._first)
        tools = rows["tools"][:] if "tools" in self._names else [None] * len(prompts)
        kwargs = rows["chat_template_kwargs"][:] if "chat_template_kwargs" in self._names else [None] * len(prompts)
        for prompt, tool, more in zip(prompts, tools, kwargs, strict=True):
            if is_conversational({"prompt": prompt}):
                encoded = tokenizer.apply_chat_template(
                    prompt, tools=tool, add_generation_prompt=True, tokenize=True, return_dict=True, **(more or {})
                )
            else:
                encoded = tokenizer(text=prompt)
            found.append(list(encoded["input_ids"]))
        return found


def _before_answer(messages: list[dict]) -> list[dict]:
    """A conversation up to its last assistant turn."""
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=len(messages))
    return messages[:last]


@torch.no_grad()
def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], max_new_tokens: int
) -> list[tuple[str, bool]]:
    """
    Greedy responses to a batch of prompts.

    Args:
        prompts (`list[list[int]]`): Token ids.
        max_new_tokens (`int`): Length limit of a response; the student's positions lower it.

    Returns:
        Response, and whether it was cut, for each prompt.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    width = max(map(len, prompts))
    room = max_new_tokens if positions is None else min(max_new_tokens, positions - width)
    if room < 1:
        raise ValueError(f"A held-out prompt has {width} tokens, and the student only {positions} positions.")
    ends = model.generation_config.eos_token_id
    ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    # In place of the student's own, whose sampling settings would be warned about.
    own, was_training = model.generation_config, model.training
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=room, eos_token_id=sorted(ends), pad_token_id=pad, use_cache=True
    )
    model.eval()
    try:
        made = model.generate(input_ids=ids, attention_mask=mask)[:, width:].tolist()
    finally:
        model.generation_config = own
        model.train(was_training)
    found = []
    for response in made:
        end = next((i for i, token in enumerate(response) if token in ends), None)
        found.append((tokenizer.decode(response[:end], skip_special_tokens=True), end is None))
    return found
