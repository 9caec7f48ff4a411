"""A small HTTP server that answers as vLLM's does, by definition: from all logits of a student, one row at a time."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch


class StubServer:
    """
    Serves `model` under `name`. `fault(number, body)` may give the status and the text of the answer to request
    `number`, instead of an answer, which breaks off if it is "broken"; `change(answer)` may change one.
    """

    def __init__(self, model, tokenizer, name: str, max_model_len: int = 512, dtype: torch.dtype = torch.float32):
        self.model, self.tokenizer, self.dtype = model, tokenizer, dtype
        self.card = {"id": name, "root": name, "max_model_len": max_model_len}
        self.fault: Callable = lambda number, body: None
        self.change: Callable = lambda answer: answer
        self.rows, self.requests, self.most_in_flight, self._in_flight = [], 0, 0, 0
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"stub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "StubServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self._server.shutdown()
        self._server.server_close()

    @torch.no_grad()
    def logprobs(self, ids: list[int]) -> torch.Tensor:
        logits = self.model(input_ids=torch.tensor([ids])).logits[0].to(self.dtype)
        return logits.float().log_softmax(-1)

    def answer(self, body: dict) -> dict:
        """By definition: a rank counts all tokens at least as likely, but the most likely ones have their place."""
        ids, top = body["prompt"], body["prompt_logprobs"]
        places = [None]
        for token, row in zip(ids[1:], self.logprobs(ids)[:-1], strict=True):
            ranks = {token: int((row >= row[token]).sum())}
            ranks |= {int(t): r for r, t in enumerate(row.topk(top).indices, start=1)}
            place = {
                str(t): {
                    "logprob": max(row[t].item(), -9999.0),
                    "rank": r,
                    "decoded_token": self.tokenizer.decode([t]),
                }
                for t, r in ranks.items()
            }
            places.append(place)
        return {"choices": [{"index": 0, "text": "", "prompt_logprobs": places}]}


class RecordedServer(StubServer):
    """Serves what a real server has answered (`vllm_record.py`), as if for the student `name`."""

    def __init__(self, recorded: dict, name: str):
        super().__init__(None, None, name)
        self.card = {**recorded["card"], "id": name, "root": name}
        self.answers = {(*prompt, top): answer for prompt, top, answer in recorded["served"]}

    def answer(self, body: dict) -> dict:
        return self.answers[(*body["prompt"], body["prompt_logprobs"])]


class _Handler(BaseHTTPRequestHandler):
    stub: StubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        known = self.path == "/v1/models"
        self._send(200 if known else 404, {"data": [self.stub.card]} if known else {})

    def do_POST(self) -> None:
        stub, body = self.stub, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with stub._lock:
            number, stub.requests = stub.requests, stub.requests + 1
            stub._in_flight += 1
            stub.most_in_flight = max(stub.most_in_flight, stub._in_flight)
        try:
            if (fault := stub.fault(number, body)) is not None:
                self._send(fault[0], {"error": {"message": fault[1]}}, missing=100 * (fault[1] == "broken"))
            elif len(body["prompt"]) + body["max_tokens"] > stub.card["max_model_len"]:
                self._send(400, {"error": {"message": "longer than the maximum model length"}})
            else:
                self._send(200, stub.change(stub.answer(body)))
                stub.rows.append(body["prompt"])
        finally:
            with stub._lock:
                stub._in_flight -= 1

    def _send(self, status: int, answer: dict, missing: int = 0) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data) + missing))
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = self.close_connection or missing > 0
