"""
What a batch puts on the wire between real processes, beside what is counted: a check of the counts of `lone_rank.py`.

Two or four gloo processes in a network of their own (`unshare`, Linux, root or user namespaces), so that the counters of its
loopback see nothing else. Nothing is checked where that is not possible.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lone_rank import LoneRun
from streaming import MIDDLE
from streaming_engines import Setting


def measure_wire(num_ranks: Sequence[int]) -> list[dict[str, int]]:
    """Returns the bytes of a batch by number of processes: as counted, and as the loopback saw them with all headers."""
    measured = []
    for count in num_ranks:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder, "bytes.json")
            # A launcher that keeps to this host's loopback: there is no other address.
            launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count)]
            launch += ["--master_addr", "127.0.0.1", "--master_port", "29511", __file__, str(output)]
            script = 'ip link set lo up && exec "$@"'
            command = ["unshare", "--net", "--map-root-user", "sh", "-c", script, "sh", *launch]
            environment = os.environ | {
                "ACCELERATE_USE_CPU": "true",
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": "lo",
            }
            try:
                done = subprocess.run(command, capture_output=True, text=True, env=environment)
            except FileNotFoundError:
                return []
            if done.returncode:
                print(f"bytes on the wire not checked: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
                return []
            measured.append(json.loads(output.read_text()))
    return measured


def _loopback_bytes() -> int:
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[0])


def work(output: str) -> None:
    """Collects batches on this rank, and writes the bytes of the last one."""
    from accelerate import Accelerator

    from trl_dapo.ranks.collectives import Ranks

    accelerator = Accelerator(cpu=True)
    ranks = Ranks(accelerator)
    setting = Setting(**(MIDDLE | {"rate": 0.5, "num_ranks": ranks.num_ranks, "num_slots": 256}))
    run: Any = LoneRun(setting, ranks=ranks, use_vllm=True)
    run.next_batch(0)  # connections are made
    accelerator.wait_for_everyone()
    before = _loopback_bytes()
    accelerator.wait_for_everyone()
    run.next_batch(1)
    accelerator.wait_for_everyone()
    seen = _loopback_bytes() - before
    lone = LoneRun(setting, use_vllm=True)
    for number in range(2):
        lone.ranks.sent.clear()
        lone.next_batch(number)
    counted = ranks.num_ranks * lone.ranks.sent["gather"] + 4 * run.batch.num_moved_words
    if ranks.rank == 0:
        record = {"ranks": ranks.num_ranks, "counted": counted, "seen": seen, "moved": 4 * run.batch.num_moved_words}
        Path(output).write_text(json.dumps(record))


if __name__ == "__main__":
    work(sys.argv[1])
