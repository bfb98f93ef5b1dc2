"""How many CPUs this process may use: of the machine, of its container and of its job."""

import math
import os
from pathlib import Path


CGROUPS = Path("/sys/fs/cgroup")


def usable_cpus() -> int:
    """
    Returns how many CPUs this process may use at the same time, at least 1.

    The least of: the CPUs that it is bound to, the CPU time that its container gets (cgroup quota, version 1 or 2, rounded
    up), and `SLURM_CPUS_PER_TASK`.
    """
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    quota = _cgroup_quota()
    if quota is not None:
        limits.append(math.ceil(quota))
    of_task = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if of_task.isdecimal():
        limits.append(int(of_task))
    return max(1, min(limits))


def _cgroup_quota() -> float | None:
    """Returns the CPU seconds that the container may use in a second; `None`: any."""
    try:
        if (CGROUPS / "cpu.max").exists():
            quota, period = (CGROUPS / "cpu.max").read_text().split()
        else:
            quota = (CGROUPS / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (CGROUPS / "cpu" / "cpu.cfs_period_us").read_text()
        # Version 2 writes "max" and version 1 writes -1 where there is no limit.
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError):
        return None
