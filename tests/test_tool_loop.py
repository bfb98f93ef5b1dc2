"""The turns after the first one, on ranks that are threads: seeds, turns of others, and failures."""

import threading
from types import SimpleNamespace

import pytest
from thread_ranks import run_ranks

from trl_dapo.errors import RankFailedError
from trl_dapo.sampling.prompt_stream import SequenceKey
from trl_dapo.turns.tool_loop import ToolLoop


class Seams(SimpleNamespace):
    """What the loop uses of the trainer."""

    def __init__(self, shares_engine=False, calls_together=False, most_rows=100, is_multimodal=False):
        super().__init__(shares_engine=shares_engine, calls_together=calls_together, is_multimodal=is_multimodal)
        self.named, self.most_rows = [], most_rows

    def name_requests(self, keys, lengths):
        self.named.append((list(keys), list(lengths)))

    def rows_at_once(self, num_rows):
        return min(num_rows, self.most_rows)


def looping(loop, turns, fails_at=None):
    """Returns a stand-in for TRL's loop: in turn t the rows of `turns[t]` go on, each with what is said so far and a tool."""

    def run(prompts, prompt_ids, completion_ids, *rest):
        for turn, rows in enumerate(turns):
            if turn == fails_at:
                raise OSError("no tool")
            ids, logps = loop.sample(
                lambda prompts: ([[7, 8] for _ in prompts], [[-1.0, -2.0] for _ in prompts]),
                [prompt_ids[row] + completion_ids[row] + [9] for row in rows],
            )
            assert (len(ids), len(logps)) == (len(rows), len(rows))
            for row, said in zip(rows, ids, strict=True):
                completion_ids[row] = completion_ids[row] + [9] + said
        return [], [], completion_ids, None, 3 * len(turns), len(turns), []

    return run


def run_loop(ranks, seams, turns, fails_at=None, keys=()):
    loop, sampled = ToolLoop(seams, ranks), []
    loop.keys = keys
    prompt_ids = [[1], [1, 2], [1]]
    sample = loop.sample

    def sample_and_record(generate, prompts):
        return sample(lambda prompts: (sampled.append(prompts), generate(prompts))[1], prompts)

    loop.sample = sample_and_record
    loop.run(
        looping(loop, turns, fails_at),
        [],
        prompt_ids,
        [[3], [4], [3]],
        sample_filler=lambda prompts: (sampled.append(prompts), ([], None))[1],
    )
    assert all(type(ids) is list for ids in prompt_ids)
    assert not loop.is_running
    return loop, sampled


class AloneRank:
    rank, num_ranks = 0, 1


def test_later_turns_are_named_by_their_completions_also_where_texts_are_equal():
    seams = Seams()
    keys = [SequenceKey(5, sample) for sample in range(3)]
    # Rows 0 and 2 are equal so far, and only row 2 goes on.
    loop, sampled = run_loop(AloneRank(), seams, turns=[[1, 2], [2]], keys=keys)
    assert seams.named == [([keys[1], keys[2]], [2, 2]), ([keys[2]], [5])]
    assert sampled == [[[1, 2, 4, 9], [1, 3, 9]], [[1, 3, 9, 7, 8, 9]]]
    assert (loop.num_calls, loop.num_failed_calls) == (6, 2)


TURNS = [[[0, 1, 2], [1]], []], [[[0]], [[0, 2], [0, 2], [2]]]


@pytest.mark.parametrize("turns", TURNS, ids=str)
@pytest.mark.parametrize(
    "seams",
    [{"shares_engine": True}, {"calls_together": True}, {"calls_together": True, "most_rows": 2}],
    ids=str,
)
def test_ranks_that_generate_together_take_the_same_turns(turns, seams):
    found = run_ranks(2, lambda ranks: run_loop(ranks, Seams(**seams), turns[ranks.rank])[1])
    sizes = [[len(prompts) for prompts in sampled] for sampled in found]
    assert len(sizes[0]) == len(sizes[1]) == max(map(len, turns))
    for turn in range(len(sizes[0])):
        mine = [len(rank[turn]) if turn < len(rank) else 0 for rank in turns]
        cuts = "most_rows" in seams and max(mine) > seams["most_rows"]
        expected = [max(mine)] * 2 if "shares_engine" in seams or cuts else [max(1, count) for count in mine]
        assert [rank[turn] for rank in sizes] == expected


@pytest.mark.fault(
    "generation fails between two turns on one of two ranks",
    "sampling",
    "its error there, `RankFailedError` with the cause on the other",
)
@pytest.mark.parametrize("seams", [{}, {"shares_engine": True}], ids=str)
def test_a_rank_that_fails_between_turns_tells_the_others(seams):
    errors = [None, None]
    num_threads = threading.active_count()

    def work(ranks):
        try:
            run_loop(ranks, Seams(**seams), [[0], [0], [0]], fails_at=1 if ranks.rank == 1 else None)
        except Exception as error:
            errors[ranks.rank] = error

    run_ranks(2, work)
    assert isinstance(errors[0], RankFailedError)
    assert errors[0].rank == 1
    assert str(errors[1]) == "no tool"
    assert threading.active_count() <= num_threads


def test_rows_with_images_have_no_fillers():
    found = run_ranks(2, lambda ranks: run_loop(ranks, Seams(shares_engine=True, is_multimodal=True), [[0], [1]])[1])
    assert [[len(prompts) for prompts in sampled] for sampled in found] == [[1, 1], [1, 1]]


def test_an_image_of_a_tool_where_none_may_be_ends_all_ranks():
    errors = [None, None]

    def work(ranks):
        loop = ToolLoop(Seams(), ranks)
        loop.takes_images = False
        images = [["a picture"]] if ranks.rank else [[]]
        try:
            loop.run(lambda *_: ([], [], [], None, 1, 0, images), [], [[1]], [[2]], sample_filler=None)
        except (ValueError, RankFailedError) as error:
            errors[ranks.rank] = error

    run_ranks(2, work)
    assert isinstance(errors[0], RankFailedError)
    assert "A tool returned an image" in str(errors[1])
