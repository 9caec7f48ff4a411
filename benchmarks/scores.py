"""What the other scores of the same pass cost: `RSRScorer(scores="all").score(dataset)` beside RSR alone.

    python benchmarks/scores.py [--tokenizer Qwen/Qwen3-0.6B] [--dataset_name gsm8k.jsonl] [--num_rows 48]

Takes the options of `rsr bench`: the student is random and of that command's shape unless one is named. Without a
tokenizer it is the demo's, with the demo's student and problems. Rounds in turn; both ways do all that `rsr score`
does but write. Seconds are CPU seconds of the process on the CPU, where a second program would slow one way more than
the other, and wall-clock seconds on a GPU.
"""

import sys
import time
from statistics import median

import datasets
import numpy as np
import torch
from transformers import AutoTokenizer

from benchmarks.bench import BenchArguments, load_student
from rsr_trl import RSRScorer, data
from rsr_trl.cli.options import option_parser, parse
from rsr_trl.demo import STUDENT_PATH
from rsr_trl.demo.teachers import make_pool


def seconds_of(scorer: RSRScorer, dataset: datasets.Dataset) -> float:
    on_cpu = scorer.student.device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    start = clock()
    scorer.score(dataset)  # ends with numbers in memory: nothing is left waiting on the device
    return clock() - start


def main() -> None:
    (args,) = parse(option_parser((BenchArguments,), None, __doc__), sys.argv[1:])
    datasets.disable_progress_bars()
    name = args.tokenizer or args.model_name_or_path
    if name is None:
        args.model_name_or_path = name = str(STUDENT_PATH)
    tokenizer = AutoTokenizer.from_pretrained(name)
    rows = data.load(args.dataset_name) if args.dataset_name else make_pool(num_problems=50, seed=0)
    rows = rows.select(np.linspace(0, len(rows) - 1, min(args.num_rows, len(rows))).astype(int))
    model = load_student(args)
    ways = {
        way: RSRScorer(model, tokenizer, scores=scores, max_batch_tokens=args.max_batch_tokens)
        for way, scores in (("RSR alone", None), ("all scores", "all"))
    }
    for scorer in ways.values():  # a round that doesn't count
        scored = scorer.score(rows)
    seconds = {way: [] for way in ways}
    for i in range(args.repeats):
        for way in list(ways)[:: 1 if i % 2 else -1]:  # who comes first changes, in case it matters
            seconds[way].append(seconds_of(ways[way], rows))
    ratios = sorted(b / a for a, b in zip(*seconds.values(), strict=True))
    print(f"{torch.get_num_threads()} threads, {model.device.type}, {args.dtype}, {model.config.vocab_size:,} words")
    print(f"{len(rows):,} rows, {sum(scored['rsr_num_tokens']):,} scored tokens")
    for way, times in seconds.items():
        print(f"{way:<10} {median(times):8.3f} s  ({min(times):.3f}-{max(times):.3f})")
    for what, of in (("medians", median), ("fastest", min)):
        alone, everything = (of(times) for times in seconds.values())
        print(f"all scores / RSR alone, {what}: {everything / alone:.3f}")
    print(f"within a round: {median(ratios):.3f} ({ratios[0]:.3f}-{ratios[-1]:.3f})")


if __name__ == "__main__":
    main()
