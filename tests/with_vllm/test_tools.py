"""Tools with a real vLLM: its log-probabilities of what the model wrote, in every turn, and the seeds of the turns."""

import json

import pytest
from engine_with_tools import save_chat_model, train, what_rounds_show
from launched import run_two_ranks


pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

ROUNDING = 1e-4


def test_each_turn_of_a_real_engine_is_seeded_and_its_log_probabilities_are_those_of_the_policy(tmp_path):
    save_chat_model(tmp_path / "model")
    trainer = train(tmp_path)
    assert {1, 2, 3} <= {entry["step"] for entry in trainer.state.log_history}
    rounds = what_rounds_show(trainer)
    for shown in rounds:
        assert shown["seeds"] == shown["expected_seeds"]
    assert sum(number - 1 for shown in rounds for number in shown["num_turns"]) > 10
    assert max(shown["gap"] for shown in rounds) < ROUNDING
    assert all(entry["dapo/vllm/logp_gap"] < ROUNDING for entry in trainer.state.log_history if "loss" in entry)


@pytest.mark.distributed
@pytest.mark.supports("tools", "vllm")
def test_two_ranks_with_engines_of_their_own_take_different_numbers_of_turns(tmp_path):
    save_chat_model(tmp_path / "model")
    run_two_ranks("engine_with_tools.py", tmp_path)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert len(ranks[0]["rounds"]) == len(ranks[1]["rounds"]) >= 3
    for rank in ranks:
        assert rank["num_processes"] == 2
        for shown in rank["rounds"]:
            # vLLM is called once for each turn that this rank needs, whatever the other one does.
            assert shown["seeds"] == shown["expected_seeds"]
        assert max(shown["gap"] for shown in rank["rounds"]) < ROUNDING
        assert max(rank["canary"]) < ROUNDING
    longest = [[max(shown["num_turns"]) for shown in rank["rounds"]] for rank in ranks]
    assert longest[0] != longest[1]
