"""Gradients that are NaN or infinite: the step is skipped, its batch written down, and a run of nothing else stops."""

import logging
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from test_resume import assert_same_run
from test_trainer import RecordingTrainer, make_trainer

from trl_dapo import NonFiniteGradientError
from trl_dapo.checkpoints.files import read_state
from trl_dapo.guards.optimizer_steps import NonFiniteGuard


class PoisonedTrainer(RecordingTrainer):
    """Makes the loss of some micro-steps NaN or infinite, and keeps the weights before each optimizer step."""

    poison = {}

    def training_step(self, model, inputs, num_items_in_batch):
        if self._step % self.current_gradient_accumulation_steps == 0:
            self.weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
        return super().training_step(model, inputs, num_items_in_batch)

    def _compute_loss(self, model, inputs):
        return super()._compute_loss(model, inputs) * self.poison.get(self._step, 1.0)


def poisoned(tmp_path, poison, **overrides):
    trainer = make_trainer(tmp_path, cls=PoisonedTrainer, **overrides)
    trainer.poison, trainer.weights = poison, []
    return trainer


@pytest.mark.fault("gradients are NaN or infinite", "optimizer step", "the step is skipped, its batch written down")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [{}, {"steps_per_generation": 4, "gradient_accumulation_steps": 2}])
def test_step_without_finite_gradients_moves_nothing(tmp_path, value, shape, caplog):
    accumulation = shape.get("gradient_accumulation_steps", 1)
    # The last micro-batch of the second optimizer step.
    trainer = poisoned(tmp_path, {2 * accumulation - 1: value}, max_steps=4, **shape)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    before, after = trainer.weights[1:3]
    assert torch.equal(before, after)
    assert not torch.equal(trainer.weights[0], before)
    final = torch.cat([parameter.flatten() for parameter in trainer.model.parameters()])
    assert final.isfinite().all()
    assert not torch.equal(after, trainer.weights[3])
    shares = [e["dapo/frac_non_finite_steps"] for e in trainer.state.log_history if "loss" in e]
    assert shares == [0.0, 1.0, 0.0, 0.0]
    assert "Optimizer step 2 has gradients that are NaN or infinite, on ranks [0]" in caplog.text
    # What was to be trained is on disk.
    written = read_state(tmp_path / "_non_finite" / "step-2", "rank0")
    assert written["step"] == 2
    assert len(written["micro_batches"]) == accumulation
    whole = trainer.batches[0 if shape else 1][2]
    rows = {tuple(ids.tolist()) for ids in whole["completion_ids"]}
    assert {tuple(ids.tolist()) for part in written["micro_batches"] for ids in part["completion_ids"]} <= rows


@pytest.mark.fault(
    "gradients are NaN or infinite in 5 consecutive steps",
    "optimizer step",
    "`NonFiniteGradientError` with a diagnosis; the weights are finite",
)
def test_run_of_nothing_else_stops_with_a_diagnosis_and_finite_weights(tmp_path):
    trainer = poisoned(tmp_path, dict.fromkeys(range(2, 99), float("nan")), max_steps=20, max_non_finite_steps=5)
    with pytest.raises(NonFiniteGradientError, match=r"\(5 consecutive\).*the forward or backward pass") as caught:
        trainer.train()
    assert caught.value.step == 7
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
    # Three show the cause.
    assert sorted(path.name for path in (tmp_path / "_non_finite").iterdir()) == ["step-3", "step-4", "step-5"]


def test_steps_in_between_forgive(tmp_path):
    trainer = poisoned(tmp_path, dict.fromkeys((1, 3, 5, 7), float("inf")), max_steps=9, max_non_finite_steps=2)
    trainer.train()
    assert trainer.state.global_step == 9


def test_batch_that_is_not_finite_is_named(tmp_path):
    class Infinite(RecordingTrainer):
        def _prepare_inputs(self, generation_batch):
            inputs = super()._prepare_inputs(generation_batch)
            inputs["advantages"][0] = float("inf")
            return inputs

    trainer = make_trainer(tmp_path, cls=Infinite, max_non_finite_steps=1)
    with pytest.raises(NonFiniteGradientError, match="The batch itself is not finite in advantages"):
        trainer.train()


def test_switched_off_the_step_is_taken(tmp_path):
    trainer = poisoned(tmp_path, {0: float("nan")}, max_steps=1, max_non_finite_steps=None)
    trainer.train()
    assert not any(parameter.isfinite().all() for parameter in trainer.model.parameters())


@pytest.mark.parametrize(
    ("kind", "scaler"), [(DistributedType.DEEPSPEED, None), (DistributedType.MULTI_GPU, torch.amp.GradScaler("cpu"))]
)
def test_where_gradients_are_not_visible_nothing_is_exchanged_or_logged(tmp_path, kind, scaler):
    trainer = make_trainer(tmp_path)
    asked = []
    ranks = SimpleNamespace(rank=0, gather_rows=lambda rows: asked.append(rows) or rows)
    guard = NonFiniteGuard(trainer.seams, ranks, 5, asked.append)
    model = torch.nn.Linear(2, 2)
    model(torch.full((1, 2), torch.nan)).sum().backward()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "accelerator", SimpleNamespace(distributed_type=kind, scaler=scaler))
        guard.on_pre_optimizer_step(trainer.args, trainer.state, trainer.control, model=model)
    assert asked == []
    guard.on_pre_optimizer_step(trainer.args, trainer.state, trainer.control, model=torch.nn.Linear(2, 2))
    assert asked == [[[False]], {"frac_non_finite_steps": 0.0}]


def test_count_goes_on_in_a_resumed_run(tmp_path):
    poison = dict.fromkeys(range(1, 99), float("nan"))
    options = {"max_steps": 9, "max_non_finite_steps": 4, "save_strategy": "steps", "save_steps": 1}
    with pytest.raises(NonFiniteGradientError):
        poisoned(tmp_path, poison, **options).train()
    resumed = poisoned(tmp_path, poison, **options)
    with pytest.raises(NonFiniteGradientError) as caught:
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert caught.value.step == 5
    assert len(resumed.weights) == 2


def test_resumed_run_skips_the_same_steps(tmp_path):
    poison = {3: float("nan")}
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1, "steps_per_generation": 2}
    straight, resumed = (poisoned(tmp_path / name, poison, **options) for name in "ab")
    straight.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert_same_run(resumed, straight, 3)
