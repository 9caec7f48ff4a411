"""The choice with the least total score when no teacher may have more than a number of places.

Choosing some trajectories of each group with a cap on each teacher is a transportation problem: every trajectory lies
in one group row and one teacher row of the constraints, so their matrix is totally unimodular, and every vertex of the
linear programme is a whole-number choice (Hoffman & Kruskal 1956). HiGHS ends at a vertex; the dual prices of the
teachers prove how far from the least total it can be at most.
"""

import numpy as np
import scipy.sparse as sparse
from scipy.optimize import OptimizeResult, linprog

from rsr_trl.rsr import RSRError
from rsr_trl.selection.table import place_in_run


def least_total(
    group: np.ndarray, teacher: np.ndarray, score: np.ndarray, wanted: np.ndarray, cap: int
) -> tuple[np.ndarray, float]:
    """
    Choose `wanted[g]` trajectories of every group `g` so that their scores add up to the least, while no teacher has
    more than `cap` of them.

    Args:
        group (int array of shape `(n,)`): Group of each trajectory. Among equals of one group and teacher the earlier
            one is taken.
        teacher (int array of shape `(n,)`): Teacher of each trajectory.
        score (float array of shape `(n,)`): Finite; lower is better.
        wanted (int array of shape `(groups,)`): At most the number of trajectories that the group has.
        cap (`int`): Places for one teacher.

    Returns:
        Boolean array of shape `(n,)`, and by how much its total can exceed the least possible one at most, in the unit
        of the scores (rounding only).

    Raises:
        `RSRError` if no choice keeps the cap; the message names the smallest cap that can be kept.
    """
    if cap < 1:
        raise _infeasible(group, teacher, wanted, cap)
    num_groups, num_teachers = len(wanted), int(teacher.max()) + 1
    # Of one teacher in one group, an optimal choice takes the best first: the rest can't matter.
    order = np.lexsort((score, teacher, group))
    pair = group[order] * num_teachers + teacher[order]
    useful = place_in_run(pair) < np.minimum(wanted, cap)[group[order]]
    order, pair = order[useful], pair[useful]
    group_rows = _incidence(group[order], num_groups)
    teacher_rows = _incidence(teacher[order], num_teachers)

    if num_groups == 1:  # whoever is left once every teacher has its places: no need for a solver
        if len(order) < wanted[0]:
            raise _infeasible(group, teacher, wanted, cap)
        order = np.sort(order)
        mask = np.zeros(len(score), dtype=bool)
        mask[order[np.argsort(score[order], kind="stable")][: wanted[0]]] = True
        return mask, 0.0

    # The solver's tolerances are absolute, so it sees costs between 0 and 1.
    low, scale = score[order].min(), np.ptp(score[order]) or 1.0
    cost = (score[order] - low) / scale
    result = _solve(cost, teacher_rows, np.full(num_teachers, cap), group_rows, wanted)
    if result.status == 2:
        raise _infeasible(group, teacher, wanted, cap)
    chosen = result.x > 0.5
    if (
        result.status != 0
        or (group_rows @ chosen != wanted).any()
        or (teacher_rows @ chosen > cap).any()
        or np.abs(result.x - chosen).max() > 1e-6
    ):
        raise RuntimeError(f"The solver gave no whole-number choice: {result.message}")

    prices = np.maximum(-result.ineqlin.marginals, 0)
    priced = cost + prices[teacher[order]]
    by_group = np.lexsort((priced, group[order]))
    cheapest = by_group[place_in_run(group[order][by_group]) < wanted[group[order][by_group]]]
    bound = priced[cheapest].sum() - cap * prices.sum()  # no choice under the cap costs less (weak duality)
    gap = max(0.0, float(cost[chosen].sum() - bound)) * scale

    # Among equal scores of one group and teacher the solver may take any: the earlier ones are meant.
    place = place_in_run(pair)
    run = np.cumsum(place == 0) - 1
    mask = np.zeros(len(score), dtype=bool)
    mask[order[place < np.bincount(run, weights=chosen)[run]]] = True
    return mask, gap


def _infeasible(group: np.ndarray, teacher: np.ndarray, wanted: np.ndarray, cap: int) -> RSRError:
    least, total = smallest_cap(group, teacher, wanted), int(wanted.sum())
    share = np.ceil(1e4 * least / total) / 1e4
    return RSRError(
        f"No choice of {total} trajectories gives each of the {len(np.unique(teacher))} teachers at most {cap} of "
        f"them. The smallest share that can be kept here is {share:g} ({least} of one teacher)."
    )


def smallest_cap(group: np.ndarray, teacher: np.ndarray, wanted: np.ndarray) -> int:
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


def _solve(
    cost: np.ndarray,
    upper: sparse.csr_matrix,
    upper_bound: np.ndarray,
    equal: sparse.csr_matrix,
    equal_bound: np.ndarray,
    bounds: np.ndarray | tuple[float, float] = (0, 1),
) -> OptimizeResult:
    # The interior-point method ends at a vertex (crossover) and is several times faster than the simplex method here.
    return linprog(cost, A_ub=upper, b_ub=upper_bound, A_eq=equal, b_eq=equal_bound, bounds=bounds, method="highs-ipm")
