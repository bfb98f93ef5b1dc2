"""The vLLM servers of a run: found, checked, and all with the weights that train."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from trl_dapo.config.server_address import is_local
from trl_dapo.errors import VLLMServerError

from .connection import Connection, NoAnswerError, Server
from .weight_folder import Weights


logger = logging.getLogger(__name__)

EXTENSION = "trl_dapo.vllm_server.weight_loader.WeightLoader"
_HOW_TO_START = (
    f"start it with `trl-dapo serve MODEL`, or vLLM's own server with VLLM_SERVER_DEV_MODE=1, --worker-extension-cls {EXTENSION} "
    "and --logprobs-mode processed_logprobs"
)
# A server of this machine takes its port some ten seconds after it was started (`trl-dapo serve` at once), and listens when
# the model is loaded.
_PATIENCE_WITHOUT_PORT = 15.0
_SECONDS_OF_A_LOOK = 5.0
# The workers answer between two steps of the engine. After that it is asked again, up to the timeout of the server.
_SECONDS_OF_A_STATE = 30.0
# A version that was asked for so recently, and after the connection was opened, need not be asked for again.
_SECONDS_VERIFIED = 1.0


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """
    What a server says of its engine.

    Attributes:
        model (`str`):
            The name under which it serves the model.
        num_slots (`int`):
            Sequences that it decodes at once.
        context_length (`int`):
            Most tokens of prompt and completion together.
        vocab_size (`int`):
            Tokens that there are.
        logprobs_mode (`str`):
            Which log-probabilities it returns.
        seeds_hold (`bool`):
            Whether a request with a seed samples the same tokens each time.
        slow_seeds (`bool`):
            Whether seeds cost it much time.
        takes_nccl (`bool`):
            Whether it can receive weights over NCCL.
    """

    model: str
    num_slots: int
    context_length: int
    vocab_size: int
    logprobs_mode: str
    seeds_hold: bool
    slow_seeds: bool
    takes_nccl: bool


class Servers:
    """
    The servers of a run, as one rank sees them.

    Args:
        addresses (`Sequence[str]`):
            Where they are.
        timeout (`float`):
            Seconds without a sign of life after which a server is lost.
        token (`str`, *optional*):
            What they ask for.

    Attributes:
        all (`list[Server]`):
            The servers, in the order of their addresses.
        facts (`dict[Server, EngineFacts]`):
            What each said of its engine.
        weights (`Weights`, *optional*):
            What all of them have to have loaded; `None` before the first sync.
    """

    def __init__(self, addresses: Sequence[str], timeout: float, token: str | None = None):
        self.all = [Server(address, timeout, token) for address in addresses]
        self.facts: dict[Server, EngineFacts] = {}
        self.weights: Weights | None = None
        # The version that a server last said it has, and when it was asked.
        self._verified: dict[Server, tuple[str, float]] = {}
        self._locks = {server: threading.Lock() for server in self.all}

    @property
    def alive(self) -> list[Server]:
        """Servers that are not lost."""
        return [server for server in self.all if not server.is_lost]

    def find(self, say: Callable[[str], None] = print) -> None:
        """
        Waits until all servers answer, and reads what they are.

        Args:
            say (`Callable[[str], None]`, *optional*):
                Is told for what it waits.

        Raises:
            `VLLMServerError`: one does not come up, or is not what a trainer needs.
        """
        for server in self.all:
            self._wait_for(server, say)
            self.facts[server] = server.ask_patiently(partial(self._read_facts, server))

    def _wait_for(self, server: Server, say: Callable[[str], None]) -> None:
        start, said = time.monotonic(), 0.0
        while True:
            try:
                server.ask("GET", "/health", seconds=_SECONDS_OF_A_LOOK)
                return
            except NoAnswerError as error:
                # Where the port is free, no server is about to come up.
                is_expected = not is_local(server.host) or _is_taken(server.port)
                limit = server.timeout if is_expected else min(server.timeout, _PATIENCE_WITHOUT_PORT)
                if said != limit:
                    said = limit
                    say(f"Waiting for the vLLM server at {server.address} ({error}), up to {limit:g} seconds.")
                if time.monotonic() - start > limit:
                    raise server.fail(
                        f"does not answer ({error}). To have one, {_HOW_TO_START}; its address is vllm_server_base_url, or "
                        "vllm_server_host and vllm_server_port."
                    ) from error
            time.sleep(min(1.0, limit / 10))

    def _read_facts(self, server: Server) -> EngineFacts:
        models = server.ask("GET", "/v1/models")
        try:
            state = self._state(server)
        except (NoAnswerError, VLLMServerError) as error:
            if "404" in str(error) or "has no attribute" in str(error):
                raise server.fail(
                    f"cannot be given weights ({error}). To have one that can, {_HOW_TO_START}."
                ) from error
            raise
        if state.get("drafts"):
            raise server.fail(
                "drafts tokens (--speculative-config), but that servers then sample from the policy is not tested, and on a CPU they do "
                'not. Start it without, or set vllm_mode="colocate" and speculative_config in vllm_engine_kwargs.'
            )
        try:
            return EngineFacts(
                model=str(models["data"][0]["id"]),
                num_slots=max(1, int(state["max_num_seqs"])),
                context_length=int(state["max_model_len"]),
                vocab_size=int(state["vocab_size"]),
                logprobs_mode=str(state["logprobs_mode"]),
                # After each part of a prompt but the last vLLM winds a request's generator back, which on a CPU none can.
                seeds_hold=not (state["is_cpu"] and state["chunked_prefill"]),
                slow_seeds=bool(state["slow_seeds"]),
                takes_nccl=bool(state["takes_nccl"]),
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise server.fail(f"says of its engine what cannot be read ({type(error).__name__}: {error}).") from error

    def _state(self, server: Server, seconds: float | None = None) -> dict[str, Any]:
        """Returns the state of the first worker, if all have the same weights."""
        states = self._call(server, "dapo_state", seconds=seconds)
        versions = {str(state.get("version")) for state in states}
        if len(versions) > 1:
            raise NoAnswerError(f"its workers have different weights: {', '.join(sorted(versions))}")
        return states[0]

    def _call(
        self, server: Server, method: str, *arguments: str, seconds: float | None = None
    ) -> list[dict[str, Any]]:
        answer = server.ask("POST", "/collective_rpc", {"method": method, "args": list(arguments)}, seconds)
        results = answer.get("results") if isinstance(answer, dict) else None
        if not isinstance(results, list) or not results or not all(isinstance(result, dict) for result in results):
            raise server.fail(f"answered the call of {method} with {str(answer)[:200]!r}.")
        return results

    # Weights

    def load(self, weights: Weights) -> None:
        """
        Has all servers load weights, and confirm it. One that does not answer any more is left out.

        Raises:
            `VLLMServerError`: one could not load them, or none is left.
        """
        self.weights = weights
        for server in self.all:
            if server.is_lost:
                self._look_again(server)

        def load_into(server: Server) -> VLLMServerError | None:
            try:
                server.ask_patiently(lambda: self._load_into(server, weights))
            except VLLMServerError as error:
                return error
            return None

        alive = self.alive
        with ThreadPoolExecutor(max_workers=max(1, len(alive))) as executor:
            errors = dict(zip(alive, executor.map(load_into, alive), strict=True))
        for server, error in errors.items():
            if error is not None and not server.is_lost:
                raise error
        if not self.alive:
            raise next(
                (error for error in errors.values() if error is not None), self.all[0].lost("no server is left")
            )
        for error in errors.values():
            if error is not None:
                logger.warning(f"{error} The run goes on with the other servers.")

    def note_loaded(self, weights: Weights) -> None:
        """Notes weights that came over NCCL, here and on the servers."""
        self.weights = weights
        for server in self.alive:
            server.ask_patiently(partial(self._call, server, "dapo_note_version", weights.version))

    def _load_into(self, server: Server, weights: Weights) -> None:
        asked_at = time.monotonic()
        # What is being decoded, of a run that ended or of a group that was given up, ends here.
        server.ask("POST", "/pause?mode=abort")
        try:
            answers = self._call(server, "dapo_load_weights", str(weights.folder), weights.version)
        finally:
            server.ask("POST", "/resume")
        for answer in answers:
            if "error" in answer:
                raise server.fail(
                    f"could not load the weights: {str(answer['error'])[:500]}. Trainer and servers have to see the folder "
                    f"{weights.folder} under this name: set vllm_weight_folder to one on a disk that they share."
                )
            if answer.get("version") != weights.version:
                raise server.fail(f"confirmed the weights {answer.get('version')!r} instead of {weights.version!r}.")
        self._verified[server] = weights.version, asked_at

    def distrust(self, server: Server) -> None:
        """Has the next connection to a server look which weights it has."""
        self._verified.pop(server, None)

    def verify(self, connection: Connection) -> None:
        """
        Makes sure that the server behind a connection has the weights, before it is sent a request. From any thread.

        A server that was started again has others. It loads them from the folder, where they still are. What it says counts only
        for connections that were open before it was asked: a restart ends those, and behind a later one may be another server.

        Args:
            connection (`Connection`):
                The connection of the request.

        Raises:
            `NoAnswerError`: it does not answer.
            `VLLMServerError`: it cannot load them, or another run has loaded its own.
        """
        server, weights = connection.server, self.weights
        with self._locks[server]:
            if weights is None or self._is_verified(connection, weights):
                return
            if server.is_lost:
                raise NoAnswerError("it is lost")
            asked_at = time.monotonic()
            version = self._state(server, min(server.timeout, _SECONDS_OF_A_STATE)).get("version")
            if version == weights.version:
                self._verified[server] = weights.version, asked_at
                return
            if version is not None and not str(version).startswith(f"{weights.run}/"):
                raise server.fail(
                    f"has the weights {version!r} of another run, not {weights.version!r}: another trainer uses it too. Each run "
                    "needs servers of its own."
                )
            if weights.folder is None:
                raise server.fail(
                    f"has the weights {version!r}, not {weights.version!r}: it was started again, and cannot join the weight sync "
                    "over NCCL any more. Resume the run, or set vllm_weight_folder, with which a server may be started again."
                )
            logger.warning(
                f"The vLLM server at {server.address} has the weights {version!r}, not {weights.version!r}: it was started again. "
                "It loads them now."
            )
            self._load_into(server, weights)

    def _is_verified(self, connection: Connection, weights: Weights) -> bool:
        version, asked_at = self._verified.get(connection.server, ("", 0.0))
        earliest = max(connection.opened_at, time.monotonic() - _SECONDS_VERIFIED)
        return version == weights.version and asked_at >= earliest

    def _look_again(self, server: Server) -> None:
        try:
            server.ask("GET", "/health", seconds=_SECONDS_OF_A_LOOK)
        except (NoAnswerError, VLLMServerError):
            return
        logger.warning(f"The vLLM server at {server.address} answers again.")
        server.is_lost = False
        self.distrust(server)


def _is_taken(port: int) -> bool:
    """Whether a process of this machine has a port, listening or not yet."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
