"""What `rsr score` says at its end, after a stop, and for `--dry_run`."""

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, IterableDataset, Value
from rich.text import Text

from rsr_trl.cli import summary
from rsr_trl.cli.summary import add_row, number, share
from rsr_trl.rsr import RSR, SCORE_PREFIX, TOKEN_COLUMNS


if TYPE_CHECKING:
    from rsr_trl.scoring.job import Job, Share, Totals
    from rsr_trl.scoring.scorer import RSRScorer
    from rsr_trl.scoring.tokens import TokenizedExample


NAMED_ROWS = 10  # rows without a score that the terminal names; JSON names more
PROBE_TOKENS = 200_000  # what a dry run scores at most
PROBE_SECONDS = 20.0


def finish(
    job: "Job", output_dir: str, max_length: int, teacher_column: str | None, as_json: bool, push_to_hub: str | None
) -> int:
    """Say what was done, upload it if asked, and return the exit code."""
    totals = job.totals()
    result = {"output_dir": output_dir, "max_length": max_length, **_progress(totals)}
    next_command = None
    if totals.complete:
        scores = _scores(job, teacher_column)
        result |= summary.figures(scores, teacher_column)
        others = [name for name in scores.column_names if name.startswith(SCORE_PREFIX)]
        not_scored = scores.data[RSR].null_count
        result["vocab_size"] = job.scorer.student.vocab_size
        result["undefined"] = {name: n for name in others if (n := scores.data[name].null_count - not_scored)}
        next_command = _next_command(job, output_dir, teacher_column)
        if push_to_hub:
            result["pushed_to"] = _push(output_dir, push_to_hub)
    if as_json:
        summary.print_json(result)
    elif totals.complete:
        _print_summary(result, next_command)
    else:
        _print_incomplete(totals, output_dir)
    return 0 if totals.scored or not totals.complete else 1


def _progress(totals: "Totals") -> dict:
    processes = {
        name: {**one, "tokens_per_second": one["tokens"] / one["seconds"] if one["seconds"] else None}
        for name, one in totals.processes.items()
    }
    return {
        "complete": totals.complete,
        "shards": totals.shards,
        "shards_done": totals.shards_done,
        "rows_done": totals.rows,
        "tokens": totals.tokens,
        "failed_rows": totals.failed_rows,
        "processes": processes,
        "balance": totals.balance,
    }


def _scores(job: "Job", teacher_column: str | None) -> Dataset:
    """The score columns alone: of a dataset bigger than memory they fit."""
    names = [name for name in job.scorer.schema if name not in TOKEN_COLUMNS]
    names += [teacher_column] if teacher_column else []
    parts = [pq.read_table(path, columns=names).replace_schema_metadata(None) for path in job.files()]
    return Dataset(pa.concat_tables(parts))


def _next_command(job: "Job", output_dir: str, teacher_column: str | None) -> Sequence[str]:
    """`rsr select` for this dataset: by problem if a column names the problem, else by share."""
    first = next(iter(job.files()))
    features = Dataset(pq.read_table(first)).features
    how = ["--keep_fraction", "0.5"]
    for column in ("prompt", "problem_id"):
        if features.get(column) == Value("string"):
            values = pq.read_table(first, columns=[column])[column]
            how = ["--group_column", column] if len(values.unique()) < len(values) else how
    how += ["--teacher_column", teacher_column] if teacher_column not in (None, "teacher") else []
    return [
        "rsr",
        "select",
        "--dataset_name",
        output_dir,
        *how,
        "--output_dir",
        summary.beside(output_dir, "selected"),
    ]


def _push(output_dir: str, repo_id: str) -> str:
    from huggingface_hub import HfApi

    from rsr_trl.data import STATE_FOLDER

    api = HfApi()
    url = api.create_repo(repo_id, repo_type="dataset", private=True, exist_ok=True)
    api.upload_folder(
        folder_path=output_dir,
        repo_id=repo_id,
        repo_type="dataset",
        ignore_patterns=[f"{STATE_FOLDER}/*", "**/.*"],
        delete_patterns=["data/*.parquet"],  # of an earlier upload with more files
        commit_message="Score trajectories with rsr-trl",
    )
    return str(url)


def _of(totals: "Totals") -> str:
    return (
        f"{totals.shards_done:,} of {'an unknown number of' if totals.shards is None else f'{totals.shards:,}'} shards"
    )


def print_stopped(totals: "Totals", output_dir: str) -> None:
    """Where a run stopped, and how to go on."""
    if not totals.shards_done:
        summary.console().print(
            Text(
                f"\nStopped before the first shard was done ({_of(totals)}): nothing is kept. With fewer rows in a "
                "shard (--shard_rows) less is lost."
            )
        )
        return
    summary.console().print(
        Text(
            f"\nStopped: {_of(totals)} are done ({totals.rows:,} trajectories, {totals.tokens:,} tokens) in "
            f"{output_dir}. They are kept. Run the same command again to go on."
        )
    )


def _print_incomplete(totals: "Totals", output_dir: str) -> None:
    out = summary.console()
    out.print(Text(f"\nNothing is left to take here: {_of(totals)} are done -> {output_dir}"))
    if totals.held_by:
        out.print(Text(f"Others are at work on the rest: {', '.join(totals.held_by)}."))
    else:
        out.print("The rest belongs to other parts (--shard i/n) that haven't run to their end.")


def _print_summary(result: dict, next_command: Sequence[str]) -> None:
    out = summary.console()
    rows = result["trajectories"]
    out.print(
        Text.assemble(
            "\n", (f"Scored {result['scored']:,} of {rows:,} trajectories", "bold"), f" -> {result['output_dir']}"
        )
    )
    if result["scored"]:
        out.print(
            f"RSR ({summary.DIRECTION}): median {number(result['rsr_median'])}, best tenth <= "
            f"{number(result['rsr_p10'])}, worst >= {number(result['rsr_p90'])}"
        )
    if result["scored"] and result["mean_surprisal"] > math.log(result["vocab_size"]):
        out.print(
            f"The student predicts this text worse than a blind guess among all its words would (mean surprisal "
            f"{result['mean_surprisal']:.2f} nats, ln {result['vocab_size']:,} = "
            f"{math.log(result['vocab_size']):.2f}): it is untrained, or the tokenizer is another model's."
        )
    if result["scored"] and "teachers" in result:
        _print_teachers(out, result["teachers"])
    if result["not_scored"]:
        out.print(f"Not scored: {share(rows - result['scored'], rows)}. They have null and are never chosen:")
        reasons = list(result["not_scored"].items())
        for reason, count in reasons[:5]:
            out.print(Text(f"  {count:,}  {reason}"))
        if len(reasons) > 5:
            out.print(f"  ... and {len(reasons) - 5} more reasons, in the column rsr_error.")
        named = result["failed_rows"][:NAMED_ROWS]
        more = ", ..." if rows - result["scored"] > len(named) else ""
        out.print(f"  rows {', '.join(map(str, named))}{more}")
    for name, count in result["undefined"].items():
        out.print(
            Text(f"{name} is null for {share(count, result['scored'])} of the scored: it isn't defined for them.")
        )
    if result["truncated"]:
        out.print(
            f"Truncated at {result['max_length']:,} tokens: {share(result['truncated'], rows)}. Their scores are of "
            "their beginnings only."
        )
    if result["short"] > 0.1 * rows:
        out.print(
            f"Short: {share(result['short'], rows)} have fewer than {summary.NOISY_BELOW} scored tokens. RSR is noisy "
            "on them, and answers without reasoning can look suitable by chance: look before you choose."
        )
    _print_processes(out, result)
    if "pushed_to" in result:
        out.print(Text(f"Uploaded to {result['pushed_to']}"))
    if result["scored"]:
        page = f"{summary.beside(result['output_dir'], 'report')}.html"
        look = ("rsr", "report", "--dataset_name", result["output_dir"], "--output", page)
        summary.print_next(out, *look, label="See it")
        summary.print_next(out, *next_command)


def _print_teachers(out, teachers: list[dict]) -> None:
    out.print("Teachers, most suitable first (means of their trajectories, in nats and tokens):")
    table = summary.plain_table("teacher", "RSR", "rank", "surprisal", "tokens", "scored")
    for one in teachers[: summary.MAX_TEACHERS]:
        add_row(
            table,
            one["teacher"],
            number(one["rsr"]),
            number(one["mean_clipped_rank"], 2),
            number(one["mean_surprisal"], 2),
            number(one["mean_tokens"], 0),
            f"{one['scored']:,}",
        )
    out.print(table)
    if (more := len(teachers) - summary.MAX_TEACHERS) > 0:
        out.print(f"... and {more} more teachers; --json lists them all.")


def _print_processes(out, result: dict) -> None:
    """How fast this run was: nothing where everything was there already."""
    processes = result["processes"]
    speeds = [one["tokens_per_second"] for one in processes.values() if one["tokens_per_second"]]
    if not speeds:
        return
    if len(processes) == 1:
        out.print(f"Speed: {speeds[0]:,.0f} tokens/s.")
        return
    out.print(
        f"Speed: {min(speeds):,.0f} to {max(speeds):,.0f} tokens/s in each of {len(processes)} processes; the least "
        f"busy worked {result['balance']:.0%} of the time of the busiest."
    )


# ---------------------------------------------------------------------------------------------------------- dry run


def dry_run(
    scorer: "RSRScorer",
    dataset: Dataset | IterableDataset,
    examples: Sequence["TokenizedExample"],
    shard_rows: int,
    whose: "Share",
    as_json: bool,
) -> int:
    """Estimate what a run would cost, from a sample that is tokenized and partly scored. Writes nothing."""
    if whose.number > 0 and not whose.own_only:
        return 0
    good = [example for example in examples if example.error is None]
    if not good:
        raise ValueError(f"None of {len(examples)} sampled rows can be scored, the first because {examples[0].error}.")
    tokens, scored_tokens = (sum(int(x) for x in part) / len(examples) for part in _lengths(good))
    speed = _speed(scorer, good)
    rows = len(dataset) if isinstance(dataset, Dataset) else None
    files = None if rows is None else -(-rows // shard_rows)
    result = {
        "rows": rows,
        "sampled_rows": len(examples),
        "sampled_without_score": len(examples) - len(good),
        "sampled_truncated": sum(example.truncated for example in good),
        "tokens_per_row": tokens,
        "tokens": None if rows is None else round(rows * tokens),
        "tokens_per_second": speed,
        "processes": whose.of,
        "seconds": None if rows is None else rows * tokens / speed / whose.of,
        "shard_rows": shard_rows,
        "files": files,
        # Ids, ranks, surprisals and top-1 of every scored token take 16 bytes before compression.
        "bytes_of_token_stats": None if rows is None or not scorer.token_stats else round(16 * rows * scored_tokens),
        # With the student, after the sample: it doesn't grow with rows.
        "host_bytes": psutil.Process().memory_info().rss,
        "peak_gpu_bytes": _peak_gpu_bytes(scorer),
    }
    if as_json:
        summary.print_json(result)
    else:
        _print_dry_run(result)
    return 0


def _lengths(examples: Sequence["TokenizedExample"]) -> tuple[list[int], list[int]]:
    return [len(example.input_ids) for example in examples], [example.scored.sum() for example in examples]


def _speed(scorer: "RSRScorer", examples: Sequence["TokenizedExample"]) -> float:
    """Tokens of the rows scored in a second, other passes included, measured after a round that doesn't count."""
    probe, tokens = [], 0
    for example in examples:
        if probe and tokens + len(example.input_ids) > PROBE_TOKENS:
            break
        probe.append(example)
        tokens += len(example.input_ids)
    scorer.score_tokenized(probe[:1])
    start, done, chunk, waiting = time.perf_counter(), 0, [], 0
    for example in probe:
        chunk.append(example)
        waiting += len(example.input_ids)
        if waiting >= scorer.student.max_batch_tokens or example is probe[-1]:
            scorer.score_tokenized(chunk)
            done, chunk, waiting = done + waiting, [], 0
            if time.perf_counter() - start > PROBE_SECONDS:
                break
    return done / (time.perf_counter() - start)


def _peak_gpu_bytes(scorer: "RSRScorer") -> int | None:
    import torch

    device = scorer.student.device
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _print_dry_run(result: dict) -> None:
    out = summary.console()
    rows = "an unknown number of" if result["rows"] is None else f"{result['rows']:,}"
    out.print(f"\nNothing was written. From {result['sampled_rows']:,} sampled rows:", style="bold")
    out.print(f"  {rows} rows of {result['tokens_per_row']:,.0f} tokens on average")
    out.print(f"  {result['tokens_per_second']:,.0f} tokens/s in one process")
    if result["rows"] is not None:
        out.print(
            f"  {result['tokens']:,} tokens: {result['seconds'] / 3600:,.2f} hours with {result['processes']} "
            f"process{'es' if result['processes'] > 1 else ''}"
        )
        out.print(f"  {result['files']:,} files of {result['shard_rows']:,} rows")
    if result["bytes_of_token_stats"]:
        out.print(f"  token statistics: about {result['bytes_of_token_stats'] / 2**30:,.2f} GiB before compression")
    out.print(f"  memory of one process: {result['host_bytes'] / 2**30:,.1f} GiB")
    if result["peak_gpu_bytes"]:
        out.print(f"  GPU memory: {result['peak_gpu_bytes'] / 2**30:,.1f} GiB at its peak on the sample")
    if result["sampled_without_score"]:
        out.print(f"  {share(result['sampled_without_score'], result['sampled_rows'])} of the sample can't be scored")
    if result["sampled_truncated"]:
        out.print(
            f"  {share(result['sampled_truncated'], result['sampled_rows'])} of the sample are cut at max_length"
        )
