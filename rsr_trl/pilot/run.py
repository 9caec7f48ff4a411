"""A pilot from its first arm to its verdict, in a folder that lets it go on after a stop.

An arm's file is written whole when the arm is done, so a pilot that was killed goes on with the next arm.
"""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from xxhash import xxh3_64_hexdigest

from rsr_trl.pilot.arms import Arm, Arms
from rsr_trl.pilot.differences import CONFIDENCE
from rsr_trl.pilot.strategies import Strategy
from rsr_trl.pilot.verdict import compare, lopsided, sentences
from rsr_trl.rsr import RSRError
from rsr_trl.scoring.shards import differences, read_json, write_json


SETTINGS, RESULT, ARMS, LOCK = "settings.json", "pilot.json", "arms", ".lock"
SCORED = "scored"  # the pool with its scores, where it came without
CUT_SHARE = 0.1  # of responses that ran into the length limit, beyond which accuracy says little


class Pilot:
    """
    Tries strategies, each once with each seed, and says what follows from it.

    `identity` names the student, the pool and the held-out set, and how they were asked for. `say` gets a line of text
    now and then, on the main process only.
    """

    def __init__(
        self,
        arms: Arms,
        strategies: Sequence[Strategy],
        seeds: Sequence[int],
        output_dir: str | Path,
        identity: dict,
        say: Callable[[str], None] = lambda line: None,
    ):
        if len(set(seeds)) < len(seeds) or not seeds:
            raise RSRError(f"seeds must be different and at least one, got {list(seeds)}.")
        self.arms, self.strategies, self.seeds, self.folder = arms, list(strategies), list(seeds), Path(output_dir)
        arms.args.device  # noqa: B018 - sets the processes up as the trainings want them
        self.is_main = PartialState().is_main_process
        self.say = say if self.is_main else lambda line: None
        # Seed by seed, so that a pilot that is stopped early has whole comparisons.
        self.plan = [Arm(), *(Arm(strategy, seed) for seed in self.seeds for strategy in self.strategies)]
        for arm in self.plan[1:]:
            arms.check(*arm)
        budget = {"examples": arms.pool.num_examples, "tokens": arms.pool.num_tokens}
        settings = identity | {
            "recipe": arms.args.recipe(),
            "budget": {name: value for name, value in budget.items() if value is not None},
            "max_new_tokens": arms.held_out.max_new_tokens,
            "group_column": arms.pool.table.columns.problem,
        }
        self.settings = json.loads(json.dumps(settings))
        self._run = xxh3_64_hexdigest(json.dumps(self.settings, sort_keys=True).encode())

    def run(self, dry_run: bool = False) -> dict:
        """Run what isn't done, and return what `pilot.json` then holds; with `dry_run` only measure the cost."""
        if dry_run:
            return self._cost(self.plan[1:], self.arms.run(Arm()))
        with self._lock() if self.is_main else nullcontext():
            files = {arm: read_json(self._file(arm)) for arm in self.plan if self.is_main}
            done = {arm: record for arm, record in files.items() if record.get("run") == self._run}
            records, cost = broadcast_object_list([done])[0], None
            if records:
                self.say(f"{len(records)} of {len(self.plan)} arms are done already.")
            left = [arm for arm in self.plan if arm not in records]
            for arm in left:
                if arm.strategy is not None and cost is None:
                    cost = self._cost([one for one in left if one.strategy is not None], records[Arm()])
                records[arm] = self._run_arm(arm)
            result = self._sum_up(records, cost)
            if self.is_main:
                write_json(self.folder / RESULT, result)
        return result

    def _lock(self):
        """The folder, for this pilot alone."""
        check_folder(self.folder, self.settings)
        (self.folder / ARMS).mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(self.folder / LOCK).acquire(timeout=0)
        except Timeout:
            raise RSRError(f"Another pilot is at work in {str(self.folder)!r}: wait, or choose another.") from None
        write_json(self.folder / SETTINGS, self.settings)
        return lock

    def _file(self, arm: Arm) -> Path:
        return self.folder / ARMS / f"{arm.file_name}.json"

    def _run_arm(self, arm: Arm) -> dict:
        record = {"run": self._run, **self.arms.run(arm)}
        if self.is_main:
            write_json(self._file(arm), record)
        name = "before" if arm.strategy is None else f"{arm.strategy.name}, seed {arm.seed}"
        measured = [] if record["loss"] is None else [f"loss {record['loss']:.4f}"]
        measured += [] if record["correct"] is None else [f"{record['correct']:.1%} right"]
        self.say(f"{name}: {', '.join(measured)} ({_duration(record['seconds'])})")
        return record

    def _cost(self, left: Sequence[Arm], before: dict) -> dict:
        """The cost of what is left, said before it is paid."""
        cost = self.arms.cost(left, self.plan[1], before["seconds"])
        self.say(
            f"Cost: {cost['arms']} trainings of about {cost['steps_per_arm']} steps of "
            f"{cost['seconds_per_step']:.3g} s (measured), and {cost['evaluation_seconds_per_arm']:.3g} s each to "
            f"evaluate: about {_duration(cost['seconds'])} in all."
        )
        return cost

    def _sum_up(self, records: dict[Arm, dict], cost: dict | None) -> dict:
        by_strategy = {one.name: [records[Arm(one, seed)] for seed in self.seeds] for one in self.strategies}
        table, pool = compare(by_strategy, self.strategies), self.arms.pool
        return {
            "settings": self.settings,
            "strategies": [strategy._asdict() for strategy in self.strategies],
            "seeds": self.seeds,
            "confidence": CONFIDENCE,
            "pool": {"trajectories": len(pool.table), "left_out": pool.left_out, "problems": pool.num_problems},
            "cost": cost,
            "arms": [{k: v for k, v in records[arm].items() if k != "problems"} for arm in self.plan],
            "table": table,
            "verdict": sentences(table),
            "notes": self._notes(records, by_strategy),
        }

    def _notes(self, records: dict[Arm, dict], by_strategy: dict[str, list[dict]]) -> list[str]:
        """What would make the verdict worth less."""
        notes, pool, before = [], self.arms.pool, records[Arm()]["loss"]
        after = None if before is None else np.mean([record["loss"] for record in by_strategy["random"]])
        if after is not None and after >= before:
            notes.append(
                f"Training on random choices didn't lower the held-out loss ({before:.4f} -> {after:.4f}): train "
                "longer, with another learning_rate, or look at whether the references are of the kind that the pool "
                "teaches."
            )
        cut = [problem["cut"] for record in records.values() for problem in record["problems"]]
        if cut[0] is not None and np.mean(cut) > CUT_SHARE:
            limit = self.arms.held_out.max_new_tokens
            notes.append(f"{np.mean(cut):.0%} of the responses were cut at {limit} tokens or before.")
        for strategy in self.strategies:
            notes += lopsided(strategy, by_strategy)
        if pool.left_out:
            notes.append(f"{pool.left_out:,} trajectories of the pool have no score and were left out.")
        if len(self.seeds) > 1 and pool.num_problems is None:
            notes.append("Without group_column a strategy chooses the same for all seeds: they differ in order only.")
        elif len(self.seeds) > 1 and pool.num_examples == pool.num_problems:
            notes.append("Every seed trains on all of the pool's problems: seeds differ in order only.")
        return notes


def check_folder(path: Path, settings: dict) -> None:
    """
    Raise `RSRError` unless `path` is absent, empty or a pilot's with these `settings`: before the work, not after it.
    Settings that aren't named aren't compared.
    """
    if path.is_file():
        raise RSRError(f"{str(path)!r} is a file; output_dir must be a folder.")
    names = {file.name for file in path.iterdir()} if path.is_dir() else set()
    if foreign := sorted(names - {SETTINGS, RESULT, ARMS, LOCK, SCORED}):
        raise RSRError(f"{str(path)!r} holds other things than a pilot (first: {foreign[0]}): choose another.")
    known, settings = read_json(path / SETTINGS), json.loads(json.dumps(settings))
    if known and (others := differences({name: known.get(name) for name in settings}, settings)):
        raise RSRError(
            f"{str(path)!r} holds a pilot with other settings. What differs: {'; '.join(others)}. Give the same "
            "options as before to go on, or choose another output_dir."
        )


def leave() -> None:
    """Leave the group of processes at the end of the program."""
    state = PartialState()
    if state.num_processes > 1:
        on_gloo = torch.distributed.get_backend() == "gloo"
        state.destroy_process_group()
        if on_gloo:
            time.sleep(1)  # gloo's threads need the interpreter a moment longer (pytorch/pytorch#179291)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
