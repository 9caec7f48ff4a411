"""A look at what RSD and P-ALIGN write (docs/neighbours.md), on a few problems: counts, and with --show the texts.

    python -m benchmarks.neighbours rsd path/to/student path/to/teacher path/to/gsm8k_12_teachers.jsonl [--show]
    python -m benchmarks.neighbours p_align path/to/student path/to/gsm8k_12_teachers.jsonl [--show]

The data have `prompt`, `completion` and `gold` in every line; the first line of each problem is taken. At most 200
tokens are written. This is a look at texts, not evidence: only a training shows whether they teach.
"""

import argparse
import tempfile
import time
from collections import Counter

import numpy as np
from datasets import Dataset, load_dataset
from transformers import AutoTokenizer

from rsr_trl import RSRScorer, data
from rsr_trl.experimental import p_align, rsd
from rsr_trl.scoring.loading import load_model


LENGTH = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=["rsd", "p_align"])
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--num_problems", type=int, default=4)
    parser.add_argument("--num_samples", type=int, default=4)
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    *models, path = args.paths
    pool = load_dataset("json", data_files=path, split="train").select_columns(["prompt", "completion", "gold"])
    first = [pool["prompt"].index(prompt) for prompt in pool.unique("prompt")[: args.num_problems]]
    problems = data.as_trl_format(pool.select(first), as_chat=True)
    loaded = [(load_model(name, device="cpu"), AutoTokenizer.from_pretrained(name)) for name in models]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        look = look_at_rsd if args.method == "rsd" else look_at_p_align
        texts = look(problems, loaded, f"{folder}/lines.jsonl", args.num_samples)
    print(f"{time.perf_counter() - start:.0f} s")
    for text in texts if args.show else ():
        print("-" * 100, text, sep="\n")


def look_at_rsd(problems: Dataset, loaded: list, path: str, num_samples: int) -> list[str]:
    (student, tokenizer), teacher = loaded
    decoder, asked = rsd.ReverseSpeculativeDecoder(student, tokenizer, *teacher), problems.remove_columns("completion")
    traces = decoder.generate(asked, path, num_samples, LENGTH, thinking=False)
    traces = rsd.choose_traces(traces, "gold", "number")
    print(f"{len(traces)} traces, {sum(traces['rsd_num_tokens'])} tokens: {dict(Counter(traces['rsd_error']))}")
    print(f"fallbacks: {min(traces['rsd_fallback_share']):.0%} to {max(traces['rsd_fallback_share']):.0%}")
    scorer = RSRScorer(student, tokenizer, scores=["rsd_share"])
    for name, rows in (("traces", traces), ("the data's own", problems)):
        scored = scorer.score(rows.select_columns(["prompt", "completion"]))
        print(f"{name}: rsd_share {np.mean(scored['score_rsd_share']):.3f}, RSR {np.mean(scored['rsr']):.2f}")
    return [f"{trace['rsd_error']}\n{trace['completion'][0]['content']}" for trace in traces]


def look_at_p_align(problems: Dataset, loaded: list, path: str, num_samples: int) -> list[str]:
    ((student, tokenizer),) = loaded
    scorer = RSRScorer(student, tokenizer)
    found = p_align.find_prefixes(problems, scorer)
    questions = [row["prompt"][0]["content"] for row in problems]
    for name in ("prefix", "completion"):
        texts = [row[name] if name == "prefix" else row[name][0]["content"] for row in found]
        print(f"margin of the {name}, nats: {np.round(p_align.verdict_margins(scorer, questions, texts), 2)}")
    print(f"sentences kept: {found['prefix_sentences'][:]}, a share of {np.mean(found['prefix_share']):.2f}")
    found = p_align.continue_prefixes(found, student, tokenizer, path, "gold", "number", LENGTH)
    print(f"continuations: {dict(Counter(found['continuation_error']))}")
    return [f"{row['prefix']}\n-> {row['continuation_error']}\n{row['continuation']}" for row in found]


if __name__ == "__main__":
    main()
