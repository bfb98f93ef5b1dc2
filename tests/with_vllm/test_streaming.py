"""Refilling group by group with a real vLLM: the batches of rounds, and completions that go on under new weights."""

import copy
import itertools
import json

import numpy as np
import pytest
import torch
from launched import run_two_ranks
from tiny_engine import OPTIONS, engines_by, exact_logps, make_trainer, merged_copy, save_model

from trl_dapo import DAPOTrainer
from trl_dapo.sampling.prompt_stream import SequenceKey


pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

ROUNDING = 1e-4


# The importance ratio holds the engine's rounding, which depends on what else it decodes. Without it runs are equal, but for
# a token in a million whose choice hangs on a rounding: so the completions are short.
SHORT = {
    "max_completion_length": 10,
    "soft_punish_cache": 2,
    "learning_rate": 2e-3,
    "vllm_importance_sampling_correction": False,
    "steps_per_generation": 1,
}


class CollectingTrainer(DAPOTrainer):
    """Keeps each batch, with the policy that was trained when it was collected."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.collected = []
        self.held = []
        collect = self.dynamic_sampler.collect

        def collect_and_keep(policy_step, raises_if_exhausted=False):
            policy = merged_copy(self.model)
            # With overlap a thread samples meanwhile.
            if self.args.refill == "stream" and not self.args.overlap:
                self.held.append(copy.deepcopy(self.dynamic_sampler.refill.groups.by_position))
            batch = collect(policy_step, raises_if_exhausted)
            self.collected.append((policy, batch))
            return batch

        self.dynamic_sampler.collect = collect_and_keep


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, tied=True)
    return folder


@pytest.fixture(scope="module", autouse=True)
def engines():
    names = ("max_num_seqs", "num_gpu_blocks_override", "async_scheduling")
    with engines_by(lambda backend, options: tuple(map(backend.dapo_args.vllm_engine_kwargs.get, names))) as started:
        yield started


def train(folder, model_folder, num_slots=None, cls=CollectingTrainer, resume=None, **overrides):
    arguments = {
        "max_completion_length": 24,
        "max_prompts_per_round": 12,
        "vllm_engine_kwargs": OPTIONS | ({} if num_slots is None else {"max_num_seqs": num_slots}),
        "dynamic_sampling": True,
        "soft_punish_cache": 8,
    }
    trainer = make_trainer(folder, model_folder, cls=cls, **(arguments | overrides))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def trained_groups(batch):
    """Position and the tokens of each row of a batch, in its order."""
    positions = [group.draw.position for group in batch.ledger.accepted for _ in range(4)]
    return list(zip(positions, (rollout.completion_ids.tolist() for rollout in batch.rollouts), strict=True))


@pytest.mark.supports("stream")
def test_stream_trains_the_groups_of_rounds_over_20_batches(model_folder, tmp_path):
    options = SHORT | {
        "max_steps": 20,
        "per_device_train_batch_size": 16,
    }
    rounds = train(tmp_path, model_folder, refill="rounds", **options)
    stream = train(tmp_path, model_folder, refill="stream", **options)
    scarce = train(tmp_path, model_folder, num_slots=5, refill="stream", **options)
    assert len(rounds.collected) == 20
    num_rounds, lengths, acceptance = set(), set(), set()
    for number, (_, batch) in enumerate(rounds.collected):
        assert batch.ledger.num_missing == 0
        num_rounds.add(batch.ledger.num_rounds)
        lengths |= {len(rollout.completion_ids) for rollout in batch.rollouts}
        acceptance.add(len(batch.ledger.accepted) / len(batch.ledger.used))
        for other in (stream, scarce):
            assert trained_groups(other.collected[number][1]) == trained_groups(batch)
            torch.testing.assert_close(other.collected[number][1].rewards, batch.rewards, equal_nan=True)
    # Of many difficulties and lengths.
    assert len(num_rounds) > 1
    assert lengths == set(range(1, 11))
    assert max(acceptance) > 2 * min(acceptance)
    for name, parameter in rounds.model.state_dict().items():
        torch.testing.assert_close(stream.model.state_dict()[name], parameter, rtol=0, atol=1e-5)


def even_sum_reward(completion_ids, **kwargs):
    """Half of the completions are right, so that seven groups in eight are informative."""
    return [float(sum(ids) % 2 == 0) for ids in completion_ids]


def test_completions_go_on_under_new_weights_and_each_token_keeps_its_policy(model_folder, tmp_path):
    # Of the five that are decoded at once, those that a batch leaves unfinished are of groups that train, nearly always.
    options = {"num_slots": 5, "refill": "stream", "surplus": "carry", "max_steps": 20, "learning_rate": 5e-3}
    trainer = train(tmp_path, model_folder, reward=even_sum_reward, **options)
    num_mixed, trained = 0, []
    for number, (policy, batch) in enumerate(trainer.collected):
        trained += [group.draw.position for group in batch.ledger.accepted]
        for rollout, is_filler in zip(batch.rollouts, batch.is_filler, strict=True):
            if is_filler:
                continue
            length = len(rollout.completion_ids)
            num_old = 0 if rollout.old_logps is None else len(rollout.old_logps)
            num_mixed += 0 < num_old < length
            ids = rollout.prompt_ids.tolist(), rollout.completion_ids.tolist()
            exact = exact_logps(policy, *ids)
            if num_old:
                exact[:num_old] = exact_logps(trainer.collected[number - 1][0], *ids)[:num_old]
                assert (rollout.old_logps - exact[:num_old]).abs().max() < ROUNDING
            assert (rollout.sampling_logps - exact).abs().max() < ROUNDING
    assert num_mixed >= 3
    # No group twice, none before its turn.
    assert trained == sorted(set(trained))
    logged = [entry for entry in trainer.state.log_history if "dapo/stream/groups_suspended" in entry]
    assert max(entry["dapo/stream/groups_suspended"] for entry in logged) > 0
    gaps = [entry["dapo/vllm/logp_gap"] for entry in trainer.state.log_history if "dapo/vllm/logp_gap" in entry]
    # A batch in which no completion both began and ended has nothing to compare.
    assert len(gaps) == sum(bool(batch.refill.unchecked) for _, batch in trainer.collected) > 2
    assert max(gaps) < ROUNDING


def test_aborted_tokens_are_counted(model_folder, tmp_path):
    trainer = train(tmp_path, model_folder, refill="stream", max_steps=8)
    engine = trainer.vllm_generation.llm.llm_engine
    assert not engine.has_unfinished_requests()
    for entry in trainer.state.log_history:
        if "dapo/tokens/aborted" in entry:
            fates = sum(value for name, value in entry.items() if name.startswith("dapo/tokens/"))
            assert entry["dapo/rollout_efficiency"] == pytest.approx(entry["dapo/tokens/trained"] / fates)
    assert sum(entry.get("dapo/tokens/aborted", 0) for entry in trainer.state.log_history) > 0


def test_full_cache_is_told_and_its_slots_are_not_idle(model_folder, tmp_path):
    # Blocks of 32 tokens, one of them vLLM's own: four sequences begin, and two can be as long as they may.
    options = OPTIONS | {"max_num_seqs": 8, "num_gpu_blocks_override": 5, "block_size": 32}
    seen, offered = [], []

    class WatchingTrainer(CollectingTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            scheduler = self.vllm_generation.llm.llm_engine.engine_core.engine_core.scheduler
            groups, step = self.dynamic_sampler.refill.groups, self.vllm_generation.llm.llm_engine.step

            def step_and_count():
                before = sum(request.num_preemptions for request in scheduler.requests.values())
                requests = list(scheduler.requests.values())
                outputs = step()
                preempted = sum(request.num_preemptions for request in requests) - before
                seen.append([preempted, scheduler.kv_cache_manager.usage])
                if scheduler.waiting:
                    offered.append(groups.num_idle_slots)
                return outputs

            self.vllm_generation.llm.llm_engine.step = step_and_count

    trainer = train(
        tmp_path, model_folder, cls=WatchingTrainer, reward=even_sum_reward, refill="stream", surplus="carry", max_steps=3,
        max_completion_length=40, vllm_engine_kwargs=options, steps_per_generation=1,
    )  # fmt: skip
    logged = [entry for entry in trainer.state.log_history if "dapo/vllm/preemptions" in entry]
    assert len(logged) == 3
    assert sum(entry["dapo/vllm/preemptions"] for entry in logged) == sum(preempted for preempted, _ in seen) > 0
    assert 0.8 < max(entry["dapo/vllm/kv_cache_use_max"] for entry in logged) <= 1
    assert max(entry["dapo/vllm/kv_cache_use_max"] for entry in logged) >= max(usage for _, usage in seen)
    assert len(offered) > 10
    assert set(offered) == {0}


@pytest.fixture
def asynchronous(monkeypatch):
    """Options of an engine that schedules a step before it has the tokens of the last one, which vLLM turns off on a CPU."""
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config.__func__

    def check_and_leave_on(cls, vllm_config):
        is_asynchronous = vllm_config.scheduler_config.async_scheduling
        check(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = is_asynchronous

    monkeypatch.setattr(CpuPlatform, "check_and_update_config", classmethod(check_and_leave_on))
    return OPTIONS | {"async_scheduling": True, "max_num_seqs": 6}


def test_withdrawn_tokens_begin_the_finished_completion_under_asynchronous_scheduling(
    model_folder, tmp_path, asynchronous
):
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    trainer = train(tmp_path, model_folder, refill="stream", max_steps=1, vllm_engine_kwargs=asynchronous)
    core = trainer.vllm_generation.llm.llm_engine.engine_core.engine_core
    assert isinstance(core.scheduler, AsyncScheduler)
    assert core.step_fn == core.step_with_batch_queue
    requests, policy = trainer.dynamic_sampler.refill.groups.engine, merged_copy(trainer.model)
    keys = [SequenceKey(100 + number // 4, number % 4) for number in range(16)]
    prompts = {key: [3 + key.position % 7, 5] for key in keys}

    def plain(decoded):
        return {key: ([*map(int, one.token_ids)], [*map(float, one.logps)]) for key, one in decoded.items()}

    def sample(withdrawn_at):
        """Returns what was decoded of each, where some are withdrawn after so many steps."""
        requests.begin()
        for key in keys:
            requests.submit(key, prompts[key], [])
        decoded, withdrawn = {}, {}
        for number in itertools.count(1):
            decoded |= requests.step()
            if number in withdrawn_at:
                withdrawn |= requests.withdraw(withdrawn_at[number])
            if not requests.num_unfinished:
                return plain(decoded), plain(withdrawn)

    whole, _ = sample({})
    assert whole.keys() == set(keys)
    # Some that run, some that wait, at several ages.
    at = {2: keys[0:2], 5: [*keys[2:4], keys[15]], 9: keys[5:12]}
    first, second = sample(at), sample(at)
    assert first == second
    decoded, withdrawn = first
    assert decoded.keys() | withdrawn.keys() == set(keys)
    lengths = set()
    for key, (ids, logps) in {**decoded, **withdrawn}.items():
        assert ids == whole[key][0][: len(ids)]
        assert len(ids) == len(whole[key][0]) or key in withdrawn
        assert len(logps) == len(ids)
        if ids:
            gap = torch.tensor(logps, dtype=torch.float64) - exact_logps(policy, prompts[key], ids)
            assert gap.abs().max() < ROUNDING
        if key in withdrawn:
            lengths.add(len(ids))
    assert len(lengths) > 2


def test_asynchronous_scheduling_trains_the_groups_of_rounds(model_folder, tmp_path, asynchronous):
    options = SHORT | {"max_steps": 6, "per_device_train_batch_size": 16}
    rounds = train(tmp_path / "rounds", model_folder, refill="rounds", **options)
    options["vllm_engine_kwargs"] = asynchronous
    streams = [train(tmp_path / name, model_folder, refill="stream", **options) for name in "ab"]
    for number, (_, batch) in enumerate(rounds.collected):
        for stream in streams:
            assert trained_groups(stream.collected[number][1]) == trained_groups(batch)


def test_sleeping_engine_wakes_and_sleeps_once_a_batch(model_folder, tmp_path, monkeypatch):
    calls = []

    class SleepingTrainer(CollectingTrainer):
        def train(self, *args, **kwargs):
            engine = self.vllm_generation
            # vLLM refuses sleep mode on a CPU when it starts; asked to sleep all the same, it does nothing.
            engine.enable_sleep_mode = engine._llm_weights_sleeping = True
            monkeypatch.setattr(engine.llm, "sleep", lambda level: calls.append(f"sleep {level}"))
            monkeypatch.setattr(engine.llm, "wake_up", lambda tags: calls.append(f"wake {tags[0]}"))
            monkeypatch.setattr("trl.generation.vllm_generation.empty_cache", lambda: None)
            sync = engine.sync_weights
            monkeypatch.setattr(engine, "sync_weights", lambda: (calls.append("sync"), sync()))
            return super().train(*args, **kwargs)

    train(tmp_path, model_folder, cls=SleepingTrainer, refill="stream", max_steps=4)
    assert calls == ["sync", "wake weights", "wake kv_cache", "sleep 2"] * 2


def test_resumed_run_samples_what_the_first_would_have(model_folder, tmp_path):
    # Rounds of many sizes and groups one by one: what is sampled hangs on neither, nor on vLLM's own random state.
    options = SHORT | {"per_device_train_batch_size": 16, "save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    for refill in ("rounds", "stream"):
        straight = train(tmp_path / refill, model_folder, refill=refill, **options)
        resumed = train(
            tmp_path / refill, model_folder, resume=str(tmp_path / refill / "checkpoint-3"), refill=refill, **options
        )
        assert len(resumed.collected) == 3
        for (_, mine), (_, its) in zip(resumed.collected, straight.collected[3:], strict=True):
            assert trained_groups(mine) == trained_groups(its)


def test_completions_go_on_after_a_resume(model_folder, tmp_path):
    options = {"num_slots": 5, "refill": "stream", "surplus": "carry", "save_strategy": "steps", "save_steps": 2}
    first = train(tmp_path, model_folder, max_steps=6, **options)
    held = first.dynamic_sampler.refill.groups.by_position
    assert sum(map(len, (tokens for group in held.values() for tokens in group.token_ids))) > 0
    resumed = train(tmp_path, model_folder, max_steps=8, resume=str(tmp_path / "checkpoint-6"), **options)
    assert resumed.held[0].keys() == held.keys()
    judged = {group.draw.position: group for group in resumed.collected[0][1].ledger.sampled}
    for position, before in held.items():
        after = resumed.held[0][position]
        assert (after.unfinished, after.row) == (before.unfinished, before.row)
        for name in ("token_ids", "logps"):
            for mine, its in zip(getattr(after, name), getattr(before, name), strict=True):
                assert mine.dtype == its.dtype
                assert np.array_equal(mine, its)
        for mine, its in zip(after.old_logps, before.old_logps, strict=True):
            assert (mine is None) == (its is None)
            assert mine is None or torch.equal(mine, its)
        # And they were done, before anything else was.
        lengths = [length for _, length in judged[position].lengths]
        assert all(length >= len(ids) for length, ids in zip(lengths, before.token_ids, strict=True))
        assert judged[position].policy_step == before.policy_step


@pytest.mark.supports("stream")
@pytest.mark.distributed
@pytest.mark.parametrize("fault", ["none", "reward", "engine"])
def test_two_ranks_stream_what_one_does_and_fail_together(model_folder, tmp_path, fault):
    run_two_ranks("two_streams.py", tmp_path, model_folder, fault, max_seconds=300)
    results = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    if fault != "none":
        assert results[1]["error"] == ["ZeroDivisionError", f"the {fault} broke"]
        cause = f"Sampling stopped because process 1 failed with: ZeroDivisionError: the {fault} broke"
        assert results[0]["error"] == ["RankFailedError", cause]
        assert [result["num_left"] for result in results] == [0, 0]
        return
    alone = train(tmp_path, model_folder, refill="stream", max_steps=5, per_device_train_batch_size=16, **SHORT)
    assert len(alone.collected) == 5
    for number, (_, batch) in enumerate(alone.collected):
        rows = [row for result in results for row in result["batches"][number]]
        expected = [[rollout.prompt_ids.tolist(), rollout.completion_ids.tolist()] for rollout in batch.rollouts]
        assert sorted(rows) == sorted(expected)
    # Both of them sampled some of it.
    assert all(result["num_sampled"] > 10 for result in results)
