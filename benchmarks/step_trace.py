"""
How often one training step crosses from one module of trl_dapo into another, and how many modules it enters.

    python benchmarks/step_trace.py           # seconds, one core; prints the total, the pairs and the modules
    python benchmarks/step_trace.py --json    # the same as JSON

The step is the second of a tiny model: from the call of `training_step`, which finds no batch and samples one, through
scoring, loss and optimizer step to the end of `log`. One round, two groups of four completions, one optimizer step, a reward
function of one line. Only what `trl_dapo` exports is used, so the script also runs on other versions of the package:

    PYTHONPATH=OTHER_CHECKOUT python benchmarks/step_trace.py

Definitions:

- A call is the beginning of a Python function. Properties and the methods that `dataclass` generates are functions. The start
  of a generator, and so of a `contextmanager`, is not a call, because its body runs in pieces; the functions that it calls
  count, with the generator as their caller.
- The module of a function is the one whose globals it sees: that which defines it, and for the generated methods of a
  dataclass that of the class.
- The caller is the nearest frame on the stack that belongs to trl_dapo. Frames of TRL, torch, `functools` and so on are
  looked through.
- A crossing is a call whose caller belongs to another module of trl_dapo.
- A module is entered when one of its functions is called.

Only the thread that trains is traced.
"""

import argparse
import contextlib
import inspect
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any


# Before any import of torch. CI=1 keeps TRL from sending telemetry.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CI", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from tiny import numbered_prompts, tiny_model, tiny_tokenizer, training_arguments

from trl_dapo import DAPOConfig, DAPOTrainer


TRACED_STEP = 1  # of steps 0, 1, ...: what is imported or computed once was so in step 0


class CallTracer:
    """
    Counts the calls between the modules of a package while it is entered.

    Args:
        package (`str`):
            Name of the package.

    Attributes:
        crossings (`Counter[tuple[str, str]]`):
            Calls by the module of the caller and that of the function, where they differ.
        modules (`set[str]`):
            Modules of which a function was called.

    Example:

    >>> with CallTracer("json") as tracer:
    ...     _ = json.dumps([1, 2], indent=1)
    >>> tracer.crossings
    Counter({('json', 'json.encoder'): 2})
    """

    def __init__(self, package: str):
        self.package = package
        self.crossings: Counter[tuple[str, str]] = Counter()
        self.modules: set[str] = set()

    def __enter__(self) -> "CallTracer":
        sys.setprofile(self._observe)
        return self

    def __exit__(self, *_: Any) -> None:
        sys.setprofile(None)

    @property
    def num_crossings(self) -> int:
        """Calls from one module of the package into another."""
        return self.crossings.total()

    def summary(self) -> dict[str, Any]:
        """Returns what was counted as JSON-able values, the most frequent pairs first."""
        pairs = sorted(self.crossings.items(), key=lambda item: (-item[1], item[0]))
        return {
            "crossings": self.num_crossings,
            "modules_entered": len(self.modules),
            "pairs": [{"from": caller, "to": called, "calls": calls} for (caller, called), calls in pairs],
            "modules": sorted(self.modules),
        }

    def _observe(self, frame: FrameType, event: str, _: Any) -> None:
        called = self._module_of(frame)
        if event != "call" or called is None or frame.f_code.co_flags & inspect.CO_GENERATOR:
            return
        self.modules.add(called)
        below = frame.f_back
        while below is not None and self._module_of(below) is None:
            below = below.f_back
        caller = None if below is None else self._module_of(below)
        if caller not in (None, called):
            self.crossings[caller, called] += 1

    def _module_of(self, frame: FrameType) -> str | None:
        """Returns the module of the package that a frame belongs to, if any."""
        name = frame.f_globals.get("__name__") or ""
        return name if name == self.package or name.startswith(f"{self.package}.") else None


class TracedTrainer(DAPOTrainer):
    """Traces one step, and nothing of the others."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.tracer = CallTracer("trl_dapo")
        super().__init__(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Begins the trace."""
        if self.state.global_step == TRACED_STEP:
            self.tracer.__enter__()
        return super().training_step(*args, **kwargs)

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Ends the trace: every step has its line."""
        super().log(*args, **kwargs)
        self.tracer.__exit__()


def alternating(completion_ids: Sequence[Any], **_: Any) -> list[float]:
    """0 and 1 in turn, so that every group is informative and one round fills the batch."""
    return [float(number % 2) for number in range(len(completion_ids))]


def trace_step() -> dict[str, Any]:
    """Trains the tiny model for two steps, and returns what was counted in the second one and what it sampled."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        trainer = TracedTrainer(
            model=tiny_model(),
            reward_funcs=alternating,
            args=DAPOConfig(**training_arguments(folder, max_steps=TRACED_STEP + 1)),
            train_dataset=numbered_prompts(50),
            processing_class=tiny_tokenizer(),
        )
        trainer.train()
    (line,) = (entry for entry in trainer.state.log_history if entry["step"] == TRACED_STEP + 1 and "loss" in entry)
    sampled = {name: int(line[f"dapo/{name}"]) for name in ("rounds", "prompts_drawn")}
    return {"sampled": sampled} | trainer.tracer.summary()


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the trace."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    trace = trace_step()
    if options.json:
        print(json.dumps(trace, indent=2))
        return
    rounds, prompts = trace["sampled"]["rounds"], trace["sampled"]["prompts_drawn"]
    print(f"{trace['crossings']} crossings, {trace['modules_entered']} modules entered")
    print(f"in a step with {rounds} round of {prompts} prompts")
    print("\ncalls  from -> to")
    for pair in trace["pairs"]:
        print(f"{pair['calls']:5}  {pair['from']} -> {pair['to']}")
    print("\nmodules entered")
    print("\n".join(f"  {module}" for module in trace["modules"]))


if __name__ == "__main__":
    main()
