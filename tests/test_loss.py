"""The loss against a plain float64 implementation of DAPO Eq. 8 with Eq. 12's normalisation."""

import copy

import pytest
import torch
from test_trainer import RecordingTrainer, make_trainer
from tiny import tiny_model


def paper_loss(model, parts, eps_low, eps_high):
    """DAPO Eq. 8 over the micro-batches of one optimizer step, row by row and token by token."""
    total, num_tokens = torch.zeros((), dtype=torch.float64), 0
    for part in parts:
        for row in range(len(part["advantages"])):
            prompt = part["prompt_ids"][row][part["prompt_mask"][row].bool()]
            live = part["completion_mask"][row].bool()
            completion = part["completion_ids"][row][live]
            if not len(completion):
                continue
            logits = model(input_ids=torch.cat([prompt, completion])[None]).logits[0].double()
            logps = logits[len(prompt) - 1 : -1].log_softmax(-1)
            advantage = part["advantages"][row].double()
            for position, token in enumerate(completion):
                logp = logps[position, token]
                has_old = "old_per_token_logps" in part
                old = part["old_per_token_logps"][row][live][position].double() if has_old else logp.detach()
                ratio = torch.exp(logp - old)
                clipped = torch.clamp(ratio, 1 - eps_low, 1 + eps_high)
                total = total + torch.minimum(ratio * advantage, clipped * advantage)
                num_tokens += 1
    return -total / num_tokens if num_tokens else total


class StepRecorder(RecordingTrainer):
    """Keeps the parameters before, and the micro-batches of, every optimizer step."""

    def __init__(self, *args, **kwargs):
        self.steps = []
        super().__init__(*args, **kwargs)

    def training_step(self, model, inputs, num_items_in_batch):
        if self._step % self.args.gradient_accumulation_steps == 0:
            self.steps.append((copy.deepcopy(self.model.state_dict()), []))
        loss = super().training_step(model, inputs, num_items_in_batch)
        part = self._buffered_inputs[(self._step - 1) % self.args.steps_per_generation]
        self.steps[-1][1].append({name: value.clone() for name, value in part.items()})
        return loss


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"steps_per_generation": 4},
        {"steps_per_generation": 4, "gradient_accumulation_steps": 2},
        {"steps_per_generation": 2, "num_iterations": 2},
        {"steps_per_generation": 2, "mask_truncated_completions": True},
        {"steps_per_generation": 2, "surplus": "carry", "refill_confidence": 0.99, "max_prompts_per_round": 50},
    ],
    ids=str,
)
def test_every_update_is_the_gradient_of_the_paper(tmp_path, shape):
    learning_rate = 0.5
    trainer = make_trainer(
        tmp_path,
        cls=StepRecorder,
        optim="sgd",
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        max_steps=6,
        **shape,
    )
    trainer.train()
    after = [state for state, _ in trainer.steps[1:]] + [trainer.model.state_dict()]
    ratios_moved = False
    for (before, parts), then in zip(trainer.steps, after, strict=True):
        model = tiny_model()
        model.load_state_dict(before)
        model.double()
        loss = paper_loss(model, parts, eps_low=0.2, eps_high=0.28)
        if loss.grad_fn is None:
            continue
        loss.backward()
        for name, parameter in model.named_parameters():
            update = (before[name] - then[name]).double() / learning_rate
            # The update is read off float32 parameters of size about 0.5, hence the absolute tolerance.
            torch.testing.assert_close(update, parameter.grad, rtol=1e-4, atol=2e-6)
        ratios_moved |= any("old_per_token_logps" in part for part in parts)
    assert ratios_moved == (shape != {})


@pytest.mark.parametrize("num_parts", [2, 4, 8])
def test_accumulation_does_not_change_the_step(tmp_path, num_parts):
    def parameters(parts):
        trainer = make_trainer(
            tmp_path,
            per_device_train_batch_size=16 // parts,
            gradient_accumulation_steps=parts,
            max_steps=3,
            optim="sgd",
            learning_rate=0.1,
        )
        trainer.train()
        return [parameter.detach() for parameter in trainer.model.parameters()]

    for whole, split in zip(parameters(1), parameters(num_parts), strict=True):
        torch.testing.assert_close(whole, split, rtol=1e-5, atol=1e-6)


def test_trl_normalisation_is_another_one(tmp_path):
    # The test above can fail: with TRL's average over the generation batch the first update differs.
    updates = []
    for normalization in ("batch", "generation_batch"):
        trainer = make_trainer(tmp_path, cls=StepRecorder, steps_per_generation=4, loss_normalization=normalization,
                               optim="sgd", max_grad_norm=0.0, max_steps=2)  # fmt: skip
        trainer.train()
        (before, _), (then, _) = trainer.steps[:2]
        updates.append(torch.cat([(then[name] - before[name]).flatten() for name in before]))
    assert not torch.allclose(updates[0], updates[1], rtol=1e-2, atol=0)
