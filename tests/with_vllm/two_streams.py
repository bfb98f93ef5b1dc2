"""
Trains on two ranks that refill group by group, and writes what each trained, or what ended it.

Run by `test_streaming.py`. With a fault, something breaks on the second rank in the second batch.
"""

import json
import sys
from pathlib import Path

from test_streaming import SHORT, CollectingTrainer, train


class Faulty:
    """Calls something, and raises from the second batch on."""

    def __init__(self, name, call, trainer):
        self.name, self.call, self.trainer = name, call, trainer
        self.__name__ = "faulty_reward"

    def __call__(self, *args, **kwargs):
        if self.trainer.state.global_step:
            raise ZeroDivisionError(f"the {self.name} broke")
        return self.call(*args, **kwargs)


class FaultyTrainer(CollectingTrainer):
    fault = "none"

    def train(self, *args, **kwargs):
        if self.accelerator.process_index == 1 and self.fault == "reward":
            self.reward_funcs[0] = Faulty("reward", self.reward_funcs[0], self)
        if self.accelerator.process_index == 1 and self.fault == "engine":
            engine = self.vllm_generation.llm.llm_engine
            engine.step = Faulty("engine", engine.step, self)
        FaultyTrainer.last = self
        return super().train(*args, **kwargs)


def main(folder: str, model_folder: str, fault: str) -> None:
    FaultyTrainer.fault = fault
    result = {}
    try:
        train(
            folder, model_folder, cls=FaultyTrainer, refill="stream", max_steps=5, per_device_train_batch_size=8, **SHORT
        )  # fmt: skip
    except Exception as error:
        result["error"] = [type(error).__name__, str(error)]
    trainer = FaultyTrainer.last
    result["batches"] = [
        [[rollout.prompt_ids.tolist(), rollout.completion_ids.tolist()] for rollout in batch.rollouts]
        for _, batch in trainer.collected
    ]
    rank = trainer.accelerator.process_index
    result["num_sampled"] = sum(
        location.rank == rank
        for _, batch in trainer.collected
        for group in batch.ledger.sampled
        for location in group.locations
    )
    result["num_left"] = trainer.vllm_generation.llm.llm_engine.get_num_unfinished_requests()
    Path(folder, f"rank{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
