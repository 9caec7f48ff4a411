"""The training set before the first step: what its cache depends on."""

from datasets import Dataset

from rsr_trl.scoring.tokens import ExampleTokenizer
from rsr_trl.training import prepare


def test_scored_tokens_of_another_definition_are_found_again(tiny_tokenizer, monkeypatch):
    dataset, tokenizer = Dataset.from_dict({"prompt": ["2+2="], "completion": ["4"]}), ExampleTokenizer(tiny_tokenizer)

    def cached_as():  # the name under which `datasets` looks for earlier results
        return prepare.add_scored_column(dataset, tokenizer, None)._fingerprint

    first = cached_as()
    assert cached_as() == first
    monkeypatch.setattr(prepare, "DEFINITION", "another")
    assert cached_as() != first
