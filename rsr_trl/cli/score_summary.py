"""What `rsr score` says at its end, after a stop, and for `--dry_run`."""

import math
import time
from collections.abc import Sequence
from functools import partial

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from huggingface_hub import HfApi
from rich.console import Console

from rsr_trl.cli import tables
from rsr_trl.cli.options import OutputArguments
from rsr_trl.cli.summary import figures
from rsr_trl.cli.tables import Column, beside, print_next, print_table, say, short_ones
from rsr_trl.data import STATE_FOLDER, Columns, counted, duration, find_columns
from rsr_trl.report.format import number, share
from rsr_trl.rsr import DIRECTION, RSR, SCORE_PREFIX, TOKEN_COLUMNS, RSRError
from rsr_trl.scoring.chat_spans import training_twin
from rsr_trl.scoring.job import Job, default_shard_rows, tokenized_sample
from rsr_trl.scoring.loading import weight_bits
from rsr_trl.scoring.own_text import EARLIER, LOST
from rsr_trl.scoring.rows import count_notes, describe_notes
from rsr_trl.scoring.scorer import RSRScorer
from rsr_trl.scoring.tokens import NO_TEMPLATE, TokenizedExample
from rsr_trl.selection.table import ScoredTable


NAMED_ROWS, NAMED_REASONS = 10, 5  # that the terminal names; JSON and the column rsr_error have more
PROBE_TOKENS, PROBE_SECONDS = 200_000, 20.0  # what a dry run scores at most
TEACHERS = [Column("teacher", "teacher"), Column("RSR", "rsr", digits=3), Column("rank", "mean_clipped_rank")]
TEACHERS += [Column("surprisal", "mean_surprisal"), Column("tokens", "mean_tokens", digits=0)]
TEACHERS += [Column("scored", "scored")]


def say_what_is_there(job: Job) -> None:
    """At the start: what an earlier run has left, where it has."""
    if found := job.totals()["rows_done"]:
        of = "" if job.num_rows is None else f" of {job.num_rows:,}"
        rest = "Nothing is left to score." if job.was_complete else "Resuming with the rest."
        say(tables.console(), f"{found:,}{of} trajectories were scored by an earlier run. {rest}")


def warn_of_plain(scorer: RSRScorer, dataset: Dataset) -> None:
    """Before the work: say if a sample shows that the student's chat template isn't applied. A stream is read once."""
    examples = tokenized_sample(scorer, dataset) if isinstance(dataset, Dataset) else []
    plain = {NO_TEMPLATE: count_notes(examples)[NO_TEMPLATE]}
    for line in describe_notes(plain, len(examples), "sampled trajectories"):
        say(tables.console(), tables.in_options(line))


def finish(job: Job, args: OutputArguments, repo_id: str | None) -> int:
    """Say what is in the complete dataset, upload it to `repo_id` if given, and return the exit code."""
    scores, columns = _scores(job, args.teacher_column)
    result = _progress(job, args) | figures(ScoredTable.read(scores, Columns(columns.teacher)))
    result["warned"] = [NO_TEMPLATE] if isinstance(job.dataset, Dataset) else []  # before the work
    # Training templates keep the reasoning of earlier turns.
    has_one = EARLIER in result["notes"] and training_twin(job.scorer.processing_class) is not None
    result["training_template"] = has_one
    result["vocab_size"] = job.scorer.student.vocab_size
    result["weight_bits"] = weight_bits(job.scorer.model_id, job.scorer.config.revision)
    missing = {name: scores.data[name].null_count - scores.data[RSR].null_count for name in scores.column_names}
    result["undefined"] = {name: n for name, n in missing.items() if name.startswith(SCORE_PREFIX) and n}
    if repo_id:
        result["pushed_to"] = _push(args.output_dir, repo_id)
    tables.finish(args.json, result, lambda out: _show(out, result, columns))
    return 0 if result["scored"] else 1


def print_progress(job: Job, args: OutputArguments, is_stopped: bool = False) -> None:
    """How far the dataset is where it isn't complete, and how to go on."""
    result = _progress(job, args)
    of = "an unknown number of" if result["shards"] is None else f"{result['shards']:,}"
    done = f"{result['shards_done']:,} of {of} shards are done ({counted(result['rows_done'], 'trajectory')})"
    if not is_stopped:
        others = f"processes at work: {', '.join(result['at_work'])}" if result["at_work"] else "shares (--shard i/n)"
        text = f"This share is done: {done} -> {args.output_dir}\nThe rest belongs to other {others}."
    elif result["shards_done"]:
        text = f"Stopped: {done} and kept in {args.output_dir}. Run the same command again to resume."
    else:
        text = "Stopped before the first shard was done: nothing is kept. Lower --shard_rows to lose less."
    tables.finish(args.json and not is_stopped, result, lambda out: say(out, f"\n{text}"))


def _progress(job: Job, args: OutputArguments) -> dict:
    return {
        "output_dir": args.output_dir,
        "max_length": job.scorer.max_length,
        "day": job.scorer.written_day,
        **job.totals(),
    }


def _scores(job: Job, teacher_column: str | None) -> tuple[Dataset, Columns]:
    """The score columns and the teacher alone, which fit where the dataset doesn't; and the columns to go by."""
    files = [job.folder.paths(index)[0] for index in job.folder.done()]
    rows = job.dataset if isinstance(job.dataset, Dataset) else Dataset(pq.read_table(files[0]))
    columns = find_columns(rows, Columns(teacher_column, None, "none"))
    names = [name for name in job.scorer.schema if name not in TOKEN_COLUMNS]
    names += [columns.teacher] if columns.teacher else []
    scores = pa.concat_tables(pq.read_table(file, columns=names).replace_schema_metadata() for file in files)
    if columns.teacher and scores[columns.teacher].null_count:  # it was asked for, but doesn't say enough
        columns = Columns(None, columns.problem)
    return Dataset(scores), columns


def _push(output_dir: str, repo_id: str) -> str:
    url = HfApi().create_repo(repo_id, repo_type="dataset", private=True, exist_ok=True)
    HfApi().upload_folder(
        folder_path=output_dir,
        repo_id=url.repo_id,
        repo_type="dataset",
        ignore_patterns=[f"{STATE_FOLDER}/*", "**/.*"],
        delete_patterns=["data/*.parquet"],  # of an earlier upload with more files
        commit_message="Score trajectories with rsr-trl",
    )
    return str(url)


def _show(out: Console, result: dict, columns: Columns) -> None:
    scored, folder, surprisal = result["scored"], result["output_dir"], result["mean_surprisal"]
    say(out, f" -> {folder}", f"\nScored {scored:,} of {counted(result['trajectories'], 'trajectory')}")
    if scored:
        quantiles = [number(result[name], 3) for name in ("rsr_median", "rsr_p10", "rsr_p90")]
        say(out, "RSR ({}): median {}, 80% between {} and {}".format(DIRECTION, *quantiles))
        if surprisal > (blind := math.log(result["vocab_size"])):
            say(
                out,
                "The student predicts this text worse than a uniform distribution over its vocabulary (mean surprisal "
                f"{surprisal:.2f} nats, ln {result['vocab_size']:,} = {blind:.2f}): it is untrained, or the tokenizer "
                "belongs to another model.",
            )
        if "teachers" in result:
            say(out, "Teachers, most suitable first (means per trajectory; surprisal in nats):")
            print_table(out, result["teachers"], TEACHERS, things="teacher")
    if result["weight_bits"]:
        say(out, f"The student has {result['weight_bits']}-bit weights: at full precision it would score differently.")
    if result["day"]:
        say(out, f"The student's chat template contains the date: {result['day']} was used (part of rsr_student).")
    for line in _gaps(result):
        say(out, line)
    speeds = [one["tokens_per_second"] for one in result["processes"].values()]
    if speeds:  # none where everything was there already
        say(out, f"Speed: {' to '.join(f'{speed:,.0f}' for speed in sorted({min(speeds), max(speeds)}))} tokens/s.")
    if line := _read_once(result["tokens"], result["tokens_read"]):
        say(out, f"{line[0].upper()}{line[1:]}.")
    if len(speeds) > 1:
        share_of_time = f"{result['balance']:.0%} of the time of the busiest"
        say(out, f"Balance of {len(speeds)} processes: the least busy worked {share_of_time}.")
    if "pushed_to" in result:
        say(out, f"Uploaded to {result['pushed_to']}")
    if scored:
        how = ["--group_column", columns.problem] if columns.problem else ["--keep_fraction", "0.5"]
        teacher = ["--teacher_column", columns.teacher] if columns.teacher not in (None, "teacher") else []
        page, chosen = (["--output_dir", beside(folder, name)] for name in ("report", "selected"))
        print_next(out, "rsr", "compare", "--dataset_name", folder, *teacher)
        print_next(out, "rsr", "report", "--dataset_name", folder, *page, label="See it")
        print_next(out, "rsr", "select", "--dataset_name", folder, *how, *teacher, *chosen, label="Then")


def _read_once(tokens: int, tokens_read: int) -> str | None:
    """What shared prefixes save."""
    saved = 1 - tokens_read / max(1, tokens)
    return f"{saved:.0%} of the tokens are shared prefixes, computed once" if saved else None


def _gaps(result: dict) -> list[str]:
    """Which trajectories have no score, or one that says little, and why."""
    rows, reasons, lines = result["trajectories"], result["not_scored"], []
    if missing := rows - result["scored"]:
        lines += [f"Not scored: {share(missing, rows)}. Their scores are null, and they are never chosen:"]
        lines += [f"  {count:,}  {reason}" for reason, count in list(reasons.items())[:NAMED_REASONS]]
        if (more := len(reasons) - NAMED_REASONS) > 0:
            lines += [f"  ... and {more} more reasons, in the column rsr_error."]
        named = ", ".join(map(str, result["failed_rows"][:NAMED_ROWS]))
        lines += [f"  rows {named}{', ...' if missing > NAMED_ROWS else ''}"]
    for name, count in result["undefined"].items():
        lines += [f"{name} is undefined (null) for {share(count, result['scored'])} of the scored trajectories."]
    notes = {kind: count for kind, count in result["notes"].items() if kind not in result["warned"]}
    lines += map(tables.in_options, describe_notes(notes, rows))
    if any(kind in result["notes"] for kind in LOST):
        training = ", or TRL's training template (--assistant_only_loss)" if result["training_template"] else ""
        lines += [f"To keep it, score and train with another chat template (--chat_template_path){training}."]
    if result["truncated"]:
        cut = f"Truncated at {result['max_length']:,} tokens: {share(result['truncated'], rows)}."
        lines += [f"{cut} Their scores cover only the part before the cut."]
    if result["short"] > 0.1 * rows:
        lines += [short_ones(f"{share(result['short'], rows)} have")]
    return lines


# ---------------------------------------------------------------------------------------------------------- dry run


def dry_run(scorer: RSRScorer, dataset, shard_rows: int | None, num_processes: int, as_json: bool) -> None:
    """Estimate what a run would cost, from a sample that is tokenized and partly scored. Writes nothing."""
    examples, neighbours = tokenized_sample(scorer, dataset), tokenized_sample(scorer, dataset, neighbours=True)
    good = [example for example in examples if example.error is None]
    if not good:
        raise RSRError(f"None of {len(examples)} sampled rows can be scored, the first because {examples[0].error}.")
    tokens = sum(len(example.input_ids) for example in good) / len(examples)
    together = [example for example in neighbours if example.error is None] or good
    speed, device = _speed(scorer, together), scorer.student.device
    result = {
        "sampled_rows": len(examples),
        "sampled_without_score": len(examples) - len(good),
        "sampled_truncated": sum(example.truncated for example in good),
        "sampled_notes": dict(count_notes(examples)),
        "tokens_per_row": tokens,
        "sampled_neighbours": sum(len(example.input_ids) for example in together),
        "sampled_neighbours_read": scorer.student.tokens_to_read(together),
        "tokens_per_second": speed,
        "processes": num_processes,
        "shard_rows": shard_rows or default_shard_rows(scorer, dataset, examples, neighbours),
        **dict.fromkeys(("rows", "tokens", "seconds", "files", "bytes_of_token_stats")),
        # With the student, after the sample: it doesn't grow with rows.
        "host_bytes": psutil.Process().memory_info().rss,
        "peak_gpu_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }
    if isinstance(dataset, Dataset):  # of a stream nobody knows how many rows there are
        rows = len(dataset)
        result |= {"rows": rows, "tokens": round(rows * tokens), "files": -(-rows // result["shard_rows"])}
        result["seconds"] = rows * tokens / speed / num_processes
        if scorer.token_stats:  # ids, ranks, surprisals and top-1 take 16 bytes before compression
            scored = sum(int(example.scored.sum()) for example in good) / len(examples)
            result["bytes_of_token_stats"] = round(16 * rows * scored)
    tables.finish(as_json, result, partial(_show_dry_run, result=result))


def _speed(scorer: RSRScorer, examples: Sequence[TokenizedExample]) -> float:
    """Tokens of the rows scored in a second, other passes included, measured after a round that doesn't count."""
    scorer.score_tokenized(examples[:1])
    start, done, batch = time.perf_counter(), 0, []
    for example in examples:
        batch.append(example)
        waiting = sum(len(example.input_ids) for example in batch)
        if waiting >= scorer.student.max_batch_tokens or example is examples[-1]:
            scorer.score_tokenized(batch)
            done, batch = done + waiting, []
        if done > PROBE_TOKENS or time.perf_counter() - start > PROBE_SECONDS:
            break
    return done / (time.perf_counter() - start)


def _show_dry_run(out: Console, result: dict) -> None:
    rows, speed = result["rows"], f"{result['tokens_per_second']:,.0f} tokens/s in one process"
    number_of = "an unknown number of" if rows is None else f"{rows:,}"
    lines = [f"{number_of} row{'s' * (rows != 1)} of {result['tokens_per_row']:,.0f} tokens on average", speed]
    if rows is not None:
        processes = f"{result['processes']:,} process{'es' * (result['processes'] > 1)}"
        lines += [f"{result['tokens']:,} tokens: about {duration(result['seconds'])} with {processes}"]
        lines += [f"{counted(result['files'], 'shard')} of {counted(result['shard_rows'], 'row')}"]
    for name, text in (
        ("bytes_of_token_stats", "token statistics: about {:,.2f} GiB before compression"),
        ("host_bytes", "memory of one process: {:,.1f} GiB"),
        ("peak_gpu_bytes", "GPU memory: {:,.1f} GiB at its peak on the sample"),
    ):
        lines += [text.format(result[name] / 2**30)] if result[name] else []
    for what, text in (("sampled_without_score", "can't be scored"), ("sampled_truncated", "are cut at max_length")):
        if result[what]:
            lines += [f"{share(result[what], result['sampled_rows'])} of the sample {text}"]
    if line := _read_once(result["sampled_neighbours"], result["sampled_neighbours_read"]):
        lines += [f"{line} (of the first rows)"]
    lines += map(tables.in_options, describe_notes(result["sampled_notes"], result["sampled_rows"]))
    say(out, bold=f"\nNothing was written. Estimated from {counted(result['sampled_rows'], 'sampled row')}:")
    say(out, "\n".join(f"  {line}" for line in lines))
