"""The pool of worker processes: limits, order, and what happens when a worker is lost."""

import atexit
import contextlib
import os
import queue
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

from .cpus import usable_cpus
from .grades import Comparison
from .worker_process import CPU_LIMIT_SIGNALS, WorkerLostError, WorkerNotStartedError, WorkerProcess


Pair = tuple[str, str | None]

# CPU seconds for reading a gold, and again for comparing an answer with it. Honest ones take milliseconds.
CPU_SECONDS = 2.0
MEMORY_BYTES = 512 * 2**20
# Wall time without a reply, over the CPU time allowed, after which a worker is killed. It is for workers that do not run
# at all; a grading that runs is ended by its CPU limit long before, also on a machine with thirty times as much to do.
WALL_FACTOR = 60.0
# How often a pair is tried when workers are lost for reasons that may lie outside (killed, out of memory, stopped).
MAX_TRIES = 3
MAX_PAIRS_PER_REQUEST = 64
MAX_WORKERS = 8
MAX_WORKERS_OF_MACHINE = 16
# Groups share their golds and often their answers, so comparisons are remembered; two short texts each.
MAX_KNOWN_PAIRS = 16_384


class _Task:
    """Pairs on their way through the queue, and the future of their comparisons."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs
        self.comparisons: Future[list[tuple[Comparison, bool]]] = Future()


class GradingPool:
    """
    Worker processes that compare answers within limits. Usable from any thread, and in a process forked from this one.

    Nothing is started before the first question. The workers end with `close`, with the interpreter, and with this
    process however it ends.

    Args:
        num_workers (`int`, *optional*):
            Number of worker processes; at least 1. `None`: one per CPU that this process may use, at most 8, and at most
            16 on a machine, shared among its ranks (`LOCAL_WORLD_SIZE`).
        cpu_seconds (`float`, *optional*, defaults to `2.0`):
            CPU time, in seconds, for parsing a gold, and again for comparing one answer. The operating system counts
            and enforces it, so load does not change a grade.
        memory_bytes (`int`, *optional*, defaults to 512 MiB):
            Memory that a worker may use beyond its imports (about 60 MiB).
        wall_seconds (`float`, *optional*):
            Wall time without a reply after which a worker is killed and the pair tried again. `None`: 60 times
            `cpu_seconds`.

    Raises:
        `ValueError`: If an argument is outside its range.

    Example:

    >>> with GradingPool(num_workers=1) as pool:
    ...     pool.compare([(r"\\\\sqrt{50}", r"5\\\\sqrt{2}"), (r"9\\\\pi", "9")])
    [<Comparison.EQUAL: 'equal'>, <Comparison.DIFFERENT: 'different'>]
    """

    def __init__(
        self,
        num_workers: int | None = None,
        cpu_seconds: float = CPU_SECONDS,
        memory_bytes: int = MEMORY_BYTES,
        wall_seconds: float | None = None,
    ) -> None:
        if num_workers is not None and num_workers < 1:
            raise ValueError(f"`num_workers` is {num_workers}, but must be at least 1 (or `None` for one per CPU).")
        if not 0 < cpu_seconds < float("inf"):
            raise ValueError(f"`cpu_seconds` is {cpu_seconds}, but must be positive and finite. The default is 2.0.")
        if memory_bytes < 2**26:
            raise ValueError(f"`memory_bytes` is {memory_bytes}, but must be at least 64 MiB ({2**26}).")
        if wall_seconds is not None and not wall_seconds > cpu_seconds:
            raise ValueError(f"`wall_seconds` is {wall_seconds}, but must exceed `cpu_seconds` ({cpu_seconds}).")
        self.num_workers = default_num_workers() if num_workers is None else num_workers
        self.cpu_seconds = cpu_seconds
        self.memory_bytes = memory_bytes
        self.wall_seconds = WALL_FACTOR * cpu_seconds if wall_seconds is None else wall_seconds
        self._workers: dict[int, WorkerProcess] = {}
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        """Start over, with nothing running; in a forked process, whose copies of locks may be held for ever."""
        for worker in self._workers.values():
            worker.disown()
        self._workers = {}
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._queue: queue.Queue[_Task | None] = queue.Queue(maxsize=4 * self.num_workers)
        self._known: OrderedDict[Pair, Comparison] = OrderedDict()
        self._bad_golds: set[str] = set()
        self._is_closed = self._is_killed = False
        self.num_restarts = 0
        """Workers or forks of them lost so far: to a limit, to a crash, or because somebody killed them."""

    def __enter__(self) -> "GradingPool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed, so that no more can be asked."""
        return self._is_closed

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that run now."""
        return [worker.pid for worker in list(self._workers.values())]

    def compare(self, pairs: Sequence[Pair]) -> list[Comparison]:
        """
        Compare answers with gold ones.

        Args:
            pairs (`list[tuple[str, str | None]]`):
                The gold answer and the answer of each pair, as LaTeX; without an answer (`None`), only whether the gold
                can be read.

        Returns:
            `list[Comparison]`: One comparison per pair, in order.

        Raises:
            `ImportError`: If sympy is not installed.
            `RuntimeError`: If the pool is closed, or the machine does not let workers start.
        """
        with self._lock:
            comparisons = {pair: self._known[pair] for pair in pairs if pair in self._known}
            comparisons |= {pair: Comparison.BAD_GOLD for pair in pairs if pair[0] in self._bad_golds}
        tasks = [_Task(request) for request in self._requests([pair for pair in pairs if pair not in comparisons])]
        for task in tasks:
            self._put(task)
        for task in tasks:
            for pair, (comparison, is_final) in zip(task.pairs, task.comparisons.result(), strict=True):
                comparisons[pair] = comparison
                if is_final:
                    self._remember(pair, comparison)
        return [comparisons[pair] for pair in pairs]

    def close(self) -> None:
        """End the workers, after what has been asked. Does nothing the second time."""
        with self._lock:
            was_closed, self._is_closed = self._is_closed, True
        if not was_closed:
            for _ in self._threads:
                self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def kill(self) -> None:
        """End the workers at once. Threads that wait for comparisons get a `RuntimeError`."""
        with self._lock:
            self._is_closed = self._is_killed = True
            for worker in self._workers.values():
                worker.signal_end()
            for _ in self._threads:
                # Where the queue is full nobody waits for something to come.
                with contextlib.suppress(queue.Full):
                    self._queue.put_nowait(None)

    def _requests(self, pairs: list[Pair]) -> Iterator[list[Pair]]:
        pairs = list(dict.fromkeys(pairs))
        # Several requests per worker, so that one slow answer does not leave the others idle at the end. Pairs stay in
        # order: those with the same gold meet the same worker, which has parsed it.
        size = max(1, min(MAX_PAIRS_PER_REQUEST, -(-len(pairs) // (4 * self.num_workers))))
        for start in range(0, len(pairs), size):
            yield pairs[start : start + size]

    def _put(self, task: _Task) -> None:
        self._start()
        while True:
            # Under the lock, so that nothing gets into the queue behind the end that `close` puts there.
            with self._lock:
                if self._is_closed:
                    raise RuntimeError("The grading pool is closed.")
                with contextlib.suppress(queue.Full):
                    return self._queue.put_nowait(task)
            time.sleep(0.005)

    def _remember(self, pair: Pair, comparison: Comparison) -> None:
        with self._lock:
            self._known[pair] = comparison
            if len(self._known) > MAX_KNOWN_PAIRS:
                self._known.popitem(last=False)

    def _start(self) -> None:
        with self._lock:
            if self._is_closed or self._threads:
                return
            # The threads start the workers: Linux ends a child with the *thread* that started it, so that must not be
            # the caller's.
            self._threads = [
                threading.Thread(target=self._serve, args=(slot,), name=f"grading-{slot}", daemon=True)
                for slot in range(self.num_workers)
            ]
            for thread in self._threads:
                thread.start()

    def _serve(self, slot: int) -> None:
        try:
            # Ready before the first request gets here, where possible; what goes wrong is told to who asks.
            with contextlib.suppress(WorkerLostError, ImportError):
                self._worker(slot)
            while (task := self._queue.get()) is not None:
                try:
                    task.comparisons.set_result(self._comparisons(slot, task.pairs))
                except Exception as error:
                    task.comparisons.set_exception(error)
                if self._is_killed:
                    break
        finally:
            self._lose(slot)
            if self._is_killed:
                self._refuse_the_rest()

    def _refuse_the_rest(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                if task := self._queue.get_nowait():
                    task.comparisons.set_exception(RuntimeError("The grading pool is closed."))

    def _comparisons(self, slot: int, pairs: Sequence[Pair]) -> list[tuple[Comparison, bool]]:
        """Have one worker answer, or its successors; `False` beside a comparison that another try might change."""
        comparisons: dict[Pair, tuple[Comparison, bool]] = {}
        open_pairs = deque(pairs)
        num_tries = 0  # of the first open pair
        while True:
            # A gold that reached the limit need not do so for every completion of its group.
            comparisons |= {pair: (Comparison.BAD_GOLD, True) for pair in open_pairs if pair[0] in self._bad_golds}
            open_pairs = deque(pair for pair in open_pairs if pair not in comparisons)
            if not open_pairs:
                return [comparisons[pair] for pair in pairs]
            if self._is_killed:
                raise RuntimeError("The grading pool is closed.")
            try:
                for comparison in self._replies(slot, list(open_pairs)):
                    pair = open_pairs.popleft()
                    comparisons[pair] = comparison, True
                    if comparison is Comparison.BAD_GOLD:
                        self._bad_golds.add(pair[0])
                    num_tries = 0
            except WorkerLostError as error:
                self._lose(slot)
                num_tries += 1
                if num_tries == MAX_TRIES and not self._is_killed:
                    if isinstance(error, WorkerNotStartedError):
                        raise RuntimeError(f"Grading workers do not start: {error}") from error
                    comparisons[open_pairs.popleft()] = Comparison.GAVE_UP, False
                    num_tries = 0

    def _replies(self, slot: int, pairs: list[Pair]) -> Iterator[Comparison]:
        """Yield the comparisons of the pairs until one costs the fork its life; then the rest must be asked again."""
        worker = self._worker(slot)
        worker.ask(pairs, self.wall_seconds)
        is_reading_gold = False
        num_open = len(pairs)
        while num_open:
            word, signal_number = worker.hear(self.wall_seconds)
            if word in ("reading_gold", "gold_read"):
                is_reading_gold = word == "reading_gold"
            elif word == "renewed":
                return
            elif word == "died":
                if signal_number not in CPU_LIMIT_SIGNALS:
                    # Killed from outside, or crashed: who knows how much of the request it had read.
                    raise WorkerLostError(f"the worker's fork was ended by signal {signal_number}")
                self.num_restarts += 1
                yield Comparison.BAD_GOLD if is_reading_gold else Comparison.GAVE_UP
                return
            else:
                yield Comparison(word)
                num_open -= 1

    def _worker(self, slot: int) -> WorkerProcess:
        if slot not in self._workers:
            worker = WorkerProcess(self.cpu_seconds, self.memory_bytes)
            with self._lock:
                self._workers[slot] = worker
                if self._is_killed:
                    worker.signal_end()
        return self._workers[slot]

    def _lose(self, slot: int) -> None:
        with self._lock:
            worker = self._workers.pop(slot, None)
        if worker is not None:
            worker.kill()
            self.num_restarts += not self._is_closed


def default_num_workers() -> int:
    """Return this rank's share of the workers of the machine, of which there are at most 16; from 1 to 8."""
    local_world_size = os.environ.get("LOCAL_WORLD_SIZE", "")
    num_ranks = max(1, int(local_world_size)) if local_world_size.isdecimal() else 1
    return max(1, min(MAX_WORKERS, min(MAX_WORKERS_OF_MACHINE, usable_cpus()) // num_ranks))


_pools: "weakref.WeakSet[GradingPool]" = weakref.WeakSet()
_shared: GradingPool | None = None
_shared_lock = threading.Lock()


def shared_pool() -> GradingPool:
    """Return the pool of this process that all rewards use; a new one if it has been closed."""
    global _shared
    with _shared_lock:
        if _shared is None or _shared.is_closed:
            _shared = GradingPool()
        return _shared


def _after_fork() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()
    for pool in list(_pools):
        pool._reset()


def _at_exit() -> None:
    for pool in list(_pools):
        pool.kill()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
