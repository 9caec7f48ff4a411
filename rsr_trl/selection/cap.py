"""The choice with the least total score when no teacher may have more than a number of places.

Choosing some trajectories of each group with a cap on each teacher is a transportation problem: every trajectory lies
in one group row and one teacher row of the constraints, so their matrix is totally unimodular, and every vertex of the
linear programme is a whole-number choice (Hoffman & Kruskal 1956). HiGHS ends at a vertex.
"""

import numpy as np
import scipy.sparse as sparse
from scipy.optimize import OptimizeResult, linprog

from rsr_trl.rsr import RSRError
from rsr_trl.selection.table import place_in_run


def least_total(group: np.ndarray, teacher: np.ndarray, cost: np.ndarray, wanted: np.ndarray, cap: int) -> np.ndarray:
    """
    Which trajectories (bool array of shape `(n,)`) to choose so that their costs, all finite, add up to the least,
    while group `g` gives `wanted[g]` of them (at most what it has) and no teacher more than `cap`. Among equals of one
    group and teacher the earlier one is taken. `RSRError`, naming the smallest cap that works, if no choice keeps it.
    """
    if cap < 1:
        raise _infeasible(group, teacher, wanted, cap)
    num_groups, num_teachers, mask = len(wanted), int(teacher.max()) + 1, np.zeros(len(cost), dtype=bool)
    # Of one teacher in one group, an optimal choice takes the best first: the rest can't matter.
    order = np.lexsort((cost, teacher, group))
    pair = group[order] * num_teachers + teacher[order]
    useful = place_in_run(pair) < np.minimum(wanted, cap)[group[order]]
    order, pair = order[useful], pair[useful]

    if num_groups == 1:  # the best that are left once every teacher has its places: no need for a solver
        if len(order) < wanted[0]:
            raise _infeasible(group, teacher, wanted, cap)
        order = np.sort(order)
        mask[order[np.argsort(cost[order], kind="stable")][: wanted[0]]] = True
        return mask

    by_group, by_teacher = _incidence(group[order], num_groups), _incidence(teacher[order], num_teachers)
    # The solver's tolerances are absolute, so it sees costs between 0 and 1.
    scaled = (cost[order] - cost[order].min()) / (np.ptp(cost[order]) or 1.0)
    result = _solve(scaled, by_teacher, np.full(num_teachers, cap), by_group, wanted)
    if result.status == 2:
        raise _infeasible(group, teacher, wanted, cap)
    chosen = result.status == 0 and result.x > 0.5
    if result.status != 0 or (by_group @ chosen != wanted).any() or (by_teacher @ chosen > cap).any():
        raise RuntimeError(f"The solver gave no whole-number choice: {result.message}")
    # Among equal costs of one group and teacher the solver may take any: the earlier ones are meant.
    place = place_in_run(pair)
    run = np.cumsum(place == 0) - 1
    mask[order[place < np.bincount(run, weights=chosen)[run]]] = True
    return mask


def _infeasible(group: np.ndarray, teacher: np.ndarray, wanted: np.ndarray, cap: int) -> RSRError:
    least, total = _smallest_cap(group, teacher, wanted), int(wanted.sum())
    share = np.ceil(1e4 * least / total) / 1e4
    return RSRError(
        f"No choice of {total} trajectories gives each of the {len(np.unique(teacher))} teachers at most {cap} of "
        f"them. The smallest share that can be kept here is {share:g} ({least} of one teacher)."
    )


def _smallest_cap(group: np.ndarray, teacher: np.ndarray, wanted: np.ndarray) -> int:
    """The smallest number of places for every teacher under which `wanted[g]` of each group can be chosen."""
    num_teachers = int(teacher.max()) + 1
    pair, count = np.unique(group * num_teachers + teacher, return_counts=True)
    load = sparse.hstack([_incidence(pair % num_teachers, num_teachers), -np.ones((num_teachers, 1))]).tocsr()
    fill = sparse.hstack([_incidence(pair // num_teachers, len(wanted)), sparse.csr_matrix((len(wanted), 1))]).tocsr()
    bounds = np.column_stack([np.zeros(len(pair) + 1), np.append(count, np.inf)])
    cost = np.append(np.zeros(len(pair)), 1.0)
    # A fractional load can be rounded up: with whole-number places the flow has a whole-number solution.
    return int(np.ceil(_solve(cost, load, np.zeros(num_teachers), fill, wanted, bounds).fun - 1e-6))


def _incidence(rows: np.ndarray, num_rows: int) -> sparse.csr_matrix:
    return sparse.csr_matrix((np.ones(len(rows)), (rows, np.arange(len(rows)))), (num_rows, len(rows)))


def _solve(cost, upper, upper_bound, equal, equal_bound, bounds=(0, 1)) -> OptimizeResult:
    # The interior-point method ends at a vertex (crossover) and is several times faster than the simplex method here.
    return linprog(cost, A_ub=upper, b_ub=upper_bound, A_eq=equal, b_eq=equal_bound, bounds=bounds, method="highs-ipm")
