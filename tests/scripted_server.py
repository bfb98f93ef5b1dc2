"""A real HTTP server with the paths of vLLM's that the trainer asks, an engine of a few lines, and faults on demand."""

import contextlib
import json
import random
import threading
import time
from collections import defaultdict, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


END = 2


def dice(prompt, seed, max_tokens):
    """Tokens that hang on prompt and seed alone, with log-probabilities."""
    rolls = random.Random(f"{prompt} {seed}")
    ids = []
    while len(ids) < max_tokens and (not ids or ids[-1] != END):
        ids.append(rolls.randrange(2, 20))
    return ids, [-0.125 * token for token in ids]


class ModelEngine:
    """Samples from a model, with the generator of each request's seed."""

    def __init__(self, folder):
        self.folder = folder
        self.lock = threading.Lock()
        self.start()

    def start(self):
        self.model = AutoModelForCausalLM.from_pretrained(self.folder).eval()

    def load(self, files):
        with self.lock:
            weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
            assert not self.model.load_state_dict(weights, strict=False).unexpected_keys

    def logps(self, ids):
        with self.lock, torch.no_grad():
            return self.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)

    def __call__(self, prompt, seed, max_tokens):
        generator = torch.Generator().manual_seed(random.randrange(2**31) if seed is None else seed % 2**63)
        ids, found = [], []
        while len(ids) < max_tokens and (not ids or ids[-1] != END):
            logps = self.logps([*prompt, *ids])[-1]
            ids.append(int(torch.multinomial(logps.exp(), 1, generator=generator)))
            found.append(logps[ids[-1]].item())
        return ids, found


class ScriptedServer:
    """
    Serves until it is closed.

    Attributes:
        faults: what goes wrong with the next completions, one each: "500" and other statuses, "silent", "headless", "reset", "half",
            "half line", "half line, closed", "half chunk", "hang", "garbage", "huge", "many", "foreign", "positive", "nan",
            "abort", "error", "slow", "restart".
        faults_of: what goes wrong with the next answers to a method, a path or "prompt_logprobs", one each: "500" and other statuses,
            "silent", "half", "garbage", "hang", "restart", and "restart behind": it answers as it was, but has been
            started again when the answer arrives.
        reached: called with the name of each point that the server comes to: "request", "chunk", "load", "loaded".
        asked: content of each request for a completion.
        ended: ids of requests that were aborted.
        seconds: how long a completion takes.
        tokens_per_event: how many tokens a part of an answer has. None: as many as are asked for.
    """

    def __init__(self, engine=dice, port=0, num_slots=8, context=64, token=None, seconds=0.0):
        self.engine, self.num_slots, self.context, self.token, self.seconds = (
            engine,
            num_slots,
            context,
            token,
            seconds,
        )
        self.logprobs_mode, self.has_extension, self.drafts = "processed_logprobs", True, False
        self.vocab_size, self.tokens_per_event = 20, 2
        self.faults, self.asked, self.ended, self.loaded = deque(), [], [], []
        self.faults_of = defaultdict(deque)
        self.reached = lambda point: None
        self.running = self.most_running = 0
        self.version = None
        self.lock = threading.Lock()
        self.is_up = threading.Event()
        self.port = port
        self.open()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}"

    def open(self):
        handler = type("Handler", (_Handler,), {"server_of": self})
        for is_last in [False] * 100 + [True]:
            try:
                self.http = _QuietServer(("127.0.0.1", self.port), handler)
                break
            except OSError:
                # After a restart, a connection of another test may have the port for a moment.
                if is_last:
                    raise
                time.sleep(0.05)
        self.port = self.http.server_address[1]
        self.sockets = self.http.sockets
        self.is_closed = False
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        """Ends, with all connections."""
        self.is_closed = True
        self.http.shutdown()
        self.http.server_close()
        for one in list(self.sockets):
            _end(one)

    def restart(self, seconds=0.0):
        """Ends, and comes back on the same port with the weights that it was first started with."""
        self.close()
        time.sleep(seconds)
        self.version = None
        if isinstance(self.engine, ModelEngine):
            self.engine.start()
        self.open()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if not self.is_closed:
            self.close()


def _end(one):
    with contextlib.suppress(OSError):
        one.shutdown(2)


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, *args):
        self.sockets = set()
        super().__init__(*args)

    def get_request(self):
        one, address = super().get_request()
        self.sockets.add(one)
        return one, address

    def shutdown_request(self, request):
        self.sockets.discard(request)
        super().shutdown_request(request)

    def handle_error(self, *_):
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fault = None

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.fault = None
        served = self.server_of
        path = urlsplit(self.path).path
        if not self.is_allowed():
            return
        if path == "/health":
            self.answer(None)
        elif path == "/v1/models":
            self.answer({"data": [{"id": "tiny"}]})
        else:
            self.answer({"error": f"no {path} of {served}"}, 404)

    def do_POST(self):
        content = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        path = urlsplit(self.path).path
        if not self.is_allowed():
            return
        name = "prompt_logprobs" if "prompt_logprobs" in content else content.get("method", path)
        planned = self.server_of.faults_of[name]
        self.fault = planned.popleft() if planned else None
        if self.fault == "restart":
            self.restart()
        elif self.fault == "silent":
            _end(self.connection)
        elif self.fault == "hang":
            self.hang()
        elif self.fault is not None and self.fault.isdigit():
            self.answer({"error": "out of luck"}, int(self.fault))
        elif path == "/v1/completions":
            self.complete(content)
        elif path == "/collective_rpc":
            self.call(content["method"], content["args"])
        elif path == "/abort_requests":
            self.server_of.ended += content["request_ids"]
            self.answer({"status": "aborted"})
        elif path in ("/pause", "/resume"):
            self.answer({"status": path})
        else:
            self.answer({"error": f"no {path}"}, 404)

    def is_allowed(self):
        token = self.server_of.token
        is_allowed = token is None or self.headers.get("Authorization") == f"Bearer {token}"
        if not is_allowed:
            self.answer({"error": "Unauthorized"}, 401)
        return is_allowed

    def call(self, method, args):
        served = self.server_of
        if not served.has_extension:
            self.answer({"error": f"'CPUWorker' object has no attribute '{method}'"}, 500)
        elif method == "dapo_state":
            state = {
                "max_num_seqs": served.num_slots,
                "max_model_len": served.context,
                "vocab_size": served.vocab_size,
                "is_cpu": True,
            }
            state |= {
                "chunked_prefill": False,
                "slow_seeds": False,
                "drafts": served.drafts,
                "takes_nccl": False,
                "logprobs_mode": served.logprobs_mode,
            }
            self.answer({"results": [state | {"version": served.version}]})
        else:
            assert method == "dapo_load_weights"
            folder, version = args
            try:
                with open(f"{folder}/weights.json") as file:
                    index = json.load(file)
            except OSError as error:
                self.answer({"results": [{"error": f"{type(error).__name__}: {error}"}]})
                return
            assert index["version"] == version
            served.reached("load")
            if isinstance(served.engine, ModelEngine):
                served.engine.load([f"{folder}/{file}" for file in index["files"]])
            served.version = version
            served.loaded.append(version)
            served.reached("loaded")
            self.answer({"results": [{"version": version}]})

    def complete(self, content):
        served = self.server_of
        if "prompt_logprobs" in content:
            logps = served.engine.logps(content["prompt"])
            by_token = [{str(t): {"logprob": logps[n, t].item()}} for n, t in enumerate(content["prompt"][1:])]
            self.answer({"choices": [{"prompt_logprobs": [None, *by_token]}]})
            return
        served.reached("request")
        with served.lock:
            served.asked.append(content)
            fault = served.faults.popleft() if served.faults else None
            served.running += 1
            served.most_running = max(served.most_running, served.running)
        try:
            self.stream(content, fault)
        finally:
            with served.lock:
                served.running -= 1

    def stream(self, content, fault):
        served = self.server_of
        if fault == "restart":
            self.restart()
            return
        if fault in ("silent", "headless"):
            self.wfile.write(b"HTTP/1.1 20" if fault == "headless" else b"")
            _end(self.connection)
            return
        if fault is not None and fault.isdigit():
            self.answer({"error": "out of luck"}, int(fault))
            return
        ids, logps = served.engine(content["prompt"], content.get("seed"), content["max_tokens"])
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        size = served.tokens_per_event or content["stream_interval"]
        for start in range(0, len(ids), size):
            is_last = start + size >= len(ids)
            time.sleep((served.seconds + (fault == "slow")) / max(1, -(-len(ids) // size)))
            choice = {
                "token_ids": ids[start : start + size],
                "logprobs": {"token_logprobs": logps[start : start + size]},
                "finish_reason": ("stop" if ids[-1] == END else "length") if is_last else None,
            }
            if fault in ("abort", "reset", "hang"):
                choice["finish_reason"] = "abort" if fault == "abort" else None
            if fault == "many":
                choice["token_ids"] = choice["token_ids"] * 1000
                choice["logprobs"]["token_logprobs"] = choice["logprobs"]["token_logprobs"] * 1000
            if fault == "foreign":
                choice["token_ids"][0] = 1_000_000
            if fault == "positive":
                choice["logprobs"]["token_logprobs"][0] = 3.0
            if fault == "nan":
                choice["logprobs"]["token_logprobs"][0] = float("nan")
            if fault == "garbage":
                self.chunk("data: [1, 2\n\n")
            if fault == "huge":
                self.chunk("data: " + "x" * 3 * 2**20 + "\n\n")
            if fault == "error":
                self.chunk('data: {"error": {"message": "engine is dead"}}\n\n')
            if fault == "half" and (is_last or start):
                break
            line = f"data: {json.dumps({'choices': [choice]})}\n\n"
            if fault in ("half line", "half line, closed") and is_last:
                self.chunk(line[: len(line) // 2])
                if fault == "half line":
                    self.chunk("")
                else:
                    _end(self.connection)
                return
            if fault == "half chunk" and is_last:
                self.wfile.write(f"{len(line):x}\r\n{line[: len(line) // 2]}".encode())
                _end(self.connection)
                return
            self.chunk(line)
            if fault == "reset":
                _end(self.connection)
                return
            if fault == "hang":
                self.hang()
                return
        self.chunk("data: [DONE]\n\n")
        self.chunk("")

    def hang(self):
        while not self.server_of.is_closed:
            time.sleep(0.01)

    def restart(self):
        threading.Thread(target=self.server_of.restart).start()

    def chunk(self, text):
        self.server_of.reached("chunk")
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def answer(self, content, status=200):
        data = b"" if content is None else json.dumps(content).encode()
        length, fault = len(data), self.fault
        if fault in ("half", "garbage"):
            data = data[: length // 2]
            length = len(data) if fault == "garbage" else length
        elif fault == "restart behind":
            # All but this connection end.
            self.server_of.sockets.discard(self.connection)
            self.server_of.restart()
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(data)
        if fault == "half":
            _end(self.connection)
