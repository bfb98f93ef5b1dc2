"""Surplus groups that train in the next batch, against the policy that sampled them."""

import copy

import pytest
import torch
from test_trainer import RecordingTrainer, make_trainer
from tiny import first_token_reward, tiny_model


class SnapshotTrainer(RecordingTrainer):
    """Keeps the policy with which each batch was sampled, and the batch as it was collected."""

    def __init__(self, *args, **kwargs):
        self.policies, self.collected = [], []
        super().__init__(*args, **kwargs)

    def _collect_batch(self, sampler):
        self.policies.append(copy.deepcopy(self.model.state_dict()))
        batch = super()._collect_batch(sampler)
        self.collected.append(batch)
        return batch

    def logps_under(self, policy, row, output):
        """The log-probabilities of one trained row, in float64, without padding."""
        model = tiny_model()  # not a copy of the trained one, whose forward TRL has replaced
        model.load_state_dict(policy)
        model.double()
        prompt = output["prompt_ids"][row][output["prompt_mask"][row].bool()]
        completion = output["completion_ids"][row][output["completion_mask"][row].bool()]
        with torch.no_grad():
            logits = model(input_ids=torch.cat([prompt, completion])[None]).logits[0]
        logps = logits[len(prompt) - 1 : -1].double().log_softmax(-1)
        return logps[torch.arange(len(completion)), completion]


def carrying_trainer(tmp_path, **overrides):
    options = {"surplus": "carry", "max_steps": 8, "refill_confidence": 0.99, "max_prompts_per_round": 100}
    return make_trainer(tmp_path, first_token_reward, cls=SnapshotTrainer, **options | overrides)


@pytest.mark.parametrize(
    "shape",
    [
        {},  # TRL would take the ratio to be 1
        {"steps_per_generation": 2},  # TRL computes old log-probabilities itself
        {"steps_per_generation": 2, "gradient_accumulation_steps": 2},
    ],
)
def test_old_logps_are_those_of_the_policy_that_sampled_each_group(tmp_path, shape):
    trainer = carrying_trainer(tmp_path, **shape)
    trainer.train()
    # One snapshot for each batch: the policy after so many optimizer steps.
    steps_per_batch = trainer.args.num_updates_per_batch
    num_carried_rows = 0
    for collected, (_, _, output) in zip(trainer.collected, trainer.batches, strict=True):
        for row in range(len(collected.rollouts)):
            group = collected.ledger.accepted[row // 4]
            policy = trainer.policies[group.policy_step // steps_per_batch]
            if "old_per_token_logps" not in output:
                assert collected.ledger.num_carried == 0
                continue
            live = output["completion_mask"][row].bool()
            expected = trainer.logps_under(policy, row, output)
            torch.testing.assert_close(
                output["old_per_token_logps"][row][live].double(), expected, rtol=1e-4, atol=1e-5
            )
            num_carried_rows += collected.rollouts[row].old_logps is not None
    assert num_carried_rows >= 8
    # With a moving policy the check above can tell the two policies apart.
    assert not torch.equal(trainer.policies[0]["lm_head.weight"], trainer.policies[1]["lm_head.weight"])


def test_importance_ratio_starts_from_the_policy_that_sampled(tmp_path):
    trainer = carrying_trainer(tmp_path, steps_per_generation=2, vllm_importance_sampling_mode="token_truncate",
                               vllm_importance_sampling_clip_max=1e6)  # fmt: skip
    # An engine whose log-probabilities are off by a known amount; no engine is needed to check the arithmetic.
    generate = trainer._generate_single_turn

    def engine(*args, **kwargs):
        trainer.use_vllm = False
        completion_ids, _ = generate(*args, **kwargs)
        trainer.use_vllm = True
        return completion_ids, [[-1.5 - 0.1 * (token % 3) for token in ids] for ids in completion_ids]

    trainer._generate_single_turn = engine
    trainer.use_vllm = True
    trainer.dynamic_sampler.assembler.has_sampling_logps = True
    trainer.train()
    assert sum(collected.ledger.num_carried for collected in trainer.collected) > 0
    for _, _, output in trainer.batches:
        live = output["completion_mask"].bool()
        sampling = -1.5 - 0.1 * (output["completion_ids"] % 3)
        expected = torch.exp(output["old_per_token_logps"] - sampling)
        torch.testing.assert_close(output["importance_sampling_ratio"][live], expected[live])


def test_no_draw_is_lost_or_sampled_twice(tmp_path):
    trainer = carrying_trainer(tmp_path, max_off_policy_steps=100)
    trainer.train()
    sampled = [group.draw.position for batch in trainer.collected for group in batch.ledger.sampled]
    assert sampled == list(range(len(sampled)))
    trained = [group.draw.position for batch in trainer.collected for group in batch.ledger.accepted]
    informative = [
        group.draw.position
        for batch in trainer.collected
        for group in batch.ledger.sampled
        if group.verdict == "informative"
    ]
    assert trained == informative[: len(trained)]


def test_groups_older_than_the_limit_are_dropped_and_counted(tmp_path):
    trainer = carrying_trainer(tmp_path, steps_per_generation=2, max_off_policy_steps=1)
    trainer.train()
    num_surplus = [len(batch.ledger.surplus) for batch in trainer.collected]
    assert sum(num_surplus[:-1]) > 0
    # Two optimizer steps pass between batches, so nothing is young enough.
    assert [batch.ledger.num_stale for batch in trainer.collected] == [0, *num_surplus[:-1]]
    assert all(batch.ledger.num_carried == 0 for batch in trainer.collected)


def test_batch_that_is_carried_whole_samples_nothing(tmp_path):
    trainer = carrying_trainer(tmp_path, max_off_policy_steps=100, refill_confidence=0.999999)
    trainer.train()
    whole = [batch for batch in trainer.collected if batch.ledger.num_carried == batch.ledger.num_groups]
    assert whole, "the seed no longer gives a batch that is carried whole"
    assert all(batch.ledger.num_rounds == 0 for batch in whole)


def test_resumed_run_samples_carried_groups_again(tmp_path):
    trainer = carrying_trainer(tmp_path, max_steps=7)
    trainer.train()
    carried = trainer.dynamic_sampler._carried
    assert carried
    assert trainer.dynamic_sampler.state_dict()["stream"]["position"] == carried[0].draw.position


def test_carrying_wastes_less_than_giving_back(tmp_path):
    efficiency = {}
    for surplus in ("requeue", "carry"):
        trainer = carrying_trainer(tmp_path / surplus, surplus=surplus, max_steps=20, max_off_policy_steps=100)
        trainer.train()
        efficiency[surplus] = trainer.dynamic_sampler.rollout_efficiency
    assert efficiency["carry"] > 1.5 * efficiency["requeue"]
