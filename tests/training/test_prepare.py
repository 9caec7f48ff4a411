"""The training set before the first step: what its cache depends on."""

import pytest
from datasets import Dataset

from rsr_trl.scoring.tokens import ExampleTokenizer
from rsr_trl.training import prepare


@pytest.mark.parametrize("as_chat", [False, True])
def test_scored_tokens_of_another_definition_are_found_again(tiny_tokenizer, monkeypatch, as_chat):
    row = {"prompt": "2+2=", "completion": "4"}
    if as_chat:
        row = {"messages": [{"role": "user", "content": "2+2="}, {"role": "assistant", "content": "4"}]}
    dataset, tokenizer = Dataset.from_list([row]), ExampleTokenizer(tiny_tokenizer)

    def cached_as():  # the name under which `datasets` looks for earlier results
        return prepare.add_scored_column(dataset, tokenizer, None)._fingerprint

    first = cached_as()
    assert cached_as() == first
    monkeypatch.setattr(prepare, "DEFINITION", "another")
    assert cached_as() != first
