"""Where the assistant's turns begin among the scored tokens of a row.

A scored dataset doesn't store it. So the row is tokenized again, and what that says counts only if it gives the very
ids that are stored.
"""

from collections.abc import Mapping

import numpy as np
from transformers import PreTrainedTokenizerBase

from rsr_trl.report.rows import num_answers
from rsr_trl.rsr import TOKEN_IDS
from rsr_trl.scoring.tokens import ExampleTokenizer


class TurnFinder:
    """
    Finds the turns of rows again.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The student's, with its chat template.

    Example:

    ```python
    >>> TurnFinder(tokenizer)(row)
    [0, 41, 97]
    ```
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenize = ExampleTokenizer(tokenizer) if tokenizer.is_fast else None

    def __call__(self, row: Mapping) -> list[int]:
        """
        First token of each turn among the scored ones. A turn of which nothing is scored, such as a tool call that
        the template leaves out, isn't there. `[0]` for a single turn, and where turns can't be told: the row no longer
        is what was scored, or was scored with another chat template.

        Args:
            row (`Mapping`): A row with the columns it was scored from, and `rsr_token_ids`.
        """
        stored = [] if row[TOKEN_IDS] is None else list(row[TOKEN_IDS])
        if self._tokenize is None or not stored or num_answers(row) < 2:
            return [0]
        try:
            example = self._tokenize([row])[0]
        except ValueError:  # no chat template, or columns that the scorer wouldn't take
            return [0]
        own = np.flatnonzero(example.scored)[: len(stored)]  # what is stored may have been cut
        if example.input_ids[own].tolist() != stored:
            return [0]
        return np.flatnonzero(np.diff(own, prepend=-2) > 1).tolist()  # other tokens stand before each turn
