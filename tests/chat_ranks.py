"""Trains the tiny chat model on scripted turns and writes, for each rank, what it trained. Run by `test_turns_on_ranks.py`."""

import json
import os
import sys
from pathlib import Path

import torch
from paper import rows_of
from tiny_tools import (
    Counted,
    ScriptedDAPO,
    calculate,
    make_chat_trainer,
    noted,
    rollout_function,
    scripted_turn,
    solved,
)
from trl import GRPOTrainer
from two_ranks import sharded_arguments, whole

from trl_dapo import RankFailedError
from trl_dapo.trl_seams import TrainerSeams


def together(self, prompt_ids, *args, **kwargs):
    """An engine of which each call is one of all ranks: a shared one with as many rows on each, parts of a model with any."""
    counts = self.accelerator.gather(torch.tensor([len(prompt_ids), 4242])).view(-1, 2)
    assert counts[:, 1].tolist() == [4242] * len(counts), "mixed up with another exchange"
    is_even = len(set(counts[:, 0].tolist())) == 1
    assert is_even or not TrainerSeams.shares_engine, f"ranks generate for {counts[:, 0].tolist()} rows"
    return scripted_turn(self, prompt_ids, *args, **kwargs)


ORIGINAL_TURN = GRPOTrainer._generate_single_turn


def sharded_turn(self, prompt_ids, *args, **kwargs):
    """The model, of which each rank has a part, generates two tokens for each row, and then the script says what it said."""
    self.generation_config.max_new_tokens = 2
    ORIGINAL_TURN(self, [list(ids) for ids in prompt_ids], *args, **kwargs)
    return scripted_turn(self, prompt_ids, *args, **kwargs)


def sharded_config(output_dir, **options):
    return sharded_arguments(output_dir, "FULL_STATE_DICT", **options)


class Licensed(Counted):
    """An environment of which the second process gets the one that TRL makes first, and no other."""

    def __init__(self):
        super().__init__()
        if os.environ.get("RANK") == "1" and Counted.num_made > 1:
            raise OSError("no license is left")


def rollout_or_fail(prompts, trainer):
    raise OSError(f"no rollouts for {trainer.accelerator.process_index}")


def main(folder, overrides):
    options = json.loads(overrides)
    kind, shared = options.pop("kind", "tools"), options.pop("together", None)
    checkpoint = options.pop("resume_from", None)
    if shared == "fsdp":
        GRPOTrainer._generate_single_turn = sharded_turn
        options |= {"config": sharded_config, "soft_punish_cache": 0, "max_generation_rounds": 30}
    else:
        GRPOTrainer._generate_single_turn = together if shared else scripted_turn
        TrainerSeams.shares_engine, TrainerSeams.calls_together = shared == "engine", shared == "parts"
    kinds = {
        "tools": {"tools": [calculate]},
        "environments": {"environment_factory": Counted, "rewards": solved},
        "licensed": {"environment_factory": Licensed, "rewards": solved},
        "no rollouts": {"rollout_func": rollout_or_fail},
        "rollouts": {"rollout_func": rollout_function, "rewards": noted},
    }
    trainer = make_chat_trainer(folder, ScriptedDAPO, **kinds[kind], **options)
    failure = None
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except (OSError, RankFailedError) as error:
        failure = repr(error)
    result = {
        "failure": failure,
        "batches": [
            {"rows": rows_of(output), "num_items": output["num_items_in_batch"].item()}
            for _, _, output in trainer.batches
        ],
        "moved": [entry["dapo/moved_bytes"] for entry in trainer.state.log_history if "dapo/moved_bytes" in entry],
        "logs": trainer.state.log_history,
        "turn_sizes": trainer.turn_sizes,
        "completions": list(trainer._logs["completion"]),
        "parameters": [whole(parameter).flatten().tolist() for parameter in trainer.model.parameters()],
    }
    Path(folder, f"rank{trainer.accelerator.process_index}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
