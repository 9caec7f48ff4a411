"""A pilot from its first arm to its verdict: what it would cost, arm by arm what is left to do, and what came out."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from rsr_trl.data import read_table
from rsr_trl.pilot.arms import Arm, Arms
from rsr_trl.pilot.folder import PilotFolder
from rsr_trl.pilot.held_out import Scores
from rsr_trl.pilot.strategies import RESCORED, Strategy
from rsr_trl.pilot.verdict import CORRECT, LOSS, compare, lopsided, sentences, values
from rsr_trl.selection.table import labels


CUT_SHARE = 0.1  # of responses that ran into the length limit, beyond which accuracy says little
FORWARD = 1 / 3  # part of a training step's time that a scoring pass takes for the same tokens


class Pilot:
    """
    Tries strategies against each other and says what can be told from it.

    Args:
        arms ([`Arms`]): Runs an arm.
        strategies (`Sequence[Strategy]`): With their controls, from [`parse_strategies`].
        seeds (`Sequence[int]`): Each strategy is trained once with each.
        output_dir (`str` or `Path`): Folder of the results.
        identity (`dict`): What names the student, the pool and the held-out set, and how they were asked for.
        teacher_column (`str`, *optional*): Column that names the teacher, to say whom a strategy chose.
        confidence (`float`, *optional*, defaults to `0.95`): Level of the intervals.
        say (`Callable`, *optional*): Hears a line of text now and then, on the main process only.

    Raises:
        ValueError: if the pool can't give what a strategy asks for.
    """

    def __init__(
        self,
        arms: Arms,
        strategies: Sequence[Strategy],
        seeds: Sequence[int],
        output_dir: str | Path,
        identity: dict,
        teacher_column: str | None = None,
        confidence: float = 0.95,
        say: Callable[[str], None] = lambda line: None,
    ):
        if len(set(seeds)) < len(seeds) or not seeds:
            raise ValueError(f"seeds must be different and at least one, got {list(seeds)}.")
        self.arms, self.strategies, self.seeds = arms, list(strategies), list(seeds)
        self.teacher_column, self.confidence = teacher_column, confidence
        arms.args.device  # noqa: B018 - sets the processes up as the trainings want them
        self.state = PartialState()
        self.say = say if self.state.is_main_process else lambda line: None
        for strategy in self.strategies:
            self.arms.check(strategy, self.seeds)
        settings = {
            **identity,
            "recipe": arms.args.recipe(),
            "budget": {name: value for name, value in asdict(arms.budget).items() if value is not None},
            "max_new_tokens": arms.max_new_tokens,
            "group_column": arms.pool.group_column,
        }
        self.folder = PilotFolder(Path(output_dir), settings)
        # Seed by seed, so that a pilot that is stopped early has whole comparisons.
        self.plan = [Arm(), *(Arm(strategy, seed) for seed in self.seeds for strategy in self.strategies)]

    def run(self, dry_run: bool = False) -> dict:
        """
        Run what isn't done, and sum up.

        Args:
            dry_run (`bool`, *optional*, defaults to `False`): Measure and say the cost only; write nothing.

        Returns:
            `dict` that JSON can hold, as written to `pilot.json`; with `dry_run` the cost.
        """
        if dry_run:
            started = time.perf_counter()
            self.arms.run(Arm())
            return self._cost([Arm()], time.perf_counter() - started)
        with self._owned():
            done = [arm for arm in self.plan if self._on_main(lambda arm=arm: self.folder.record(arm.file_name))]
            if done:
                self.say(f"{len(done)} of {len(self.plan)} arms are done already.")
            if Arm() not in done:
                self._run_arm(Arm())
                done.append(Arm())
            left = [arm for arm in self.plan if arm not in done]
            evaluation = self._on_main(lambda: self.folder.record(Arm().file_name))["seconds"]
            cost = self._cost(done, evaluation) if left else None
            for arm in left:
                self._run_arm(arm)
            records = self._on_main(lambda: {arm: self.folder.record(arm.file_name) for arm in self.plan})
            result = self._sum_up(records, cost)
            if self.state.is_main_process:
                self.folder.write_result(result)
        return result

    @contextmanager
    def _owned(self) -> Iterator[None]:
        """The folder, for this pilot alone: the main process holds it, and an error there ends all of them."""
        with ExitStack() as stack:

            def enter() -> None:
                self.folder.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(self.folder.owned())
                self.folder.open()

            self._on_main(enter)
            yield

    def _on_main(self, function: Callable | None):
        """What `function` gives on the main process, on all; an error of it too."""
        found: list = [None, None]
        if self.state.is_main_process:
            try:
                found = [function(), None]
            except (ValueError, OSError) as error:
                found = [None, error]
        if self.state.num_processes > 1:
            broadcast_object_list(found)
        if found[1] is not None:
            raise ValueError(str(found[1]))
        return found[0]

    def _run_arm(self, arm: Arm) -> None:
        started = time.perf_counter()
        training, scores = self.arms.run(arm)
        seconds = time.perf_counter() - started
        record = {
            "strategy": None if arm.strategy is None else arm.strategy.name,
            "seed": arm.seed,
            "seconds": round(seconds, 3),
            "train_seconds": round(training.seconds, 3),
            **{name: value for name, value in asdict(training).items() if name != "seconds"},
            "teachers": self._teachers(arm),
            "problems": self._problems(scores),
        }
        if self.state.is_main_process:
            self.folder.write(arm.file_name, record)
        self.state.wait_for_everyone()
        measured = [] if scores.loss is None else [f"loss {scores.loss.mean():.4f}"]
        measured += [] if scores.correct is None else [f"{scores.correct.mean():.1%} right"]
        self.say(f"{arm.name}: {', '.join(measured)} ({_duration(seconds)})")

    def _problems(self, scores: Scores) -> list[dict]:
        found = []
        for i, name in enumerate(self.arms.held_out.problems):
            found.append(
                {
                    "problem": name if isinstance(name, int) else str(name),
                    "loss": None if scores.loss is None else float(scores.loss[i]),
                    "correct": None if scores.correct is None else bool(scores.correct[i]),
                    "cut": None if scores.cut is None else bool(scores.cut[i]),
                    "response": None if scores.responses is None else scores.responses[i],
                }
            )
        return found

    def _teachers(self, arm: Arm) -> dict[str, int] | None:
        """How many trajectories of each teacher an arm chose; `None` where that isn't known."""
        if arm.strategy is None or arm.strategy.name == RESCORED or self.teacher_column is None:
            return None
        rows = np.concatenate(self.arms.choose(arm.strategy, arm.seed))
        teachers, names = labels(read_table(self.arms.pool.dataset, [self.teacher_column]), self.teacher_column)
        counts = np.bincount(teachers[rows], minlength=len(names))
        return {str(name): int(count) for name, count in zip(names, counts, strict=True) if count}

    # ------------------------------------------------------------------------------------------------- cost

    def _cost(self, done: list[Arm], evaluation: float) -> dict:
        """
        What is left costs, said before it is paid: from a measured step and the measured seconds of an evaluation.
        """
        left = [arm for arm in self.plan if arm not in done and arm.strategy is not None]
        random, seed = self.strategies[0], self.seeds[0]
        step, start = self.arms.trial(random, seed)
        examples = len(self.arms.choose(random, seed)[0])
        tokens = self.arms.trained_tokens(random, seed)
        a_token = step * self.arms.num_steps(examples) / tokens
        training = 0.0
        for arm in left:
            training += a_token * self.arms.trained_tokens(arm.strategy, arm.seed) + start
            if arm.strategy.name == RESCORED:
                rows = self.arms.choose(arm.strategy, arm.seed)[0]
                passes = self.arms.num_epochs(self.arms.budget.examples)
                training += FORWARD * a_token * passes * float(self.arms.pool.tokens[rows].sum())
        cost = {
            "arms": len(left),
            "steps_per_arm": self.arms.num_steps(examples),
            "seconds_per_step": step,
            "training_seconds": training,
            "evaluation_seconds_per_arm": evaluation,
            "seconds": training + evaluation * len(left),
        }
        cost = self._on_main(lambda: cost)  # clocks differ
        self.say(
            f"Cost: {cost['arms']} trainings of about {cost['steps_per_arm']} steps of "
            f"{cost['seconds_per_step']:.3g} s (measured), and {cost['evaluation_seconds_per_arm']:.3g} s each to "
            f"evaluate: about {_duration(cost['seconds'])} in all."
        )
        return cost

    # ------------------------------------------------------------------------------------------------- result

    def _sum_up(self, records: dict[Arm, dict], cost: dict | None) -> dict:
        by_strategy = {
            strategy.name: [records[Arm(strategy, seed)] for seed in self.seeds] for strategy in self.strategies
        }
        table = compare(by_strategy, self.strategies, self.confidence)
        return {
            "settings": self.folder.settings,
            "strategies": [asdict(strategy) for strategy in self.strategies],
            "seeds": self.seeds,
            "confidence": self.confidence,
            "pool": {
                "trajectories": len(self.arms.pool.dataset),
                "left_out": self.arms.pool.left_out,
                "problems": self.arms.pool.num_groups if self.arms.pool.group_column else None,
            },
            "cost": cost,
            "arms": [
                {name: value for name, value in records[arm].items() if name != "problems"}
                | {
                    metric.name: None if (found := values([records[arm]], metric)) is None else float(found.mean())
                    for metric in (CORRECT, LOSS)
                }
                for arm in self.plan
            ],
            "table": table,
            "verdict": sentences(table, self.confidence),
            "notes": self._notes(records, by_strategy),
        }

    def _notes(self, records: dict[Arm, dict], by_strategy: dict[str, list[dict]]) -> list[str]:
        """What would make the verdict worth less."""
        found, control = [], by_strategy["random"]
        before, after = (values(some, LOSS) for some in ([records[Arm()]], control))
        if before is not None and after.mean() >= before.mean():
            found.append(
                f"Training on random choices didn't lower the held-out loss ({before.mean():.4f} -> "
                f"{after.mean():.4f}): train longer, with another learning_rate, or look at whether the references "
                "are of the kind that the pool teaches."
            )
        every = [problem for record in records.values() for problem in record["problems"]]
        if every[0]["cut"] is not None:
            share = sum(problem["cut"] for problem in every) / len(every)
            if share > CUT_SHARE:
                found.append(f"{share:.0%} of the responses were cut at {self.arms.max_new_tokens} tokens or before.")
        for strategy in self.strategies:
            found += lopsided(strategy, by_strategy)
        if self.arms.pool.left_out:
            found.append(f"{self.arms.pool.left_out:,} trajectories of the pool have no score and were left out.")
        budget, pool = self.arms.budget, self.arms.pool
        if len(self.seeds) > 1 and pool.groups is not None and budget.examples == pool.num_groups:
            found.append("Every seed trains on all of the pool's problems: seeds differ in order only.")
        elif len(self.seeds) > 1 and pool.groups is None:
            found.append("Without group_column a strategy chooses the same for all seeds: they differ in order only.")
        return found


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
