"""The benchmark of scaling: the lone rank against ranks that are there, its sums by hand, and what it keeps in check."""

import json
import sys
from collections import Counter
from dataclasses import replace

import pytest
from checkout import ROOT
from simulated_run import Scenario, simulate
from test_stream_refill import streamed, trained_rows
from thread_ranks import ThreadRanks, run_ranks


sys.path.insert(0, str(ROOT / "benchmarks"))

import scaling
import scaling_tables as tables
from lone_rank import LoneRun
from streaming_engines import Setting, StepCost

from trl_dapo.streaming import stream_refill as stream_refill


RESULTS = ROOT / "benchmarks" / "scaling.json"
SETTING = Setting(
    num_groups=16, num_generations=4, num_ranks=4, num_slots=8, rate=0.5, median_tokens=20, sigma_tokens=0.7,
    max_tokens=60, cost=StepCost(1.0, 0.0),
)  # fmt: skip


class CountingRanks(ThreadRanks):
    """Ranks that are there, and count what each of them sends and gets."""

    def _gather(self, tensor):
        self.sent["gather"] += tensor.nbytes * (self.num_ranks - 1)
        self.sent["gathers"] += 1
        gathered = super()._gather(tensor)
        self.received["gather"] += gathered.nbytes - tensor.nbytes
        return gathered

    def _all_to_all(self, send, send_sizes, receive_sizes):
        received = super()._all_to_all(send, send_sizes, receive_sizes)
        self.sent["move"] += send.nbytes
        self.received["move"] += received.nbytes
        return received


@pytest.mark.bench
@pytest.mark.parametrize("options", [{}, {"surplus": "carry"}], ids=["requeue", "carry"])
def test_lone_rank_sends_and_decides_what_a_rank_among_others_does(options):
    def batches(run):
        return [[group.draw.position for group in run.next_batch(number).accepted] for number in range(3)]

    def work(ranks):
        ranks.__class__ = CountingRanks
        ranks.sent, ranks.received = Counter(), Counter()
        trained = batches(LoneRun(SETTING, ranks=ranks, use_vllm=True, **options))
        return trained, ranks.sent, ranks.received

    trained, sent, received = run_ranks(SETTING.num_ranks, work)[0]
    lone = LoneRun(SETTING, use_vllm=True, **options)
    assert batches(lone) == trained
    assert (lone.ranks.sent, lone.ranks.received) == (sent, received)
    assert sent["move"] > 0


@pytest.mark.bench
@pytest.mark.parametrize("surplus", ["requeue", "carry"])
def test_lone_rank_streams_the_first_informative_groups(surplus):
    run = LoneRun(replace(SETTING, num_ranks=64), use_vllm=True, refill="stream", surplus=surplus)
    trained = [group.draw.position for number in range(3) for group in run.next_batch(number).accepted]
    informative = [position for position in range(trained[-1] + 1) if run.outcomes.is_informative(position)]
    assert trained == informative[: 3 * SETTING.num_groups]


def test_an_exchange_of_many_ranks_is_not_much_larger_than_one_of_few():
    """Each rank reads the news of all ranks between two steps of its engine."""
    sizes = {}
    for num_ranks in (32, 1024):
        setting = replace(SETTING, num_groups=256, num_ranks=num_ranks)
        run = LoneRun(setting, use_vllm=True, refill="stream")
        run.next_batch(0)
        sizes[num_ranks] = run.ranks.received["exchange"] / run.ranks.sent["exchanges"]
    # 33 rows of two int64 from each of 31 ranks; 2 rows from each of 1,023.
    assert sizes == {32: 31 * 33 * 16, 1024: 1023 * 2 * 16}


def test_news_that_find_no_room_wait_for_the_next_exchange(monkeypatch):
    scenario = Scenario(
        num_ranks=2, num_generations=4, num_groups=8, num_rows=50, num_batches=3, outcomes=("mixed", "all wrong"),
        options={"surplus": "requeue"}, num_slots=40,
    )  # fmt: skip
    rounds = simulate(scenario)
    monkeypatch.setattr(stream_refill, "_NEWS_PER_EXCHANGE", 1)
    streams = simulate(streamed(scenario))
    assert [trained_rows(records) for records in streams] == [trained_rows(records) for records in rounds]


def test_assembly_on_many_ranks_walks_over_the_rollouts_once(monkeypatch):
    """It walked over them once for each rank, for seconds. Counted and not timed: how often a move is looked at."""
    from trl_dapo.refill import assembly

    looks = Counter()

    class CountedMove(assembly.Move):
        @property
        def target(self):
            looks["target"] += 1
            return self[3]

    place = assembly.place_groups
    monkeypatch.setattr(
        assembly, "place_groups", lambda *args, **kwargs: [CountedMove(*m) for m in place(*args, **kwargs)]
    )
    run = LoneRun(replace(SETTING, num_ranks=64), use_vllm=True)
    run.next_batch(0)
    rows = SETTING.num_groups * SETTING.num_generations
    assert rows < looks["target"] <= 8 * rows


@pytest.mark.bench
def test_budget_of_a_step_by_hand():
    model = {"ranks_per_engine": 1, "tokens_per_second": 100, "parameters": 4e9}
    assumed = {
        "models": {"m": model}, "batch": {"num_generations": 4}, "training_flops_per_rank": 1e12, "ranks_per_node": 8,
        "bytes_per_second_of_a_node": 1e6, "collective_seconds_per_rank": 1e-3, "bytes_of_text_per_token": 4,
        "collectives_of_trl": {"round": 4, "batch": 12}, "seconds_of_a_step_with_one_sequence": 0.02,
    }  # fmt: skip
    work = {
        "ranks": 10, "policy": "rounds", "prompts": 25, "rounds": 2, "sent": {"gathers": 2},
        "seconds": {"plan": 0.5, "judge groups": 0.25, "not ours": 9.0}, "received": {"gather": 1000, "move": 500},
    }  # fmt: skip
    decoding = {
        "model": "m", "ranks": 10, "policy": "rounds", "seconds": 50.0, "busy_seconds": 20.0, "trained_tokens": 5000,
        "padding_of_texts": 1.5,
    }  # fmt: skip
    record = {"assumed": assumed, "rank_work": [work], "seconds_to_grade": 0.1, "seconds_to_unpickle_a_byte": 1e-5}
    parts = tables.budget(record, decoding)
    assert parts == {
        "decoding": 20.0,
        "longest completions": 30.0,
        "grading": pytest.approx(10 * 0.1),  # 25 x 4 completions on 10 ranks
        "decisions": 0.75,
        "texts": pytest.approx(30_000 * 1e-5),  # 5,000 tokens of 4 bytes, padded to 1.5
        # 31,500 bytes for each of 8 ranks of a node; 2 x 4 + 12 + 2 + 1 collectives of 10 ms.
        "network": pytest.approx(31_500 * 8 / 1e6 + 23 * 0.01),
        "training": pytest.approx(10 * 4e9 * 5000 / 10 / 1e12),
    }
    assert tables.largest(parts) == "longest completions"
    # Streaming: 50 s are at most 2,500 steps, each with an exchange of 2 ms; grading is hidden.
    work |= {"policy": "stream", "sent": {"exchanges": 100}, "seconds": {"plan": 0.5, "exchanges": 0.2}}
    parts = tables.budget(record, decoding | {"policy": "stream"})
    assert parts["decisions"] == pytest.approx(0.5 + 2500 * 0.002)
    assert parts["grading"] == 0.0

    # Overlapped: 4 of the 10 ranks sample, which takes what was simulated; the other 6 train.
    overlapping = decoding | {"policy": "stream", "sampling": 4}
    sampling, training = tables.overlapped(record, overlapping)
    assert sampling == pytest.approx(50.0 + 0.5 + 2500 * 0.002)
    collectives = (2 * 4 + 12 + 1) * 6 * 1e-3
    assert training == pytest.approx(0.3 + 31_500 * 8 / 1e6 + collectives + 10 * 4e9 * 5000 / 6 / 1e12)
    # Of two shares the one that is done first, beside the same work in turn.
    slow = overlapping | {"sampling": 8, "seconds": 30.0}
    record |= {"overlap": [overlapping, slow], "decoding": [decoding | {"policy": "stream"}]}
    in_turn = 50.0 + 5.5 + 0.3 + 31_500 * 8 / 1e6 + 21 * 0.01 + 20.0
    assert tables.best_in_turn(record, slow) == pytest.approx(in_turn)
    assert tables.overlap_table(record, "m").splitlines()[2:] == [
        f"| 10 | stream | {in_turn:.0f} | 4 | {sampling:.0f} | {training:.0f} | {sampling:.0f} | {in_turn / sampling:.2f} |"
    ]


def test_overlap_is_simulated_for_whole_engines_and_fewer_ranks_sample_for_longer(monkeypatch):
    monkeypatch.setitem(scaling.PAPER, "num_groups", 16)
    monkeypatch.setattr(scaling, "OVERLAPPED", ("stream",))
    rows = scaling.simulate_overlap([8])
    shares = {model: [row["sampling"] for row in rows if row["model"] == model] for model in scaling.ASSUMED["models"]}
    # Two engines on 4 ranks: one of them samples.
    assert list(shares.values()) == [[2, 4, 5, 6], [4]]
    busy = [row["busy_seconds"] for row in rows if row["ranks"] == 8][:4]
    tokens = [row["tokens"] for row in rows][:4]
    assert busy == pytest.approx(
        [made / count / 5000 for made, count in zip(tokens, (2, 4, 5, 6), strict=True)], abs=0.01
    )
    assert busy == sorted(busy, reverse=True)


def test_bytes_on_the_wire_were_those_that_are_counted():
    record = json.loads(RESULTS.read_text())
    assert [row["ranks"] for row in record["wire"]] == [2, 4]
    for row in record["wire"]:
        # Headers, and nothing else, on top.
        assert row["counted"] < row["seen"] < 1.05 * row["counted"]
        assert row["moved"] > 0


def test_documentation_shows_the_tables_of_the_stored_results():
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    for block in tables.markdown(json.loads(RESULTS.read_text())).split("\n\n"):
        assert block in readme
