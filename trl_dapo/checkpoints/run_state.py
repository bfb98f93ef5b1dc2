"""The state of a run in a checkpoint, besides the model, the optimizer and the random number generators."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger

from .files import STATE_FOLDER, read_state, write_state_unflushed


logger = get_logger(__name__)

_STATE_VERSION = 2


@dataclass(frozen=True, slots=True)
class _Part:
    save: Callable[[], dict[str, Any]]
    load: Callable[[dict[str, Any]], None]
    needs_layout: bool


class RunState:
    """
    The named parts of a run's state, which are saved and loaded together.

    Every rank writes its own file. A part that describes the whole run, such as the prompt stream, can be loaded into a run
    of any layout. A part that belongs to one rank and its batches, such as a half-trained batch, is loaded only if the layout
    is the same as in the saved run. Otherwise it keeps its initial state, and a warning says so.

    Args:
        rank (`int`):
            Number of this rank.
        layout (`Mapping[str, Any]`):
            What the parts of a rank depend on, by name: number of ranks, shape of the batches. Values as in JSON.

    Example:

    ```python
    state = RunState(rank=0, layout={"num_ranks": 1})
    state.add("planner", planner.state_dict, planner.load_state_dict)
    records = flushed_records("out/checkpoint-10", state.save("out/checkpoint-10"))
    state.load("out/checkpoint-10")
    ```
    """

    def __init__(self, rank: int, layout: Mapping[str, Any]):
        self.rank = rank
        self.layout = dict(layout)
        self._parts: dict[str, _Part] = {}

    def add(
        self,
        name: str,
        save: Callable[[], dict[str, Any]],
        load: Callable[[dict[str, Any]], None],
        needs_layout: bool = False,
    ) -> None:
        """
        Adds a part. Parts are loaded in the order in which they were added.

        Args:
            name (`str`):
                Name in the file.
            save (`Callable[[], dict[str, Any]]`):
                Returns the state, of types that `write_state` takes. Called on all ranks.
            load (`Callable[[dict[str, Any]], None]`):
                Gets the saved state. Not called if the checkpoint has no such part.
            needs_layout (`bool`, *optional*, defaults to `False`):
                Whether the state belongs to one rank and its batches. `False`: it belongs to the whole run, and a new rank
                gets that of the first rank.
        """
        self._parts[name] = _Part(save, load, needs_layout)

    def save(self, folder: str | Path) -> list[str]:
        """Writes the state of this rank into the checkpoint `folder`. Returns the names of the files, which are not flushed yet."""
        parts = {name: part.save() for name, part in self._parts.items()}
        return write_state_unflushed(
            folder, f"rank{self.rank}", {"version": _STATE_VERSION, "layout": self.layout, "parts": parts}
        )

    def load(self, folder: str | Path, restart_stream: bool = False) -> bool:
        """
        Loads the parts from a checkpoint.

        Args:
            folder (`str` or `Path`):
                The checkpoint.
            restart_stream (`bool`, *optional*, defaults to `False`):
                Whether the prompt stream begins anew. Then the parts that need the layout are not loaded.

        Returns:
            `bool`: Whether all parts were loaded. `False` if the layout has changed, the stream begins anew, or
            `GRPOTrainer` wrote the checkpoint.

        Raises:
            `ValueError`: when another release, with another version of the state, wrote the checkpoint.
        """
        state = read_state(folder, f"rank{self.rank}")
        state = read_state(folder, "rank0") if state is None else state
        if state is None:
            if Path(folder, f"{STATE_FOLDER}.json").exists():
                raise ValueError(_other_version(folder, 1))
            logger.warning(
                f"{folder} holds no state of trl-dapo: the prompt stream starts at its beginning, and a half-trained "
                "generation batch is sampled again."
            )
            return False
        if state["version"] != _STATE_VERSION:
            raise ValueError(_other_version(folder, state["version"]))
        changed = {
            name: (state["layout"].get(name), value)
            for name, value in self.layout.items()
            if state["layout"].get(name) != value
        }
        if restart_stream:
            logger.warning(
                "restart_stream is True: weights, optimizer, schedule and step are those of the checkpoint, but the prompt "
                "stream begins anew. Carried groups, a half-trained generation batch and pass rates of prompts are dropped."
            )
        elif changed:
            changes = ", ".join(f"{name} from {old!r} to {new!r}" for name, (old, new) in changed.items())
            logger.warning(
                f"The run resumes with another layout ({changes}). The prompt stream continues at its position, but the state "
                "of ranks and batches is lost: a half-trained generation batch is dropped, carried groups are sampled again, "
                "and random numbers differ."
            )
        for name, part in self._parts.items():
            if name in state["parts"] and not (part.needs_layout and (changed or restart_stream)):
                part.load(state["parts"][name])
        return not (changed or restart_stream)


def _other_version(folder: str | Path, version: int) -> str:
    return (
        f"The state in {folder} has version {version}, but this release reads version {_STATE_VERSION}. Resume with the "
        "release of trl-dapo that wrote the checkpoint."
    )
