"""A scored dataset as arrays by teacher: which rows compare on equal terms, and what those of a teacher add up to."""

from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from rsr_trl.data import counted, examples, read_table
from rsr_trl.rsr import ERROR, MEAN_CLIPPED_RANK, MEAN_SURPRISAL, NUM_TOKENS, RSR, TRUNCATED
from rsr_trl.selection.bootstrap import RatioDraws, probability_best
from rsr_trl.selection.table import check_one_student, flags, labels, numbers, read_score


SELECTED = (
    "These trajectories were chosen by their score (`rsr select`), so they don't tell which teacher suits: rank "
    "teachers on the dataset that they were chosen from."
)


@dataclass
class TeacherRows:
    """
    A scored dataset as arrays of shape `(rows,)` over the rows that have a score.

    Args:
        names (`list`): Teachers, ascending; `teacher` counts along it.
        teacher (int array): Teacher of each row.
        problem (int array, *optional*): Problem of each row.
        rank, surprisal (float arrays): Mean clipped rank and mean surprisal (nats) of each row.
        score (float array, *optional*): The score to rank by, where it isn't RSR.
        tokens (float array): Scored tokens.
        truncated (boolean array): Whether the row was truncated.
        correct (float array, *optional*): 1, 0, or `nan` where unknown.
        unscored (int array of shape `(teachers,)`): Rows of each teacher without a score.
    """

    names: list
    teacher: np.ndarray
    problem: np.ndarray | None
    rank: np.ndarray
    surprisal: np.ndarray
    tokens: np.ndarray
    truncated: np.ndarray
    correct: np.ndarray | None
    unscored: np.ndarray
    score: np.ndarray | None = None

    @classmethod
    def read(
        cls,
        dataset: Dataset,
        teacher_column: str,
        problem_column: str | None,
        correctness_column: str | None,
        score: str = RSR,
    ) -> "TeacherRows":
        scored_by = [MEAN_CLIPPED_RANK, MEAN_SURPRISAL, NUM_TOKENS, TRUNCATED]
        table = read_table(dataset, [teacher_column, problem_column, correctness_column, *scored_by])
        check_one_student(dataset)
        teacher, names = labels(table, teacher_column)
        rank, surprisal = numbers(table, MEAN_CLIPPED_RANK), numbers(table, MEAN_SURPRISAL)
        ok = np.isfinite(rank) & np.isfinite(surprisal)
        values = None if score == RSR else read_score(dataset, score)
        if values is not None:
            ok &= np.isfinite(values)
        if not ok.any():
            raise ValueError(
                f"None of the {len(ok)} rows has a score, so there is nothing to rank. {ERROR!r} says why."
            )
        correct = None
        if correctness_column is not None:
            known = ~table[correctness_column].is_null().to_numpy()
            correct = np.where(known, flags(table, correctness_column), np.nan)[ok]
        return cls(
            names=names,
            teacher=teacher[ok],
            problem=labels(table, problem_column)[0][ok] if problem_column else None,
            rank=rank[ok],
            surprisal=surprisal[ok],
            tokens=numbers(table, NUM_TOKENS)[ok],
            truncated=flags(table, TRUNCATED)[ok],
            correct=correct,
            unscored=np.bincount(teacher[~ok], minlength=len(names)),
            score=None if values is None else values[ok],
        )

    @property
    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Numerator and denominator of each row: a teacher's score is the quotient of their sums."""
        return (self.rank, self.surprisal) if self.score is None else (self.score, np.ones_like(self.score))

    def notes(self) -> list[str]:
        """What is wrong with the rows themselves, in words: teachers without a score, repeated rows."""
        found = []
        scored = np.bincount(self.teacher, minlength=len(self.names))
        if lost := [self.names[t] for t in np.flatnonzero(scored == 0)]:
            have, are = ("has", "isn't") if len(lost) == 1 else ("have", "aren't")
            found.append(
                f"{counted(len(lost), 'teacher')} {have} no scored trajectory and {are} compared: {examples(lost)}."
            )
        problem = self.problem if self.problem is not None else np.zeros(len(self.teacher))
        keys = np.stack([self.teacher, problem, self.rank, self.surprisal, self.tokens])
        keys = keys[:, np.lexsort(keys)]
        if repeated := int((keys[:, 1:] == keys[:, :-1]).all(axis=0).sum()):
            same = "teacher" if self.problem is None else "teacher and problem"
            repeat, count = ("repeats", "counts") if repeated == 1 else ("repeat", "count")
            found.append(
                f"{counted(repeated, 'row')} {repeat} another of the same {same} (equal length, rank, surprisal) and "
                f"{count} again. Remove duplicates for honest error bars."
            )
        return found

    def matched(self, notes: list[str]) -> tuple[np.ndarray, int | None, int | None]:
        """Rows to compare (boolean), problems that all teachers share, problems in all; adds to `notes`."""
        everything = np.ones(len(self.teacher), dtype=bool)
        present = np.unique(self.teacher)
        if self.problem is None:
            count = np.bincount(self.teacher)[present]
            if len(present) > 1:
                least, most = int(count.min()), int(count.max())
                solved = f"{counted(most, 'trajectory')} each" if least == most else f"{least} to {most} trajectories"
                notes.append(
                    f"Without a problem column the {len(present)} teachers are compared on whatever each of them "
                    f"solved ({solved}): give problem_column to compare like with like."
                )
            if alone := [self.names[t] for t in present[count == 1]]:
                notes.append(
                    f"{counted(len(alone), 'teacher')} with a single trajectory can't be judged: {examples(alone)}."
                )
            return everything, None, None
        span = int(self.problem.max()) + 1
        pairs = np.unique(self.teacher * span + self.problem)
        shared = np.bincount(pairs % span, minlength=span) == len(present)
        in_all, num_shared = len(np.unique(pairs % span)), int(shared.sum())
        if num_shared < in_all:
            has = np.bincount(pairs // span, minlength=len(self.names))
            fewest = present[np.argsort(has[present], kind="stable")[:5]]
            detail = ", ".join(f"{self.names[t]!r} {has[t]}" for t in fewest)
            if num_shared == 0:
                raise ValueError(
                    f"No problem has a scored trajectory of all {len(present)} teachers, so they can't be compared on "
                    f"equal terms. Problems of those with the fewest: {detail} (of {in_all}). Leave those teachers "
                    "out, or pass problem_column=None to compare unmatched."
                )
            notes.append(
                f"The {len(present)} teachers share {num_shared} of {in_all} problems, and only "
                f"{'these are' if num_shared > 1 else 'that one is'} compared. "
                f"Problems of those with the fewest: {detail}."
            )
        return shared[self.problem], num_shared, in_all

    def table(self, compared: np.ndarray, valid: np.ndarray, resampled: RatioDraws, sign: int = 1) -> list[dict]:
        """One row for each teacher in `valid`, in that order. `sign` is -1 if higher scores are better."""

        def sums(values: np.ndarray | float, rows: np.ndarray = compared) -> np.ndarray:
            weights = np.broadcast_to(values, rows.shape)[rows]
            return np.bincount(self.teacher[rows], weights=weights, minlength=len(self.names))[valid]

        count = sums(1.0)
        everything = np.ones_like(compared)
        with np.errstate(divide="ignore"):
            top, bottom = self.parts
            name = "rsr" if self.score is None else "score"
            found = {
                name: sums(top) / sums(bottom),
                f"{name}_low": resampled.low,
                f"{name}_high": resampled.high,
                "probability_best": probability_best(sign * resampled.draws),
                "mean_rank": sums(self.rank) / count,
                "mean_surprisal": sums(self.surprisal) / count,
                "mean_tokens": sums(self.tokens) / count,
                "trajectories": count.astype(np.int64),
                "truncated_share": sums(self.truncated) / count,
                "accuracy": np.full(len(valid), np.nan),
                "unscored": self.unscored[valid],
                f"{name}_all": sums(top, everything) / sums(bottom, everything),
            }
            if self.score is not None:
                found["rsr"] = sums(self.rank) / sums(self.surprisal)
        if self.correct is not None:
            known = compared & ~np.isnan(self.correct)
            with np.errstate(invalid="ignore"):
                found["accuracy"] = sums(self.correct, known) / sums(1.0, known)
        lists = {name: [value if np.isfinite(value) else None for value in found[name].tolist()] for name in found}
        return [
            {"teacher": self.names[t], **{name: lists[name][i] for name in lists}}
            for i, t in enumerate(valid.tolist())
        ]

    def empty_row(self, t: int) -> dict:
        """The row of a teacher without a scored trajectory."""
        name = "rsr" if self.score is None else "score"
        names = (name, f"{name}_low", f"{name}_high", "probability_best", "mean_rank", "mean_surprisal", "mean_tokens")
        row = {"teacher": self.names[t], **dict.fromkeys(names), "trajectories": 0, "truncated_share": None}
        row |= {"accuracy": None, "unscored": int(self.unscored[t]), f"{name}_all": None}
        return row if self.score is None else {**row, "rsr": None}
