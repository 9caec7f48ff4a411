"""`make bench`, or `python -m benchmarks.bench` with options: how fast scoring is beside the reference and the floor.

Ways over the same rows, in turn, several times:

- reference: the definition, as the paper's code computes it: padded batches in the data's order, all logits, top-100
  of each scored position;
- rsr_trl: what `rsr score` does;
- alone: the same without shared prefixes;
- floor: what no way can do without: the backbone over the tokens, unpadded, and one matrix product of the scored
  positions with the vocabulary;
- shared floor: the same over the pieces into which equal beginnings of the ids cut the rows, each of them once, with
  the attention to what lies before it: the backbone over the rows up to each piece's end, less up to its start.
"""

import contextlib
import ctypes
import json
import multiprocessing
import platform
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Literal

from trl import TrlParser

from rsr_trl.cli.options import option_parser


if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from rsr_trl.scoring.prefixes import Piece
    from rsr_trl.scoring.tokens import TokenizedExample


@dataclass
class BenchArguments:
    """
    What to measure.

    Args:
        model_name_or_path (`str`, *optional*): Student to measure; a random Qwen3-shaped one by default.
        vocab_size, hidden_size, intermediate_size, num_layers, head_dim (`int`, *optional*): Shape of the random
        student. dataset_name (`str`, *optional*): Real rows (prompt and completion); needs `tokenizer`. Random tokens
        by default. tokenizer (`str`, *optional*): Tokenizer of the real rows; the student's own by default.
        num_rows (`int`, *optional*, defaults to `64`): Rows to measure on, evenly spread over the dataset.
        rows_together (`int`, *optional*, defaults to `1`): Rows that are taken from each place, such as a problem's.
        as_chat (`bool`, *optional*, defaults to `False`): Wrap plain text into a chat, as in `rsr score`.
        lengths (`str`, *optional*): Lengths of random rows, used in turn.
        prompt_share (`float`, *optional*, defaults to `0.25`): Share of a random row that isn't scored.
        batch_size (`int`, *optional*, defaults to `4`): Rows of a batch of the reference way.
        dtype, device, attn_implementation, max_batch_tokens: As in `rsr score`.
        repeats (`int`, *optional*, defaults to `5`): Rounds; each measures every way once.
        trainer (`bool`, *optional*, defaults to `False`): Measure training instead, on the demo's problems.
        trainer_batch_size (`int`, *optional*, defaults to `4`): Rows of a training step, with `trainer`.
        skip_reference (`bool`, *optional*, defaults to `False`): Leave the reference way out, where it doesn't fit.
        json (`bool`, *optional*, defaults to `False`): Print everything measured as JSON on standard output.
    """

    model_name_or_path: str | None = field(default=None, metadata={"help": "Student; by default a random one."})
    vocab_size: int = field(default=151_936, metadata={"help": "Vocabulary of the random student."})
    hidden_size: int = field(default=256, metadata={"help": "Hidden size of the random student."})
    intermediate_size: int = field(default=768, metadata={"help": "MLP size of the random student."})
    num_layers: int = field(default=6, metadata={"help": "Layers of the random student."})
    head_dim: int = field(default=64, metadata={"help": "Size of an attention head of the random student."})
    dataset_name: str | None = field(default=None, metadata={"help": "Real rows, as `rsr score` reads them."})
    tokenizer: str | None = field(default=None, metadata={"help": "Tokenizer of the real rows: Hub id or folder."})
    num_rows: int = field(default=64, metadata={"help": "Rows to measure on."})
    rows_together: int = field(default=1, metadata={"help": "Rows of one problem, which follow each other."})
    as_chat: bool = field(default=False, metadata={"help": "Wrap plain text into a chat, as `rsr score` does."})
    lengths: str = field(default="256,512,1024", metadata={"help": "Lengths of random rows, separated by commas."})
    prompt_share: float = field(default=0.25, metadata={"help": "Share of a random row that isn't scored."})
    batch_size: int = field(default=4, metadata={"help": "Rows per batch of the reference."})
    dtype: Literal["bfloat16", "float16", "float32"] = field(default="float32", metadata={"help": "Student's dtype."})
    device: str | None = field(default=None, metadata={"help": "By default the best available."})
    attn_implementation: str | None = field(default=None, metadata={"help": "Attention implementation."})
    max_batch_tokens: int | None = field(default=None, metadata={"help": "Tokens per batch of rsr_trl."})
    repeats: int = field(default=5, metadata={"help": "Rounds; each times every way once."})
    trainer: bool = field(
        default=False,
        metadata={"help": "Measure training instead: RSRSFTTrainer's steps beside SFTTrainer's, and a scoring pass."},
    )
    trainer_batch_size: int = field(default=4, metadata={"help": "Rows of a training step, with --trainer."})
    skip_reference: bool = field(default=False, metadata={"help": "Skip the reference."})
    json: bool = field(default=False, metadata={"help": "Print only a JSON summary, on standard output."})


def make_parser(prog: str | None = None) -> TrlParser:
    return option_parser(
        (BenchArguments,),
        prog=prog,
        description="Benchmark scoring on this machine: a reference implementation, rsr_trl, and a lower bound.",
    )


def main(args: BenchArguments) -> int:
    import torch

    from rsr_trl.cli import tables

    model = load_student(args)
    if args.trainer:
        return _bench_trainer(args, model)
    rows = load_rows(args)
    ways = make_ways(args, model, rows)
    out = tables.console()
    for name, run in ways.items():  # a round that doesn't count: compiling, caches, allocators
        with out.status(f"warming up: {name}"):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(args.repeats):
        for name, run in ways.items():
            with out.status(f"round {i + 1} of {args.repeats}: {name}"):
                elapsed, cpu = _time(run, model.device)
                seconds[name].append(elapsed)
                cpu_seconds[name].append(cpu)
    with out.status("peak memory"):
        memory = {name: peak_memory(args, name, model.device) for name in ways}

    tokens, scored = sum(len(row.input_ids) for row in rows), sum(int(row.scored.sum()) for row in rows)
    compared = cpu_seconds if model.device.type == "cpu" else seconds
    result = {
        "machine": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name()
        if model.device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "rows": len(rows),
        "tokens": tokens,
        "scored_tokens": scored,
        "tokens_read": sum(piece.stop - piece.start for piece in pieces_of(rows)),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "tokens_per_second": {name: tokens / median(times) for name, times in seconds.items()},
        "peak_bytes_above_weights": memory,
        # Ratios within a round: what slows the machine down for a while slows both. On the CPU, of CPU seconds.
        "time_ratio": {
            name: sorted(ours / other for ours, other in zip(compared["rsr_trl"], times, strict=True))
            for name, times in compared.items()
            if name != "rsr_trl"
        },
        "arguments": asdict(args),
    }
    if args.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        _print(out, result)
    return 0


def _bench_trainer(args: BenchArguments, model: "PreTrainedModel") -> int:
    """Time the trainers on the demo's problems: any tokens do, as long as all trainers get the same."""
    import datasets
    from transformers import AutoTokenizer

    from benchmarks.overhead import measure_overheads
    from rsr_trl.cli import tables
    from rsr_trl.cli.tables import Column, print_table
    from rsr_trl.demo import STUDENT_PATH
    from rsr_trl.demo.teachers import make_pool

    datasets.disable_progress_bars()
    name = args.tokenizer or args.model_name_or_path or str(STUDENT_PATH)
    steps = 8
    tokenizer = AutoTokenizer.from_pretrained(name)
    for config in (model.config, model.generation_config):  # trainers warn where a random student has others
        config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    with contextlib.redirect_stdout(sys.stderr):  # what the trainers print isn't our data
        seconds = measure_overheads(
            model.float(),
            tokenizer,
            make_pool(num_problems=20, seed=0).select(range(steps * args.trainer_batch_size // 2)),
            steps=steps,
            repeats=args.repeats,
            per_device_train_batch_size=args.trainer_batch_size,
            bf16=args.dtype == "bfloat16",
            use_cpu=model.device.type == "cpu",
            logging_strategy="no",
            # TRL's default, under the name that doesn't warn
            gradient_checkpointing=None,
            activation_checkpointing=True,
        )
    pairs = {
        "step, strategy no / SFTTrainer": ("no", "sft"),
        "step, strategy online / SFTTrainer": ("online", "sft"),
        "full scoring pass / bare forward": ("rescore", "bare"),
    }
    # All train on the same examples in the same order: a step is compared with the same step.
    ratios = {
        what: sorted(a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True))
        for what, (ours, theirs) in pairs.items()
    }
    if args.json:
        print(json.dumps({"seconds": seconds, "ratios": ratios, "arguments": asdict(args)}, ensure_ascii=False))
        return 0
    out = tables.console()
    columns = (
        Column("what", lambda item: item[0]),
        Column("median", lambda item: f"{median(item[1]):.2f}x"),
        Column("spread", lambda item: f"{item[1][0]:.2f}-{item[1][-1]:.2f}x"),
        Column("measured", lambda item: len(item[1])),
    )
    print_table(out, list(ratios.items()), columns)
    unit = "CPU seconds" if model.device.type == "cpu" else "seconds"
    out.print(f"Median {unit}: " + ", ".join(f"{name} {median(values):.3f}" for name, values in seconds.items()))
    return 0


def _print(out, result: dict) -> None:
    from rsr_trl.cli.tables import Column, print_table

    def memory(way: str) -> str:
        peak = result["peak_bytes_above_weights"][way]
        return "unknown" if peak is None else f"{peak / 2**20:,.0f} MiB"

    def ratio(way: str) -> str:
        ratios = result["time_ratio"].get(way)
        return "" if ratios is None else f"{median(ratios):.2f}x ({ratios[0]:.2f}-{ratios[-1]:.2f})"

    seconds = result["seconds"]
    out.print(f"\n{result['device']}, torch {result['torch']}, {result['arguments']['dtype']}")
    out.print(
        f"{result['rows']:,} rows, {result['tokens']:,} tokens, {result['scored_tokens']:,} of them scored; "
        f"{result['tokens_read']:,} where what rows begin with alike counts once"
    )
    columns = (
        Column("way", str),
        Column("seconds", lambda way: f"{median(seconds[way]):.2f}"),
        Column("spread", lambda way: f"{min(seconds[way]):.2f}-{max(seconds[way]):.2f}"),
        Column("tokens/s", lambda way: f"{result['tokens_per_second'][way]:,.0f}"),
        Column("peak memory", memory),
        Column("rsr_trl takes", ratio),
    )
    print_table(out, list(seconds), columns)
    out.print("Medians over the rounds; peak memory is above the weights. Ratios on the CPU are of CPU seconds.")


# ------------------------------------------------------------------------------------------------- student and rows


def load_student(args: BenchArguments) -> "PreTrainedModel":
    """The student to measure: given, or random of the given shape (speed doesn't depend on what it has learnt)."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from rsr_trl.scoring.loading import default_device, load_model

    device = torch.device(args.device) if args.device else default_device()
    if args.model_name_or_path:
        return load_model(
            args.model_name_or_path, dtype=args.dtype, device=device, attn_implementation=args.attn_implementation
        )
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        intermediate_size=args.intermediate_size,
        num_hidden_layers=args.num_layers,
        num_attention_heads=max(1, args.hidden_size // args.head_dim),
        num_key_value_heads=max(1, args.hidden_size // args.head_dim // 2),
        head_dim=args.head_dim,
        max_position_embeddings=131_072,
        tie_word_embeddings=True,
        attn_implementation=args.attn_implementation,
    )
    with torch.device(device):
        return Qwen3ForCausalLM(config).to(getattr(torch, args.dtype)).eval()


def load_rows(args: BenchArguments) -> list["TokenizedExample"]:
    """Rows of a dataset, or random tokens."""
    import numpy as np

    from rsr_trl.scoring.tokens import ExampleTokenizer, TokenizedExample

    if args.dataset_name:
        from transformers import AutoTokenizer

        from rsr_trl import data

        name = args.tokenizer or args.model_name_or_path
        if name is None:
            raise ValueError("Pass --tokenizer with --dataset_name: a random student has none.")
        dataset = data.load(args.dataset_name)
        size, num_rows = args.rows_together, min(args.num_rows, len(dataset))
        places = np.linspace(0, len(dataset) // size - 1, -(-num_rows // size)).astype(int) * size
        picks = (places[:, None] + np.arange(size)).flatten()[:num_rows]
        picked = data.as_trl_format(dataset.select(picks), as_chat=args.as_chat)
        rows = ExampleTokenizer(AutoTokenizer.from_pretrained(name))(list(picked), picked.features)
        if errors := [row.error for row in rows if row.error]:
            raise ValueError(f"{len(errors)} of the rows can't be scored, the first because {errors[0]}.")
        return rows
    random = np.random.default_rng(0)
    lengths = [int(length) for length in args.lengths.split(",")]
    rows = []
    for i in range(args.num_rows):
        length = lengths[i % len(lengths)]
        scored = np.arange(length) >= max(1, int(length * args.prompt_share))
        rows.append(TokenizedExample(random.integers(0, args.vocab_size, length, dtype=np.int32), scored))
    return rows


# ------------------------------------------------------------------------------------------------------ the ways


def make_ways(
    args: BenchArguments, model: "PreTrainedModel", rows: Sequence["TokenizedExample"]
) -> dict[str, Callable[[], tuple[float, float] | None]]:
    """What is measured, by name."""
    from rsr_trl.scoring.student import Student

    student = Student(model, args.max_batch_tokens)
    alone = Student(model, args.max_batch_tokens, share_prefixes=False)

    def score(student: Student) -> None:
        student.score(rows)

    ways = {
        "reference": lambda: reference(model, rows, args.batch_size),
        "rsr_trl": lambda: score(student),
        "alone": lambda: score(alone),
        "floor": lambda: floor(model, rows),
        "shared floor": lambda: shared_floor(model, rows),
    }
    if args.skip_reference:
        del ways["reference"]
    return ways


def reference(model: "PreTrainedModel", rows: Sequence["TokenizedExample"], batch_size: int) -> None:
    """Rank (of the top 100) and surprisal by all logits of padded batches: the definition."""
    import torch

    with torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            longest = max(len(row.input_ids) for row in batch)
            ids = torch.zeros(len(batch), longest, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for i, row in enumerate(batch):
                ids[i, : len(row.input_ids)] = torch.from_numpy(row.input_ids)
                mask[i, : len(row.input_ids)] = 1
            ids, mask = ids.to(model.device), mask.to(model.device)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits  # (B, T, V)
            for i, row in enumerate(batch):
                positions = torch.from_numpy(row.scored.nonzero()[0]).to(model.device)
                own = logits[i, positions - 1]  # (K, V)
                target = own.float().gather(1, ids[i, positions][:, None])
                (own.float().logsumexp(-1) - target[:, 0]).cpu()
                (1 + (own.topk(100).values.float() > target).sum(-1)).clamp(max=100).cpu()


def pieces_of(rows: Sequence["TokenizedExample"]) -> list["Piece"]:
    """The rows cut where they are no longer equal, each common beginning once."""
    from rsr_trl.scoring.prefixes import plan_readings

    plan = plan_readings([row.input_ids for row in rows], 1, "equal", max_prefix_tokens=2**31, pass_tokens=0)
    return [piece for reading in plan for piece in reading.pieces]


def shared_floor(model: "PreTrainedModel", rows: Sequence["TokenizedExample"]) -> tuple[float, float]:
    """The floor of the rows up to the end of each piece; returns twice the time of the backbone up to its start."""
    import numpy as np

    from rsr_trl.scoring.prefixes import scored_in
    from rsr_trl.scoring.tokens import TokenizedExample

    scored, ends, starts = [row.scored for row in rows], [], []
    for piece in pieces_of(rows):
        ids, nothing = rows[piece.rows[0]].input_ids, np.zeros(piece.start, dtype=bool)
        ends.append(TokenizedExample(ids[: piece.stop], np.concatenate([nothing, scored_in(piece, scored)])))
        starts += [TokenizedExample(ids[: piece.start], nothing)] * (piece.start > 0)
    floor(model, ends)
    elapsed, cpu = _time(lambda: floor(model, starts), model.device)
    return 2 * elapsed, 2 * cpu


def floor(model: "PreTrainedModel", rows: Sequence["TokenizedExample"], positions_at_once: int = 512) -> None:
    """Backbone over unpadded rows, and the scored positions times the vocabulary; nothing is done with the product."""
    import torch

    head = model.get_output_embeddings().weight  # (V, H)
    product = torch.empty(positions_at_once, head.shape[0], dtype=head.dtype, device=head.device)
    with torch.inference_mode():
        waiting = []
        for row in rows:
            ids = torch.from_numpy(row.input_ids).to(model.device, torch.int64)[None]
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
            waiting.append(hidden[torch.from_numpy(row.scored.nonzero()[0] - 1).to(model.device)])
            if row is rows[-1] or sum(len(h) for h in waiting) >= positions_at_once:
                for part in torch.cat(waiting).split(positions_at_once):
                    torch.mm(part, head.T, out=product[: len(part)])
                waiting = []


# ---------------------------------------------------------------------------------------------------- measuring


def _time(run: Callable[[], tuple[float, float] | None], device: "torch.device") -> tuple[float, float]:
    """Seconds and CPU seconds that it takes, less those that it returns."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
    start, cpu = time.perf_counter(), time.process_time()
    less, less_cpu = run() or (0.0, 0.0)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start - less, time.process_time() - cpu - less_cpu


def peak_memory(args: BenchArguments, way: str, device: "torch.device") -> int | None:
    """Bytes above the weights that one way needs at its peak; `None` where the system doesn't tell."""
    if device.type == "cuda":
        import torch

        # In this process: the allocator knows. The weights are there already.
        model = load_student(args)
        run = make_ways(args, model, load_rows(args))[way]
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    # In a process of its own: freed memory of another way doesn't blur the picture.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_memory_here, args, way).result()


def _peak_memory_here(args: BenchArguments, way: str) -> int | None:
    model, rows = load_student(args), load_rows(args)
    make_ways(args, model, rows[:1])[way]()  # thread pools, compiled code, lazy imports
    run = make_ways(args, model, rows)[way]
    try:
        ctypes.CDLL(None).malloc_trim(0)  # give back what the warm-up freed, so that it counts when it is used again
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # Linux: start the high-water mark anew
        before = _status_bytes("VmRSS")
        run()
        return _status_bytes("VmHWM") - before
    except (OSError, AttributeError):  # not Linux, or not glibc
        return None


def _status_bytes(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{name}:"))


if __name__ == "__main__":
    from rsr_trl.cli.options import parse

    main(*parse(make_parser(prog="python -m benchmarks.bench"), sys.argv[1:]))
