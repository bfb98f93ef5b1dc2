"""Datasets of problems: loads them, turns their rows into prompts and gold answers, and checks them."""

from .checks import check_problems
from .problems import TEMPLATES, as_problems, load_rows
from .source import DataSource


__all__ = ["TEMPLATES", "DataSource", "as_problems", "check_problems", "load_rows"]
