"""
Trains on two ranks with completions from one server, then from two, and writes what each rank trained.

Run by `test_servers.py`.
"""

import json
import sys
from pathlib import Path

from test_servers import train_on


def main(folder: str, model_folder: str, addresses: str) -> None:
    both = addresses.split(",")
    for count in (1, 2):
        trainer = train_on(both[:count], f"{folder}/{count}", model_folder, per_device_train_batch_size=8)
        rows = [
            [[rollout.prompt_ids.tolist(), rollout.completion_ids.tolist()] for rollout in batch.rollouts]
            for _, batch in trainer.collected
        ]
        path = Path(folder, f"{count}-servers-rank{trainer.accelerator.process_index}.json")
        path.write_text(json.dumps(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
