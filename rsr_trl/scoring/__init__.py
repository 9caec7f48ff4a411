"""From an example to its scores: tokens, batches, the language-model head, and RSRScorer."""
