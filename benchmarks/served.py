"""Scoring through a vLLM server, 16 rows in flight and one at a time, against the student loaded here.

    VLLM_CPU_OMP_THREADS_BIND=0 VLLM_CPU_KVCACHE_SPACE=1 setsid .venv-vllm/bin/python \
        -m vllm.entrypoints.openai.api_server --model STUDENT --dtype float32 --max-model-len 2048 &
    OMP_NUM_THREADS=1 python -m benchmarks.served STUDENT gsm8k.jsonl http://localhost:8000 --session $!

The ways alternate in rounds, after one that isn't counted. CPU seconds are of this process and the server's session.
"""

import argparse
import os
import statistics
import time

import psutil

from rsr_trl import RSRScorer
from rsr_trl.data import as_trl_format, load
from rsr_trl.integrations.vllm import VLLMServer


def cpu_seconds(session: int) -> float:
    seconds = sum(psutil.Process().cpu_times()[:2])
    for process in psutil.process_iter():
        try:
            seconds += sum(process.cpu_times()[:2]) if os.getsid(process.pid) == session else 0
        except (psutil.NoSuchProcess, ProcessLookupError):
            pass
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student")
    parser.add_argument("dataset")
    parser.add_argument("url")
    parser.add_argument("--session", type=int, required=True, help="of the server's processes")
    parser.add_argument("--num_rows", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    dataset = as_trl_format(load(args.dataset).select(range(args.num_rows)), as_chat=True)
    ways = {
        "rsr_trl": {},
        "rsr_trl, nothing shared": {"share_prefixes": False},
        "vLLM, 16 in flight": {"engine": VLLMServer(args.url, concurrency=16)},
        "vLLM, one at a time": {"engine": VLLMServer(args.url, concurrency=1)},
    }
    scorers = {way: RSRScorer(args.student, dtype="float32", **settings) for way, settings in ways.items()}
    measured = {way: [] for way in ways}
    for turn in range(args.rounds + 1):
        for way, scorer in scorers.items():
            scorer.student  # noqa: B018 - loaded, and checked
            started, cpu = time.perf_counter(), cpu_seconds(args.session)
            scored = scorer.score(dataset)
            seconds = time.perf_counter() - started, cpu_seconds(args.session) - cpu
            print(f"round {turn}: {way:<26} {seconds[0]:6.1f} s {seconds[1]:6.1f} CPU-s", flush=True)
            if turn:
                measured[way].append(seconds)
    print(f"{args.num_rows} rows, {sum(scored['rsr_num_tokens']):,} scored tokens")
    for way, seconds in measured.items():
        wall, cpu = (statistics.median(x) for x in zip(*seconds, strict=True))
        ratios = [[a[k] / b[k] for a, b in zip(seconds, measured["rsr_trl"], strict=True)] for k in (0, 1)]
        said = [f"{statistics.median(r):.2f}x ({min(r):.2f}-{max(r):.2f})" for r in ratios]
        print(f"{way:<26} {wall:6.1f} s, {said[0]}; {cpu:6.1f} CPU-s, {said[1]}")


if __name__ == "__main__":
    main()
