"""What a checkpoint holds of a run beside the model, the optimizer and the random number generators."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger

from .files import STATE_FOLDER, FileRecord, read_state, write_state


logger = get_logger(__name__)

_STATE_VERSION = 2


@dataclass(frozen=True, slots=True)
class _Part:
    save: Callable[[], dict[str, Any]]
    load: Callable[[dict[str, Any]], None]
    needs_layout: bool


class RunState:
    """
    Named parts of a run, saved together and given back to those who saved them.

    Every rank writes its own file. A part that describes the run as a whole (the prompt stream, say) can be given back to
    a run of any layout. A part that belongs to a rank and its batches (rollouts, a half-trained batch) is given back only
    where the layout is that of the saved run; otherwise its owner stays as it was made, and the loss is reported.

    Args:
        rank (`int`):
            Number of this rank.
        layout (`Mapping[str, Any]`):
            What the parts of a rank depend on, by name: number of ranks, shape of the batches. JSON-able.

    Example:

    ```python
    state = RunState(rank=0, layout={"num_ranks": 1})
    state.add("planner", planner.state_dict, planner.load_state_dict)
    records = state.save("out/checkpoint-10")
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
        Adds a part. Parts are given back in the order in which they were added.

        Args:
            name (`str`):
                Name in the file.
            save (`Callable[[], dict]`):
                Returns the state; see `write_state` for what may be in it. Called on all ranks.
            load (`Callable[[dict], None]`):
                Takes the state back. Not called when the checkpoint has no such part.
            needs_layout (`bool`, *optional*, defaults to `False`):
                Whether the state is that of one rank and its batches. `False`: the first rank's serves all.
        """
        self._parts[name] = _Part(save, load, needs_layout)

    def save(self, folder: str | Path) -> list[FileRecord]:
        """Writes the file of this rank into a checkpoint, and returns what was written."""
        parts = {name: part.save() for name, part in self._parts.items()}
        return write_state(
            folder, f"rank{self.rank}", {"version": _STATE_VERSION, "layout": self.layout, "parts": parts}
        )

    def load(self, folder: str | Path) -> bool:
        """
        Gives the parts of a checkpoint back.

        Returns:
            `bool`: whether all of the run was in it. `False` also for a checkpoint that TRL's own trainer wrote.

        Raises:
            `ValueError`: when another release wrote the state.
        """
        state = read_state(folder, f"rank{self.rank}")
        state = read_state(folder, "rank0") if state is None else state
        if state is None:
            if Path(folder, f"{STATE_FOLDER}.json").exists():
                raise ValueError(_other_version(folder, 1))
            logger.warning(
                f"{folder} holds no state of trl-dapo: the prompt stream starts at its beginning, and a generation batch "
                "that was half trained is sampled anew."
            )
            return False
        if state["version"] != _STATE_VERSION:
            raise ValueError(_other_version(folder, state["version"]))
        changed = {
            name: (state["layout"].get(name), value)
            for name, value in self.layout.items()
            if state["layout"].get(name) != value
        }
        if changed:
            changes = ", ".join(f"{name} from {old!r} to {new!r}" for name, (old, new) in changed.items())
            logger.warning(
                f"The run resumes with another layout ({changes}). The prompt stream goes on where it stood, but what "
                "belongs to ranks and batches begins anew: a half-trained generation batch is dropped, carried groups "
                "are sampled again, and random numbers differ."
            )
        for name, part in self._parts.items():
            if name in state["parts"] and not (changed and part.needs_layout):
                part.load(state["parts"][name])
        return not changed


def _other_version(folder: str | Path, version: int) -> str:
    return (
        f"The state in {folder} has version {version}, but this release reads version {_STATE_VERSION}. Resume with the "
        "release that wrote it."
    )
