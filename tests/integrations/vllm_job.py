"""A vLLM engine without a server, as a user writes it: `python vllm_job.py ROWS.jsonl STUDENT SCORED`."""

import sys

import vllm
from datasets import load_dataset

from rsr_trl import RSRScorer
from rsr_trl.integrations.vllm import VLLMEngine


if __name__ == "__main__":  # vLLM starts processes that import this file
    rows, student, scored = sys.argv[1:]
    engine = VLLMEngine(vllm.LLM(student, dtype="float32", enforce_eager=True))
    dataset = load_dataset("json", data_files=rows, split="train")
    RSRScorer(student, engine=engine, token_stats=True).score(dataset).to_parquet(scored)
