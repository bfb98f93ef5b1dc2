"""The progress table in a notebook. It needs IPython, so it is imported in notebooks alone."""

import re
from collections.abc import Mapping
from typing import Any

from transformers.utils.notebook import NotebookProgressCallback

from .callbacks import shown_metrics


_ACCURACY = re.compile(r"eval_(.*avg@\d+)")


class NotebookTable(NotebookProgressCallback):
    """
    The progress bar and table of transformers in a notebook, with the metrics that the terminal shows.

    The loss is noise around 0 here. An evaluation adds the accuracies `avg@k` to the row of its step.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begins the table."""
        super().on_train_begin(args, state, control, **kwargs)
        self.first_column = "Step"
        self.training_tracker.inner_table = None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Adds a row."""
        if self.training_tracker is not None and "loss" in (logs or {}):
            self._write(state, {words.capitalize(): value for words, value in shown_metrics(logs or {}).items()})

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Adds the accuracies to the row, or shows all metrics where no training goes on."""
        if self.training_tracker is None:
            super().on_evaluate(args, state, control, metrics=metrics, **kwargs)
            return
        found = {
            match[1]: f"{value:.3f}" for name, value in (metrics or {}).items() if (match := _ACCURACY.fullmatch(name))
        }
        self._write(state, {f"Held-out {name}": value for name, value in found.items()})
        self.training_tracker.remove_child()
        self.prediction_bar = None
        self._force_next_update = True

    def _write(self, state: Any, values: Mapping[str, str]) -> None:
        self.training_tracker.write_line({"Step": state.global_step, **values})
