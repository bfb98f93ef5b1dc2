import pytest
from test_trainer import RecordingTrainer
from tiny import first_token_reward, numbered_prompts, tiny_model, tiny_tokenizer, training_arguments

from trl_dapo import DAPOConfig
from trl_dapo.refill.iterable_stream import IterablePromptStream


def rows(stream, num_draws):
    return [stream.row_of(draw)["row"] for draw in stream.peek(num_draws)]


def make_stream(shuffle=True):
    return IterablePromptStream(numbered_prompts(10).to_iterable_dataset(), seed=3, shuffle=shuffle)


def test_every_pass_holds_every_row_once_in_an_order_of_its_own():
    drawn = rows(make_stream(), 30)
    passes = [drawn[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(part) == list(range(10)) for part in passes)
    assert len({tuple(part) for part in passes}) == 3


def test_stream_goes_back_to_what_is_not_forgotten():
    stream = make_stream(shuffle=False)
    stream.seek(4)
    stream.peek(12)
    stream.seek(6)
    stream.forget_before(6)
    assert rows(stream, 5) == [6, 7, 8, 9, 0]
    assert len(stream._rows) == 10
    with pytest.raises(KeyError):
        stream._rows[5]


def test_saved_stream_continues_in_the_middle_of_a_pass():
    stream = make_stream()
    expected = rows(stream, 40)
    stream.seek(27)
    resumed = make_stream()
    resumed.load_state_dict(stream.state_dict())
    assert resumed.position == 27
    assert resumed.num_passes == 2
    assert rows(resumed, 13) == expected[27:]


def test_state_can_be_taken_from_before_the_position():
    stream = make_stream()
    expected = rows(stream, 30)
    stream.seek(25)
    resumed = make_stream()
    resumed.load_state_dict(stream.state_dict(position=18))
    assert rows(resumed, 12) == expected[18:]


def test_empty_stream_is_refused():
    stream = IterablePromptStream(numbered_prompts(10).to_iterable_dataset().filter(lambda row: False))
    with pytest.raises(ValueError, match="gave no rows in a whole pass"):
        stream.peek(1)


@pytest.mark.supports("iterable")
@pytest.mark.parametrize("surplus", ["requeue", "carry"])
def test_trainer_trains_on_an_iterable_dataset(tmp_path, surplus):
    trainer = RecordingTrainer(
        model=tiny_model(),
        reward_funcs=first_token_reward,
        args=DAPOConfig(**training_arguments(tmp_path, max_steps=6, surplus=surplus)),
        train_dataset=numbered_prompts(30).to_iterable_dataset(),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    expected = IterablePromptStream(numbered_prompts(30).to_iterable_dataset(), seed=7)
    order = rows(expected, 500)
    sampled_rows = [row for rounds, _, _ in trainer.batches for rows_, _, _ in rounds for row in rows_[::4]]
    if surplus == "carry":
        # Nothing is given back, so nothing is sampled twice.
        assert sampled_rows == order[: len(sampled_rows)]
    assert set(sampled_rows) <= set(order)
    for rounds, (trained_rows, rewards, _), _ in trainer.batches:
        assert rounds == [] or rounds[0][0][0] in order
        for start in range(0, 8, 4):
            assert 0 < sum(reward[0] for reward in rewards[start : start + 4]) < 4
            assert len(set(trained_rows[start : start + 4])) == 1
