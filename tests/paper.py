"""DAPO's loss as it stands in the paper, in float64 and in loops over single tokens, and a recorder of what was trained."""

import copy

import torch
from tiny import tiny_model


class StepRecorder:
    """Mixin: keeps, for every optimizer step, the parameters before it, the rows that were in it, and its gradient."""

    def __init__(self, *args, **kwargs):
        self.steps = []
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if self.model.training:
            # By content: equal completions of one prompt have equal rewards, and so equal advantages.
            self.advantage_of = {row["key"]: row["advantage"] for row in rows_of(output)}
        return output

    def training_step(self, model, inputs, num_items_in_batch):
        if self._step % self.args.gradient_accumulation_steps == 0:
            state = self.accelerator.unwrap_model(self.model).state_dict()
            self.steps.append((copy.deepcopy(state), [], {}))
        loss = super().training_step(model, inputs, num_items_in_batch)
        for row in rows_of(self._buffered_inputs[(self._step - 1) % self.args.steps_per_generation]):
            # As TRL computed it, before any weight of ours.
            self.steps[-1][1].append(row | {"advantage": self.advantage_of[row["key"]]})
        if self._step % self.args.gradient_accumulation_steps == 0:
            parameters = self.accelerator.unwrap_model(self.model).named_parameters()
            self.steps[-1][2].update({name: parameter.grad.clone() for name, parameter in parameters})
        return loss


def rows_of(part):
    """Returns the rows of a micro-batch that carry loss, without padding."""
    rows = []
    for number in range(len(part["advantages"])):
        prompt = part["prompt_ids"][number][part["prompt_mask"][number].bool()].tolist()
        live = part["completion_mask"][number].bool()
        completion = part["completion_ids"][number][live].tolist()
        old = part["old_per_token_logps"][number][live].tolist() if "old_per_token_logps" in part else None
        own = part["tool_mask"][number][live].tolist() if "tool_mask" in part else [1] * len(completion)
        if completion:
            advantage = part["advantages"][number].item()
            row = {"key": (tuple(prompt), tuple(completion)), "advantage": advantage, "old_logps": old, "own": own}
            rows.append(row)
    return rows


def paper_gradient(state, rows, by_group=False, eps_low=0.2, eps_high=0.28, make_model=tiny_model):
    """
    Returns the gradient of the negative of DAPO Eq. 8 by each parameter, in float64.

    With Eq. 12's denominator, the tokens of all rows; or `by_group`, with those of each group and the mean over groups. The
    rows of a group are those of one prompt. Tokens that the model did not write are in neither.
    """
    model = make_model()
    model.load_state_dict(state)
    model.double()
    groups = {row["key"][0]: [] for row in rows}
    for row in rows:
        prompt, _ = row["key"]
        for logp, old in zip(*token_logps(model, row), strict=True):
            ratio = torch.exp(logp - old)
            clipped = torch.clamp(ratio, 1 - eps_low, 1 + eps_high)
            groups[prompt].append(torch.minimum(ratio * row["advantage"], clipped * row["advantage"]))
    if by_group:
        objective = sum(sum(tokens) / len(tokens) for tokens in groups.values()) / max(len(groups), 1)
    else:
        objective = sum(sum(tokens) for tokens in groups.values()) / max(sum(map(len, groups.values())), 1)
    if rows:
        (-objective).backward()
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }


def token_logps(model, row):
    """
    Returns the log-probabilities of the tokens of a row under the model, and those of the policy that sampled them; tokens that
    the model did not write are left out.
    """
    prompt, completion = row["key"]
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].double()
    logps = logits[len(prompt) - 1 : -1].log_softmax(-1)[range(len(completion)), completion]
    old = logps.detach() if row["old_logps"] is None else torch.tensor(row["old_logps"], dtype=torch.float64)
    own = torch.tensor(row["own"], dtype=torch.bool)
    return logps[own], old[own]


def group_rows(rows):
    """Returns the rows of each prompt."""
    groups = {}
    for row in rows:
        groups.setdefault(row["key"][0], []).append(row)
    return list(groups.values())


def gradient_error(gradient, exact):
    """Returns the largest deviation of a gradient from the exact one, relative to the largest entry of that."""
    largest = max(value.abs().max().item() for value in exact.values())
    deviation = max((gradient[name].double() - value).abs().max().item() for name, value in exact.items())
    return deviation / largest if largest else deviation
