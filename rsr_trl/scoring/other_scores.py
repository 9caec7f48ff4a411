"""What the scores beside RSR are made from: more numbers of the same pass and, where they need it, another pass.

It knows students, tokens and what each score needs, and no datasets.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from rsr_trl.scoring.scored_tokens import ScoredTokens, content_hash
from rsr_trl.scoring.scores import LOCAL_STEPS, SCORES, check_scores, column_functions
from rsr_trl.scoring.second_pass import surprisals_alone, surprisals_local, teacher_steps
from rsr_trl.scoring.student import Student
from rsr_trl.scoring.tokens import TokenizedExample


class OtherScores:
    """
    The scores that a scorer adds beside RSR.

    Args:
        names (iterable of `str` or `str`, *optional*): As [`~rsr_trl.scoring.scores.check_scores`] takes them.

    Attributes:
        names (tuple of `str`): Each once, in the order of [`~rsr_trl.scoring.scores.SCORES`].
        functions (`dict`): The columns that they add, and what computes each from [`ScoredTokens`].
        needs (set of `str`): What they need beside ranks and surprisals ([`~rsr_trl.scoring.scores.Score`]).
    """

    def __init__(self, names: Iterable[str] | str | None):
        self.names = check_scores(names)
        self.functions = column_functions(self.names)
        self.needs = {need for name in self.names for need in SCORES[name].needs}

    def check_teacher(self, model: bool, column: bool) -> None:
        """Raise `ValueError` unless what is given of the teacher, its model or a column, is what the scores need."""
        if model + column != ("teacher" in self.needs):
            raise ValueError(
                "The score 'provenance' needs the teacher's model or a column with its log-probabilities, and nothing "
                "else does: pass RSRScorer(student, scores=['provenance'], teacher=RSRScorer(teacher_model)), or "
                "teacher_logprobs_column='logprobs' instead of the teacher; on the command line "
                "--teacher_model_name_or_path or --teacher_logprobs_column."
            )

    def scored_tokens(
        self,
        examples: Sequence[TokenizedExample],
        tokens: ScoredTokens,
        r_max: float,
        student: Student,
        bos_token_id: int | None,
        teacher: Student | None = None,
        first_row: int = 0,
    ) -> ScoredTokens:
        """
        What the scores are computed from; where they need it, by another pass.

        Args:
            examples (sequence of [`TokenizedExample`]): All rows.
            tokens ([`ScoredTokens`]): What the first pass gave for them.
            r_max (`float`): Ranks are clipped here.
            student ([`Student`]): Takes the other passes.
            bos_token_id (`int`, *optional*): Of the student's tokenizer.
            teacher ([`Student`], *optional*): The teacher, seen as a scorer of tokens; without it, what the examples
                hold of its own log-probabilities counts.
            first_row (`int`, *optional*, defaults to `0`): What messages call the first row.
        """
        more = {}
        if "steps" in self.needs:
            starts = [e.step_starts[e.scored] for e in examples if e.error is None]
            more["step_starts"] = np.concatenate(starts or [np.zeros(0, dtype=bool)])
        if "random" in self.names:
            more["content"] = np.array([content_hash(e.input_ids, e.scored) for e in examples], dtype=np.uint64)
        if "alone" in self.needs:
            more["surprisals_alone"] = surprisals_alone(student, examples, bos_token_id, first_row)
        if "local" in self.needs:
            more["surprisals_local"] = surprisals_local(student, examples, LOCAL_STEPS, first_row)
        if "teacher" in self.needs:
            counts = [0 if example.error else int(example.step_starts.sum()) for example in examples]
            if teacher is not None:
                found = teacher_steps(teacher, [example.for_teacher for example in examples], counts, first_row)
            else:
                known = [example.teacher_steps for example in examples]
                found = [np.full(n, np.nan) if s is None else s for n, s in zip(counts, known, strict=True)]
            more["teacher_steps"] = np.concatenate(found)
        return replace(tokens, r_max=r_max, **more)
