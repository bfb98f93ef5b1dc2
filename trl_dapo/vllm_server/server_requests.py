"""Servers as an engine that takes sequences one by one."""

import logging
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any

from trl_dapo.errors import VLLMServerError
from trl_dapo.sampling.prompt_stream import SequenceKey
from trl_dapo.vllm_engine.sequence_engine import Decoded

from .completion import Completion
from .connection import NoAnswerError, Server
from .servers import Servers


logger = logging.getLogger(__name__)

# Seconds that a step waits for news, and between two attempts at first and at most.
_STEP_SECONDS = 0.02
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
# Seconds after which a thread that has nothing to read ends, and after the last one the connections that are kept. When
# there is more to read again, others are started.
_IDLE_SECONDS = 5.0
# Tokens that a server puts into one event, at least and at most; in between a 256th of those that a completion may have. So
# many are lost when it is withdrawn; and with fewer, most of what an answer costs is the frame of its events.
_TOKENS_PER_EVENT = 16, 64


class ServerRequests:
    """
    The servers of a run, as one rank uses them; a [`SequenceEngine`].

    Each rank sends its own groups, each completion as a request of its own, and all of a group to the same server. Threads
    read the answers, and hold one connection each. A request that breaks off is begun anew with its seed, on the same
    server until that is lost, then on another.

    Args:
        servers (`Servers`):
            The servers.
        content (`Callable[[SequenceKey, int], dict[str, Any]]`):
            Returns the sampling options of a completion from its token number on, `max_tokens` among them.
        load_weights (`Callable[[], None]`):
            Brings the weights to the servers, if the policy has changed since they came. A collective.
        num_ranks (`int`, *optional*, defaults to 1):
            Ranks that share the servers.
        max_sequence_length (`int`, *optional*):
            Most tokens of prompt and completion together. `None`: as many as the servers allow.
    """

    def __init__(
        self,
        servers: Servers,
        content: Callable[[SequenceKey, int], dict[str, Any]],
        load_weights: Callable[[], None],
        num_ranks: int = 1,
        max_sequence_length: int | None = None,
    ):
        self.servers = servers
        self.content = content
        self.load_weights = load_weights
        self.num_ranks = num_ranks
        self.max_sequence_length = max_sequence_length
        self._name = uuid.uuid4().hex[:12]
        # Those that are not finished, in the order in which they came; and of these, those that no server has yet.
        self._completions: dict[SequenceKey, Completion] = {}
        self._line: deque[Completion] = deque()
        self._at: dict[Server, set[Completion]] = {server: set() for server in servers.all}
        self._server_of: dict[int, Server] = {}
        self._work: queue.SimpleQueue[Completion] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Completion, Exception | None]] = queue.SimpleQueue()
        self._counting = threading.Lock()
        self._num_threads = 0

    def share_of(self, server: Server) -> int:
        """Returns how many completions of this rank a server decodes at once."""
        return max(1, self.servers.facts[server].num_slots // self.num_ranks)

    @property
    def num_slots(self) -> int:
        """Completions of this rank that the servers decode at once. It keeps the others until these are done."""
        return sum(map(self.share_of, self.servers.alive))

    @property
    def num_unfinished(self) -> int:
        """Completions submitted and neither finished nor withdrawn."""
        return len(self._completions)

    def begin(self) -> None:
        """Brings the weights as they are. A collective."""
        self.load_weights()

    def submit(self, key: SequenceKey, prompt_ids: list[int], prefix: list[int]) -> None:
        """Puts a completion at the end of the line."""
        if not self._completions:
            self._begin_anew()
        content = self.content(key, len(prefix))
        # As the engine does: a context that is full ends a completion.
        lengths = [facts.context_length for facts in self.servers.facts.values()]
        most = min([*lengths, *([] if self.max_sequence_length is None else [self.max_sequence_length])])
        max_tokens = max(1, min(content["max_tokens"], most - len(prompt_ids) - len(prefix)))
        fewest, most_tokens = _TOKENS_PER_EVENT
        content |= {
            "prompt": [*prompt_ids, *prefix],
            "max_tokens": max_tokens,
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
            "stream": True,
            "stream_interval": min(max(fewest, max_tokens // 256), most_tokens),
        }
        vocab_size = max(facts.vocab_size for facts in self.servers.facts.values())
        self._completions[key] = completion = Completion(key, content, max_tokens, vocab_size)
        self._line.append(completion)
        self._deal()

    def _begin_anew(self) -> None:
        """Forgets what is of earlier batches. While nothing is asked of them, servers are silent."""
        self._server_of.clear()
        self._collect(wait=False)
        for server in self.servers.all:
            server.heard()

    def step(self) -> Mapping[SequenceKey, Decoded]:
        """Waits a little, and returns the completions that finished."""
        finished = self._collect(wait=True)
        for server in self.servers.alive:
            if self._at[server] and server.is_silent:
                self._lose(server, server.lost("no token came"))
        self._deal()
        return finished

    def _collect(self, wait: bool) -> dict[SequenceKey, Decoded]:
        finished: dict[SequenceKey, Decoded] = {}
        while True:
            try:
                completion, failure = self._done.get(timeout=_STEP_SECONDS) if wait else self._done.get_nowait()
            except queue.Empty:
                return finished
            wait = False
            self._settle(completion, failure, finished)

    def _settle(self, completion: Completion, failure: Exception | None, finished: dict[SequenceKey, Decoded]) -> None:
        assert completion.server is not None
        self._at[completion.server].discard(completion)
        if self._completions.get(completion.key) is not completion:
            return  # withdrawn
        if failure is None:
            del self._completions[completion.key]
            finished[completion.key] = Decoded.of(completion.token_ids, completion.logps, is_finished=True)
        elif isinstance(failure, NoAnswerError):
            self._lose(completion.server, completion.server.lost(failure))
            self._move(completion)
        else:
            raise failure

    def _lose(self, server: Server, error: VLLMServerError) -> None:
        """Gives up a server. What it was decoding goes to the others."""
        if not server.is_lost:
            server.is_lost = True
            if self.servers.alive:
                logger.warning(f"{error} The run goes on with the other servers.")
        if not self.servers.alive:
            raise error
        for completion in self._at[server]:
            if self._completions.get(completion.key) is completion:
                self._move(completion)

    def _move(self, completion: Completion) -> None:
        """Begins a completion anew, on another server. The thread that reads it may take a while to notice."""
        completion.withdraw()
        anew = Completion(completion.key, completion.content, completion.max_tokens, completion.vocab_size)
        self._completions[completion.key] = anew
        self._line.appendleft(anew)

    def withdraw(self, keys: Collection[SequenceKey]) -> Mapping[SequenceKey, Decoded]:
        """Stops those of the completions that it has, and returns what was decoded of each."""
        known = {key: self._completions.pop(key) for key in keys if key in self._completions}
        gone = set(known.values())
        self._line = deque(completion for completion in self._line if completion not in gone)
        return {key: completion.withdraw() for key, completion in known.items()}

    # Which server, and when

    def _deal(self) -> None:
        """Hands the completions in line to servers that have room."""
        waiting: deque[Completion] = deque()
        room = {server: self.share_of(server) - len(self._at[server]) for server in self.servers.alive}
        while self._line and any(free > 0 for free in room.values()):
            completion = self._line.popleft()
            server = self._server_of.get(completion.key.position)
            if server not in room:
                server = self._server_of[completion.key.position] = max(room, key=lambda one: room[one])
            if room[server] <= 0:
                waiting.append(completion)
                continue
            room[server] -= 1
            if not self._at[server]:
                server.heard()
            completion.server = server
            self._at[server].add(completion)
            self._work.put(completion)
        self._line.extendleft(reversed(waiting))
        with self._counting:
            num_missing = sum(map(len, self._at.values())) - self._num_threads
            self._num_threads += max(0, num_missing)
        for _ in range(num_missing):
            # Daemons: one that waits for a server must not keep the process from its end.
            threading.Thread(target=self._read, name="server", daemon=True).start()

    # In threads of their own

    def _read(self) -> None:
        while True:
            try:
                completion = self._work.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                with self._counting:
                    # What was put before threads were counted is taken by one that was counted.
                    if self._work.empty():
                        self._num_threads -= 1
                        if not self._num_threads:
                            for server in self.servers.all:
                                server.close_idle()
                        return
                continue
            failure: Exception | None = None
            try:
                self._read_until_done(completion)
            except Exception as error:
                failure = error
            self._done.put((completion, failure))
            # While a thread waits for the next one, this one should not stay in memory.
            del completion, failure

    def _read_until_done(self, completion: Completion) -> None:
        server, pause = completion.server, _FIRST_PAUSE
        assert server is not None
        start = time.monotonic()
        while not completion.is_withdrawn:
            try:
                self._read_once(server, completion)
                return
            except NoAnswerError as error:
                self.servers.distrust(server)
                seconds = time.monotonic() - max(start, server.last_heard)
                if completion.is_withdrawn or server.is_lost or seconds + pause > server.timeout:
                    raise
                logger.debug(f"{completion.key} on {server.address}: {error}. It is asked for again.")
                # What it may still decode for a connection that is gone would be for nothing.
                self._abort(server, completion)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _read_once(self, server: Server, completion: Completion) -> None:
        connection = server.take()
        is_read = False
        try:
            # Behind the connection: a server that starts again after this closes it.
            self.servers.verify(connection)
            if not completion.begin(connection):
                return
            request = {**completion.content, "model": self.servers.facts[server].model}
            response = connection.send("POST", "/v1/completions", request | {"request_id": self._id_of(completion)})
            server.check_status(response)
            for event in server.events(response, completion.max_bytes):
                completion.take(event)
            is_read = True
        except NoAnswerError:
            if not completion.is_finished:
                raise
        else:
            if not completion.is_finished:
                raise NoAnswerError("it ended an answer before the completion was complete")
        finally:
            completion.end()
            if is_read:
                server.give_back(connection)
            else:
                connection.close()

    def _id_of(self, completion: Completion) -> str:
        # Each attempt has its own, so that the end of one is not that of the next.
        key = completion.key
        return f"dapo-{self._name}-{key.position}-{key.sample}-{completion.num_attempts}"

    def _abort(self, server: Server, completion: Completion) -> None:
        if not completion.num_attempts:
            return
        # Where it is not there, or has no such call, its connection is closed all the same.
        with suppress(NoAnswerError, VLLMServerError):
            server.ask("POST", "/abort_requests", {"request_ids": [f"cmpl-{self._id_of(completion)}-0"]}, seconds=5.0)


def run_to_end(engine: ServerRequests, prompts: Iterable[tuple[SequenceKey, list[int]]]) -> dict[SequenceKey, Decoded]:
    """
    Returns whole completions.

    Args:
        engine (`ServerRequests`):
            Decodes them.
        prompts (`Iterable[tuple[SequenceKey, list[int]]]`):
            Names, all different, and prompts in tokens.
    """
    finished: dict[SequenceKey, Decoded] = {}
    keys = []
    try:
        for key, prompt_ids in prompts:
            keys.append(key)
            engine.submit(key, prompt_ids, [])
        while engine.num_unfinished:
            finished |= engine.step()
    finally:
        engine.withdraw(keys)
    return finished
