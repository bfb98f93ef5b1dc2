"""Every row of docs/relatives.md parses, and its gradient is that of the method's objective in float64."""

import dataclasses
import shlex

import pytest
import torch
from checkout import ROOT
from paper import gradient_error, group_rows, token_logps
from test_loss import train_with_sgd
from tiny import tiny_model
from trl import ModelConfig, TrlParser

from trl_dapo import DAPOConfig
from trl_dapo.command_line.training_run import TrainingScriptArguments


def options_of_methods():
    lines = (ROOT / "docs" / "relatives.md").read_text().splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")][2:]
    return {row[0]: shlex.split(row[2].strip("`")) for row in cells}


OPTIONS = options_of_methods()
LIMIT = 8


def parse(recipe, *options):
    parser = TrlParser((TrainingScriptArguments, DAPOConfig, ModelConfig))
    path = ROOT / "examples" / "recipes" / f"{recipe}.yaml"
    return parser.parse_args_and_config(["--config", str(path), "--use_cpu", "true", *options])


@pytest.mark.parametrize("method", OPTIONS)
def test_options_parse_with_the_recipe_and_are_what_they_say(method):
    _, args, model_args = parse("gsm8k_qwen2.5_0.5b", *OPTIONS[method])
    for name, value in zip(OPTIONS[method][::2], OPTIONS[method][1::2], strict=True):
        name = name.removeprefix("--")
        found = getattr(args if hasattr(args, name) else model_args, name)
        assert str(found).lower() in (value, str([value])) or found == pytest.approx(float(value))


def scale_rl(ratio, logp, advantage):
    return torch.clamp(ratio, max=5.0).detach() * logp * advantage


def clipped(low, high):
    def surrogate(ratio, logp, advantage):
        return torch.minimum(ratio * advantage, torch.clamp(ratio, 1 - low, 1 + high) * advantage)

    return surrogate


def scale_rl_objective(model, rows):
    groups = group_rows(rows)
    total = 0.0
    for group in groups:
        tokens = [scale_rl(*terms) for row in group for terms in token_terms(model, row)]
        total = total + sum(tokens) / len(tokens)
    return total / len(groups)


def dr_grpo_objective(model, rows):
    surrogate = clipped(0.2, 0.2)
    return sum(surrogate(*terms) for row in rows for terms in token_terms(model, row)) / (len(rows) * LIMIT)


def gspo_objective(model, rows):
    surrogate = clipped(3e-4, 4e-4)
    total = 0.0
    for row in rows:
        logps, old = token_logps(model, row)
        ratio = torch.exp(sum(new - was for new, was in zip(logps, old, strict=True)) / len(logps))
        total = total + surrogate(ratio, None, row["advantage"])
    return total / len(rows)


def token_terms(model, row):
    logps, old = token_logps(model, row)
    return [(torch.exp(new - was), new, row["advantage"]) for new, was in zip(logps, old, strict=True)]


@pytest.mark.parametrize(
    ("method", "objective"),
    [("ScaleRL", scale_rl_objective), ("Dr. GRPO", dr_grpo_objective), ("GSPO", gspo_objective)],
    ids=["ScaleRL", "Dr. GRPO", "GSPO"],
)
def test_gradient_is_that_of_the_objective(tmp_path, method, objective):
    _, args, _ = parse("gsm8k_qwen2.5_0.5b", *OPTIONS[method])
    own = {field.name for field in dataclasses.fields(DAPOConfig)}
    names = [name.removeprefix("--") for name in OPTIONS[method][::2]]
    settings = {name: getattr(args, name) for name in names if name in own}
    # With eviction a run this small runs out of prompts.
    settings.pop("evict_above", None)
    trainer = train_with_sgd(tmp_path, steps_per_generation=4, **settings)
    assert len(trainer.steps) == 6
    assert any(row["old_logps"] is not None for _, rows, _ in trainer.steps for row in rows)
    for before, rows, gradient in trainer.steps:
        model = tiny_model()
        model.load_state_dict(before)
        model.double()
        (-objective(model, rows)).backward()
        exact = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert gradient_error(gradient, exact) < 1e-5
