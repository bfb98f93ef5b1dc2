"""
Runs TRL's own tests of `GRPOTrainer` with `DAPOTrainer` in its place, with dynamic sampling off and with our defaults.

    python tests/trl_suite/suite.py DIR           # a checkout of TRL; the installed TRL is what runs
    python tests/trl_suite/suite.py DIR -k tools  # these tests only

First `GRPOTrainer` runs them: one that fails with it as well (no GPU, no stand-in for a model, tests of another release than the
installed one) is not counted. Of the others each passes with `DAPOTrainer`, or is in expected.yaml with the reason. Status 1:
one fails that is not there, fails with another message, or is there and passes.
"""

import argparse
import contextlib
import fnmatch
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import yaml
from in_place_of_grpo import MODES
from stand_ins import ids_in, make_all, with_local_tokens


HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TEST_FILE = Path("tests/test_grpo_trainer.py")
OURS = MODES[1:]


@dataclass(frozen=True)
class Refusal:
    """
    An entry of expected.yaml: a test of TRL that does not pass with `DAPOTrainer`, and why.

    Attributes:
        test (`str`): its name without the file; `*` stands for any text.
        modes (`list[str]`): where it does not pass.
        message (`str`): a part of the message with which it fails. One that fails otherwise is not expected.
        reason (`str`): why this is as it should be.
        may_pass (`bool`): whether it depends on numbers that differ from machine to machine, so that passing is right too.
        at_most (`int`, *optional*): how many tests an entry with a `*` stands for.
    """

    test: str
    modes: list[str]
    message: str
    reason: str
    may_pass: bool = False
    at_most: int | None = None

    def __post_init__(self):
        unknown = set(self.modes) - set(OURS)
        if unknown or not self.modes:
            raise ValueError(f"modes of {self.test} are {self.modes}, but must be of {', '.join(OURS)}")
        if "*" in self.test and not (self.may_pass and self.at_most):
            raise ValueError(f"{self.test} stands for any number of tests: give it `may_pass: true` and `at_most`")

    def is_of(self, test):
        """Returns whether it is about a test. Brackets in the names are plain text."""
        return fnmatch.fnmatchcase(test, self.test.replace("[", "[[]"))


@dataclass
class Verdict:
    """How a mode went, by the names of the tests: those that pass, are refused as expected, break, and pass unexpectedly."""

    passed: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    outlived: list[str] = field(default_factory=list)

    @property
    def is_good(self):
        return not self.broken and not self.outlived


def read_expected(text):
    """Returns the least number of tests that a whole run counts, and the refusals, of a text in YAML."""
    stored = yaml.safe_load(text)
    return stored["counted_at_least"], [Refusal(**entry) for entry in stored["refusals"]]


def counted(outcomes):
    """
    Returns the names of the tests that pass with `GRPOTrainer`.

    >>> counted({"a": {"outcome": "passed"}, "b": {"outcome": "skipped"}})
    ['a']
    """
    return [name for name, found in outcomes.items() if found["outcome"] == "passed"]


def compare(tests, outcomes, refusals, mode):
    """
    Compares the outcomes of a mode with the list.

    Args:
        tests (`list[str]`): the counted tests.
        outcomes (`dict[str, dict]`): outcome and message of each, of this mode.
        refusals (`list[Refusal]`): the list.
        mode (`str`): the mode.

    Returns:
        `Verdict`
    """
    verdict = Verdict()
    left = [refusal.at_most for refusal in refusals]
    for test in tests:
        found = outcomes.get(test, {"outcome": "failed", "message": "it did not end"})
        listed = [place for place, refusal in enumerate(refusals) if mode in refusal.modes and refusal.is_of(test)]
        if found["outcome"] == "passed":
            verdict.passed.append(test)
            if any(not refusals[place].may_pass for place in listed):
                verdict.outlived.append(test)
            continue
        fitting = [place for place in listed if refusals[place].message in found["message"] and left[place] != 0]
        if not fitting:
            verdict.broken[test] = found["message"] or found["outcome"]
            continue
        verdict.refused.append(test)
        limit = left[fitting[0]]
        if limit is not None:
            left[fitting[0]] = limit - 1
    return verdict


def prepare(checkout, folder):
    """
    Copies the tests into a folder, with stand-ins for what they load from the Hub beside them.

    Returns:
        `dict[str, str]`: the ids without a stand-in, with the reason.
    """
    source = checkout / TEST_FILE
    if not source.is_file():
        raise SystemExit(f"{source} does not exist: give a checkout of TRL, with its tests")
    (folder / "tests").mkdir()
    # Not the sources of TRL: the installed release is tested. Not its options for pytest either.
    for path in source.parent.glob("*.py"):
        if path.name == source.name or not path.name.startswith("test_"):
            shutil.copy(path, folder / "tests")
    text = source.read_text()
    (folder / TEST_FILE).write_text(with_local_tokens(text))
    (folder / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n    slow: needs a GPU\n    low_priority\n    invariant\nfilterwarnings = ignore\n"
    )
    return make_all(ids_in(text), folder)


def run_mode(mode, folder, output, options, only=None):
    """Runs the tests in one mode; returns their outcomes by name."""
    outcomes, log = output / f"{mode}.json", output / f"{mode}.log"
    outcomes.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(TEST_FILE),
        "-p",
        "in_place_of_grpo",
        "-p",
        "no:cacheprovider",
        "-q",
    ]
    command += ["--color=no", "--tb=short", "--trainer", mode, "--outcomes", str(outcomes), "-m", "not slow"]
    command += ["--timeout", str(options.timeout)]
    if options.processes > 1:
        command += ["-n", str(options.processes), "--dist", "worksteal"]
    if options.k:
        command += ["-k", options.k]
    if only is not None:
        chosen = output / "counted.json"
        chosen.write_text(json.dumps(only))
        command += ["--only", str(chosen)]
    path = [str(ROOT), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # No telemetry, no Hub, nothing kept between runs.
        "CI": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hub_cache"),
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    begun = time.monotonic()
    with log.open("w") as file:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
    # 0: all passed, 1: some did not. With any other status they were not all run.
    if done.returncode not in (0, 1) or not outcomes.exists():
        raise SystemExit(f"the tests did not run with {mode}:\n{log.read_text()[-3000:]}")
    found = json.loads(outcomes.read_text())
    print(f"{mode}: {len(found)} tests, {(time.monotonic() - begun) / 60:.1f} minutes, {log}", flush=True)
    return found


def fingerprint(checkout, options):
    """Returns a text that changes with whatever the outcomes of `GRPOTrainer` depend on."""
    parts = [(checkout / TEST_FILE).read_bytes(), (HERE / "stand_ins.py").read_bytes(), repr(options.k).encode()]
    releases = [f"{name} {version(name)}" for name in ("trl", "transformers", "torch", "peft", "accelerate")]
    return hashlib.sha256(b"\n".join([*parts, *(release.encode() for release in releases)])).hexdigest()


def run_grpo(checkout, folder, output, options):
    """Returns the outcomes of `GRPOTrainer`: stored ones, if they may be reused and nothing has changed."""
    stored, key = output / "grpo_of.json", fingerprint(checkout, options)
    with contextlib.suppress(FileNotFoundError):
        if options.reuse and json.loads(stored.read_text()) == key:
            return json.loads((output / "grpo.json").read_text())
    stored.unlink(missing_ok=True)
    outcomes = run_mode("grpo", folder, output, options)
    stored.write_text(json.dumps(key))
    return outcomes


def table(num_counted, verdicts):
    """Returns the summary of the modes, a line each."""
    lines = [f"{'':14}{'counted':>9}{'passed':>9}{'refused':>9}{'broken':>9}{'listed, but passes':>20}"]
    for mode, verdict in verdicts.items():
        numbers = (num_counted, len(verdict.passed), len(verdict.refused), len(verdict.broken))
        lines.append(f"{mode:14}" + "".join(f"{number:9}" for number in numbers) + f"{len(verdict.outlived):20}")
    return "\n".join(lines)


def report(outcomes, verdicts, missing):
    """Prints what was not counted, the table, and each test that is not as expected."""
    tests = counted(outcomes)
    others = [found["outcome"] for found in outcomes.values() if found["outcome"] != "passed"]
    kinds = ", ".join(f"{others.count(kind)} {kind}" for kind in sorted(set(others)))
    print(f"\nGRPOTrainer passes {len(tests)} of {len(outcomes)} tests. Not counted: {kinds or 'none'}.")
    for name, why in missing.items():
        print(f"  no stand-in for {name}: {why}")
    print(f"\n{table(len(tests), verdicts)}")
    for mode, verdict in verdicts.items():
        for test, message in verdict.broken.items():
            print(f"\nBROKEN with {mode}: {test}\n  {message.strip()[:600]}")
        for test in verdict.outlived:
            print(f"\nLISTED in expected.yaml, but passes with {mode}: {test}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, metavar="DIR", help="a checkout of TRL")
    parser.add_argument("-k", metavar="NAMES", help="only tests of these names, as pytest takes them")
    parser.add_argument("--modes", nargs="+", choices=OURS, default=OURS, help="of DAPOTrainer; all by default")
    parser.add_argument("--processes", type=int, default=2, help="processes that share the tests; default 2")
    parser.add_argument("--timeout", type=int, default=900, help="seconds for a test; default 900")
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "trl-suite", help="folder for logs and outcomes")
    parser.add_argument(
        "--reuse", action="store_true", help="take the stored outcomes of GRPOTrainer if they are of the same"
    )
    parser.add_argument("--expected", type=Path, default=HERE / "expected.yaml", help="the list of refusals")
    options = parser.parse_args()
    at_least, refusals = read_expected(options.expected.read_text())
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="trl-suite-") as place:
        folder = Path(place)
        missing = prepare(options.checkout, folder)
        outcomes = run_grpo(options.checkout, folder, output, options)
        tests = counted(outcomes)
        verdicts = {
            mode: compare(tests, run_mode(mode, folder, output, options, tests), refusals, mode)
            for mode in options.modes
        }
    report(outcomes, verdicts, missing)
    # An environment in which little runs would show nothing.
    if not tests or (not options.k and len(tests) < at_least):
        print(
            f"\nOnly {len(tests)} tests are counted, expected.yaml says at least {at_least}: see {output / 'grpo.log'}"
        )
        return 1
    return int(not all(verdict.is_good for verdict in verdicts.values()))


if __name__ == "__main__":
    sys.exit(main())
