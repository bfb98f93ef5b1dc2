"""Runs of TRL's own trainer in which calls are noted, and what a test of a seam says when it fails."""

import inspect
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import trl
from trl import GRPOTrainer

from trl_dapo import trl_seams
from trl_dapo.trl_seams import OVERRIDDEN, OVERRIDDEN_IN_VLLM_GENERATION, TrainerSeams


# Every seam by its name, with what it is for.
SEAMS: dict[str, str] = {
    **OVERRIDDEN,
    **{f"VLLMGeneration.{name}": reason for name, reason in OVERRIDDEN_IN_VLLM_GENERATION.items()},
    **{
        f"{owner.__name__}.{name}": "read, called or replaced"
        for owner in (TrainerSeams, trl_seams.AddedReward)
        for name in vars(owner)
        if not name.startswith("_")
    },
    "engine_built_by": "the vLLM backend of a trainer",
    "completions_printed_by": "TRL's table of completions",
    "pushed_from_checkpoint": "a checkpoint is whole before it is pushed",
    "texts_apart": "texts go to the rank that writes them",
}

# TRL 1.15 computes log-probabilities in a kernel that needs a GPU.
TRAINS_HERE = torch.cuda.is_available() or not trl.__version__.startswith("1.15.")
WHY_NOT = f"TRL {trl.__version__} cannot compute log-probabilities without the Triton of a GPU"


@contextmanager
def relies_on(seam: str, expected: str):
    """Whatever fails inside it fails as this seam, with what was expected of TRL and what came."""
    reason = SEAMS[seam]
    try:
        yield
    except Exception as error:
        came = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        raise AssertionError(
            f"TRL {trl.__version__} has moved the seam `{seam}` of trl_dapo/trl_seams.py ({reason}).\n"
            f"  expected: {expected}\n  came: {came}"
        ) from error


@dataclass
class Call:
    """
    A call of a method, or something else that happened.

    Attributes:
        began (`int`), ended (`int`):
            Its place among all beginnings and ends; `ended` is -1 if it has not returned.
        arguments (`dict`):
            By the names of TRL's parameters.
        given (`tuple`):
            The same as they were passed: positional ones, those by name.
        result (`Any`):
            What it returned.
        step (`int`):
            Optimizer steps that were taken when it began.
        is_training (`bool`):
            Whether the model was in training mode then.
    """

    name: str
    began: int
    arguments: dict[str, Any] = field(default_factory=dict)
    ended: int = -1
    given: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    result: Any = None
    step: int = -1
    is_training: bool = True

    def is_inside(self, outer: "Call") -> bool:
        """Whether it happened during another call."""
        return outer.began < self.began < outer.ended


class Recording:
    """What was called, in order."""

    def __init__(self):
        self.calls: list[Call] = []
        self.absent: list[str] = []
        self._place = 0

    def _next(self) -> int:
        self._place += 1
        return self._place

    def begin(self, name: str, **arguments: Any) -> Call:
        call = Call(name, self._next(), arguments)
        self.calls.append(call)
        return call

    def end(self, call: Call, result: Any = None) -> None:
        call.result, call.ended = result, self._next()

    def noting(self, name: str, function: Any) -> Any:
        """Returns the function; its calls are noted with their keyword arguments."""

        def noted(*args, **kwargs):
            call = self.begin(name, args=args, **kwargs)
            self.end(call, function(*args, **kwargs))
            return call.result

        return noted

    def all(self, name: str) -> list[Call]:
        """Returns the calls of this name."""
        return [call for call in self.calls if call.name == name]

    def only(self, name: str) -> Call:
        """Returns the one call of this name."""
        calls = self.all(name)
        has_none = " (it has no such method)" if name in self.absent else ""
        assert len(calls) == 1, f"TRL called `{name}` {len(calls)} times{has_none}, not once"
        return calls[0]

    def first(self, name: str, after: int = 0) -> Call:
        """Returns the first call of this name that began after a place."""
        calls = [call for call in self.all(name) if call.began > after]
        has_none = " (it has no such method)" if name in self.absent else ""
        assert calls, f"TRL did not call `{name}`{has_none}"
        return calls[0]

    def order(self, *names: str, inside: Call | None = None) -> list[str]:
        """Returns these names in the order in which they were first called, those that were not left out."""
        calls = [call for call in self.calls if call.name in names and (inside is None or call.is_inside(inside))]
        return list(dict.fromkeys(call.name for call in calls))


def recorded(cls: type, names: Any, recording: Recording) -> type:
    """Returns a subclass of a trainer that notes its calls of these methods."""
    spies = {}
    for name in names:
        inner = getattr(cls, name, None)
        if inner is None:
            recording.absent.append(name)
            continue

        signature = inspect.signature(getattr(GRPOTrainer, name, inner))

        def spy(self, *args, _name=name, _inner=inner, _signature=signature, **kwargs):
            call = recording.begin(_name)
            call.arguments = _signature.bind(self, *args, **kwargs).arguments
            call.given = args, kwargs
            state, model = getattr(self, "state", None), getattr(self, "model", None)
            call.step = -1 if state is None else state.global_step
            call.is_training = getattr(model, "training", True)
            result = _inner(self, *args, **kwargs)
            recording.end(call, result)
            return result

        spies[name] = spy
    return type(f"Recorded{cls.__name__}", (cls,), spies)
