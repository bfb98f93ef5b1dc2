"""Completions from servers: retries that repeat nothing, backpressure, withdrawal, and answers that are none."""

import contextlib
import fcntl
import gc
import resource
import socket
import threading
import time

import numpy as np
import pytest
import torch
from scripted_server import ScriptedServer, dice

from trl_dapo.errors import VLLMServerError
from trl_dapo.sampling.prompt_stream import SequenceKey
from trl_dapo.vllm_server import server_requests
from trl_dapo.vllm_server.connection import NoAnswerError, Server
from trl_dapo.vllm_server.server_requests import ServerRequests, run_to_end
from trl_dapo.vllm_server.servers import Servers
from trl_dapo.vllm_server.weight_folder import WeightFolder


PROMPTS = {SequenceKey(group, sample): [3 + group, 4] for group in range(12) for sample in range(4)}


def content(key, num_tokens):
    return {"max_tokens": 8 - num_tokens, "seed": 1000 * key.position + 10 * key.sample + num_tokens}


def expected(key, prefix=()):
    sent = content(key, len(prefix))
    ids, logps = dice([*PROMPTS[key], *prefix], sent["seed"], sent["max_tokens"])
    return ids, np.float32(logps).tolist()


def engine_on(*served, timeout=20.0, token=None, **options):
    servers = Servers([one.address for one in served], timeout, token)
    servers.find()
    return ServerRequests(servers, content, lambda: None, **options)


def assert_all_came(found):
    assert {key: (one.token_ids.tolist(), one.logps.tolist()) for key, one in found.items()} == {
        key: expected(key) for key in PROMPTS
    }
    assert all(one.is_finished for one in found.values())


def test_completions_are_those_of_the_server_and_never_more_at_once_than_it_has_slots():
    with ScriptedServer(num_slots=5, seconds=0.01) as served:
        engine = engine_on(served)
        assert engine.num_slots == 5
        assert_all_came(run_to_end(engine, PROMPTS.items()))
    assert 1 < served.most_running <= 5
    assert len(served.asked) == len(PROMPTS)


def test_ranks_share_the_slots_of_a_server():
    with ScriptedServer(num_slots=6) as served:
        assert engine_on(served, num_ranks=4).num_slots == 1


@pytest.mark.fault(
    "a vLLM server answers with status 500, breaks off, or sends half an answer",
    "sampling",
    "asked again with the same seed; each completion comes once",
)
@pytest.mark.parametrize(
    "fault",
    ["500", "silent", "headless", "reset", "half", "half line", "half line, closed", "half chunk", "abort", "error"],
)
def test_completion_that_breaks_off_is_asked_for_again_with_its_seed_and_comes_once(fault):
    with ScriptedServer() as served:
        served.faults += [None, fault, fault, None, fault]
        assert_all_came(run_to_end(engine_on(served), PROMPTS.items()))
    seeds = [one["seed"] for one in served.asked]
    assert len(seeds) == len(PROMPTS) + 3
    assert set(seeds) == {content(key, 0)["seed"] for key in PROMPTS}
    # Each attempt has an id of its own, and what the broken one may still decode is ended by its.
    assert len({one["request_id"] for one in served.asked}) == len(served.asked)
    sent = {f"cmpl-{one['request_id']}-0" for one in served.asked}
    assert len(served.ended) == 3
    assert sent > set(served.ended)


@pytest.mark.fault(
    "a vLLM server sends broken or huge events, too many tokens, tokens of another model, or impossible log-probabilities",
    "sampling",
    "`VLLMServerError` that names it",
)
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("400", "refused a request with status 400"),
        ("garbage", "an event that is no JSON object"),
        ("huge", "bytes for one completion"),
        ("many", "more than the 8 tokens that were asked for"),
        ("foreign", "a token that the model does not have"),
        ("positive", "a log-probability that is none"),
        ("nan", "a log-probability that is none"),
    ],
)
def test_answer_that_no_server_of_the_model_gives_is_an_error_that_names_the_server(fault, message):
    with ScriptedServer() as served:
        served.faults += [None, None, fault]
        with pytest.raises(VLLMServerError, match=message) as raised:
            run_to_end(engine_on(served), PROMPTS.items())
    assert served.address in str(raised.value)
    assert len(str(raised.value)) < 1000


@pytest.mark.fault("a vLLM server hangs", "sampling", "`VLLMServerError` after `vllm_server_timeout`")
def test_server_that_hangs_is_lost_after_the_timeout_and_the_error_says_how_long():
    with ScriptedServer(num_slots=2) as served:
        engine = engine_on(served, timeout=1.0)
        served.faults += ["hang"] * 2
        start = time.monotonic()
        with pytest.raises(VLLMServerError, match=r"has not answered for vllm_server_timeout=1 seconds"):
            run_to_end(engine, PROMPTS.items())
        assert time.monotonic() - start < 10
        assert engine.num_unfinished == 0


@pytest.mark.fault("a vLLM server is slow", "sampling", "waited for as long as tokens come")
def test_slow_server_is_waited_for_as_long_as_tokens_come():
    with ScriptedServer(num_slots=1, seconds=0.3) as served:
        few = {key: prompt for key, prompt in PROMPTS.items() if key.position < 2}
        found = run_to_end(engine_on(served, timeout=1.0), few.items())
    assert {key: one.token_ids.tolist() for key, one in found.items()} == {key: expected(key)[0] for key in few}


def test_silence_while_nothing_is_asked_is_no_sign_of_a_lost_server():
    with ScriptedServer(num_slots=2, seconds=0.2) as served:
        engine = engine_on(served)
        for _ in range(2):
            for key in list(PROMPTS)[:6]:
                engine.submit(key, PROMPTS[key], [])
            engine.step()
            engine.withdraw(PROMPTS)
            for server in engine.servers.all:
                server.last_heard -= 100  # as if time went by
        found = run_to_end(engine, [(key, PROMPTS[key]) for key in list(PROMPTS)[:2]])
    assert [one.token_ids.tolist() for one in found.values()] == [expected(key)[0] for key in found]


def test_groups_of_a_server_that_hangs_go_to_the_other_at_once():
    with ScriptedServer(num_slots=8) as one, ScriptedServer(num_slots=8, seconds=0.05) as other:
        engine = engine_on(one, other, timeout=3.0)
        one.faults += ["hang"] * 100
        start = time.monotonic()
        assert_all_came(run_to_end(engine, PROMPTS.items()))
        assert time.monotonic() - start < 10
        assert [server.is_lost for server in engine.servers.all] == [True, False]


def test_server_that_starts_again_right_after_it_said_its_version_is_sent_nothing_before_it_has_the_weights(tmp_path):
    with ScriptedServer() as served:
        # Tokens that hang on the weights.
        served.engine = lambda prompt, seed, max_tokens: dice([*prompt, served.version], seed, max_tokens)
        engine = engine_on(served)
        folder = WeightFolder(str(tmp_path))
        weights = folder.write([("one", torch.ones(2))])
        engine.servers.load(weights)
        engine.servers.distrust(engine.servers.all[0])
        served.faults_of["dapo_state"].append("restart behind")
        found = run_to_end(engine, PROMPTS.items())
    assert served.loaded == [weights.version] * 2
    assert {key: one.token_ids.tolist() for key, one in found.items()} == {
        key: dice([*prompt, weights.version], content(key, 0)["seed"], 8)[0] for key, prompt in PROMPTS.items()
    }


def test_server_that_is_started_again_within_the_timeout_goes_on():
    with ScriptedServer(seconds=0.2) as served:
        engine = engine_on(served)
        for key, prompt in PROMPTS.items():
            engine.submit(key, prompt, [])
        time.sleep(0.1)
        served.restart(seconds=0.5)
        found = {}
        while engine.num_unfinished:
            found |= engine.step()
        assert_all_came(found)


def test_each_group_is_on_one_server_and_both_servers_have_some():
    with ScriptedServer(num_slots=8, seconds=0.02) as one, ScriptedServer(num_slots=8, seconds=0.02) as other:
        assert_all_came(run_to_end(engine_on(one, other), PROMPTS.items()))
        groups = [{asked["seed"] // 1000 for asked in served.asked} for served in (one, other)]
    assert groups[0] | groups[1] == set(range(12))
    assert not groups[0] & groups[1]
    assert all(groups)


def open_sockets_to(served):
    """The sockets of this process that are connected to a server."""

    def is_one(thing):
        if not isinstance(thing, socket.socket):
            return False
        with contextlib.suppress(OSError):  # closed, or connected to nothing
            return thing.getpeername()[:2] == ("127.0.0.1", served.port)
        return False

    return [thing for thing in gc.get_objects() if is_one(thing)]


def test_threads_that_have_nothing_to_read_end_and_others_are_started_when_there_is(monkeypatch):
    monkeypatch.setattr(server_requests, "_IDLE_SECONDS", 0.05)
    before = set(threading.enumerate())

    def readers():
        return [thread for thread in set(threading.enumerate()) - before if thread.name == "server"]

    with ScriptedServer(num_slots=8, seconds=0.02) as served:
        engine = engine_on(served)
        for _ in range(2):
            assert_all_came(run_to_end(engine, PROMPTS.items()))
            for thread in readers():
                thread.join(timeout=30)
            assert not readers()
            assert not open_sockets_to(served)


@pytest.mark.fault("one of two vLLM servers dies", "sampling", "its groups are sampled on the other, the same tokens")
def test_groups_of_a_lost_server_are_sampled_whole_and_alike_on_the_other():
    with ScriptedServer(num_slots=8, seconds=0.05) as one, ScriptedServer(num_slots=8, seconds=0.05) as other:
        engine = engine_on(one, other, timeout=3.0)
        for key, prompt in PROMPTS.items():
            engine.submit(key, prompt, [])
        one.close()
        found = {}
        while engine.num_unfinished:
            found |= engine.step()
        assert_all_came(found)
        assert [server.is_lost for server in engine.servers.all] == [True, False]


def test_withdrawn_completions_keep_what_came_and_end_on_the_server():
    with ScriptedServer(num_slots=4, seconds=1.0) as served:
        engine = engine_on(served)
        for key, prompt in PROMPTS.items():
            engine.submit(key, prompt, [])
        deadline = time.monotonic() + 20
        while not any(one.token_ids for one in engine._completions.values()):
            assert time.monotonic() < deadline
            engine.step()
        withdrawn = engine.withdraw([*PROMPTS, SequenceKey(99, 0)])
        assert engine.num_unfinished == 0
        assert withdrawn.keys() == PROMPTS.keys()
        begun = {key: one for key, one in withdrawn.items() if len(one.token_ids)}
        assert 1 <= len(begun) <= 4
        for key, one in begun.items():
            ids, logps = expected(key)
            found_ids, found_logps = one.token_ids.tolist(), one.logps.tolist()
            assert (found_ids, found_logps) == (ids[: len(found_ids)], logps[: len(found_ids)])
            assert one.is_finished == (found_ids == ids)
        # They go on from there as new requests.
        later = {key: one for key, one in begun.items() if not one.is_finished}
        for key, one in later.items():
            engine.submit(key, PROMPTS[key], one.token_ids.tolist())
        found = {}
        while engine.num_unfinished:
            found |= engine.step()
        assert {key: one.token_ids.tolist() for key, one in found.items()} == {
            key: expected(key, one.token_ids.tolist())[0] for key, one in later.items()
        }


def test_completion_that_finished_before_it_was_withdrawn_says_so():
    with ScriptedServer() as served:
        engine = engine_on(served)
        key = SequenceKey(1, 2)
        engine.submit(key, PROMPTS[key], [])
        completion = engine._completions[key]
        deadline = time.monotonic() + 20
        while not completion.is_finished:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        ids, logps, is_finished = engine.withdraw([key])[key]
        assert (ids.tolist(), logps.tolist(), is_finished) == (*expected(key), True)
        assert engine.step() == {}


def test_context_of_the_server_ends_a_completion():
    with ScriptedServer(context=6) as served:
        engine = engine_on(served)
        found = run_to_end(engine, [(SequenceKey(0, 0), [3, 4, 5])])
        assert served.asked[0]["max_tokens"] == 3
    assert len(found[SequenceKey(0, 0)].token_ids) <= 3


@pytest.mark.parametrize(("most", "size"), [(8, 16), (8_192, 32), (20_480, 64)])
def test_withdrawing_loses_few_tokens_of_a_long_completion_and_few_parts_have_most_of_it(most, size):
    with ScriptedServer(context=most + 2) as served:
        served.tokens_per_event = None
        engine = engine_on(served)
        engine.content = lambda key, num_tokens: {"max_tokens": most, "seed": 1}
        run_to_end(engine, [(SequenceKey(0, 0), [3, 4])])
    assert served.asked[0]["stream_interval"] == size


def test_token_is_sent_and_its_lack_is_named():
    with ScriptedServer(token="secret") as served:
        assert_all_came(run_to_end(engine_on(served, token="secret"), PROMPTS.items()))
        with pytest.raises(VLLMServerError, match="Set VLLM_API_KEY to the token"):
            engine_on(served)


@pytest.mark.fault(
    "there is no vLLM server",
    "start",
    "a line at once; `VLLMServerError` after 15 s, or after `vllm_server_timeout` where one may come",
)
def test_no_server_is_said_at_once_and_with_what_helps(free_port):
    lines = []
    servers = Servers([f"http://127.0.0.1:{free_port}"], timeout=0.5)
    with pytest.raises(VLLMServerError, match="trl-dapo serve MODEL"):
        servers.find(say=lines.append)
    assert len(lines) == 1
    assert f"http://127.0.0.1:{free_port}" in lines[0]


def test_server_without_the_extension_is_refused_with_what_helps():
    with ScriptedServer() as served:
        served.has_extension = False
        with pytest.raises(VLLMServerError, match=r"cannot be given weights .*--worker-extension-cls"):
            engine_on(served)


def test_server_that_drafts_tokens_is_refused_with_what_helps():
    with ScriptedServer() as served:
        served.drafts = True
        with pytest.raises(
            VLLMServerError, match=r"drafts tokens \(--speculative-config\).* set vllm_mode=\"colocate\""
        ):
            engine_on(served)


@pytest.fixture
def free_port():
    served = ScriptedServer()
    served.close()
    return served.port


def test_connections_are_used_again_where_a_process_has_more_than_a_thousand_files():
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit < 1200:
        if most < 1200:
            pytest.skip("this machine allows no more than a thousand files")
        resource.setrlimit(resource.RLIMIT_NOFILE, (1200, most))
    with ScriptedServer() as served:
        server = Server(served.address, timeout=5.0)
        connection = server.take()
        connection._socket = socket.socket(fileno=fcntl.fcntl(connection._socket, fcntl.F_DUPFD, 1100))
        server.give_back(connection)
        assert server.take() is connection
        server.give_back(connection)
        served.close()
        with pytest.raises(NoAnswerError):
            server.take()
        connection._socket.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
