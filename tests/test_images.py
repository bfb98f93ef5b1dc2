"""Prompts with images under dynamic sampling: every row is sampled and trained with the picture that is its own."""

import pytest
import torch
from datasets import IterableDataset
from test_trainer import RecordingTrainer
from tiny import first_token_reward, training_arguments
from tiny_vlm import coloured_squares, tiny_processor, tiny_vlm

from trl_dapo import DAPOConfig
from trl_dapo.refill.image_prompts import check_image_options, with_images


NUM_ROWS = 20


def in_column():
    return coloured_squares(NUM_ROWS)


def in_turns():
    """The same pictures, where the conversation has them, in a dataset that knows nothing of its columns."""

    def rows():
        for row in coloured_squares(NUM_ROWS):
            text = {"type": "text", "text": row["prompt"][0]["content"]}
            turn = {"role": "user", "content": [{"type": "image", "image": row["image"]}, text]}
            yield {"prompt": [turn], "row": row["row"]}

    return IterableDataset.from_generator(rows)


def make_trainer(tmp_path, dataset, reward=first_token_reward, **overrides):
    return RecordingTrainer(
        model=tiny_vlm(),
        reward_funcs=reward,
        args=DAPOConfig(**training_arguments(tmp_path, **overrides)),
        train_dataset=dataset,
        processing_class=tiny_processor(),
    )


def by_place(completion_ids, **kwargs):
    return [float(place % 2) for place in range(len(completion_ids))]


def inputs_of(row, image_row):
    squares, processor = coloured_squares(NUM_ROWS), tiny_processor()
    text = "<image>" + squares[row]["prompt"][0]["content"]
    return processor(images=[squares[image_row]["image"]], text=[text], return_tensors="pt")


@pytest.mark.supports("images")
@pytest.mark.parametrize("dataset", [in_column, in_turns])
def test_every_row_is_sampled_with_its_own_picture(tmp_path, dataset):
    # Greedy, so that a completion shows what the model saw; mixed by its place in the group.
    trainer = make_trainer(
        tmp_path, dataset(), by_place, generation_kwargs={"do_sample": False}, max_steps=1, max_prompts_per_round=5,
        refill_confidence=0.999,
    )  # fmt: skip
    num_rows = []
    generate = trainer.model.generate
    trainer.model.generate = lambda *args, **kwargs: (
        num_rows.append(len(kwargs["input_ids"])) or generate(*args, **kwargs)
    )
    trainer.train()
    assert len(num_rows) > 1, "the round is no longer larger than what is sampled at once"
    assert max(num_rows) <= 8
    (_, (rows, rewards, completion_ids), _) = trainer.batches[0]
    assert [reward[0] for reward in rewards] == [0.0, 1.0, 0.0, 1.0] * 2
    model = tiny_vlm()

    def greedy(row, image_row):
        inputs = inputs_of(row, image_row)
        return model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()

    assert completion_ids == [greedy(row, row) for row in rows]
    assert any(greedy(row, other) != greedy(row, row) for row in rows[::4] for other in range(NUM_ROWS))


@pytest.mark.supports("images")
@pytest.mark.parametrize("dataset", [in_column, in_turns])
def test_every_row_is_trained_with_its_own_picture(tmp_path, dataset):
    sgd = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    trainer = make_trainer(tmp_path, dataset(), max_steps=1, **sgd)
    trainer.train()
    (_, (rows, _, completion_ids), output) = trainer.batches[0]
    model = tiny_vlm()
    objective = 0.0
    for row, ids, advantage in zip(rows, completion_ids, output["advantages"].tolist(), strict=True):
        inputs = inputs_of(row, row)
        input_ids = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
        logits = model(input_ids=input_ids, pixel_values=inputs["pixel_values"]).logits[0, -len(ids) - 1 : -1]
        logps = logits.log_softmax(-1).gather(1, torch.tensor(ids).unsqueeze(1))
        objective = objective + advantage * logps.sum()
    (-objective / sum(map(len, completion_ids))).backward()
    trained = dict(trainer.model.named_parameters())
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name, parameter in model.named_parameters():
        expected = parameter.detach() - 0.1 * gradients.get(name, torch.zeros_like(parameter))
        torch.testing.assert_close(trained[name].detach(), expected, rtol=1e-4, atol=1e-6)
    # The gradient reaches the eyes.
    (name,) = [name for name in gradients if name.endswith("patch_embedding.weight")]
    assert 0.1 * gradients[name].abs().max() > 1e-4


@pytest.mark.supports("images")
def test_run_with_pictures_is_resumed(tmp_path):
    options = {"max_steps": 4, "steps_per_generation": 2, "save_strategy": "steps", "save_steps": 1}
    straight = make_trainer(tmp_path / "a", in_column(), **options)
    straight.train()
    resumed = make_trainer(tmp_path / "b", in_column(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    for mine, its in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(mine, its)
    for _, (rows, rewards, _), _ in straight.batches:
        for start in range(0, len(rows), 4):
            assert len(set(rows[start : start + 4])) == 1
            assert 0 < sum(reward[0] for reward in rewards[start : start + 4]) < 4


@pytest.mark.refuses("images_elsewhere")
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"surplus": "carry"}, 'surplus is "carry", but the prompts have images'),
        (
            {"loss_normalization": "group", "steps_per_generation": 2},
            'loss_normalization is "group" with several optimizer steps',
        ),
    ],
)
@pytest.mark.parametrize("dataset", [in_column, in_turns])
def test_what_would_lose_the_pictures_is_refused(tmp_path, overrides, message, dataset):
    with pytest.raises(ValueError, match=message):
        # A dataset that does not know its columns is found out before anything is sampled.
        make_trainer(tmp_path, dataset(), **overrides).train()


@pytest.mark.refuses("images_elsewhere")
def test_requests_of_tokens_alone_are_refused(tmp_path):
    options = {"refill": "stream", "use_vllm": True, "vllm_mode": "colocate"}
    with pytest.raises(ValueError, match='refill is "stream", but the prompts have images'):
        check_image_options(DAPOConfig(**training_arguments(tmp_path, **options)))


def test_picture_needs_a_conversation_to_stand_in(tmp_path):
    dataset = coloured_squares(NUM_ROWS).remove_columns("prompt").add_column("prompt", ["w1"] * NUM_ROWS)
    with pytest.raises(ValueError, match="row 0: the row has images, so the prompt must be a conversation"):
        make_trainer(tmp_path, dataset).train()


def test_rows_without_pictures_stay_as_they_are():
    turns = [{"role": "user", "content": "w1"}]
    assert with_images([{"prompt": "w1"}]) == ["w1"]
    assert with_images([{"prompt": turns, "image": None}, {"prompt": turns, "image": None}]) == [turns, turns]
    assert with_images([{"prompt": turns, "images": []}]) == [turns]
    mixed = with_images([{"prompt": turns, "images": []}, {"prompt": turns, "images": ["a", "b"]}])
    assert [part.get("image") for part in mixed[1][0]["content"]] == ["a", "b", None]
    assert mixed[0][0]["content"] == [{"type": "text", "text": "w1"}]
