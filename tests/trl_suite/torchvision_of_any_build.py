"""
Imported before transformers, it lets torchvision be imported whose build is not that of torch: for CUDA, beside a torch without.

Its operators are missing then, which no test of TRL uses, and its import ends where it describes the first of them.
"""

import contextlib
from importlib.util import find_spec

import torch


if find_spec("torchvision") is not None:
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        with contextlib.suppress(ImportError):
            import torchvision  # noqa: F401 - for the modules that follow
