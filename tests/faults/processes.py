"""Trainings of `doomed_training.py` in processes of their own: how they ended, and what they left."""

import json
import time
from pathlib import Path

import doomed_training
import forked
from forked import free_port


# Long enough for a tiny training on a busy machine: what has not ended by then hangs.
MAX_SECONDS = 540
TIMING = ("step_time", "dapo/seconds", "grading/seconds")


def start(folder, options, **kwargs):
    return forked.start(doomed_training.train, str(folder), options, **kwargs)


def exit_code(process, max_seconds=MAX_SECONDS):
    """Waits for a process; one that hangs is killed, and fails the test."""
    process.join(max_seconds)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"the training was still running after {max_seconds} seconds")
    return process.exitcode


def is_running(pid):
    """Whether there is such a process, and not only what nobody has asked after of it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def processes_in(folder):
    """The processes that live in a folder: trainings go there, and what they start stays."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if path.resolve() == Path(folder).resolve() and is_running(path.parent.name):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def assert_nothing_is_left(folder, max_seconds=30):
    """Fails if a process outlives the training that started it. One that sees its end may take a moment to follow."""
    deadline = time.monotonic() + max_seconds
    while processes_in(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_in(folder) == []


def run(folder, options, num_ranks=1, doom=None, doomed_rank=0, max_seconds=MAX_SECONDS, **kwargs):
    """Runs a training and returns the exit code of each rank. No process of it may be left."""
    codes = _run(folder, options, num_ranks, doom, doomed_rank, max_seconds, **kwargs)
    assert_nothing_is_left(folder)
    return codes


def _run(folder, options, num_ranks, doom, doomed_rank, max_seconds, **kwargs):
    if num_ranks == 1:
        return [exit_code(start(folder, options, doom=doom, **kwargs), max_seconds)]
    dooms = [doom if rank == doomed_rank or not doom else () for rank in range(num_ranks)]
    port = free_port()
    ranks = [(rank, num_ranks, port) for rank in range(num_ranks)]
    processes = [
        start(folder, options, doom=doom, ranks=rank, **kwargs) for doom, rank in zip(dooms, ranks, strict=True)
    ]
    return [exit_code(process, max_seconds) for process in processes]


def outcome(folder, rank=0):
    """What the training left: hash of the weights, log lines without the clock, points of each phase."""
    path = Path(folder, f"outcome{rank}.json")
    assert path.exists(), said(folder)
    values = json.loads(path.read_text())
    values["log"] = [{k: str(v) for k, v in e.items() if not k.startswith(TIMING)} for e in values["log"]]
    return values


def batches(folder, rank=0):
    """The hashes of the batches that were made at each optimizer step, by all lives of the run."""
    made: dict[int, set[str]] = {}
    for line in Path(folder, f"batches{rank}.jsonl").read_text().splitlines():
        record = json.loads(line)
        made.setdefault(record["step"], set()).add(record["sha256"])
    return made


def trained(folder, rank=0):
    """
    The rows, as hashes of prompt and completion, that each optimizer step has trained, in some order.

    A step that several lives of the run took is that of the last one: the others' weights were lost with them.
    """
    rows: dict[int, tuple[int, list[tuple[str, str]]]] = {}
    for line in Path(folder, f"trained{rank}.jsonl").read_text().splitlines():
        record = json.loads(line)
        step, life = record["step"], record["life"]
        if step not in rows or rows[step][0] != life:
            rows[step] = life, []
        rows[step][1].extend(tuple(row) for row in record["rows"])
    return {step: sorted(found) for step, (_, found) in rows.items()}


def draw_death(chance, counts, phases):
    """
    Draws where a run is to die.

    Args:
        chance (`random.Random`):
            Source of it.
        counts (`list[dict[str, int]]`):
            Of each rank, the points of each phase in a run that lives.
        phases (`Sequence[str]`):
            Phases to choose from.

    Returns:
        `tuple[tuple[str, int], int]`: phase and number of the point, and the rank.
    """
    phase, rank = chance.choice(phases), chance.randrange(len(counts))
    return (phase, chance.randint(1, counts[rank][phase])), rank


def said(folder, rank=0, whole=False):
    """What the training printed, or the end of it."""
    return Path(folder, f"output{rank}.txt").read_text()[0 if whole else -3000 :]
