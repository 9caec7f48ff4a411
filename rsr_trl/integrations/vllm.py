"""vLLM in place of a student that is loaded here: a server, or an engine of this process.

Knows vLLM's requests and answers; what they mean for a student says `vllm_student.py`.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from transformers import PreTrainedTokenizerBase

from rsr_trl.integrations.vllm_student import PROBE_TOP, Answer, Prompts, VLLMStudent
from rsr_trl.rsr import RSRError


CHUNK = 256  # rows that an engine of this process gets together
BUSY = (429, 500, 502, 503, 504)  # statuses after which a request is repeated
HINTS = {  # what a refusal says, and what to do
    "Unauthorized": " Set VLLM_API_KEY.",
    "greater than max allowed": f" Start it with --max-logprobs {PROBE_TOP} or more.",
    "out of vocabulary": " It runs another student.",
    "not JSON compliant": " The student gives NaN there.",
}


class VLLMServer:
    """
    A vLLM server: what `RSRScorer(student, engine=VLLMServer(url))` asks instead of loading the student. Each row is
    one request to `/v1/completions`; the environment's `VLLM_API_KEY` goes along.

    Args:
        url (`str`): Such as `http://localhost:8000`, with or without `/v1`.
        served_model_name (`str`, *optional*): What the server calls the student, if not by its hub id or path.
        concurrency (`int`, *optional*, defaults to `32`): Requests in flight.
        retries (`int`, *optional*, defaults to `5`):
            How often a request is repeated, with growing pauses, where there is no connection or the server is busy.
        timeout (`float`, *optional*, defaults to `600`): Seconds to wait for an answer.

    Raises:
        RSRError: when it is used, if there is no answer, it serves another student, or doesn't return
            `prompt_logprobs`.
    """

    def __init__(
        self,
        url: str,
        served_model_name: str | None = None,
        concurrency: int = 32,
        retries: int = 5,
        timeout: float = 600,
    ):
        if concurrency < 1 or retries < 0:
            raise RSRError(f"{concurrency=} must be at least 1, and {retries=} at least 0.")
        if not url.startswith(("http://", "https://")):
            raise RSRError(f"A server's address is such as http://localhost:8000, got {url!r}.")
        self.url = url.rstrip("/").removesuffix("/v1")
        self.served_model_name, self.concurrency = served_model_name, concurrency
        self.retries, self.timeout = retries, timeout
        self._session: requests.Session | None = None

    def __getstate__(self) -> dict:
        return {**vars(self), "_session": None}  # a worker process makes its own

    def __repr__(self) -> str:
        return f"VLLMServer({self.url!r})"

    def __str__(self) -> str:
        return "vllm, rank counts ties below the first"

    def max_length(self, model_id: str) -> int:
        """See [`~rsr_trl.scoring.settings.Engine`]. The server wants room for one more token."""
        return int(self._served(model_id)["max_model_len"]) - 1

    def open(self, model_id: str, tokenizer: PreTrainedTokenizerBase, checkpoint: str, **hub) -> "VLLMStudent":
        """See [`~rsr_trl.scoring.settings.Engine`]."""
        name = self._served(model_id)["id"]
        return VLLMStudent(partial(self._ask_all, name), repr(self), model_id, tokenizer, checkpoint, **hub)

    def _served(self, model_id: str) -> dict:
        """What the server says of this student."""
        models = self._call("GET", "/v1/models").get("data") or []
        if self.served_model_name is not None:
            found = [model for model in models if model["id"] == self.served_model_name]
        else:
            found = [m for m in models if any(_same(m.get(key), model_id) for key in ("id", "root"))]
        if not found:
            asked = model_id if self.served_model_name is None else self.served_model_name
            names = ", ".join(repr(model["id"]) for model in models) or "nothing"
            raise RSRError(
                f"The server at {self.url} serves {names}, not {asked!r}. Start it with that student; if it is the "
                "same one under another name, pass vllm_served_model_name (in Python: served_model_name)."
            )
        if not found[0].get("max_model_len"):
            raise RSRError(f"The server at {self.url} doesn't state max_model_len: it is no vLLM server.")
        return found[0]

    def _ask_all(self, model: str, prompts: Prompts, top: int) -> Iterator[tuple[int | str, Answer]]:
        pool = ThreadPoolExecutor(self.concurrency, "rsr-vllm")
        asked = {pool.submit(self._ask, model, row, ids, top): row for row, ids in prompts.items()}
        try:
            for future in as_completed(asked):
                yield asked.pop(future), future.result()  # answers are large: none stays
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, model: str, row: int | str, ids: list[int], top: int) -> Answer:
        body = {"model": model, "prompt": ids, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": top}
        what = f"{f'row {row}' if isinstance(row, int) else row} of {len(ids)} tokens"
        choices = self._call("POST", "/v1/completions", body, what).get("choices")
        places = choices[0].get("prompt_logprobs") if choices else None
        if not places:
            raise RSRError(
                f"The server at {self.url} answers {what} without prompt_logprobs: it is no vLLM server, or something "
                "between leaves them out."
            )
        values = ("logprob", "rank", "decoded_token")
        return [place and {int(t): tuple(map(of.get, values)) for t, of in place.items()} for place in places]

    def _call(self, method: str, path: str, body: dict | None = None, what: str = "a request") -> dict:
        for attempt in range(self.retries + 1):
            time.sleep(0.25 * 2**attempt if attempt else 0)
            try:
                answer = self._connected().request(method, self.url + path, json=body, timeout=(10, self.timeout))
                broken = None
                if answer.ok:
                    return answer.json()
                if answer.status_code not in BUSY:
                    break
            except requests.RequestException as error:  # no connection, or one that broke within an answer
                broken = error
        if broken is not None:
            raise RSRError(
                f"The server at {self.url} doesn't answer {path}: {broken}. What is scored is kept: see to the server "
                "and run the same again."
            ) from broken
        raise RSRError(
            f"The server at {self.url} refuses {what} ({path}, status {answer.status_code}): "
            f"{answer.text[:500].strip()}." + "".join(hint for said, hint in HINTS.items() if said in answer.text)
        )

    def _connected(self) -> requests.Session:
        if self._session is None:
            self._session = requests.Session()
            for scheme in ("http://", "https://"):
                self._session.mount(scheme, HTTPAdapter(pool_maxsize=self.concurrency))
            if key := os.environ.get("VLLM_API_KEY"):
                self._session.headers["Authorization"] = f"Bearer {key}"
        return self._session


class VLLMEngine:
    """
    A vLLM engine in this process: `RSRScorer(student, engine=VLLMEngine(vllm.LLM(student, ...)))`.

    Args:
        llm (`vllm.LLM`): The student, as vLLM loaded it (`tensor_parallel_size`, `dtype`, ...).
    """

    def __init__(self, llm: Any):
        self._llm, self._config = llm, llm.llm_engine.model_config

    def __repr__(self) -> str:
        return f"VLLMEngine({self._config.model!r})"

    __str__ = VLLMServer.__str__

    def __reduce__(self) -> tuple:
        return _refuse_workers, (repr(self),)  # `datasets` names its cache by this

    def max_length(self, model_id: str) -> int:
        """See [`~rsr_trl.scoring.settings.Engine`]."""
        if not _same(self._config.model, model_id):
            raise RSRError(f"{self!r} isn't {model_id!r}. Pass the student that it runs.")
        return int(self._config.max_model_len) - 1

    def open(self, model_id: str, tokenizer: PreTrainedTokenizerBase, checkpoint: str, **hub) -> "VLLMStudent":
        """See [`~rsr_trl.scoring.settings.Engine`]. The dtype is the engine's own."""
        return VLLMStudent(
            self._ask_all, repr(self), model_id, tokenizer, checkpoint, **{**hub, "dtype": self._config.dtype}
        )

    def _ask_all(self, prompts: Prompts, top: int) -> Iterator[tuple[int | str, Answer]]:
        from vllm import SamplingParams

        params = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=top, flat_logprobs=True, detokenize=False
        )
        left = iter(prompts)
        while rows := list(islice(left, CHUNK)):
            outputs = self._llm.generate([{"prompt_token_ids": prompts[row]} for row in rows], params, use_tqdm=False)
            for row, flat in zip(rows, (output.prompt_logprobs for output in outputs), strict=True):
                values = [(t, (p, r, None)) for t, p, r in zip(flat.token_ids, flat.logprobs, flat.ranks, strict=True)]
                places = zip(flat.start_indices, flat.end_indices, strict=True)
                yield row, [dict(values[first:last]) or None for first, last in places]


def _refuse_workers(name: str) -> None:
    raise RSRError(f"{name} can't go to worker processes. Leave `num_proc` unset, or use VLLMServer.")


def _same(served: str | None, model_id: str) -> bool:
    """Whether a server's name of a model is this one: the same words, or the same folder."""
    same_folder = served is not None and Path(model_id).is_dir() and Path(served).resolve() == Path(model_id).resolve()
    return served == model_id or same_folder
