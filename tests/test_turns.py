"""Tools, environments and rollout functions with dynamic sampling: every batch against its recorded rounds, by brute force."""

import copy

import pytest
import torch
from paper import StepRecorder, gradient_error, paper_gradient, rows_of
from tiny_tools import (
    NUM_GENERATIONS,
    Counted,
    ScriptedDAPO,
    asked,
    calculate,
    call,
    chat_model,
    make_chat_trainer,
    noted,
    rollout_function,
    scripted_dapo,
    solved,
)

from trl_dapo.sampling.prompt_stream import PromptStream


@pytest.fixture(autouse=True)
def scripted(monkeypatch):
    scripted_dapo(monkeypatch)


class Recording(StepRecorder, ScriptedDAPO):
    """Keeps the policy that samples each batch, too."""

    def __init__(self, *args, **kwargs):
        self.policies = []
        super().__init__(*args, **kwargs)

    def _collect_batch(self, sampler):
        self.policies.append(copy.deepcopy(self.accelerator.unwrap_model(self.model).state_dict()))
        return super()._collect_batch(sampler)


def train(folder, **options):
    trainer = make_chat_trainer(folder, Recording, **options)
    trainer.train()
    return trainer


def sampled_rows(rounds):
    """Returns the completions of all rounds of a batch: row, prompt, tokens, mask and filter reward."""
    rows = []
    for inputs, _, _, rewards, (generated,) in rounds:
        for number, row in enumerate(inputs):
            key = tuple(generated.prompt_ids[number]), tuple(generated.completion_ids[number])
            own, reward = generated.tool_mask[number], rewards[number]
            rows.append({"row": row["row"], "key": key, "own": own, "reward": reward[0], "sum": sum(reward)})
    return rows


def check_batches(trainer, num_rows=40):
    """Each batch is the first informative groups of its rounds, in stream order; returns its tokens of tools."""
    size, num_groups = NUM_GENERATIONS, trainer.shape.num_groups
    stream = [draw.index for draw in PromptStream(num_rows, seed=7).peek(10_000)]
    cursor, num_masked = 0, 0
    for rounds, _, output in trainer.batches:
        rows = sampled_rows(rounds)
        groups = [rows[start : start + size] for start in range(0, len(rows), size)]
        assert [group[0]["row"] for group in groups] == stream[cursor : cursor + len(groups)]
        mixed = [g for g, group in enumerate(groups) if len({row["reward"] for row in group}) > 1][:num_groups]
        assert len(mixed) == num_groups
        expected = [row for g in mixed for row in groups[g]]
        trained = rows_of(output)
        assert [row["key"] for row in trained] == [row["key"] for row in expected]
        assert [row["own"] for row in trained] == [row["own"] for row in expected]
        for number, g in enumerate(mixed):
            rewards = torch.tensor([row["sum"] for row in groups[g]], dtype=torch.float64)
            advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
            got = output["advantages"][size * number : size * (number + 1)].double()
            torch.testing.assert_close(got, advantages, rtol=1e-5, atol=1e-6)
        assert output["num_items_in_batch"] == sum(sum(row["own"]) for row in expected)
        num_masked += sum(row["own"].count(0) for row in expected)
        cursor += mixed[-1] + 1
    return num_masked


def check_gradients(trainer, by_group=False):
    for state, rows, gradient in trainer.steps:
        exact = paper_gradient(state, rows, by_group, make_model=chat_model)
        assert gradient_error(gradient, exact) < 1e-5


def segments(ids, own):
    """Cuts a completion where the author of its tokens changes."""
    cuts = [at for at in range(1, len(own)) if own[at] != own[at - 1]]
    return [(own[start], ids[start:end]) for start, end in zip([0, *cuts], [*cuts, len(own)], strict=True)]


@pytest.mark.supports("tools")
def test_batches_and_gradients_with_tools_are_those_of_the_recorded_rounds(tmp_path):
    trainer = train(tmp_path, tools=[calculate], max_steps=3)
    assert check_batches(trainer) > 300
    check_gradients(trainer)
    for _, _, output in trainer.batches:
        for row in rows_of(output):
            for is_own, ids in segments(row["key"][1], row["own"]):
                text = trainer._tokenizer.decode(ids)
                if is_own:
                    assert text.endswith("<|im_end|>")
                    assert "<tool_response>" not in text
                else:
                    assert text.startswith("\n<|im_start|>user\n<tool_response>\n")
                    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    "shape",
    [
        {"steps_per_generation": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        {"steps_per_generation": 2, "num_iterations": 2},
        {"steps_per_generation": 2, "loss_normalization": "group"},
        {"steps_per_generation": 2, "max_generation_rounds": 1, "max_prompts_per_round": 4},
        {"steps_per_generation": 2, "selective_rollout": True},
    ],
    ids=str,
)
def test_every_optimizer_step_with_tools_has_the_gradient_of_the_paper(tmp_path, shape):
    trainer = train(tmp_path, tools=[calculate], max_steps=4, **shape)
    is_partial, is_selective = "max_generation_rounds" in shape, "selective_rollout" in shape
    if is_partial:
        assert max(entry.get("dapo/exhausted", 0) for entry in trainer.state.log_history) == 1
    elif not is_selective:
        assert check_batches(trainer) > 300
    check_gradients(trainer, by_group=shape.get("loss_normalization") == "group")


def logps_under(state, prompt, completion):
    model = chat_model()
    model.load_state_dict(state)
    with torch.no_grad():
        logits = model.double()(input_ids=torch.tensor([[*prompt, *completion]])).logits[0]
    return logits[len(prompt) - 1 : -1].log_softmax(-1)[torch.arange(len(completion)), torch.tensor(completion)]


def test_carried_completions_keep_their_masks_and_the_log_probabilities_of_the_policy_that_sampled_them(tmp_path):
    trainer = train(
        tmp_path, tools=[calculate], max_steps=5, surplus="carry", refill_confidence=0.99, max_prompts_per_round=100
    )
    check_gradients(trainer)
    num_carried = num_masked = 0
    for number, (_, batch, output) in enumerate(trainer.batches):
        sampled = {row["key"]: row for rounds, *_ in trainer.batches[: number + 1] for row in sampled_rows(rounds)}
        for place, row in enumerate(rows_of(output)):
            assert row["own"] == sampled[row["key"]]["own"]
            step = batch.ledger.accepted[place // NUM_GENERATIONS].policy_step
            if batch.rollouts[place].old_logps is None:
                continue
            exact = logps_under(trainer.policies[step], *row["key"])
            torch.testing.assert_close(torch.tensor(row["old_logps"]).double(), exact, rtol=0, atol=2e-5)
            num_carried += 1
            num_masked += row["own"].count(0)
    assert num_carried >= 8
    assert num_masked > 100


@pytest.mark.supports("environments")
def test_batches_with_environments_are_those_of_the_recorded_rounds_and_the_replay_resets_none(tmp_path):
    Counted.num_made = Counted.num_resets = 0
    trainer = train(tmp_path, rewards=solved, environment_factory=Counted, max_steps=3, log_completions=True)
    assert check_batches(trainer) > 300
    check_gradients(trainer)
    num_sampled = [sum(len(inputs) for inputs, *_ in rounds) for rounds, *_ in trainer.batches]
    assert Counted.num_resets == sum(num_sampled)
    # An environment is made where a round needs one more, and used again.
    assert Counted.num_made == max(len(inputs) for rounds, *_ in trainer.batches for inputs, *_ in rounds)
    # The prompts are those that were sampled from, with what the environment said.
    made = {prompt[-1]["content"] for rounds, *_ in trainer.batches for _, prompts, *_ in rounds for prompt in prompts}
    logged = trainer._logs["prompt"]
    assert {prompt[-1]["content"] for prompt in logged if not isinstance(prompt, str)} <= made
    # TRL 1.14 keeps them as text.
    assert all(any(said in prompt for said in made) for prompt in logged if isinstance(prompt, str))


@pytest.mark.supports("rollout_func")
@pytest.mark.parametrize("surplus", ["requeue", "carry"])
def test_batches_with_a_rollout_function_are_those_of_the_recorded_rounds(tmp_path, surplus):
    trainer = train(tmp_path, rewards=noted, rollout_func=rollout_function, max_steps=3, surplus=surplus)
    if surplus == "requeue":
        assert check_batches(trainer) > 100
    check_gradients(trainer)


def limits(text, sample):
    """Answers; calls with an answer that does not fit; calls without end; an answer that is cut off."""
    calls = asked(text)
    if calls:
        sample = int(calls[-1].rsplit("*", 1)[1])
    return [
        "yes<|im_end|>",
        "never<|im_end|>" if calls else call("'x'*500+''*1"),
        call(f"1+{len(calls)}+0*2"),
        "a" * 1000 if calls else call("7+0*3"),
    ][sample]


def said_yes(completions, **kwargs):
    return [float(turns[-1].get("content", "") == "yes") for turns in completions]


@pytest.mark.parametrize("masks", [False, True])
def test_episodes_that_a_limit_of_tokens_or_calls_ends_are_truncated(tmp_path, monkeypatch, masks):
    monkeypatch.setattr(ScriptedDAPO, "script", staticmethod(limits))
    options = {"max_completion_length": 300, "max_tool_calling_iterations": 2, "soft_punish_cache": 100}
    trainer = train(
        tmp_path,
        rewards=said_yes,
        tools=[calculate],
        max_steps=1,
        mask_truncated_completions=masks,
        **options,
    )
    _, batch, output = trainer.batches[0]
    for group in batch.ledger.accepted:
        assert group.is_truncated == [False, True, True, True]
        assert group.num_turns == [1, 1, 3, 2]
        # The limit and the punishment count all tokens of a completion.
        lengths = [length for _, length in group.lengths]
        assert lengths[3] == 300
        for length, rewards in zip(lengths, group.rewards, strict=True):
            assert rewards[1] == pytest.approx(-max(0, length - 200) / 100, abs=1e-6)
        own = [length - others for length, others in zip(lengths, group.num_tool_tokens, strict=True)]
        assert group.num_tokens == sum(own)
    live = (output["completion_mask"] * output["tool_mask"])[:4].sum(dim=1).tolist()
    assert live == [own[0], 0, 0, 0] if masks else live == own


def test_metrics_count_what_the_model_wrote_and_all_that_was_sampled(tmp_path):
    trainer = train(tmp_path, tools=[calculate], max_steps=2)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry, (rounds, _, output) in zip(logs, trainer.batches, strict=True):
        rows = sampled_rows(rounds)
        calls = [sum(turn["role"] == "tool" for turn in turns) for round_ in rounds for turns in round_[2]]
        assert entry["tools/call_frequency"] == pytest.approx(sum(calls) / len(rows))
        assert entry["tools/failure_frequency"] == 0
        assert entry["dapo/turns/mean"] == pytest.approx(1 + sum(calls) / len(rows))
        assert entry["dapo/frac_env_failed"] == 0
        assert entry["completions/mean_length"] == pytest.approx(sum(sum(row["own"]) for row in rows) / len(rows))
        trained = sum(sum(row["own"]) for row in rows_of(output))
        assert entry["dapo/rollout_efficiency"] == pytest.approx(trained / sum(sum(row["own"]) for row in rows))
    assert logs[1]["num_tokens"] == sum(
        len(row["key"][0]) + sum(row["own"]) for rounds, *_ in trainer.batches for row in sampled_rows(rounds)
    )


def test_a_rollout_function_may_generate_with_the_trainer_and_gets_its_turns_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(ScriptedDAPO, "script", staticmethod(lambda text, sample: "yes<|im_end|>" if sample else ""))
    seen = []

    def rollout(prompts, trainer):
        prompt_ids, *_ = trainer._tokenize_prompts(prompts)
        trainer.begin_rows(prompts)
        completion_ids, logps = trainer._generate_single_turn(prompt_ids, None, {}, NUM_GENERATIONS)
        seen.extend(completion_ids)
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": logps}

    def not_empty(completion_ids, **kwargs):
        return [float(len(ids) > 1) for ids in completion_ids]

    trainer = train(tmp_path, rewards=not_empty, rollout_func=rollout, max_steps=1)
    assert [] in seen
    for group in trainer.batches[0][1].ledger.accepted:
        assert [length for _, length in group.lengths] == [0, 4, 4, 4]
    _, _, output = trainer.batches[0]
    assert output["completion_mask"].sum(dim=1).tolist()[:4] == [0, 4, 4, 4]
    check_gradients(trainer)
