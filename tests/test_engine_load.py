"""How full a colocated engine is, with a scheduler that stands in for vLLM's. A real one is in tests/with_vllm."""

from types import SimpleNamespace

from thread_ranks import run_ranks

from trl_dapo.vllm_engine.engine_load import EngineLoad


class Scheduler:
    """Answers what it was told to."""

    def __init__(self):
        self.decision = [set(), 0.0, (0, 0)]
        self.kv_cache_manager = SimpleNamespace(usage=0.0)

    def schedule(self, throttle_prefills=False):
        preempted, self.kv_cache_manager.usage, _ = self.decision
        return SimpleNamespace(preempted_req_ids=preempted)

    def get_request_counts(self):
        return self.decision[2]

    def make_spec_decoding_stats(self, spec_decoding_stats, num_draft_tokens, num_accepted_tokens, **others):
        return [*(spec_decoding_stats or []), num_draft_tokens, num_accepted_tokens, others]


def engine(scheduler, num_blocks=100, block_size=16, max_num_seqs=64, speculative_config=None):
    config = SimpleNamespace(
        speculative_config=speculative_config,
        cache_config=SimpleNamespace(num_gpu_blocks=num_blocks, block_size=block_size),
        scheduler_config=SimpleNamespace(max_num_seqs=max_num_seqs),
    )
    core = (
        SimpleNamespace() if scheduler is None else SimpleNamespace(engine_core=SimpleNamespace(scheduler=scheduler))
    )
    return SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=config, engine_core=core))


def test_slots_are_those_that_the_cache_carries():
    scheduler = Scheduler()
    load = EngineLoad(engine(scheduler))
    assert load.num_slots == 64
    for num_tokens in (30, 50, 70):
        load.observe_finished(num_tokens)
    # 1,600 tokens at 50 each.
    assert load.num_slots == 32
    scheduler.decision[2] = (20, 3)
    scheduler.schedule()
    assert load.num_slots == 20
    scheduler.decision[2] = (20, 0)
    scheduler.schedule(throttle_prefills=True)
    assert load.num_slots == 32
    # Longer than the whole cache: one at least, or nothing would begin.
    load.observe_finished(10**6)
    assert load.num_slots == 1


def test_metrics_are_those_since_the_last_call_over_all_engines():
    def work(ranks):
        scheduler = Scheduler()
        load = EngineLoad(engine(scheduler))
        # Ranks 0 and 1 share an engine, ranks 2 and 3 another one.
        number = ranks.rank // 2
        for preempted, use in (({"a", "b"}, 0.25), (None, 0.5 + number / 8), ({"a"} if number else set(), 0.125)):
            scheduler.decision = [preempted, use, (1, 0)]
            scheduler.schedule()
        return [load.metrics(ranks, engine_size=2), load.metrics(ranks, engine_size=2)]

    expected = {"vllm/preemptions": 2 + 3, "vllm/kv_cache_use_max": 0.625}
    nothing = {"vllm/preemptions": 0, "vllm/kv_cache_use_max": 0.0}
    assert run_ranks(4, work) == [[expected, nothing]] * 4


def test_of_an_engine_in_another_process_nothing_is_said():
    load = EngineLoad(engine(None))
    assert load.metrics(ranks=None) == {}
    assert load.num_slots == 64


def test_drafts_are_counted_over_all_engines():
    def work(ranks):
        scheduler = Scheduler()
        load = EngineLoad(engine(scheduler, speculative_config="ngram"))
        # Rank 0: 4 sequences, of which one has 2 of its 3 drafts; rank 1: 2 sequences twice, one with all of its 3 drafts.
        for num_running in ((4,), (2, 2))[ranks.rank]:
            scheduler.decision = [None, 0.0, (num_running, 0)]
            scheduler.schedule()
        accepted = 2 + ranks.rank
        stats = scheduler.make_spec_decoding_stats(
            None, num_draft_tokens=3, num_accepted_tokens=accepted, request_id="a"
        )
        # What vLLM makes of them stays.
        assert stats == [3, accepted, {"request_id": "a"}]
        metrics = load.metrics(ranks)
        return metrics, load.metrics(ranks).keys()

    drafts = {"vllm/tokens_per_pass": 1 + 5 / 8, "vllm/frac_drafts_accepted": 5 / 6}
    nothing = {"vllm/preemptions": 0, "vllm/kv_cache_use_max": 0.0}
    assert run_ranks(2, work) == [(nothing | drafts, nothing.keys())] * 2
