"""Question 1: what does each score choose from a real pool, and how much of it is about *this* student?

python evidence/choices.py        # about 20 minutes on 2 cores; goes on where it stopped
"""

import numpy as np
from common import (
    BARE,
    PLAN,
    choice,
    interval,
    mean_of,
    parser,
    read_args,
    read_pool,
    score,
    spearman_of_means,
    spearman_rows,
    student_path,
    table,
    taken,
    write_json,
)
from datasets import Dataset

from rsr_trl.scoring.scores import ONE_PASS
from rsr_trl.selection.choose import long_enough


def scored_pool(args, name: str) -> Dataset:
    """The pool with the bare answers, scored by a student of the plan."""
    pool = args.output_dir / "pool.parquet"
    if not pool.exists():
        Dataset.from_list(read_pool(args.pool, with_bare=True)).to_parquet(pool)
    return score(student_path(args, name), pool, args.output_dir / f"scored-{name}")


def describe(found: dict, columns: np.ndarray, min_tokens: int) -> dict:
    """What each score chooses among the teachers at `columns`: means over problems with intervals."""
    values = {name: found[name][:, columns] for name in (*ONE_PASS, "tokens", "correct")}
    teachers = [found["teachers"][i] for i in columns]
    allowed = long_enough(values["tokens"], min_tokens)
    expected = {name: mean_of(values[name], allowed) for name in ("correct", "tokens")}
    chosen = {name: choice(values[name], allowed) for name in ONE_PASS if name != "random"}
    scores = {"random": {"correct": interval(expected["correct"]), "tokens": interval(expected["tokens"])}}
    for name, places in chosen.items():
        counts = np.bincount(places, minlength=len(teachers))
        scores[name] = {
            "correct": interval(taken(values["correct"], places)),
            "correct_minus_random": interval(taken(values["correct"], places) - expected["correct"]),
            "tokens": interval(taken(values["tokens"], places)),
            "most_from": teachers[int(counts.argmax())],
            "most_share": interval(places == counts.argmax()),
            "teachers": {teachers[i]: int(counts[i]) for i in np.argsort(-counts) if counts[i]},
            "overlap": {other: interval(places == chosen[other]) for other in chosen if other != name},
        }
        if BARE in teachers:
            scores[name]["bare"] = interval(places == teachers.index(BARE))
    if BARE in teachers:
        bare = allowed[:, teachers.index(BARE)] / allowed.sum(1)
        scores["random"]["bare"] = interval(bare)
    return {"allowed_rows": int(allowed.sum()), "scores": scores}


def agreement(one: dict, two: dict, columns: np.ndarray, min_tokens: int) -> dict:
    """How alike two students see the same pool: the same choice, and Spearman within problems and between teachers."""
    found = {}
    allowed = long_enough(one["tokens"][:, columns], min_tokens) & long_enough(two["tokens"][:, columns], min_tokens)
    for name in ONE_PASS:
        x, y = one[name][:, columns], two[name][:, columns]
        found[name] = {
            "same_choice": interval(choice(x, allowed) == choice(y, allowed)),
            "spearman_within": interval(spearman_rows(x, y, allowed)),
            "spearman_of_teachers": spearman_of_means(x, y),
        }
    # What another score of the same student says of it, to compare with.
    other = {}
    for name in ("surprisal", "length", "rank"):
        x, y = one["rsr"][:, columns], one[name][:, columns]
        other[name] = {
            "same_choice": interval(choice(x, allowed) == choice(y, allowed)),
            "spearman_within": interval(spearman_rows(x, y, allowed)),
        }
    return {
        "same_choice_by_chance": interval(1 / allowed.sum(1)),
        "between_students": found,
        "rsr_of_smollm2_with": other,
    }


def main() -> None:
    args = read_args(parser(__doc__))
    print("Cost on 2 cores: about 16 minutes for SmolLM2 and 3 for the small student, less what is done.", flush=True)
    tables = {name: table(scored_pool(args, name)) for name in ("smollm2", "gsm8k_6m")}
    least = PLAN["choices"]["min_tokens"]
    teachers = tables["smollm2"]["teachers"]
    pools = {"12 teachers": np.arange(len(teachers))[[t != BARE for t in teachers]]}
    pools["12 teachers and the bare answer"] = np.arange(len(teachers))
    results = {"problems": len(tables["smollm2"]["problems"]), "students": {}, "agreement": {}}
    for name, found in tables.items():
        results["students"][name] = {
            pool: {"guard": describe(found, columns, least), "no guard": describe(found, columns, 0)}
            for pool, columns in pools.items()
        }
    for pool, columns in pools.items():
        results["agreement"][pool] = {
            "guard": agreement(tables["smollm2"], tables["gsm8k_6m"], columns, least),
            "no guard": agreement(tables["smollm2"], tables["gsm8k_6m"], columns, 0),
        }
    write_json(args.results / "choices.json", results)
    print(f"Wrote {args.results / 'choices.json'}")


if __name__ == "__main__":
    main()
