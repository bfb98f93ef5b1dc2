"""The training of the tiny model with completions from a server, group by group, for runs that are killed."""

import json
from pathlib import Path

from doomed_training import Doomed
from server_training import make_trainer
from tiny import first_token_reward

from trl_dapo import DAPOTrainer
from trl_dapo.vllm_server.completion import Completion


# Two optimizer steps on each batch, so that every other checkpoint falls into the midst of one.
NUM_BATCHES = 4
OPTIONS = {
    "max_steps": 2 * NUM_BATCHES,
    "per_device_train_batch_size": 4,
    "steps_per_generation": 2,
    "learning_rate": 3e-2,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 2,
    "vllm_server_timeout": 300.0,
    "vllm_importance_sampling_correction": True,
    "vllm_importance_sampling_mode": "token_truncate",
}
# Points that a run reaches once for each completion at least. Which others it asks for, beyond the last group that trains,
# hangs on what is faster.
EACH_COMPLETION = ("asking", "reading", "judging")


class DoomedServedTrainer(Doomed, DAPOTrainer):
    """Notes the places in the stream of each batch, and counts what goes to the server and comes from it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        collect, submit = self.dynamic_sampler.collect, self.vllm_generation.requests.submit
        sync, take = self.vllm_generation.sync_weights, Completion.take

        def collect_and_note(*args):
            batch = collect(*args)
            positions = [group.draw.position for group in batch.ledger.accepted]
            self.note("positions", {"step": self.state.global_step, "positions": positions})
            return batch

        def count_and_submit(*args):
            self.reaper.reach("asking")
            submit(*args)

        def count_and_take(completion, event):
            self.reaper.reach("reading")
            take(completion, event)

        def enter_and_sync():
            with self.reaper.within("weights"):
                sync()

        self.dynamic_sampler.collect = collect_and_note
        self.vllm_generation.requests.submit = count_and_submit
        self.vllm_generation.sync_weights = enter_and_sync
        Completion.take = count_and_take


def judge(completion_ids, **kwargs):
    for _ in completion_ids:
        DoomedServedTrainer.reaper.reach("judging")
    return first_token_reward(completion_ids)


def served_training(folder, options):
    """
    Returns the class of a trainer of the tiny model, and its arguments.

    Args:
        folder: where it trains.
        options: `model` (a folder) and `address` of the server; all others are fields of the configuration.
    """
    model, address = options.pop("model"), options.pop("address")
    kept = {}

    def keep(**arguments):
        kept.update(arguments)

    make_trainer(folder, model, [address], cls=keep, reward=judge, **OPTIONS | options)
    return DoomedServedTrainer, kept


def positions(folder):
    """The places in the stream of the groups of each batch, by the optimizer step at which it was due, in the last life that had it."""
    found = {}
    for line in Path(folder, "positions0.jsonl").read_text().splitlines():
        record = json.loads(line)
        found[record["step"]] = record["positions"]
    return found
