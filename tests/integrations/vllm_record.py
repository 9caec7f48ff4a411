"""
Records what a real vLLM answers for rows of the demo, where the default tests read it. In `.venv-vllm` (`make vllm`):

    python -m vllm.entrypoints.openai.api_server --model rsr_trl/demo/student --dtype float32 --enforce-eager &
    python tests/integrations/vllm_record.py http://localhost:8000
"""

import gzip
import json
import sys
from pathlib import Path

import requests
import vllm

from rsr_trl import RSRScorer
from rsr_trl.demo import STUDENT_PATH
from rsr_trl.demo.teachers import make_pool
from rsr_trl.integrations.vllm import VLLMEngine, VLLMServer


RECORDED = Path(__file__).with_name("vllm_recorded.json.gz")
FLAT = ("start_indices", "end_indices", "token_ids", "logprobs", "ranks")


def main(url: str) -> None:
    pool = make_pool(2).select(range(0, 14, 2))
    pool = pool.select_columns([name for name in ("prompt", "completion") if name in pool.column_names])
    rows = [*pool, {**pool[0], "completion": type(pool[0]["completion"])()}]
    dataset = type(pool).from_list(rows)
    llm = vllm.LLM(str(STUDENT_PATH), dtype="float32", enforce_eager=True)
    said = {"version": requests.get(url + "/version").json(), "rows": rows, "served": [], "flat": []}
    call, generate = VLLMServer._call, llm.generate

    def recorded_call(self, method, path, body=None, what=None):
        answer = call(self, method, path, body, what)
        if body is None:
            said["card"] = answer["data"][0]
        else:
            said["served"].append([body["prompt"], body["prompt_logprobs"], answer])
        return answer

    def recorded_generate(prompts, params, use_tqdm):
        outputs = generate(prompts, params, use_tqdm=use_tqdm)
        for prompt, flat in zip(prompts, (output.prompt_logprobs for output in outputs), strict=True):
            values = {name: getattr(flat, name) for name in FLAT}
            said["flat"].append([prompt["prompt_token_ids"], params.prompt_logprobs, values])
        return outputs

    VLLMServer._call, llm.generate = recorded_call, recorded_generate
    name = requests.get(url + "/v1/models").json()["data"][0]["id"]
    for engine in (VLLMServer(url, served_model_name=name), VLLMEngine(llm)):
        scored = RSRScorer(str(STUDENT_PATH), dtype="float32", engine=engine, token_stats=True).score(dataset)
        print(scored["rsr"])
    data = json.dumps(said, separators=(",", ":")).replace(name, "student").encode()
    RECORDED.write_bytes(gzip.compress(data, 9, mtime=0))
    print(RECORDED, len(data), RECORDED.stat().st_size, "bytes")


if __name__ == "__main__":  # vLLM starts processes that import this file
    main(sys.argv[1])
