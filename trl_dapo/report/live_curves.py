"""Curves that grow while a run trains in a notebook. It needs IPython and matplotlib, so it is imported in notebooks alone."""

from pathlib import Path
from typing import Any

from IPython.display import Image, display
from transformers import TrainerCallback

from .curves import plot_curves


# The name that the curves at the end of a run have too.
_FILE = "curves.png"


class LiveCurves(TrainerCallback):
    """
    Draws the curves of a run below the cell that trains, and again after every few log lines.

    Args:
        every (`int`, *optional*, defaults to 1):
            Log lines from one drawing to the next. A drawing takes about a second.
        num_columns (`int`, *optional*, defaults to 4):
            Panels side by side.
        width (`int`, *optional*, defaults to 1000):
            Width of the picture in pixels.

    Example:

    ```python
    trainer.add_callback(LiveCurves(every=2))
    ```
    """

    def __init__(self, every: int = 1, num_columns: int = 4, width: int = 1000):
        if every < 1:
            raise ValueError(f"every is {every}, but must be 1 or more: log lines from one drawing to the next.")
        self.every = every
        self.num_columns = num_columns
        self.width = width
        self._num_lines = 0
        self._place: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begins a new picture."""
        self._num_lines, self._place = 0, None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Draws after a log line of the training, on the first rank."""
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        self._num_lines += 1
        if self._num_lines % self.every == 0:
            self._draw(args, state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draws what came after the last drawing."""
        if state.is_world_process_zero and self._num_lines % self.every:
            self._draw(args, state)

    def _draw(self, args: Any, state: Any) -> None:
        path = plot_curves({"": state.log_history}, Path(args.output_dir) / _FILE, num_columns=self.num_columns)
        if path is None:
            return
        picture = Image(data=path.read_bytes(), width=self.width)
        if self._place is None:
            self._place = display(picture, display_id=True)
        else:
            self._place.update(picture)
