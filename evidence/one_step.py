"""Question 2: what does one small step on a trajectory teach, and which score says so beforehand?

    python evidence/one_step.py       # about 50 minutes on 2 cores; goes on where it stopped

The utility of a trajectory is u = L(probe; theta) - L(probe; theta - eta g): how far the loss of right responses to
other problems, by other teachers, falls by one step on it. It is measured by taking the step for a few rows, and to
first order, eta <g, probe gradient>, for all. Needs the scores of `choices.py`.
"""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from common import (
    PLAN,
    choice,
    interval,
    parser,
    ratio_interval,
    read_args,
    read_lines,
    read_pool,
    scored_by,
    spearman_of_means,
    spearman_rows,
    student_path,
    table,
    taken,
    write_json,
)
from torch.nn.functional import cross_entropy

from rsr_trl import RSRScorer
from rsr_trl.scoring.loading import load_model
from rsr_trl.scoring.scores import ONE_PASS
from rsr_trl.scoring.student import Student
from rsr_trl.selection.choose import long_enough


PIECE = 2**17  # numbers


def mean_loss(model, example) -> torch.Tensor:
    """Nats per scored token of an example."""
    ids = torch.from_numpy(example.input_ids).long()
    places = torch.from_numpy(np.flatnonzero(example.scored))
    hidden = model.model(input_ids=ids[None], use_cache=False).last_hidden_state[0, places - 1]
    return cross_entropy(model.lm_head(hidden).float(), ids[places])


def gradient(model, example) -> list[torch.Tensor]:
    """Gradient of its mean loss over all weights, a tensor for each of them."""
    model.zero_grad(set_to_none=True)
    mean_loss(model, example).backward()
    return [parameter.grad for parameter in model.parameters()]


def products(one: list[torch.Tensor], two: list[torch.Tensor]) -> tuple[float, float]:
    """
    `<one, two>` and the norm of `one`: in float32 within a piece of a tensor, which a processor's cache holds, and in
    float64 between pieces.
    """
    product = square = 0.0
    for a, b in zip(one, two, strict=True):
        for x, y in zip(a.flatten().split(PIECE), b.flatten().split(PIECE), strict=True):
            x = x.float()
            product += torch.dot(x, y.float()).item()
            square += torch.dot(x, x).item()
    return product, square**0.5


class ProbeGradients:
    """Mean gradient of each teacher's probe responses, kept on disk, and the mean over all teachers but one."""

    def __init__(self, folder: Path, model, examples: dict[str, list]):
        self.folder, self.teachers, self.total = folder, list(examples), []
        folder.mkdir(parents=True, exist_ok=True)
        for teacher, some in examples.items():
            if not (path := self._path(teacher)).exists():
                sums = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in model.parameters()]
                for example in some:
                    for total, part in zip(sums, gradient(model, example), strict=True):
                        total += part.detach()
                torch.save([(total / len(some)).bfloat16() for total in sums], path.with_suffix(".unfinished"))
                path.with_suffix(".unfinished").rename(path)
            found = [part.float() for part in torch.load(path)]
            if self.total:
                found = [total.add_(part) for total, part in zip(self.total, found, strict=True)]
            self.total = found

    def _path(self, teacher: str) -> Path:
        return self.folder / f"{teacher}.pt"

    def without(self, teacher: str) -> list[torch.Tensor]:
        """Mean over the teachers but this one."""
        if teacher not in self.teachers:
            return [total / len(self.teachers) for total in self.total]
        own, others = torch.load(self._path(teacher)), len(self.teachers) - 1
        return [(total - part) / others for total, part in zip(self.total, own, strict=True)]


class Done:
    """JSON lines that grow as work is done, and which of it is there."""

    def __init__(self, path: Path):
        rows = read_lines(path)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.path, self.keys = path, {row["row"] for row in rows}

    def add(self, **row) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def run_fold(args, fold: int) -> None:
    """All measurements of the rows of a fold, whose probe is from the other one; single-threaded."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    plan, rows = PLAN["one_step"], read_pool(args.pool)
    path = student_path(args, plan["student"])
    examples = RSRScorer(path, dtype="float32").tokenize(rows)
    problems = list(dict.fromkeys(row["problem_id"] for row in rows))
    place = {name: i for i, name in enumerate(problems)}
    own = [i for i, row in enumerate(rows) if place[row["problem_id"]] % 2 == fold]
    others = [i for i, row in enumerate(rows) if place[row["problem_id"]] % 2 != fold and row["correct"]]
    teachers = list(dict.fromkeys(row["teacher"] for row in rows))
    folder = args.output_dir / f"one_step-{fold}"
    folder.mkdir(exist_ok=True)
    for measure in (take_products, take_steps):
        measure(folder, path, rows, examples, own, others, teachers, fold)


def take_products(folder, path, rows, examples, own, others, teachers, fold) -> None:
    """The utilities to first order."""
    plan, done, probe = PLAN["one_step"], Done(folder / "first_order.jsonl"), {}
    if not set(own) - done.keys:
        return
    model, rng = load_model(path, dtype="bfloat16", device="cpu"), np.random.default_rng(plan["probe_seed"])
    for teacher in teachers:
        able = [i for i in others if rows[i]["teacher"] == teacher]
        able = [i for i in able if len(examples[i].input_ids) <= plan["probe_max_tokens"]]
        count = min(plan["probe_responses"], len(able))
        probe[teacher] = [examples[i] for i in rng.choice(able, count, replace=False)]
    print(f"fold {fold}: gradients of {sum(map(len, probe.values()))} probe responses ...", flush=True)
    gradients = ProbeGradients(folder / "probe", model, probe)
    for teacher in teachers:
        left = [i for i in own if rows[i]["teacher"] == teacher and i not in done.keys]
        direction = gradients.without(teacher) if left else None
        for i in left:
            product, norm = products(gradient(model, examples[i]), direction)
            done.add(row=i, product=product, norm=norm)
        print(f"fold {fold}: first order, {teacher}: {len(left)} rows", flush=True)


def take_steps(folder, path, rows, examples, own, others, teachers, fold) -> None:
    """The exact utilities: take each step, and measure the probe after it."""
    plan, solved = PLAN["one_step"], {}
    for i in others:
        solved.setdefault(rows[i]["problem_id"], []).append(i)
    least = plan.get("exact_probe_solved", len(teachers) - 2)
    enough = [some for some in solved.values() if len(some) >= least][: plan["exact_probe_problems"]]
    probe = [i for some in enough for i in some]
    by_teacher = {t: [examples[i] for i in probe if rows[i]["teacher"] == t] for t in teachers}
    by_teacher = {teacher: some for teacher, some in by_teacher.items() if some}
    first = list(dict.fromkeys(rows[i]["problem_id"] for i in own))[: plan["exact_problems"]]
    done = Done(folder / "exact.jsonl")
    mine = [i for i in own if rows[i]["problem_id"] in first and i not in done.keys]
    if not mine:
        return
    model = load_model(path, dtype="float32", device="cpu")
    student, kept = Student(model), copy.deepcopy(model.state_dict())
    gradients = ProbeGradients(folder / "exact_probe", model, by_teacher)

    def losses() -> np.ndarray:
        """Mean surprisal of every probe response."""
        found = student.score([examples[i] for i in probe])
        return found.means(found.surprisals)

    def without(values: np.ndarray, teacher: str) -> float:
        """Mean over the other teachers of the mean over their responses."""
        writers = np.array([rows[i]["teacher"] for i in probe])
        return float(np.mean([values[writers == one].mean() for one in by_teacher if one != teacher]))

    before = losses()
    print(
        f"fold {fold}: {len(mine)} rows with {len(plan['etas'])} steps each, measured on {len(probe)} responses",
        flush=True,
    )
    for i in mine:
        teacher = rows[i]["teacher"]
        found = [part.clone() for part in gradient(model, examples[i])]
        record = dict(zip(("product", "norm"), products(found, gradients.without(teacher)), strict=True))
        model.zero_grad(set_to_none=True)
        for eta in plan["etas"]:
            with torch.no_grad():
                for parameter, part in zip(model.parameters(), found, strict=True):
                    parameter -= eta * part
            record[f"u_{eta:g}"] = without(before - losses(), teacher)
            model.load_state_dict(kept)  # exactly, not by a step back
        done.add(row=i, **record)


def measured_of(args, name: str, shape: tuple[int, int], field: str) -> np.ndarray:
    """A number of each row as `(problems, teachers)`; NaN where it wasn't measured."""
    values = np.full(shape, np.nan)
    for fold in (0, 1):
        for row in read_lines(args.output_dir / f"one_step-{fold}" / f"{name}.jsonl"):
            values.flat[row["row"]] = row[field]
    return values


def summarise(args) -> dict:
    """The statistics of the plan."""
    plan = PLAN["one_step"]
    found = table(scored_by(args, plan["student"]))
    shape, allowed = found["tokens"].shape, long_enough(found["tokens"], PLAN["choices"]["min_tokens"])
    product, norm = (measured_of(args, "first_order", shape, field) for field in ("product", "norm"))
    kinds = {
        "step": product,
        "per_token": product / found["tokens"],
        "in_batch": product * found["tokens"],
        "unit_step": product / norm,
    }
    scores = {name: found[name] for name in ONE_PASS}
    right = found["correct"] > 0
    results = {"problems": shape[0], "rows": int(np.isfinite(product).sum()), "utilities": {}}
    for kind, utility in kinds.items():
        middle, best = (
            np.where(allowed, utility, 0).sum(1) / allowed.sum(1),
            np.where(allowed, utility, -np.inf).max(1),
        )
        results["utilities"][kind] = {
            "positive": interval((utility > 0).mean(1)),
            "spearman_with_correct": interval(spearman_rows(utility, found["correct"])),
            "spearman_with_norm": interval(spearman_rows(utility, norm)),
            "by_teacher": dict(zip(found["teachers"], utility.mean(0).tolist(), strict=True)),
            "scores": {
                name: {
                    "within": interval(spearman_rows(utility, -cost)),
                    "within_right": interval(spearman_rows(utility, -cost, right)),
                    "teachers": spearman_of_means(utility, -cost),
                    "way_to_best": None
                    if name == "random"
                    else ratio_interval(taken(utility, choice(cost, allowed)) - middle, best - middle),
                }
                for name, cost in scores.items()
            },
        }
    results["exact"] = exact(args, shape, scores, product)
    results["etas"] = plan["etas"]
    return results


def exact(args, shape, scores: dict, first_order: np.ndarray) -> dict:
    """Steps that were taken, beside what first order says of them."""
    own = measured_of(args, "exact", shape, "product")
    measured = np.isfinite(own).all(axis=1)
    found = {"problems": int(measured.sum()), "rows": int(measured.sum() * shape[1]), "etas": {}}
    for eta in PLAN["one_step"]["etas"]:
        utility = measured_of(args, "exact", shape, f"u_{eta:g}")[measured]
        expected = eta * own[measured]
        found["etas"][f"{eta:g}"] = {
            "mean": float(utility.mean()),
            "negative": float((utility < 0).mean()),
            "ratio_to_first_order": float(utility.sum() / expected.sum()),
            "spearman_with_first_order": interval(spearman_rows(utility, expected)),
            "spearman_with_first_order_of_all": interval(spearman_rows(utility, first_order[measured])),
            "scores": {name: interval(spearman_rows(utility, -cost[measured])) for name, cost in scores.items()},
        }
    return found


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--fold", type=int, choices=(0, 1), help="Only the measurements of one fold.")
    args = read_args(options)
    if args.fold is not None:
        return run_fold(args, args.fold)
    scored_by(args, PLAN["one_step"]["student"])  # an error comes before the work
    print("Cost: about 50 minutes on 2 cores, less what is done; 9 GB of disk until it is done.", flush=True)
    command = [sys.executable, *sys.argv]
    folds = [subprocess.Popen([*command, "--fold", str(fold)]) for fold in (0, 1)]
    codes = [process.wait() for process in folds]
    if any(codes):
        raise SystemExit("A fold failed; the same command goes on.")
    write_json(args.results / "one_step.json", summarise(args))
    print(f"Wrote {args.results / 'one_step.json'}")


if __name__ == "__main__":
    main()
