"""Reverse speculative decoding: traces whose tokens the teacher proposes and the student accepts.

RSD, "In Their Own Words" (arXiv:2509.22230). After the same text, with the teacher's p_T and the student's p_S:

    pool      those of the teacher's 20 most likely tokens that the student has too, p_T renormalised
    accepted  a draw from the pool that is one of the student's 20 most likely tokens and has p_S >= 0.01
    fallback  after 5 draws that aren't: a draw from the student's 20 most likely tokens, p_S renormalised

Both read the token, until the student's end of turn. Of a problem's traces with one `</think>`, an end, at most 50%
fallbacks and a right answer, the shortest is chosen. So does the authors' code. Ours: a token is the same one if its
string is (theirs: and its id), and so is the end of turn; each model reads the prompt in its own chat template (theirs
both in the student's); no temperature (theirs samples at 0.7 and top-p 0.95; whether the log-probabilities that it
draws from know of them depends on its engine's version); an empty pool falls back.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from datasets.utils import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rsr_trl.experimental.generation import Lines, Reader, name_of
from rsr_trl.pilot.held_out import end_tokens, load_checker, prompt_ids
from rsr_trl.rsr import RSRError
from rsr_trl.scoring.architecture import evaluation_mode, num_positions
from rsr_trl.scoring.fingerprint import student_fingerprint, weights_fingerprint
from rsr_trl.scoring.scores import ACCEPTED_FROM, ACCEPTED_TOP


NUM_DRAWS, MAX_FALLBACKS = 5, 0.5
LEAST_SHARED = 0.5  # of the smaller vocabulary: tokenizers of one kind share three quarters, of two kinds a third
COLUMNS = ("completion", "rsd_row", "rsd_num_tokens", "rsd_fallback_share", "rsd_ended")


def draw_token(pool: dict[int, float], own: dict[int, float], generator: np.random.Generator) -> tuple[int, bool]:
    """
    A token by the rule above, and whether it is a fallback. `pool` holds what the teacher may propose with p_T, `own`
    the student's 20 most likely tokens with p_S; both by the student's ids.
    """
    for token in _draws(pool, generator, NUM_DRAWS) if pool else ():
        if own.get(token, 0.0) >= ACCEPTED_FROM:
            return token, False
    return _draws(own, generator, 1)[0], True


def _draws(weights: dict[int, float], generator: np.random.Generator, count: int) -> list[int]:
    tokens = sorted(weights)  # by id: an order by probability would change with rounding
    values = np.array([weights[token] for token in tokens])
    return generator.choice(tokens, count, p=values / values.sum()).tolist()


def most_likely(log_probs: torch.Tensor) -> list[dict[int, float]]:
    """The 20 most likely tokens of each row, with their probabilities, from log-probabilities of shape `(rows, V)`."""
    values, ids = log_probs.topk(min(ACCEPTED_TOP, log_probs.shape[1]))
    return [dict(zip(*row, strict=True)) for row in zip(ids.tolist(), values.exp().tolist(), strict=True)]


class SharedTokens:
    """The student's ids of the teacher's tokens (`ids`), where it has them, and the teacher's pieces of the others."""

    def __init__(self, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase):
        self._student, self._teacher, own, other = student, teacher, student.get_vocab(), teacher.get_vocab()
        if len(shared := own.keys() & other.keys()) < LEAST_SHARED * min(len(own), len(other)):
            raise RSRError(
                f"The tokenizers of student and teacher share only {len(shared)} of {len(own)} and {len(other)} "
                "tokens: the teacher could propose next to nothing. Take a teacher with a similar tokenizer."
            )
        self.ids = {other[token]: own[token] for token in shared}
        self._pieces = {own[token]: [other[token]] for token in shared}
        self._bytes = {token: id for token, id in other.items() if len(token) == 1}

    def pieces(self, token: int) -> list[int]:
        """What the teacher reads for one of the student's tokens; nothing where that can't be told."""
        if token not in self._pieces:
            text = self._student.decode([token], clean_up_tokenization_spaces=False)
            pieces = self._teacher.encode(text, add_special_tokens=False)
            if "\N{REPLACEMENT CHARACTER}" in text:  # a part of a character: bytes, in a vocabulary of bytes
                pieces = [self._bytes.get(byte) for byte in self._student.convert_ids_to_tokens(token)]
            self._pieces[token] = [] if None in pieces else pieces
        return self._pieces[token]


def _begun(tokenizer: PreTrainedTokenizerBase, prompt: list[int], begin: str) -> list[int]:
    """The prompt and how the response begins, which some chat templates write already."""
    written = tokenizer.decode(prompt).rstrip().endswith(begin)
    return prompt if written else prompt + tokenizer.encode(begin, add_special_tokens=False)


@dataclass
class _Trace:
    row: int
    sample: int
    contexts: list[list[int]]  # ids of the prompt and the opening tag, for student and teacher
    room: list[int]  # tokens that student and teacher may still read
    generator: np.random.Generator
    ids: list[int] = field(default_factory=list)
    fallbacks: int = 0


class ReverseSpeculativeDecoder:
    """Writes traces with a live student and a live teacher, whose tokenizers are alike (else `RSRError`)."""

    def __init__(self, student: PreTrainedModel, processing_class, teacher: PreTrainedModel, teacher_processing_class):
        self.models, self.tokenizers = (student, teacher), (processing_class, teacher_processing_class)
        self._shared = SharedTokens(*self.tokenizers)
        self._ends, theirs = map(end_tokens, self.models, self.tokenizers)
        end = min(self._ends, default=-1) if processing_class.eos_token_id is None else processing_class.eos_token_id
        self._ids = self._shared.ids | {t: end for t in theirs if self._shared.ids.get(t) not in self._ends}

    def generate(
        self, dataset: Dataset, output_file, num_samples=16, max_new_tokens=7168, batch_size=16, thinking=True, seed=0
    ) -> Dataset:
        """
        `num_samples` traces for each row's `prompt`, begun with `<think>` if `thinking`. Each is a line of
        `output_file` as soon as it stops, so the same call resumes. Its draws depend on the prompt, the number of the
        sample and `seed`; the rows beside it change probabilities by rounding.

        Returns:
            The rows once per trace, with `completion`, `rsd_row`, `rsd_num_tokens`, `rsd_fallback_share`, `rsd_ended`.
        """
        if "prompt" not in dataset.column_names or "completion" in dataset.column_names:
            raise RSRError(f"RSD reads prompt and writes completion; the columns are {dataset.column_names}.")
        begin, both = "<think>" if thinking else "", list(zip(self.models, self.tokenizers, strict=True))
        rows, contexts, traces = dataset.to_list(), [], []
        for row in rows:
            asked = row["prompt"], row.get("tools"), row.get("chat_template_kwargs")
            contexts.append([_begun(tokenizer, prompt_ids(tokenizer, *asked), begin) for tokenizer in self.tokenizers])
        names = [student_fingerprint(weights_fingerprint(model), model.dtype, tokenizer) for model, tokenizer in both]
        lines = Lines(output_file, name_of(names, max_new_tokens, begin, seed), list(map(name_of, contexts)))
        for row, ids in enumerate(contexts):
            room = [num_positions(model.config) - len(own) for model, own in zip(self.models, ids, strict=True)]
            if min(room) < 1:
                raise RSRError(f"Row {row}: the prompt leaves no position for a response.")
            for sample in range(num_samples):
                if (row, sample) not in lines.found:
                    generator = np.random.default_rng([seed, lines.prompts[row], sample])
                    traces.append(_Trace(row, sample, ids, [min(max_new_tokens, room[0]), room[1]], generator))
        traces.sort(key=lambda trace: -len(trace.contexts[0]))
        with torch.no_grad(), evaluation_mode(self.models[0]), evaluation_mode(self.models[1]):
            for start in tqdm(range(0, len(traces), batch_size), desc="Decoding", unit=" batches"):
                for trace in self._decode(traces[start : start + batch_size]):
                    ended, count = trace.ids[-1] in self._ends, len(trace.ids)
                    text = begin + self.tokenizers[0].decode(trace.ids[: count - ended])
                    chat = isinstance(rows[trace.row]["prompt"], list)
                    completion = [{"role": "assistant", "content": text}] if chat else text
                    values = (completion, trace.row, count, trace.fallbacks / count, ended)
                    lines.add(trace.row, trace.sample, **dict(zip(COLUMNS, values, strict=True)))
        return lines.columns(dataset, COLUMNS, num_samples)

    def _decode(self, traces: list[_Trace]) -> Iterator[_Trace]:
        """The traces of a batch, each as soon as it stops."""
        readers, new = [Reader(model, len(traces)) for model in self.models], [trace.contexts for trace in traces]
        while traces:
            read = [reader.read(ids) for reader, ids in zip(readers, zip(*new, strict=True), strict=True)]
            for trace, own, proposed in zip(traces, *map(most_likely, read), strict=True):
                pool: Counter[int] = Counter()  # several ends of the teacher's may be one of the student's
                for token in proposed.keys() & self._ids.keys():
                    pool[self._ids[token]] += proposed[token]
                own = {token: p for token, p in own.items() if token in self._ends or self._shared.pieces(token)}
                token, fallback = draw_token(pool, own, trace.generator)
                trace.ids.append(token)
                trace.fallbacks += fallback
                trace.room = [trace.room[0] - 1, trace.room[1] - len(self._shared.pieces(token))]
            going = [i for i, t in enumerate(traces) if t.ids[-1] not in self._ends and min(t.room) > 0]
            yield from (trace for i, trace in enumerate(traces) if i not in going)
            for reader in readers if 0 < len(going) < len(traces) else ():
                reader.keep(going)
            traces = [traces[i] for i in going]
            new = [([trace.ids[-1]], self._shared.pieces(trace.ids[-1])) for trace in traces]


def choose_traces(traces: Dataset, answer_column: str, checker: str | Callable[[str, object], bool]) -> Dataset:
    """
    Add `rsd_error`: why a trace isn't the one to train on; null for that one, if there is one, of each `rsd_row`.
    `checker` is a name of [`~rsr_trl.pilot.held_out.load_checker`] or a function of response and answer; it reads
    what follows `</think>`.
    """
    is_correct, errors, right = load_checker(checker) if isinstance(checker, str) else checker, [], {}
    for i, trace in enumerate(traces.with_format(None)):
        text = trace["completion"] if isinstance(trace["completion"], str) else trace["completion"][0]["content"]
        if text.startswith("<think>") and text.count("</think>") != 1:
            errors.append(f"{text.count('</think>')} times </think>")
        elif not trace["rsd_ended"]:
            errors.append("no end")
        elif trace["rsd_fallback_share"] > MAX_FALLBACKS:
            errors.append(f"{trace['rsd_fallback_share']:.0%} fallbacks")
        elif not is_correct(text.rpartition("</think>")[2], trace[answer_column]):
            errors.append("wrong answer")
        else:
            errors.append("another right one is shorter")
            right.setdefault(trace["rsd_row"], []).append((trace["rsd_num_tokens"], i))
    for _, shortest in map(min, right.values()):
        errors[shortest] = None
    return traces.add_column("rsd_error", pa.array(errors, pa.string()))
