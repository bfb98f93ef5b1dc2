"""Which environments, tools and prompts can be sampled, and what is refused."""

import pytest
from datasets import Dataset
from tiny_tools import (
    NUM_GENERATIONS,
    Counted,
    ScriptedDAPO,
    calculate,
    call,
    chat_arguments,
    chat_model,
    chat_tokenizer,
    correct,
    make_chat_trainer,
    problems,
    scripted_dapo,
    solved,
)

from trl_dapo import DAPOConfig


@pytest.fixture(autouse=True)
def scripted(monkeypatch):
    scripted_dapo(monkeypatch)


class Inventing:
    """An environment that makes its task from a seed."""

    def reset(self, seed, **row):
        self.seed = seed
        return f"{seed}+1"

    def calculate(self, expression: str) -> str:
        """
        Computes.

        Args:
            expression: What to compute.
        """
        return calculate(expression)

    def get_reward(self):
        return 0.0


class Unseeded(Inventing):
    def reset(self, **row):
        return "1+1"


def half_right(environments, completions, **kwargs):
    return [float(row % 2 and environment.seed % 3 > 0) for row, environment in enumerate(environments)]


def make_without_dataset(folder, factory, **options):
    return ScriptedDAPO(
        model=chat_model(),
        reward_funcs=half_right,
        args=DAPOConfig(**chat_arguments(folder, **{"max_steps": 2, "soft_punish_cache": 0} | options)),
        processing_class=chat_tokenizer(),
        environment_factory=factory,
    )


def test_completions_of_a_group_get_one_task_of_an_environment_that_invents_them(tmp_path):
    trainer = make_without_dataset(tmp_path, Inventing)
    trainer.train()
    seeds = [row["seed"] for rounds, *_ in trainer.batches for inputs, *_ in rounds for row in inputs]
    groups = [set(seeds[start : start + NUM_GENERATIONS]) for start in range(0, len(seeds), NUM_GENERATIONS)]
    assert all(len(group) == 1 for group in groups)
    assert len(set(seeds)) >= 4
    for _, batch, _ in trainer.batches:
        # The prompt that trains is the task, as the environment put it.
        for row in batch.inputs:
            assert row["prompt"][-1]["content"] == f"{row['seed']}+1"
            assert row["seed"] % 3 > 0


@pytest.mark.refuses("unseeded")
@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (Unseeded, {}, "train_dataset is None, and `reset` of Unseeded has no parameter `seed`"),
        ({"a": Inventing}, {}, "train_dataset is None, but `environment_factory` has several environments"),
        (Inventing, {"max_steps": -1}, "train_dataset is None and max_steps is -1"),
    ],
)
def test_environments_whose_tasks_would_be_luck_are_refused(tmp_path, factory, options, message):
    with pytest.raises(ValueError, match=message):
        make_without_dataset(tmp_path, factory, **options)


class Other(Counted):
    def reset(self, **row):
        super().reset(**row)
        return f" other {row['prompt'][-1]['content']}"


def test_rows_choose_among_several_environments(tmp_path):
    rows = problems(40).add_column("environment", ["one", "two"] * 20)
    trainer = make_chat_trainer(
        tmp_path, rewards=solved, dataset=rows, environment_factory={"one": Counted, "two": Other}, max_steps=2
    )
    trainer.train()
    said = {"one": " row", "two": " other"}
    texts = [
        (row["environment"], prompt[-1]["content"])
        for rounds, *_ in trainer.batches
        for inputs, prompts, *_ in rounds
        for row, prompt in zip(inputs, prompts, strict=True)
    ]
    assert {name for name, _ in texts} == {"one", "two"}
    assert all(said[name] in text for name, text in texts)
    assert any(0 in row for row in trainer.batches[0][2]["tool_mask"].tolist())


def image_tool(expression: str) -> list:
    """
    Draws.

    Args:
        expression: What to draw.
    """
    return [{"type": "image", "image": "a picture"}, {"type": "text", "text": "see"}]


image_tool.__name__ = "calculate"


@pytest.mark.refuses("turns_images")
def test_images_that_tools_return_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ScriptedDAPO, "script", staticmethod(lambda text, sample: call("1")))
    trainer = make_chat_trainer(tmp_path, tools=[image_tool])
    with pytest.raises(ValueError, match="A tool returned an image, but with dynamic sampling"):
        trainer.train()


@pytest.mark.refuses("turns_images")
def test_images_in_prompts_with_tools_are_refused(tmp_path):
    with pytest.raises(ValueError, match="train_dataset has images, but with tools, environments"):
        make_chat_trainer(tmp_path, tools=[calculate], dataset=problems(40).add_column("image", ["x"] * 40))


class Painting(Counted):
    def reset(self, **row):
        super().reset(**row)
        return [{"type": "image", "image": "a picture"}]


@pytest.mark.refuses("turns_images")
def test_images_that_environments_show_are_refused(tmp_path):
    trainer = make_chat_trainer(tmp_path, rewards=solved, environment_factory=Painting)
    with pytest.raises(ValueError, match="A prompt has an image, but with tools, environments"):
        trainer.train()


class WithDoor(Counted):
    num_closed = 0

    def close(self, door: str) -> str:
        """
        Closes a door.

        Args:
            door: Which.
        """
        WithDoor.num_closed += 1
        return "closed"


class Closing(Counted):
    num_closed = 0

    def close(self):
        Closing.num_closed += 1


@pytest.mark.parametrize(("factory", "is_tool"), [(WithDoor, True), (Closing, False)])
def test_close_is_a_tool_only_where_it_needs_an_argument(tmp_path, factory, is_tool):
    trainer = make_chat_trainer(tmp_path, rewards=solved, environment_factory=factory, max_steps=1)
    assert ("close" in {tool.__name__ for tool in trainer.tools}) == is_tool
    trainer.train()
    text = trainer._tokenizer.decode(trainer.rounds[0][-1][0].prompt_ids[0])
    assert ("Closes a door" in text) == is_tool
    assert (factory.num_closed > 0) != is_tool


def test_prompts_may_come_from_environments_alone(tmp_path):
    rows = Dataset.from_dict({"row": list(range(40)), "solution": problems(40)["solution"]})

    class Asking(Counted):
        def reset(self, row, solution):
            self.row, self.num_calls = row, 0
            return problems(40)[row]["prompt"][-1]["content"]

    trainer = make_chat_trainer(tmp_path, rewards=solved, dataset=rows, environment_factory=Asking, max_steps=1)
    trainer.train()
    for row in trainer.collected.inputs:
        assert row["prompt"] == problems(40)[row["row"]]["prompt"]


def test_other_results_than_texts_are_shown_as_text(tmp_path, monkeypatch):
    def numbers(expression: str) -> list:
        """
        Counts.

        Args:
            expression: What to count.
        """
        return [1, 2, 3]

    numbers.__name__ = "calculate"
    monkeypatch.setattr(
        ScriptedDAPO,
        "script",
        staticmethod(lambda text, sample: call("1") if sample is not None else "done<|im_end|>"),
    )
    trainer = make_chat_trainer(tmp_path, tools=[numbers], rewards=correct, max_steps=1, max_generation_rounds=1)
    trainer.train()
    assert {turn["content"] for turns in trainer.rounds[0][2] for turn in turns if turn["role"] == "tool"} == {
        "[1, 2, 3]"
    }
