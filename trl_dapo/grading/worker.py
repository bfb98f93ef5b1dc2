r"""A worker process of the grading pool: `python -P -m trl_dapo.grading.worker PARENT_PID CPU_SECONDS MEMORY_BYTES`.

It imports sympy once and then forks itself: the fork grades, the original waits. A grading that reaches a limit
costs the fork its life, and the next fork takes over within milliseconds, in the same fresh state.

Requests come on standard input: four bytes of length (big-endian), then JSON: a number, and a list of
`[gold, answer or null]`. Replies are lines on standard output, each with the request's number, at most one per pair and
in order: the value of an `Comparison`. Between them stand `reading_gold` and `gold_read` around the parsing of a new gold.
`renewed` instead of an comparison says that nobody will answer the rest of the request, which has to be sent again, and
`died N`, without a number, the same because a fork was ended by signal N (0 for none).
"""

import gc
import json
import os
import sys

from . import limits
from .grades import Comparison


# Pairs after which a fork is replaced, so that nothing piles up in sympy's caches. Forking costs milliseconds.
MAX_PAIRS_PER_FORK = 5_000

_INPUT_ENDED, _RENEW = 0, 3


def main(arguments: list[str]) -> int:
    """Serve until standard input is closed. Returns the exit status."""
    parent_pid, cpu_seconds, memory_bytes = int(arguments[0]), float(arguments[1]), int(arguments[2])
    limits.die_with(parent_pid)
    limits.prepare_signals()
    replies = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not end up among the replies
    try:
        from . import symbolic

        symbolic.warm_up()
    except Exception as error:
        _reply(replies, f"failed {type(error).__name__}: {error}".replace("\n", " "))
        return 1
    # A collection in a fork would write to pages that it shares with this process, and so copy them.
    gc.freeze()
    _reply(replies, "ready")
    # Errors up to here are worth seeing; what sympy says about nonsense is not.
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    own_pid = os.getpid()
    while True:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                limits.die_with(own_pid)
                limits.limit_memory(memory_bytes)
                status = _serve(replies, cpu_seconds)
            finally:
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            _reply(replies, f"died {os.WTERMSIG(status)}")
        elif os.WEXITSTATUS(status) == _INPUT_ENDED:
            return 0
        elif os.WEXITSTATUS(status) != _RENEW:
            _reply(replies, "died 0")


def _serve(replies: int, cpu_seconds: float) -> int:
    from . import symbolic

    num_graded = 0
    while (request := _next_request()) is not None:
        number, pairs = request
        for position, (gold, answer) in enumerate(pairs, start=1):
            if not symbolic.is_known(gold):
                # A time limit reached in here is the gold's fault, and the pool can tell by the missing second line.
                _reply(replies, f"{number} reading_gold")
                limits.start_cpu_limit(cpu_seconds)
                symbolic.read_gold(gold)
                limits.start_cpu_limit(0)
                _reply(replies, f"{number} gold_read")
            limits.start_cpu_limit(cpu_seconds)
            comparison = symbolic.compare(gold, answer)
            limits.start_cpu_limit(0)
            _reply(replies, f"{number} {comparison.value}")
            if comparison is Comparison.GAVE_UP:
                # Whatever failed may have left something behind: a lack of memory, for one.
                if position < len(pairs):
                    _reply(replies, f"{number} renewed")
                return _RENEW
        num_graded += len(pairs)
        if num_graded >= MAX_PAIRS_PER_FORK:
            return _RENEW
    return _INPUT_ENDED


def _next_request() -> tuple[int, list[tuple[str, str | None]]] | None:
    # Not one byte more than the request: the rest must be there for the next fork.
    header = _read_exactly(4)
    body = header and _read_exactly(int.from_bytes(header, "big"))
    return json.loads(body) if body else None


def _read_exactly(num_bytes: int) -> bytes:
    """Read so many bytes from standard input; none if it ends before."""
    parts = []
    while num_bytes:
        part = os.read(0, num_bytes)
        if not part:
            return b""
        parts.append(part)
        num_bytes -= len(part)
    return b"".join(parts)


def _reply(replies: int, line: str) -> None:
    # One write of few bytes is atomic, so that a process that dies leaves no half line.
    os.write(replies, line.encode("ascii", "backslashreplace")[:1_000] + b"\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
