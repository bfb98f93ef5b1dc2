"""Which checkpoint a run goes on from: by the argument of `train()`, or by the field of the configuration."""

import os
from pathlib import Path
from typing import Any

from .files import CUT_OFF, MANIFEST, TRAINER_STATE, checkpoints_of, find_fault, last_whole_checkpoint


# Texts that configuration files and command lines give for True and False, and those of other frameworks.
_NEWEST = ("true", "yes", "1", "last", "latest", "auto")
_ANEW = ("", "false", "no", "0", "none", "null")


def wanted_resume(argument: Any, field: Any) -> bool | str | None:
    """
    Returns what is to be resumed: `True` for the newest checkpoint, a folder, or `None` to begin anew.

    Args:
        argument (`str`, `bool` or `Path`, *optional*):
            That of `train()`. `None`: the field decides.
        field (`str`, `bool` or `Path`, *optional*):
            That of the configuration.

    Example:

    >>> wanted_resume(None, "true"), wanted_resume(False, "true"), wanted_resume("out/checkpoint-3", None)
    (True, None, 'out/checkpoint-3')
    """
    wanted = field if argument is None else argument
    if wanted is None or wanted is False or str(wanted).lower() in _ANEW:
        return None
    return True if str(wanted).lower() in _NEWEST else os.fspath(wanted)


def choose_checkpoint(wanted: bool | str, output_dir: str) -> tuple[str | None, str, bool]:
    """
    Finds the checkpoint to resume from.

    Args:
        wanted (`bool` or `str`):
            `True`: the newest whole one in `output_dir`. Or a checkpoint, or a folder that holds some.
        output_dir (`str`):
            The output folder of the run.

    Returns:
        `tuple[str | None, str, bool]`: The checkpoint (`None`: begin anew), what the user should know of it, and whether
        that is fatal.
    """
    is_named = wanted is not True
    folder = str(wanted) if is_named else output_dir
    fault = find_fault(folder) if is_named else None
    if is_named and (fault is None or not checkpoints_of(folder)):
        if fault is None:
            return folder, "", False
        if fault == CUT_OFF and not Path(folder, MANIFEST).exists():
            fault = f"it is no checkpoint, since it has neither {MANIFEST} nor {TRAINER_STATE}"
        return None, (
            f"resume_from_checkpoint is {wanted!r}, which cannot be resumed from: {fault}. Name another checkpoint, or set "
            "it to True for the newest whole one in output_dir."
        ), True  # fmt: skip
    found, faults = last_whole_checkpoint(folder)
    passed_over = "".join(f"\n  {path}: {fault}" for path, fault in faults.items())
    if found is not None:
        message = f"Resuming from {found}: newer checkpoints are not whole.{passed_over}" if faults else ""
        return str(found), message, False
    if not is_named and faults and all(fault == CUT_OFF for fault in faults.values()):
        return None, f"No checkpoint was ever finished in {folder}, so the run begins anew.{passed_over}", False
    return None, (
        f"resume_from_checkpoint is {wanted!r}, but {folder} holds no checkpoint that is whole. Set it to None to begin "
        f"anew.{passed_over}"
    ), True  # fmt: skip


def warning_of_overwriting(output_dir: str) -> str:
    """Returns what to tell a user whose run begins anew where an earlier one has left checkpoints; empty: there are none."""
    checkpoints = checkpoints_of(output_dir)
    if not checkpoints:
        return ""
    return (
        f"{output_dir} holds checkpoints of an earlier run, up to {checkpoints[0].name}, but this run begins anew and writes "
        "over them. Use resume_from_checkpoint=True to go on, or another output_dir."
    )
