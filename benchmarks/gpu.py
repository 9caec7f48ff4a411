"""`make gpu`: one bounded run on a GPU: its tests, the head, scoring, shared prefixes and training, in one table.

Each part is a process of its own with a limit, and writes what it has measured line by line into `--output_dir`
(`<part>.jsonl`, `<part>.log`): a part that fails or is cut off takes nothing with it. Weights are random and made on
the device. `--toy` runs every part in a small size, on the CPU too.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from statistics import median


# In order of importance, with the seconds that each may take: less than 8 minutes in all on one H100.
PARTS = {
    "tests-scoring": 75,
    "head": 45,
    "scoring-0.6b": 70,
    "prefixes-0.6b": 55,
    "trainer": 75,
    "scoring-8b": 75,
    "prefixes-8b": 45,
    "tests-training": 60,
}
QWEN3 = {  # shapes of Qwen3-0.6B and Qwen3-8B
    "0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_layers": 28, "heads": 16, "tied": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 12_288, "num_layers": 36, "heads": 32, "tied": False},
    "toy": {"hidden_size": 64, "intermediate_size": 128, "num_layers": 2, "heads": 4, "tied": True},
}
VOCABULARY = {False: 151_936, True: 1000}  # by whether it is a toy
LENGTHS = {False: (2048, 8192, 32_768), True: (32, 64)}
TOKENS = {("0.6b", False): 262_144, ("8b", False): 65_536}  # of a measurement; at least two rows
SHARED = {False: [(12, 1024), (32, 1024), (12, 8192), (32, 8192)], True: [(3, 48)]}  # rows, tokens of their prompt
ANSWER = {False: 512, True: 16}
REPEATS = 3


# ------------------------------------------------------------------------------------------------ all parts in turn


def run_all(output_dir: Path, toy: bool, parts: list[str], minutes: float) -> None:
    """Each part in a process; then one table of all that was measured."""
    output_dir.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * minutes
    for part in parts:
        limit = min(PARTS[part], end - time.monotonic())
        if limit < 10:
            print(f"{part}: no time left")
            continue
        command = [sys.executable, "-m", "benchmarks.gpu", "--part", part, "--output_dir", str(output_dir)]
        if part.startswith("tests-"):
            tests = f"tests/{part.removeprefix('tests-')}/test_on_gpu.py"
            command = [
                sys.executable,
                "-m",
                "pytest",
                "-m",
                "gpu",
                "-p",
                "no:cacheprovider",
                "--tb=short",
                "-v",
                tests,
            ]
        elif toy:
            command.append("--toy")
        print(f"== {part} (at most {limit:.0f} s)", flush=True)
        started = time.monotonic()
        with open(output_dir / f"{part}.log", "w") as log:
            try:
                code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=limit).returncode
            except subprocess.TimeoutExpired:
                code = "cut off"
        lines = (output_dir / f"{part}.log").read_text(errors="replace").strip().splitlines()
        ending = lines[-1:] if part.startswith("tests-") else lines[-3:] if code else []
        print(*ending, f"exit {code}, {time.monotonic() - started:.0f} s", sep="\n", flush=True)
    print_table(output_dir)


def print_table(output_dir: Path) -> None:
    """Everything measured so far, and the same as `results.json`."""
    files = [output_dir / f"{part}.jsonl" for part in PARTS]
    rows = [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]
    (output_dir / "results.json").write_text(json.dumps(rows, indent=1))
    print(f"\n{'part':<14} {'what':<34} {'way':<12} {'seconds':>9} {'tokens/s':>10} {'x floor':>8} {'MiB':>8}")
    for row in rows:
        against, speed = row.get("floor_ratio"), row.get("tokens_per_second")
        print(
            f"{row['part']:<14} {row['what']:<34} {row['way']:<12} {row['seconds']:>9.4f} "
            f"{'' if speed is None else format(speed, ',.0f'):>10} "
            f"{'' if against is None else format(against, '.2f'):>8} {row.get('peak_mib', ''):>8}"
        )


# -------------------------------------------------------------------------------------------------------- measuring


class Measured:
    """Appends measurements of one part to its file as they come."""

    def __init__(self, part: str, output_dir: Path):
        self.part, self.file = part, output_dir / f"{part}.jsonl"
        self.file.write_text("")

    def add(self, what: str, ways: dict[str, Callable[[], object]], tokens: int | None = None) -> None:
        """Time the ways in turn, some rounds after one that doesn't count; the last one is the floor."""
        seconds: dict[str, list[float]] = {}
        memory: dict[str, int | str] = {}
        for name, run in ways.items():
            try:
                memory[name] = _peak_mib(run)
            except Exception as error:  # noqa: BLE001 - the other ways go on; the log has what happened
                print(f"{what}, {name}: {type(error).__name__}: {error}", flush=True)
            else:
                seconds[name] = []
        for _ in range(REPEATS):
            for name, times in seconds.items():
                times.append(_seconds(ways[name]))
        floor = seconds.get("floor")
        with self.file.open("a") as file:
            for name, times in seconds.items():
                row = {"part": self.part, "what": what, "way": name, "seconds": median(times), "all_seconds": times}
                row["peak_mib"] = memory[name]
                if tokens is not None:
                    row["tokens_per_second"] = tokens / median(times)
                if floor is not None:
                    row["floor_ratio"] = median(a / b for a, b in zip(times, floor, strict=True))
                print(json.dumps(row), file=file)


def _seconds(run: Callable[[], object]) -> float:
    import torch

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak_mib(run: Callable[[], object]) -> int | str:
    """MiB that a run allocates at its peak, above what is there before; unknown on the CPU."""
    import torch

    if not torch.cuda.is_available():
        run()
        return ""
    torch.cuda.empty_cache()
    run()  # compiles
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20)


def make_student(name: str, toy: bool, attention: str | None = None):
    """A random Qwen3 of the given shape in bfloat16, made on the device."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from rsr_trl.scoring.loading import default_device

    shape = QWEN3["toy" if toy else name]
    config = Qwen3Config(
        vocab_size=VOCABULARY[toy],
        hidden_size=shape["hidden_size"],
        intermediate_size=shape["intermediate_size"],
        num_hidden_layers=shape["num_layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=2 if toy else 8,
        head_dim=16 if toy else 128,
        max_position_embeddings=65_536,
        tie_word_embeddings=shape["tied"],
        attn_implementation=attention,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)  # 8B parameters in float32 first would be 32 GB
    try:
        with torch.device(default_device()):
            return Qwen3ForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def make_rows(count: int, length: int, toy: bool, prompt: int | None = None) -> list:
    """Random rows, three quarters scored; or all with the same `prompt` tokens first, and the rest scored."""
    import numpy as np

    from rsr_trl.scoring.tokens import TokenizedExample

    random = np.random.default_rng(0)
    ids = random.integers(0, VOCABULARY[toy], (count, length), dtype=np.int32)
    if prompt is not None:
        ids[:, :prompt] = ids[0, :prompt]
    scored = np.arange(length) >= (length // 4 if prompt is None else prompt)
    return [TokenizedExample(row, scored) for row in ids]


# ------------------------------------------------------------------------------------------------------------ parts


def measure_scoring(name: str, toy: bool, measured: Measured) -> None:
    """Whole scoring of rows of one length, beside TRL's fused log-probabilities and the floor."""
    import numpy as np
    import torch
    from trl.trainer.utils import add_fused_lm_head

    from rsr_trl.scoring.student import Student

    model = make_student(name, toy)
    fused = make_student(name, toy) if name != "8b" else model  # 8B twice would be 33 GB: patched, it stays the same
    add_fused_lm_head(fused)
    weight = model.get_output_embeddings().weight

    def batches(rows: list) -> Iterator[tuple]:
        """Ids and which are scored, as many rows as the product takes: all have the same length, so none is padded."""
        size = max(1, Student(model).max_batch_tokens // len(rows[0].input_ids))
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            arrays = np.stack([row.input_ids for row in batch]), np.stack([row.scored for row in batch])
            yield tuple(torch.from_numpy(array).to(model.device) for array in arrays)

    @torch.no_grad()
    def trl_log_probs(rows: list) -> None:
        for ids, scored in batches(rows):
            labels = ids.long().masked_fill(~scored, -100)
            fused(input_ids=ids.long(), labels=labels, fused_lm_head=True, use_cache=False)

    @torch.no_grad()
    def floor(rows: list) -> None:
        """The bare backbone, and one product of scored positions with the vocabulary."""
        product = torch.empty(4096, len(weight), dtype=weight.dtype, device=weight.device)
        for ids, scored in batches(rows):
            hidden = model.base_model(input_ids=ids.long(), use_cache=False).last_hidden_state
            for part in hidden[:, :-1][scored[:, 1:]].split(len(product)):
                torch.mm(part, weight.T, out=product[: len(part)])

    for length in LENGTHS[toy]:
        rows = make_rows(max(2, TOKENS.get((name, toy), 256) // length), length, toy)
        student = Student(model)
        ways = {
            "rsr_trl": lambda student=student, rows=rows: student.score(rows),
            "moments": lambda student=student, rows=rows: student.score(rows, with_top1=True, with_moments=True),
            "TRL fused": lambda rows=rows: trl_log_probs(rows),
            "floor": lambda rows=rows: floor(rows),
        }
        measured.add(f"{len(rows)} rows of {length:,}", ways, tokens=len(rows) * length)


def measure_head(toy: bool, measured: Measured) -> None:
    """The head alone: tiles folded eagerly, compiled, and by a Triton kernel, beside the bare product."""
    import torch

    from rsr_trl.scoring import lm_head
    from rsr_trl.scoring.loading import default_device

    device, count = default_device(), 64 if toy else 32_768
    for name in ("0.6b", "8b"):
        size = 64 if toy else QWEN3[name]["hidden_size"]
        torch.manual_seed(0)
        linear = torch.nn.Linear(size, VOCABULARY[toy], bias=False, device=device, dtype=torch.bfloat16)
        head = lm_head.LMHead(linear)
        hidden = torch.randn(count, size, device=device, dtype=torch.bfloat16)
        targets = torch.randint(VOCABULARY[toy], (count,), device=device)
        product = torch.empty(min(count, 4096), VOCABULARY[toy], device=device, dtype=torch.bfloat16)

        def bare(hidden=hidden, weight=linear.weight, product=product):
            with torch.no_grad():
                for part in hidden.split(len(product)):
                    torch.mm(part, weight.T, out=product[: len(part)])

        def compiled(head=head, hidden=hidden, targets=targets, **kwargs):
            return head.score(hidden, targets, compile=True, **kwargs)

        def by_triton(compiled=compiled):
            with triton_fold():
                return compiled()

        ways = {
            "eager": lambda head=head, hidden=hidden, targets=targets: head.score(hidden, targets),
            "compiled": compiled,
            "moments": lambda compiled=compiled: compiled(with_top1=True, with_moments=True),
            "triton": by_triton,
            "floor": bare,
        }
        measured.add(f"{count:,} positions, H={size}", ways, tokens=count)
        expected = ways["eager"]()
        for way in ("compiled", "triton"):
            with contextlib.suppress(ImportError):
                found = ways[way]()
                assert (found.ranks - expected.ranks).abs().max() <= 1, way
                torch.testing.assert_close(found.surprisals, expected.surprisals, rtol=1e-4, atol=1e-4)


@contextlib.contextmanager
def triton_fold() -> Iterator[None]:
    """`LMHead.score(compile=True)` folds tiles by a Triton kernel instead: what is there to gain?"""
    from rsr_trl.scoring import lm_head

    usual, fold = lm_head._compiled_fold, _make_triton_fold()
    lm_head._compiled_fold = lambda: fold
    try:
        yield
    finally:
        lm_head._compiled_fold = usual


@cache
def _make_triton_fold() -> Callable:
    import torch
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(logits, target, above, odds, stride, columns, block: tl.constexpr):
        """One row of a tile: `#{v : d_v > 0}` and `sum_v exp(d_v)`, where `d_v = z_v - z_t`; read once."""
        row = tl.program_id(0)
        own = tl.load(target + row)
        counts = tl.zeros([block], tl.float32)
        sums = tl.zeros([block], tl.float32)
        for start in range(0, columns, block):
            places = start + tl.arange(0, block)
            z = tl.load(logits + row * stride + places, mask=places < columns, other=-float("inf")).to(tl.float32)
            counts += (z > own).to(tl.float32)
            sums += tl.exp(z - own)
        tl.store(above + row, tl.sum(counts, axis=0))
        tl.store(odds + row, tl.sum(sums, axis=0))

    def fold(logits: torch.Tensor, target_logit: torch.Tensor, with_moments: bool) -> tuple[torch.Tensor, ...]:
        assert not with_moments, "only rank and surprisal"
        above, odds = torch.empty_like(target_logit), torch.empty_like(target_logit)
        kernel[(len(logits),)](logits, target_logit, above, odds, logits.stride(0), logits.shape[1], block=1024)
        return above, odds

    return fold


def measure_prefixes(name: str, toy: bool, measured: Measured) -> None:
    """Trajectories that share their prompt, with it read once and with it read for each."""
    from rsr_trl.scoring.student import Student

    model, answer = make_student(name, toy), ANSWER[toy]
    for count, prompt in SHARED[toy]:
        rows = make_rows(count, prompt + answer, toy, prompt)
        alone, shared = Student(model, share_prefixes=False), Student(model)
        ways = {
            "shared": lambda shared=shared, rows=rows: shared.score(rows),
            "floor": lambda alone=alone, rows=rows: alone.score(rows),  # each row by itself
        }
        measured.add(f"{count} rows, prompt {prompt:,} + {answer}", ways, tokens=count * (prompt + answer))
        found, expected = ways["shared"](), ways["floor"]()
        off = abs(found.surprisals - expected.surprisals).mean() / expected.surprisals.mean()
        print(f"mean difference of surprisals: {off:.2e}", flush=True)


def measure_trainer(toy: bool, measured: Measured) -> None:
    """Training steps of RSRSFTTrainer beside SFTTrainer's, and a scoring pass beside a bare forward."""
    import datasets
    import torch
    from transformers import AutoTokenizer

    from benchmarks.overhead import measure_overheads
    from rsr_trl.demo import STUDENT_PATH
    from rsr_trl.demo.teachers import make_pool

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(STUDENT_PATH)
    model = make_student("0.6b", toy).float()
    model.resize_token_embeddings(max(model.config.vocab_size, len(tokenizer)))
    for config in (model.config, model.generation_config):
        config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    on_gpu = torch.cuda.is_available()
    seconds = measure_overheads(
        model,
        tokenizer,
        make_pool(num_problems=20, seed=0).select(range(8 if toy else 48)),
        steps=6 if toy else 8,
        repeats=1 if toy else 2,
        per_device_train_batch_size=2 if toy else 8,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        logging_strategy="no",
    )
    with measured.file.open("a") as file:
        for way, times in seconds.items():
            floor = seconds["bare" if way in ("rescore", "bare") else "sft"]
            row = {"part": "trainer", "what": "a step, or a pass over all rows", "way": way, "seconds": median(times)}
            print(json.dumps({**row, "all_seconds": times, "floor_ratio": row["seconds"] / median(floor)}), file=file)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("gpu_output"), help="Folder for results and logs.")
    parser.add_argument("--minutes", type=float, default=8, help="Time for all parts together.")
    parser.add_argument("--parts", default=",".join(PARTS), help="Parts to run, separated by commas.")
    parser.add_argument("--toy", action="store_true", help="Small sizes, to try every part on the CPU.")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # the process of one part
    args = parser.parse_args()
    if args.part is None:
        run_all(args.output_dir, args.toy, args.parts.split(","), args.minutes)
        return
    measured = Measured(args.part, args.output_dir)
    kind, _, name = args.part.partition("-")
    if kind == "scoring":
        measure_scoring(name, args.toy, measured)
    elif kind == "prefixes":
        measure_prefixes(name, args.toy, measured)
    elif kind == "head":
        measure_head(args.toy, measured)
    else:
        measure_trainer(args.toy, measured)


if __name__ == "__main__":
    main()
