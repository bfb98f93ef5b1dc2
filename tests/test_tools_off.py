"""With dynamic sampling off, tools and environments train as in TRL's `GRPOTrainer`, bit for bit, empty turns included."""

import pytest
import torch
from tiny_tools import (
    ScriptedDAPO,
    ScriptedGRPO,
    answers,
    asked,
    calculate,
    call,
    make_chat_trainer,
    reply,
    scripted_dapo,
)
from trl import GRPOConfig


OFF = {"dynamic_sampling": False, "loss_normalization": "generation_batch"}
TIMES = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second"}


def all_second_turns_empty(text, sample):
    return "" if answers(text) else call(f"7+0*{sample}")


def some_second_turns_empty(text, sample):
    if not answers(text):
        return call(f"7+0*{sample}") if sample else "7<|im_end|>"
    return "" if asked(text)[-1].endswith("*3") else "7<|im_end|>"


def alternating(completion_ids, **kwargs):
    return [float(row % 2) for row in range(len(completion_ids))]


class Counter:
    """An environment that shows what was asked, and counts."""

    def reset(self, **row):
        self.num_calls = 0
        return f" now {row['prompt'][-1]['content']}"

    def calculate(self, expression: str) -> str:
        """
        Computes.

        Args:
            expression: What to compute.
        """
        self.num_calls += 1
        return str(eval(expression))

    def get_reward(self):
        return float(self.num_calls % 2)


TOOLS, ENVIRONMENT = {"tools": [calculate]}, {"environment_factory": Counter}


@pytest.mark.parametrize(
    ("script", "options"),
    [
        (reply, TOOLS),
        (reply, ENVIRONMENT | {"steps_per_generation": 2}),
        (all_second_turns_empty, TOOLS),
        (some_second_turns_empty, TOOLS | {"steps_per_generation": 2, "gradient_accumulation_steps": 2}),
        (some_second_turns_empty, ENVIRONMENT),
    ],
)
def test_losses_and_parameters_equal_those_of_grpo(tmp_path, monkeypatch, script, options):
    options = {"max_steps": 2, "epsilon_high": 0.28} | options
    monkeypatch.setattr(ScriptedGRPO, "script", staticmethod(script))
    monkeypatch.setattr(ScriptedDAPO, "script", staticmethod(script))
    theirs = make_chat_trainer(tmp_path, ScriptedGRPO, alternating, config=GRPOConfig, **options)
    theirs.train()
    scripted_dapo(monkeypatch)
    ours = make_chat_trainer(tmp_path, ScriptedDAPO, alternating, **OFF, **options)
    ours.train()
    assert (theirs.output["completion_mask"] * theirs.output["tool_mask"]).sum() > 0
    assert (theirs.output["tool_mask"] == 0).any()
    for name, its in theirs.output.items():
        assert torch.equal(ours.output[name], its), name
    for mine, its in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(mine, its)
    for mine, its in zip(ours.state.log_history, theirs.state.log_history, strict=True):
        assert {k: v for k, v in mine.items() if k not in TIMES and not k.startswith("dapo/")} == {
            k: v for k, v in its.items() if k not in TIMES
        }
