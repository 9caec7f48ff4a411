"""A real vLLM on the CPU, from an environment of its own (`make vllm`, or another one that RSR_VLLM_PYTHON names)."""

import os
import signal
import socket
import subprocess
import time
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, load_dataset

from rsr_trl import RSRScorer
from rsr_trl.cli.main import main
from rsr_trl.demo import STUDENT_PATH
from rsr_trl.demo.teachers import make_pool
from rsr_trl.integrations.vllm import VLLMServer
from rsr_trl.rsr import RSRError


ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("RSR_VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))
STUDENT = str(STUDENT_PATH)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "VLLM_CPU_KVCACHE_SPACE": "1"}
ENVIRONMENT |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="needs vLLM in an environment of its own: make vllm"),
]


class RealServer:
    """A server process on a port; `kill` is SIGKILL for all of it."""

    def __init__(self, folder: Path, port: int):
        self.url, self.log = f"http://127.0.0.1:{port}", folder / "log.txt"
        command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", STUDENT, "--dtype", "float32"]
        command += ["--enforce-eager", "--host", "127.0.0.1", "--port", str(port)]
        with self.log.open("w") as log:
            out = {"stdout": log, "stderr": log, "env": ENVIRONMENT}
            self.process = subprocess.Popen(list(map(str, command)), **out, start_new_session=True)
        deadline = time.monotonic() + 400
        while True:
            with suppress(RSRError):
                VLLMServer(self.url, retries=0).max_length(STUDENT)
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                pytest.fail(self.log.read_text())
            time.sleep(1)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    close = kill


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def pool() -> Dataset:
    pool = make_pool(4)
    empty = [{**pool[0], "completion": [{"role": "assistant", "content": ""}]}]
    return Dataset.from_list([*pool, *empty], features=pool.features)


@pytest.fixture(scope="module")
def ours(pool) -> Dataset:
    return RSRScorer(STUDENT, dtype="float32", token_stats=True).score(pool)


def agree(theirs: Dataset, ours: Dataset) -> None:
    assert theirs["rsr_error"] == ours["rsr_error"] and theirs["rsr_error"][-1] is not None
    assert theirs["rsr_token_ids"] == ours["rsr_token_ids"]
    assert theirs["rsr_token_ranks"] == ours["rsr_token_ranks"]
    np.testing.assert_allclose(theirs["rsr"][:-1], ours["rsr"][:-1], rtol=1e-4)


def test_a_server_that_is_killed_in_the_middle(tmp_path, pool, ours, port, monkeypatch, capsys):
    pool.to_json(tmp_path / "rows.jsonl")
    command = ["score", "--model_name_or_path", STUDENT, "--dataset_name", tmp_path / "rows.jsonl", "--token_stats"]
    command += ["--dtype", "float32", "--shard_rows", 4, "--output_dir", tmp_path / "scored"]
    command = list(map(str, [*command, "--vllm_server_url", f"http://127.0.0.1:{port}"]))
    with closing(RealServer(tmp_path, port)) as server, monkeypatch.context() as patch:
        asked, ask = [], VLLMServer._ask

        def ask_or_kill(self, *of_row):
            asked.append(of_row)
            if len(asked) == 12:  # a sample, two shards of 4, and some of the third
                server.kill()
            return ask(self, *of_row)

        patch.setattr(VLLMServer, "_ask", ask_or_kill)
        assert main(command) == 1
        assert "What is scored is kept" in capsys.readouterr().err
        assert len(list((tmp_path / "scored" / "data").iterdir())) == 2
    with closing(RealServer(tmp_path, port)):
        assert main(command) == 0
    assert "8 of 29" in capsys.readouterr().err
    agree(load_dataset(str(tmp_path / "scored"), split="train"), ours)


def test_an_engine_without_a_server(tmp_path, pool, ours):
    pool.to_json(tmp_path / "rows.jsonl")
    command = [PYTHON, Path(__file__).with_name("vllm_job.py"), tmp_path / "rows.jsonl", STUDENT, tmp_path / "scored"]
    done = subprocess.run(list(map(str, command)), env=ENVIRONMENT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    agree(Dataset.from_parquet(str(tmp_path / "scored")), ours)
