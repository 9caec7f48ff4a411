"""Training on what suits the student now: live scores, a sampler, a collator, a configuration and the trainer."""
