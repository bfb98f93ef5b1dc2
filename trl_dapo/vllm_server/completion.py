"""A completion that a server decodes: what is asked for, and what has come of it."""

import math
import threading
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trl_dapo.sampling.prompt_stream import SequenceKey
from trl_dapo.vllm_engine.sequence_engine import Decoded

from .connection import Connection, NoAnswerError, Server


# Bytes of a token in an answer, with its text, its log-probability and the frame of its event.
_BYTES_PER_TOKEN = 8192
_BYTES_OF_AN_ANSWER = 2**20
# Rounding may lift a log-probability above 0. And vLLM writes this for minus infinity.
_MOST_LOGP, _LEAST_LOGP = 1e-2, -9999.0


@dataclass(eq=False)
class Completion:
    """
    A completion on its way, shared by the thread that reads it and the one that asked for it.

    Attributes:
        key (`SequenceKey`):
            Its name.
        content (`Mapping[str, Any]`):
            The request, without its id.
        max_tokens (`int`):
            Tokens that it may have.
        vocab_size (`int`):
            Tokens that there are.
        server (`Server`, *optional*):
            Who decodes it.
        num_attempts (`int`):
            How often it was begun.
        is_withdrawn (`bool`):
            Whether nobody waits for it any more.
        is_finished (`bool`):
            Whether the server said that it is complete.
        token_ids (`array`), logps (`array`):
            Its tokens so far, and the log-probability of each, float32; NaN: unknown.
    """

    key: SequenceKey
    content: Mapping[str, Any]
    max_tokens: int
    vocab_size: int
    server: Server | None = None
    num_attempts: int = 0
    is_withdrawn: bool = False
    is_finished: bool = False
    token_ids: "array[int]" = field(default_factory=lambda: array("i"))
    logps: "array[float]" = field(default_factory=lambda: array("f"))
    _connection: Connection | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def max_bytes(self) -> int:
        """Most bytes of an answer."""
        return _BYTES_OF_AN_ANSWER + _BYTES_PER_TOKEN * self.max_tokens

    def begin(self, connection: Connection) -> bool:
        """Begins to read it from a connection; `False`: it was withdrawn."""
        with self._lock:
            self.num_attempts += 1
            self.token_ids, self.logps = array("i"), array("f")
            self._connection = connection
            return not self.is_withdrawn

    def end(self) -> None:
        """Reads it no more."""
        with self._lock:
            self._connection = None

    def withdraw(self) -> Decoded:
        """Stops it, and returns what has come of it."""
        with self._lock:
            self.is_withdrawn = True
            if self._connection is not None and not self.is_finished:
                # The server notices, and ends the request.
                self._connection.end()
            return Decoded.of(self.token_ids, self.logps, self.is_finished)

    def take(self, event: Mapping[str, Any]) -> None:
        """
        Takes tokens from an event.

        Raises:
            `NoAnswerError`: the server gave it up.
            `VLLMServerError`: that is nothing a server of this model can have sampled.
        """
        assert self.server is not None
        if "error" in event:
            raise NoAnswerError(f"it answered with an error: {str(event['error'])[:200]}")
        fault = None
        try:
            for choice in event.get("choices", []):
                reason = choice.get("finish_reason")
                if reason not in (None, "stop", "length"):
                    raise NoAnswerError(f"it gave up the completion ({reason})")
                token_ids = choice.get("token_ids") or []
                logps = (choice.get("logprobs") or {}).get("token_logprobs") or [None] * len(token_ids)
                fault = self._fault_of(token_ids, logps)
                if fault is not None:
                    break
                with self._lock:
                    if not self.is_withdrawn:
                        self.token_ids.extend(token_ids)
                        self.logps.extend(math.nan if logp is None or logp <= _LEAST_LOGP else logp for logp in logps)
                        self.is_finished = reason is not None
        except (AttributeError, TypeError) as error:
            fault = f"fields of other types ({error})"
        if fault is not None:
            raise self.server.fail(f"sent a completion with {fault}: {str(event)[:300]}")

    def _fault_of(self, token_ids: Any, logps: Any) -> str | None:
        if not isinstance(token_ids, list) or not isinstance(logps, list) or len(token_ids) != len(logps):
            return "another number of log-probabilities than of tokens"
        if len(self.token_ids) + len(token_ids) > self.max_tokens:
            return f"more than the {self.max_tokens} tokens that were asked for"
        for token in token_ids:
            if type(token) is not int or not 0 <= token < self.vocab_size:
                return f"a token that the model does not have ({str(token)[:50]})"
        for logp in logps:
            if logp is not None and (type(logp) not in (int, float) or math.isnan(logp) or logp > _MOST_LOGP):
                return f"a log-probability that is none ({str(logp)[:50]})"
        return None
