"""The pool of grading workers: order, faults, forks, threads, and that nothing outlives the process that started it."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from trl_dapo.grading import cpus
from trl_dapo.grading import pool as pool_module
from trl_dapo.grading.equivalence import grade, is_equivalent
from trl_dapo.grading.grades import Comparison, Grade
from trl_dapo.grading.pool import GradingPool, default_num_workers, shared_pool


GIVES_UP = ("1", "9^{9^{9^{9}}}")


def questions(number: int) -> tuple[list[tuple[str, str]], list[Comparison]]:
    """Distinct pairs, and the comparisons that follow from how they were made: n sqrt(2) against sqrt(2 n^2) or another."""
    pairs = [(rf"{n}\sqrt{{2}}", rf"\sqrt{{{2 * n * n + (n % 3 == 0)}}}") for n in range(2, number + 2)]
    return pairs, [Comparison.DIFFERENT if n % 3 == 0 else Comparison.EQUAL for n in range(2, number + 2)]


@pytest.fixture(autouse=True)
def one_worker_for_a_process(monkeypatch: pytest.MonkeyPatch):
    """Makes shared pools, here and in the programs that tests run, pools of one worker: starting one takes a second."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")


def run_script(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(arguments or ("-c", textwrap.dedent(code)))]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)


def exists(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent to notice does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def forks_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(condition, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(scope="module")
def pools():
    """Returns a function that returns a pool of so many workers, as good as new: starting a worker takes a second."""
    pools: dict[int, GradingPool] = {}

    def pool_of(num_workers: int) -> GradingPool:
        if num_workers not in pools or not all(map(exists, pools[num_workers].pids)):
            pools[num_workers] = GradingPool(num_workers, cpu_seconds=0.3)
        pool = pools[num_workers]
        pool.compare([("x", r"\sqrt{2}")])
        pool._known.clear()
        pool.num_restarts = 0
        return pool

    yield pool_of
    for pool in pools.values():
        pool.close()


@pytest.fixture
def one_worker(pools) -> GradingPool:
    return pools(1)


@pytest.fixture
def two_workers(pools) -> GradingPool:
    return pools(2)


def test_comparisons_come_in_the_order_of_the_pairs(two_workers: GradingPool):
    pairs, expected = questions(200)
    assert two_workers.compare(pairs + pairs[::-1]) == expected + expected[::-1]


def test_a_grading_that_is_given_up_leaves_the_next_ones_alone(one_worker: GradingPool):
    # The last pair of one request and the first of the next: here replies could get out of step.
    pairs, expected = questions(6)
    fails = ("1", r"\frac{1}{0}" + r"+\sqrt{2}" * 2)
    pool = one_worker
    for pair, comparison in zip(pairs, expected, strict=True):
        assert pool.compare([("1", f"{GIVES_UP[1]}+{pair[0]}")]) == [Comparison.GAVE_UP]
        assert pool.compare([pair]) == [comparison]
        assert pool.compare([(fails[0], f"{fails[1]}+{pair[0]}!!!")])[0] is not Comparison.EQUAL
        assert pool.compare([pair, (pair[0], "1"), pair]) == [comparison, Comparison.DIFFERENT, comparison]


def test_a_pair_is_asked_once(one_worker: GradingPool):
    assert one_worker.compare([GIVES_UP] * 50) == [Comparison.GAVE_UP] * 50
    assert one_worker.compare([GIVES_UP]) == [Comparison.GAVE_UP]
    assert one_worker.num_restarts == 1


def test_threads_share_a_pool(two_workers: GradingPool):
    pairs, expected = questions(120)
    results: dict[int, list[Comparison]] = {}
    threads = [
        threading.Thread(target=lambda i=i: results.update({i: two_workers.compare(pairs[i::8])})) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: expected[i::8] for i in range(8)}


def test_a_worker_outlives_the_thread_that_asked_first():
    with GradingPool(num_workers=1) as pool:
        thread = threading.Thread(target=lambda: pool.compare([("x", r"\sqrt{2}")]))
        thread.start()
        thread.join()
        pids = pool.pids
        time.sleep(0.3)
        assert pool.compare([(r"\sqrt{8}", r"2\sqrt{2}")]) == [Comparison.EQUAL]
        assert pool.pids == pids
        assert pool.num_restarts == 0


@contextlib.contextmanager
def stopped_amid(pool: GradingPool, pairs: list[tuple[str, str]]):
    """Has a thread ask for these pairs, and stops the first worker's fork amid them. Yields the comparisons to come."""
    comparisons: list[Comparison] = []
    thread = threading.Thread(target=lambda: comparisons.extend(pool.compare(pairs)))
    thread.start()
    assert wait_until(lambda: pool._known)
    os.kill(forks_of(pool.pids[0])[0], signal.SIGSTOP)
    time.sleep(0.5)
    assert thread.is_alive(), "the pairs were compared before the worker was stopped"
    yield comparisons
    thread.join()


@pytest.mark.parametrize("victim", ["worker", "fork"])
def test_a_worker_killed_amid_a_batch_costs_no_comparison(two_workers: GradingPool, victim: str):
    pairs, expected = questions(800)
    with stopped_amid(two_workers, pairs) as comparisons:
        pid = two_workers.pids[0]
        os.kill(pid if victim == "worker" else forks_of(pid)[0], signal.SIGKILL)
    assert comparisons == expected
    assert two_workers.num_restarts == 1


def test_all_workers_killed_again_and_again_cost_no_comparison(two_workers: GradingPool):
    pairs, expected = questions(90)
    for start in range(0, 90, 30):
        comparisons = two_workers.compare(pairs[start : start + 30])
        for pid in two_workers.pids:
            os.kill(pid, signal.SIGKILL)
        assert comparisons == expected[start : start + 30]


def test_a_worker_that_stands_still_is_replaced(one_worker: GradingPool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(one_worker, "wall_seconds", 2.0)
    pairs, expected = questions(20)
    (pid,) = one_worker.pids
    os.kill(forks_of(pid)[0], signal.SIGSTOP)
    assert one_worker.compare(pairs) == expected
    assert one_worker.num_restarts >= 1


def test_a_pool_may_be_closed_twice_and_then_refuses():
    pool = GradingPool(num_workers=1)
    assert pool.compare([("2x", "x+x")]) == [Comparison.EQUAL]
    pids = pool.pids
    pool.close()
    pool.close()
    assert pool.pids == []
    assert wait_until(lambda: not any(map(exists, pids)))
    with pytest.raises(RuntimeError, match="closed"):
        pool.compare([("3x", "x+x")])


def test_a_pool_that_was_never_used_starts_nothing():
    pool = GradingPool(num_workers=2)
    pool.close()
    assert pool.pids == []


def test_who_waits_is_told_when_the_pool_is_killed():
    errors: list[BaseException] = []
    pool = GradingPool(num_workers=1)
    pool.compare([("x", r"\sqrt{2}")])
    # Answers nothing from here on.
    os.kill(forks_of(pool.pids[0])[0], signal.SIGSTOP)

    def ask() -> None:
        try:
            pool.compare(questions(20)[0])
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.2)
    pool.kill()
    thread.join(timeout=60)
    assert len(errors) == 1
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.compare([("9x", "x+x")])


def test_many_who_ask_while_a_pool_closes_get_an_answer_or_an_error():
    pairs, expected = questions(64)
    finished: list[int] = []
    pool = GradingPool(num_workers=2)
    pool.compare(pairs[:1])
    pids = pool.pids

    def ask(number: int) -> None:
        with contextlib.suppress(RuntimeError):
            assert pool.compare(pairs[number::8]) == expected[number::8]
        finished.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    pool.close()
    for thread in threads:
        thread.join(timeout=120)
    assert sorted(finished) == list(range(8))
    assert wait_until(lambda: not any(map(exists, pids)))


def test_the_shared_pool_comes_back_after_it_was_closed():
    assert is_equivalent("5x", r"\boxed{2x+3x}").grade is Grade.CORRECT
    shared_pool().close()
    assert is_equivalent("7x", r"\boxed{3x+4x}").grade is Grade.CORRECT


def test_the_workers_are_shared_among_the_ranks_of_a_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    for num_ranks, num_workers in {"1": 8, "4": 3, "64": 1, "": 8}.items():
        monkeypatch.setenv("LOCAL_WORLD_SIZE", num_ranks)
        assert default_num_workers() == num_workers
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(128)))
    for num_ranks, num_workers in {"1": 8, "2": 8, "4": 4, "8": 2}.items():
        monkeypatch.setenv("LOCAL_WORLD_SIZE", num_ranks)
        assert default_num_workers() == num_workers


@pytest.mark.parametrize(
    ("files", "of_task", "num_cpus"),
    [
        ({}, "", 12),
        ({"cpu.max": "max 100000"}, "", 12),
        ({"cpu.max": "350000 100000"}, "", 4),
        ({"cpu.max": "5000 100000"}, "", 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "", 12),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, "", 2),
        ({"cpu.max": "800000 100000"}, "3", 3),
        ({}, "64", 12),
        ({"cpu.max": "nonsense"}, "none", 12),
    ],
)
def test_cpus_are_those_of_the_container_and_of_the_job(monkeypatch, tmp_path, files, of_task, num_cpus):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.setattr(cpus, "CGROUPS", tmp_path)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", of_task)
    assert cpus.usable_cpus() == num_cpus


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_workers": 0}, "`num_workers` is 0"),
        ({"cpu_seconds": 0.0}, "`cpu_seconds` is 0.0"),
        ({"cpu_seconds": float("nan")}, "`cpu_seconds` is nan"),
        ({"memory_bytes": 1000}, "`memory_bytes` is 1000"),
        ({"cpu_seconds": 2.0, "wall_seconds": 1.0}, "`wall_seconds` is 1.0"),
    ],
)
def test_limits_out_of_range_are_refused(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        GradingPool(**arguments)


def test_a_cpu_limit_does_not_count_time_in_which_others_run(one_worker: GradingPool):
    # The worker sleeps through ten times its limit in the middle of a grading, and goes on where it was.
    pairs, expected = questions(800)
    with stopped_amid(one_worker, pairs) as comparisons:
        time.sleep(3.0)
        os.kill(forks_of(one_worker.pids[0])[0], signal.SIGCONT)
    assert comparisons == expected
    assert one_worker.num_restarts == 0


SCRIPT = r"""
import os, sys, time
from trl_dapo.grading.equivalence import is_equivalent
from trl_dapo.grading.pool import shared_pool
print(is_equivalent(r"\sqrt{8}", r"\boxed{2\sqrt{2}}").grade.value, *shared_pool().pids, flush=True)
"""


def test_a_script_without_a_main_guard_may_grade(tmp_path: Path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    assert run_script("", str(script)).stdout.startswith("correct ")


def test_python_m_and_standard_input_may_grade(tmp_path: Path):
    (tmp_path / "train_module.py").write_text(SCRIPT)
    for arguments in (["-m", "train_module"], ["-"]):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
        done = subprocess.run(
            [sys.executable, *arguments], input=SCRIPT, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.stdout.startswith("correct "), done.stderr


def test_modules_beside_the_script_do_not_shadow_those_of_the_worker(tmp_path: Path):
    (tmp_path / "json.py").write_text("raise RuntimeError('the wrong json')")
    code = f"import os; os.chdir({str(tmp_path)!r})\n" + SCRIPT
    script = tmp_path.parent / "elsewhere.py"
    script.write_text(code)
    assert run_script("", str(script)).stdout.startswith("correct ")


def test_no_worker_outlives_a_program_that_ends():
    pids = [int(pid) for pid in run_script(SCRIPT).stdout.split()[1:]]
    assert pids
    assert wait_until(lambda: not any(map(exists, pids)))


def test_no_worker_outlives_a_program_that_is_killed():
    # One that is busy, too: it is amid a grading that would take minutes.
    busy = "pool = shared_pool().__class__(num_workers=1, cpu_seconds=300.0)\n"
    busy += "pool.compare([('x', 'y')]); print(*pool.pids, flush=True)\n"
    busy += f"pool.compare([{GIVES_UP!r}])\n"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT + busy], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()[1:]]
    pids += [int(pid) for pid in process.stdout.readline().split()]
    time.sleep(0.5)
    forks = [fork for pid in pids for fork in forks_of(pid)]
    assert len(forks) == len(pids) >= 2
    process.kill()
    process.wait()
    assert wait_until(lambda: not any(map(exists, pids + forks)))


def test_a_forked_process_has_workers_of_its_own():
    code = r"""
    import os
    from trl_dapo.grading.equivalence import is_equivalent
    from trl_dapo.grading.pool import shared_pool
    assert is_equivalent("2x", r"\boxed{x+x}").grade.value == "correct"
    pids = shared_pool().pids
    child = os.fork()
    assert is_equivalent("3x", r"\boxed{x+2x}").grade.value == "correct"
    assert is_equivalent("3x", r"\boxed{x+3x}").grade.value == "wrong"
    if child == 0:
        assert not set(shared_pool().pids) & set(pids)
        shared_pool().close()
        os._exit(7)
    assert set(shared_pool().pids) >= set(pids)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert run_script(code).stdout.strip() == "7"


def grade_one(gold: str, completion: str) -> str:
    return is_equivalent(gold, completion).grade.value


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_of_multiprocessing_grade(method: str):
    assert is_equivalent("2x", r"\boxed{x+x}").grade is Grade.CORRECT
    with multiprocessing.get_context(method).Pool(2) as processes:
        rows = [("4x", r"\boxed{x+3x}"), ("4x", r"\boxed{x+4x}"), (r"9\pi", r"\boxed{3\pi\cdot 3}")]
        assert processes.starmap(grade_one, rows) == ["correct", "wrong", "correct"]


def test_workers_import_neither_torch_nor_trl():
    code = (
        "import sys, trl_dapo.grading.worker, trl_dapo.grading.symbolic; "
        "assert not {'torch', 'trl', 'transformers', 'numpy'} & set(sys.modules)"
    )
    run_script(code)


def test_a_missing_package_is_named_with_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "sympy.py").write_text("raise ImportError('there is none')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with GradingPool(num_workers=1) as pool, pytest.raises(ImportError, match=r"there is none.*pip install"):
        pool.compare([("2x", "x+x")])


def test_workers_that_do_not_start_are_an_error_and_no_grade(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with GradingPool(num_workers=1) as pool, pytest.raises(RuntimeError, match="do not start"):
        pool.compare([("2x", "x+x")])


def test_known_comparisons_are_bounded(one_worker: GradingPool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool_module, "MAX_KNOWN_PAIRS", 10)
    pairs, expected = questions(30)
    assert one_worker.compare(pairs) == expected
    assert len(one_worker._known) == 10


BURN = "import time\nend = time.monotonic() + 600\nwhile time.monotonic() < end: pass"


def grade_while_both_cores_burn(number: int, pool: GradingPool) -> None:
    pairs, expected = questions(number)
    golds = [gold for gold, _ in pairs]
    completions = [rf"So it is \boxed{{{answer}}}." for _, answer in pairs]
    grades = [Grade.CORRECT if comparison is Comparison.EQUAL else Grade.WRONG for comparison in expected]
    burners = [subprocess.Popen([sys.executable, "-S", "-c", BURN]) for _ in range(4)]
    try:
        assert [result.grade for result in grade(golds, completions, pool)] == grades
        assert pool.num_restarts == 0
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def test_a_busy_machine_changes_no_grade(two_workers: GradingPool):
    grade_while_both_cores_burn(200, two_workers)


@pytest.mark.slow
def test_a_busy_machine_changes_none_of_ten_thousand_grades():
    # The workers start on a busy machine, too.
    with GradingPool(num_workers=2, cpu_seconds=0.5) as pool:
        grade_while_both_cores_burn(10_000, pool)
        pids = pool.pids
    assert wait_until(lambda: not any(map(exists, pids)))
