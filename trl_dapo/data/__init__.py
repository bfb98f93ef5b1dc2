"""Datasets of problems: loading, columns, prompts, and checks of their gold answers."""

from .checks import check_problems
from .problems import as_problems, load_rows
from .source import DataSource


__all__ = ["DataSource", "as_problems", "check_problems", "load_rows"]
