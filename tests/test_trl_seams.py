"""
What the package relies on in TRL and transformers, seen in runs of TRL's own trainer: which method calls what, with what, when.

When one moves, this fails first and says which: each failure names the seam, what was expected and what came. The tests of a
seam are those with its name in `relies_on`. tests/test_moved_trl.py moves some.
"""

import functools
import inspect
import re
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers.generation.utils as generation_of_transformers
import transformers.trainer
from accelerate.data_loader import prepare_data_loader
from datasets import IterableDataset
from tiny import first_token_reward, numbered_prompts, tiny_model, tiny_tokenizer, training_arguments
from tiny_tools import Counted, ScriptedGRPO, calculate, call, make_chat_trainer, problems
from tiny_vlm import coloured_squares, tiny_processor, tiny_vlm
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForSequenceClassification, TrainerCallback
from transformers.trainer_callback import TrainerState
from trl import GRPOConfig, GRPOTrainer
from trl.extras.profiling import profiling_decorator
from trl.generation import vllm_generation
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration
from trl.import_utils import is_vllm_available
from trl.trainer import grpo_trainer
from trl.trainer.utils import RepeatSampler
from trl_recorder import SEAMS, TRAINS_HERE, WHY_NOT, Recording, recorded, relies_on

from trl_dapo import DAPOTrainer
from trl_dapo.rewards import SoftOverlongPunishment
from trl_dapo.trl_seams import (
    OVERRIDDEN,
    OVERRIDDEN_IN_VLLM_GENERATION,
    AddedReward,
    Generated,
    TrainerSeams,
    _is_of_environments,
    completions_printed_by,
    engine_built_by,
    pushed_from_checkpoint,
    rebound,
    replaced,
    sampler_of,
    texts_apart,
)
from trl_dapo.vllm_engine.generation import DAPOVLLMGeneration
from trl_dapo.vllm_server.generation import ServerGeneration


# Which methods are overridden, and with which parameters


def overridden(ours, theirs):
    """Names of methods that classes of this package define, and a class of TRL does too."""
    own = [cls for cls in ours.__mro__ if cls.__module__.startswith("trl_dapo")]
    names = {name for cls in own for name, value in vars(cls).items() if inspect.isfunction(value)}
    return {name for name in names if hasattr(theirs, name)} - {"__init__"}


def assert_overrides(ours, theirs, name):
    """Asserts that our method takes each parameter that the method of TRL has, by name or at its place."""
    assert hasattr(theirs, name), f"{theirs.__name__} has no method `{name}`"
    taken = inspect.signature(getattr(ours, name)).parameters.values()
    kinds = {parameter.kind for parameter in taken}
    names = {p.name for p in taken if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    positional = [p.name for p in taken if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for place, parameter in enumerate(inspect.signature(getattr(theirs, name)).parameters.values()):
        is_positional = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if is_positional and place < len(positional):
            assert positional[place] == parameter.name, f"`{parameter.name}` of `{name}` is at place {place}, not ours"
            continue
        is_taken = parameter.name in names or parameter.VAR_KEYWORD in kinds
        is_taken |= is_positional and parameter.VAR_POSITIONAL in kinds
        assert is_taken, f"`{name}` of {theirs.__name__} takes `{parameter}`, and our override does not"


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_override_takes_every_argument_that_the_method_of_trl_takes(name):
    with relies_on(name, "a method of GRPOTrainer, with no parameter that our override would lose"):
        assert_overrides(DAPOTrainer, GRPOTrainer, name)


@pytest.mark.parametrize("name", OVERRIDDEN_IN_VLLM_GENERATION)
@pytest.mark.parametrize("ours", [DAPOVLLMGeneration, ServerGeneration])
def test_override_takes_every_argument_that_the_method_of_vllm_generation_takes(ours, name):
    with relies_on(f"VLLMGeneration.{name}", "a method with no parameter that our override would lose"):
        assert_overrides(ours, VLLMGeneration, name)


def test_every_overridden_method_is_listed_with_its_reason():
    # One that TRL does not have any more is told by the test above.
    assert overridden(DAPOTrainer, GRPOTrainer) == {name for name in OVERRIDDEN if hasattr(GRPOTrainer, name)}
    ours = overridden(DAPOVLLMGeneration, VLLMGeneration) | overridden(ServerGeneration, VLLMGeneration)
    assert ours == {name for name in OVERRIDDEN_IN_VLLM_GENERATION if hasattr(VLLMGeneration, name)}


# Replacing names


class Halved(list):
    @profiling_decorator
    def size(self):
        return length_of(super().__len__()) // 2


def length_of(size):
    return size


def test_rebound_function_sees_other_names_and_its_module_does_not():
    # Of a method with a decorator, as TRL has them; it needs the closure for its `super()`.
    size = rebound(Halved.size, length_of=lambda size: 10 * size)
    assert size(Halved([1, 2])) == 10
    assert inspect.unwrap(Halved.size)(Halved([1, 2])) == 1


def test_replaced_name_is_back_afterwards_even_after_an_error():
    before = grpo_trainer.gather
    with replaced(grpo_trainer, "gather", None):
        assert grpo_trainer.gather is None
    with pytest.raises(ZeroDivisionError), replaced(grpo_trainer, "gather", None):
        divmod(1, 0)
    assert grpo_trainer.gather is before


# Generating and scoring a batch


async def length(completion_ids, log_metric, **kwargs):
    log_metric("calls", 1.0)
    return [float(len(ids)) for ids in completion_ids]


def parity(completion_ids, log_extra, **kwargs):
    log_extra("first", [ids[0] for ids in completion_ids])
    return first_token_reward(completion_ids)


def tiny_reward_model():
    """Returns a reward model for the words of the tiny tokenizer."""
    torch.manual_seed(3)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = LlamaConfig(vocab_size=20, num_labels=1, pad_token_id=0, name_or_path="judge", **shape)
    return LlamaForSequenceClassification(config).eval()


def plain_trainer(folder, cls=GRPOTrainer, rewards=parity, processing_class=None, reward_classes=None, **options):
    """Returns TRL's trainer of the tiny model."""
    return cls(
        model=tiny_model(),
        reward_funcs=rewards,
        args=GRPOConfig(**training_arguments(folder, **options)),
        train_dataset=numbered_prompts(4),
        eval_dataset=numbered_prompts(1),
        processing_class=processing_class or tiny_tokenizer(),
        reward_processing_classes=reward_classes,
    )


def rows_of(num_prompts=2, num_generations=4):
    """Returns dataset rows as TRL's sampler repeats them."""
    return [dict(row) for row in numbered_prompts(num_prompts) for _ in range(num_generations)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("seams")


@pytest.fixture(scope="module")
def judged(folder):
    """A trainer of TRL with a function, an async function and a model as rewards, and with both lists that it logs into."""
    rewards, classes = [parity, length, tiny_reward_model()], [None, None, tiny_tokenizer()]
    return plain_trainer(folder, rewards=rewards, reward_classes=classes)


@pytest.fixture
def trainer(judged):
    """The same, as it was built."""
    kept = {name: value for name, value in vars(judged).items() if not name.startswith("_metrics")}
    yield judged
    vars(judged).update(kept)
    for name in set(vars(judged)) - set(kept) - {"_metrics"}:
        delattr(judged, name)
    judged.model.train()
    judged.state.global_step = 0
    judged._pending_extra_logs.clear()
    judged._pending_metrics.clear()
    for logged in judged._logs.values():
        logged.clear()


@pytest.fixture(scope="module")
def scored(folder):
    """One batch that TRL generated and scored."""
    recording = Recording()
    names = [*OVERRIDDEN, "_tokenize_prompts"]
    trainer = plain_trainer(folder, recorded(GRPOTrainer, names, recording))
    rows = rows_of()
    with relies_on("_generate_and_score_completions", "generates and scores dataset rows"):
        output = trainer._generate_and_score_completions(rows)
    return SimpleNamespace(trainer=trainer, rows=rows, output=output, recording=recording)


def test_generation_returns_what_the_replay_hands_back(scored):
    with relies_on("_generate", f"the {len(Generated._fields)} values of `Generated`: {', '.join(Generated._fields)}"):
        calls = scored.recording
        made = calls.only("_generate")
        assert made.is_inside(calls.only("_generate_and_score_completions"))
        assert made.arguments["prompts"] == [row["prompt"] for row in scored.rows]
        assert len(made.result) == len(Generated._fields), f"{len(made.result)} values"
        generated = Generated(*made.result)
        assert generated.prompt_ids == calls.only("_tokenize_prompts").result[0]
        assert [len(ids) > 0 for ids in generated.completion_ids] == [True] * 8
        assert generated.completions == scored.trainer._tokenizer.batch_decode(generated.completion_ids, True)
        nothing = [
            generated.tool_mask,
            generated.logps,
            generated.extra_fields,
            generated.images,
            generated.tool_images,
        ]
        assert nothing == [None, None, {}, None, []]


def test_prompts_are_tokenized_before_one_call_samples_them(scored):
    with relies_on(
        "_generate_single_turn", "called once by `_generate`, with the three values of `_tokenize_prompts`"
    ):
        calls = scored.recording
        turn, tokenized = calls.only("_generate_single_turn"), calls.only("_tokenize_prompts")
        assert tokenized.ended < turn.began < calls.only("_generate").ended
        given = [turn.arguments[name] for name in ("prompt_ids", "images", "multimodal_fields", "num_generations")]
        assert given == [*tokenized.result, 4]
        completion_ids, logps = turn.result
        assert [type(ids) for ids in completion_ids] == [list] * 8
        assert logps is None


def test_rewards_are_asked_for_once_with_what_was_generated(scored):
    with relies_on(
        "_calculate_rewards", "(inputs, prompts, completions, completion_ids_list) of `_generate`; returns (B, F)"
    ):
        calls = scored.recording
        rewards, generated = calls.only("_calculate_rewards"), Generated(*calls.only("_generate").result)
        assert calls.order("_generate", "_calculate_rewards") == ["_generate", "_calculate_rewards"]
        assert rewards.arguments["completions"] == generated.completions
        assert rewards.arguments["completion_ids_list"] == generated.completion_ids
        assert rewards.arguments["prompts"] == [row["prompt"] for row in scored.rows]
        assert [row["row"] for row in rewards.arguments["inputs"]] == [row["row"] for row in scored.rows]
        assert rewards.result.tolist() == [[reward] for reward in first_token_reward(generated.completion_ids)]


def test_completions_of_a_round_are_decoded_one_at_a_time(trainer, monkeypatch):
    tokenizer, decoded = trainer.processing_class, []
    decode = tokenizer.decode

    def decode_and_note(token_ids, **options):
        decoded.append(token_ids)
        return decode(token_ids, **options)

    monkeypatch.setattr(tokenizer, "decode", decode_and_note)
    sampled = [np.array([5 + row, 2], np.int32) for row in range(8)]
    with (
        replaced(trainer, "_generate_single_turn", lambda *args, **kwargs: (sampled, None)),
        relies_on("_generate", "texts of completions are those of `processing_class.batch_decode`"),
    ):
        generated = TrainerSeams(trainer).generate([row["prompt"] for row in rows_of()])
        assert [ids.tolist() for ids in decoded] == [ids.tolist() for ids in sampled]
        assert generated.completions == [decode(ids.tolist(), skip_special_tokens=True) for ids in sampled]
    assert "batch_decode" not in vars(tokenizer)


def test_functions_that_may_read_tokens_are_given_lists_and_ours_what_there_is(trainer, monkeypatch):
    arrays = [np.array([3 + row % 2, 5], np.int32) for row in range(8)]
    given = []

    def note(*_, completion_ids, **kwargs):
        given.append([type(ids) for ids in completion_ids])
        return [1.0] * 8

    monkeypatch.setattr(SoftOverlongPunishment, "__call__", note)
    functions = [note, functools.partial(SoftOverlongPunishment(8, 4)), functools.partial(note)]
    monkeypatch.setattr(trainer, "reward_funcs", functions)
    monkeypatch.setattr(trainer, "reward_func_names", ["a", "b", "c"])
    monkeypatch.setattr(trainer, "reward_processing_classes", [None] * 3)
    rows = rows_of()
    prompts = [row["prompt"] for row in rows]
    rewards = TrainerSeams(trainer).compute_rewards(
        rows, prompts, ["w"] * 8, arrays, lambda _: nullcontext(), lambda *_: None, lambda _, returned, __: returned
    )
    assert rewards.tolist() == [[1.0] * 3] * 8
    assert given == [[list] * 8, [np.ndarray] * 8, [list] * 8]


def test_sampled_lists_reach_the_caller_as_they_are(trainer):
    # The class of the list tells an empty completion from one padding token.
    sampled = [[5 + row, 2] for row in range(8)]
    with relies_on("_generate_single_turn", "its lists are those that `_generate` returns, not copies"):
        trainer._generate_single_turn = lambda *args, **kwargs: (sampled, None)
        returned = Generated(*trainer._generate([row["prompt"] for row in rows_of()])).completion_ids
        assert [list(ids) for ids in returned] == sampled
        assert all(ids is ours for ids, ours in zip(returned, sampled, strict=True))


@pytest.fixture
def replay(trainer, monkeypatch):
    """What TRL makes of a batch that was generated and graded before: prompts of one token, completions of 2 to 4, given rewards."""
    tokens = [list(range(3, 5 + row % 3)) for row in range(8)]
    rewards = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0]] * 2)
    returned = Generated([[9]] * 8, tokens, None, ["w"] * 8, None, {"game": "g", "note": list("abcdefgh")}, None, [])
    given = {}

    def generate(prompts):
        trainer._pending_extra_logs["first"] = list(range(8))
        return returned

    def calculate_rewards(inputs, prompts, completions, completion_ids_list):
        given.update(inputs=inputs, completion_ids=completion_ids_list)
        return rewards

    def gather_object(objects):
        # Another rank has logged one more column.
        return [*objects, "elsewhere"] if objects == ["first"] else objects

    trainer._generate, trainer._calculate_rewards = generate, calculate_rewards
    monkeypatch.setattr(grpo_trainer, "gather_object", gather_object, raising=False)
    with relies_on(
        "_generate_and_score_completions", "goes on with what `_generate` and `_calculate_rewards` returned"
    ):
        output = trainer._generate_and_score_completions(rows_of())
        assert given, "`_calculate_rewards` was not called"
    return SimpleNamespace(trainer=trainer, output=output, tokens=tokens, rewards=rewards, given=given)


def test_what_the_replay_hands_back_is_what_is_trained(replay):
    with relies_on("_generate_and_score_completions", "pads what `_generate` returned, and nothing else"):
        output, tokens = replay.output, replay.tokens
        assert output["prompt_ids"].tolist() == [[9]] * 8
        assert output["completion_ids"].tolist() == [ids + [0] * (4 - len(ids)) for ids in tokens]
        assert output["completion_mask"].tolist() == [[1] * len(ids) + [0] * (4 - len(ids)) for ids in tokens]
        assert output["num_items_in_batch"] == sum(map(len, tokens))
        assert "old_per_token_logps" not in output
        assert "tool_mask" not in output
    with relies_on("_calculate_rewards", "its rewards, with the weights of the trainer, make the advantages"):
        sums = replay.rewards.sum(dim=1)
        groups = sums.view(2, 4)
        expected = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
        torch.testing.assert_close(output["advantages"], expected.flatten())
        assert replay.given["completion_ids"] == tokens
    with relies_on("_generate", "fields of a rollout function are put into the rows that rewards are given"):
        assert [(row["game"], row["note"]) for row in replay.given["inputs"]] == [("g", note) for note in "abcdefgh"]


def test_advantages_and_logged_columns_are_where_the_record_and_the_table_look(replay):
    with relies_on(
        "TrainerSeams.logged_columns", "a logged column goes to the table of the step; None where a rank has none"
    ):
        logs = replay.trainer._logs
        assert {name: list(cells) for name, cells in logs["extra"].items()} == {
            "first": list(range(8)),
            "elsewhere": [None] * 8,
        }
        assert not replay.trainer._pending_extra_logs
    with relies_on("_generate_and_score_completions", "`_logs['advantages']` has the advantages of the batch"):
        assert list(logs["advantages"]) == replay.output["advantages"].tolist()


def test_texts_of_a_batch_are_gathered_apart_from_the_names_by_which_ranks_agree(trainer, monkeypatch):
    texts, names = [], []
    monkeypatch.setattr(grpo_trainer, "gather_object", lambda objects: names.append(objects) or objects)
    rows = rows_of()
    with relies_on(
        "texts_apart",
        "`gather_object` gathers prompts and completions of `_generate`, logged columns, and names of those",
    ):
        output = texts_apart(trainer._generate_and_score_completions, lambda one: texts.append(one) or [])(rows)
        prompts, completions, column = texts
        assert prompts == [row["prompt"] for row in rows]
        lengths = output["completion_mask"].sum(1).tolist()
        ids = [row[:length] for row, length in zip(output["completion_ids"].tolist(), lengths, strict=True)]
        assert completions == trainer._tokenizer.batch_decode(ids, skip_special_tokens=True)
        assert column == [row[0] for row in ids]
        assert names == [["first"], ["calls"]]
        # Kept is what came of it, and the figures of all completions.
        logs = trainer._logs
        assert [list(logs["prompt"]), list(logs["completion"]), list(logs["extra"]["first"])] == [[], [], []]
        assert len(logs["advantages"]) == 8


def test_column_that_only_another_rank_logged_is_gathered_with_the_texts(trainer, monkeypatch):
    texts = []
    other = {"first": ["first", "second"]}
    monkeypatch.setattr(grpo_trainer, "gather_object", lambda objects: other.get("".join(objects), objects))
    with relies_on("texts_apart", "a column that this rank does not have is a list of None"):
        texts_apart(trainer._generate_and_score_completions, lambda one: texts.append(one) or one)(rows_of())
        assert texts[-1] == [None] * 8
        assert list(trainer._logs["extra"]) == ["first", "second"]


def test_method_that_is_not_of_trl_is_left_alone(folder):
    class Own(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            return super()._generate_and_score_completions(inputs)

    trainer = plain_trainer(folder, Own)
    assert texts_apart(trainer._generate_and_score_completions, None) == trainer._generate_and_score_completions


def test_prompts_that_generation_gets_can_be_had_without_it(trainer):
    rows = rows_of()
    with relies_on("TrainerSeams.prepare", "all that is done before `_generate`, and its prompts"):
        seams = TrainerSeams(trainer)
        assert seams.prepare(rows, reset=None, guarded=None) == [row["prompt"] for row in rows]
    with relies_on(
        "TrainerSeams.tokenize", "`_tokenize_prompts(prompts)` returns tokens, images, and what else the model reads"
    ):
        assert seams.tokenize(["w0 w3", "w1"]) == [[3, 6], [4]]
    with relies_on("TrainerSeams.generate", "`_generate(prompts)` samples for each prompt"):
        assert len(seams.generate(["w0 w3", "w1"]).completion_ids) == 2


def test_tokens_that_end_a_completion_are_those_that_we_set(trainer):
    sampled = torch.tensor([[3, 4, 5, 6], [3, 6, 4, 5]])

    class Sampling:
        def generate(self, input_ids, **options):
            return torch.cat([input_ids, sampled], dim=1)

    with relies_on("_generate_single_turn", "without vLLM, a completion is cut behind the first of `eos_token_ids`"):
        trainer.eos_token_ids = [4, 5]
        trainer.model.generate, before = Sampling().generate, trainer.model.generate
        try:
            completion_ids, _ = trainer._generate_single_turn([[3, 3], [3]], None, {}, 1)
        finally:
            trainer.model.generate = before
            vars(trainer.model).pop("generate", None)
        assert completion_ids == [[3, 4], [3, 6, 4]]


# Rewards of groups that are sampled and graded by one rank alone


class WithoutCollectives:
    """An accelerator on which ranks cannot meet: another thread may be in a collective."""

    def __init__(self, accelerator):
        self._accelerator = accelerator

    def __getattr__(self, name):
        assert not name.startswith(("gather", "reduce", "wait", "pad")), f"TRL calls `accelerator.{name}` for rewards"
        return getattr(self._accelerator, name)


def test_each_reward_function_is_called_inside_what_bounds_it(trainer, monkeypatch):
    events, ids = [], [[3, 4], [4], [5, 6, 7]]
    gathered = []
    monkeypatch.setattr(grpo_trainer, "gather", lambda rewards: gathered.append(rewards), raising=False)
    trainer.accelerator = WithoutCollectives(trainer.accelerator)

    class Around:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            events.append(f"open {self.name}")

        def __exit__(self, *error):
            events.append(f"close {self.name}")

    def check(name, values, num):
        events.append(f"{name} returned {len(values)} of {num}")
        return values

    cleaned = []
    texts = trainer._tokenizer.batch_decode(ids)
    with relies_on(
        "TrainerSeams.compute_rewards", "`profiling_context` around each call, `zip` over the functions, one `gather`"
    ):
        rewards = TrainerSeams(trainer).compute_rewards(
            rows_of(3, 1), ["w0", "w1", "w2"], texts, ids, Around,
            clean_logged=lambda columns, metrics, num: cleaned.append((dict(columns), dict(metrics), num)), check=check,
        )  # fmt: skip
        assert events == [
            "open parity", "parity returned 3 of 3", "close parity",
            "open judge", "close judge",
            "open length", "length returned 3 of 3", "close length",
        ]  # fmt: skip
        assert not gathered
        assert rewards[:, :2].tolist() == [[0.0, 2.0], [1.0, 1.0], [0.0, 3.0]]
        judge = trainer.reward_funcs[2]
        for row, text in enumerate(texts):
            read = trainer._tokenizer(f"w{row}{text}", return_tensors="pt")["input_ids"]
            torch.testing.assert_close(rewards[row, 2], judge(input_ids=read).logits[0, 0].detach())
    with relies_on(
        "TrainerSeams.take_logged_columns",
        "what functions log is kept in `_pending_extra_logs` and `_pending_metrics`",
    ):
        assert cleaned == [({"first": [3, 4, 5]}, {"calls": [1.0]}, 3)]
        assert TrainerSeams(trainer).take_logged_columns(3) == {"first": [3, 4, 5]}


def test_rewards_cross_ranks_by_a_name_that_can_be_replaced(trainer):
    seen = []

    def gather(rewards):
        seen.append(tuple(rewards.shape))
        return "of all ranks"

    with relies_on("TrainerSeams.compute_rewards", "`gather` is called once, at the end, with (B, F)"):
        calculate_rewards = rebound(GRPOTrainer._calculate_rewards, gather=gather)
        assert calculate_rewards(trainer, rows_of(2, 1), ["w0", "w1"], ["w1", "w2"], [[4], [5]]) == "of all ranks"
        assert seen == [(2, 3)]


def test_trainer_keeps_its_rewards_where_we_extend_them(trainer):
    def fine(completion_ids, **kwargs):
        return [-0.5] * len(completion_ids)

    added = AddedReward(trainer, fine)
    with relies_on(
        "AddedReward.shown", "TRL has functions, names, processing classes and weights in the four `reward_*` lists"
    ):
        assert added.names == ["parity", "length", "judge", "fine"]
        assert added.weights.tolist() == [1.0] * 4
        with added.shown():
            rewards = trainer._calculate_rewards(rows_of(2, 1), ["w0", "w1"], ["w1", "w2"], [[4], [5]])
            assert rewards[:, 3].tolist() == [-0.5] * 2
            with added.hidden():
                assert trainer._calculate_rewards(rows_of(2, 1), ["w0", "w1"], ["w1", "w2"], [[4], [5]]).shape == (
                    2,
                    3,
                )
            trainer._metrics["train"].clear()
            trainer._generate_and_score_completions(rows_of())
        assert trainer._metrics["train"]["rewards/fine/mean"] == [-0.5]
        assert trainer._metrics["train"]["reward"] == pytest.approx(
            [sum(trainer._metrics["train"][f"rewards/{name}/mean"][0] for name in added.names)]
        )


# Training: two micro-batches a step, four a generation batch, four an epoch


class Uploads:
    """Stands in for the Hub."""

    def __init__(self, recording):
        self.recording = recording

    def upload_folder(self, **options):
        self.recording.begin("upload_folder", **options)
        return Upload()


class Upload:
    def done(self):
        return True


class Before(TrainerCallback):
    """Notes when transformers announces an optimizer step, and which micro-batches the seam says it trains."""

    def __init__(self, recording, trainer):
        self.recording, self.trainer = recording, trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.recording.begin("on_pre_optimizer_step", batches=TrainerSeams(self.trainer).micro_batches_of_step())


LOOP = [
    "_prepare_inputs", "training_step", "prediction_step", "_push_from_checkpoint", "_finish_current_push", "_save_rng_state",
]  # fmt: skip
SHAPE = {
    "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "num_generations": 4, "max_steps": 3,
    "gradient_accumulation_steps": 2, "steps_per_generation": 4, "max_completion_length": 4, "save_strategy": "steps",
    "save_steps": 1,
}  # fmt: skip


def training(folder, recording, cls=GRPOTrainer, **options):
    """Returns a recorded trainer that is not trained yet; no upload leaves it."""
    names = [name for name in OVERRIDDEN if name != "init_hf_repo"]

    class Local(cls):
        def init_hf_repo(self, *args, **kwargs):
            call = recording.begin("init_hf_repo", **kwargs)
            call.given = args, kwargs
            self.hub_model_id = "me/model"
            vars(self).setdefault("push_in_progress", None)

    with relies_on("init_hf_repo", "makes the repository when a trainer that pushes is built"):
        trainer = plain_trainer(folder, recorded(Local, [*names, *LOOP], recording), **SHAPE | options)
    trainer.add_callback(Before(recording, trainer))
    return trainer


def run(trainer, recording, *args):
    """Trains, and notes what transformers calls by other names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.trainer, "hf_api", lambda: Uploads(recording))
        rotate = recording.noting("rotate_checkpoints", transformers.trainer.rotate_checkpoints)
        patch.setattr(transformers.trainer, "rotate_checkpoints", rotate)
        patch.setattr(TrainerState, "save_to_json", recording.noting("save_to_json", TrainerState.save_to_json))
        step = recording.noting("optimizer.step", torch.optim.AdamW.step)
        patch.setattr(torch.optim.AdamW, "step", step)
        # Where it cannot, most likely for want of a method that has another name.
        with relies_on(
            next((name for name in recording.absent if name in SEAMS), "train"), "a training of TRL's runs to its end"
        ):
            trainer.train(*args)
        return trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three steps, each saved and pushed, the second one evaluated."""
    if not TRAINS_HERE:
        pytest.skip(WHY_NOT)
    recording, folder = Recording(), tmp_path_factory.mktemp("trained")

    class Limited(GRPOTrainer):
        def _save_checkpoint(self, *args, **kwargs):
            # As ours does it, to keep the older ones until this one is whole.
            self.args.save_total_limit, limit = 77, self.args.save_total_limit
            super()._save_checkpoint(*args, **kwargs)
            self.args.save_total_limit = limit

    trainer = training(folder, recording, Limited, push_to_hub=True, eval_strategy="steps", eval_steps=2)
    run(trainer, recording)
    return SimpleNamespace(trainer=trainer, recording=recording, folder=folder)


@pytest.fixture(scope="module")
def calls_of_trl(request):
    """All calls of all runs here. Of a run that fails the others tell."""
    calls = []
    for name in ("trained", "resumed", "scored", "tools", "pushed"):
        with suppress(Exception):
            calls += request.getfixturevalue(name).recording.calls
    return calls


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_calls_that_trl_makes_fit_our_override(name, calls_of_trl):
    ours = inspect.signature(getattr(DAPOTrainer, name))
    with relies_on(name, f"calls that fit {name}{ours}"):
        calls = [call for call in calls_of_trl if call.name == name]
        assert calls, f"TRL did not call `{name}`"
        for call in calls:
            args, kwargs = call.given
            ours.bind(None, *args, **kwargs)


def test_batch_is_generated_where_the_phase_says_and_kept_for_the_steps_it_trains(trained):
    calls, trainer = trained.recording, trained.trainer
    with relies_on("compute_loss", "called once a micro-batch"):
        prepared = [call for call in calls.all("_prepare_inputs") if call.is_training]
        assert [call.step for call in prepared] == [0, 0, 1, 1, 2, 2]
    with relies_on(
        "_generate_and_score_completions", "called by `_prepare_inputs` at each fourth micro-batch, with its rows"
    ):
        made = calls.all("_generate_and_score_completions")
        assert [(call.step, call.is_training) for call in made] == [(0, True), (2, False), (2, True), (3, False)]
        assert made[0].is_inside(prepared[0])
        assert made[2].is_inside(prepared[4])
        assert len(made[0].arguments["inputs"]) == 16
        assert set(made[0].arguments["inputs"][0]) == {"prompt", "row"}
    with relies_on(
        "compute_loss",
        "`_prepare_inputs` returns `_buffered_inputs[_step % steps_per_generation]`, a micro-batch of (B, T)",
    ):
        assert trainer._step == 6
        assert len(trainer._buffered_inputs) == 4
        assert prepared[4].result is trainer._buffered_inputs[0]
        assert prepared[5].result is trainer._buffered_inputs[1]
        assert {next(iter(call.result["completion_ids"].shape)) for call in prepared} == {4}
    with relies_on("compute_loss", "(model, inputs), with what `_prepare_inputs` returned; a scalar"):
        losses = [call for call in calls.all("compute_loss") if call.is_training]
        assert [call.arguments["inputs"] is batch.result for call, batch in zip(losses, prepared, strict=True)] == [
            True
        ] * 6
        assert {call.result.dim() for call in losses} == {0}
    with relies_on("TrainerSeams.micro_batches_of_step", "those of `_buffered_inputs` that the step trains"):
        told = [call.arguments["batches"] for call in calls.all("on_pre_optimizer_step")]
        assert [len(batches) for batches in told] == [2, 2, 2]
        for step, batches in enumerate(told):
            assert all(ours is call.result for ours, call in zip(batches, prepared[2 * step :], strict=False))


def test_batch_that_we_put_in_place_of_the_kept_one_is_trained(trained):
    trainer = trained.trainer
    with relies_on("compute_loss", "what stands in `_buffered_inputs` is trained, and nothing is generated meanwhile"):
        before, trainer._step = (trainer._step, trainer._buffered_inputs), 1
        trainer._buffered_inputs = [object() for _ in range(4)]
        trainer.model.train()
        try:
            assert trainer._prepare_inputs(None) is trainer._buffered_inputs[1]
        finally:
            trainer._step, trainer._buffered_inputs = before


def test_loss_divides_by_the_number_that_the_batch_carries(trained):
    trainer = trained.trainer
    batch = trainer._buffered_inputs[0]
    trainer.model.train()
    with relies_on("compute_loss", "half as much when `inputs['num_items_in_batch']` is twice as many"):
        loss = trainer.compute_loss(trainer.model, {**batch, "advantages": torch.ones(4)})
        twice = {**batch, "advantages": torch.ones(4), "num_items_in_batch": 2 * batch["num_items_in_batch"]}
        torch.testing.assert_close(trainer.compute_loss(trainer.model, twice), loss / 2)
        assert loss.item() != 0
    with relies_on("compute_loss", "a row whose `completion_mask` is 0 carries no loss"):
        mask = batch["completion_mask"].clone()
        mask[1:] = 0
        ones = {**batch, "advantages": torch.ones(4)}
        of_first = trainer.compute_loss(trainer.model, {**ones, "completion_mask": mask})
        other = {**ones, "completion_mask": mask, "advantages": torch.tensor([1.0, 9.0, 9.0, 9.0])}
        torch.testing.assert_close(trainer.compute_loss(trainer.model, other), of_first)


def test_log_probabilities_of_the_loss_and_of_the_batch_go_through_one_method(trained):
    calls = trained.recording
    with relies_on(
        "_get_per_token_logps_and_entropies", "first in scoring, for old ones; returns (B, T), (B, T) and the rest"
    ):
        scoring = calls.first("_generate_and_score_completions")
        (old,) = (call for call in calls.all("_get_per_token_logps_and_entropies") if call.is_inside(scoring))
        assert torch.equal(old.result[0], scoring.result["old_per_token_logps"])
        assert old.result[0].shape == scoring.result["completion_ids"].shape
        loss = calls.first("compute_loss")
        (of_loss,) = (call for call in calls.all("_get_per_token_logps_and_entropies") if call.is_inside(loss))
        # By name: so the override tells this call from the other one.
        assert of_loss.given[1].get("compute_entropy")
        assert not old.given[1].get("compute_entropy")
        logps, entropies, *_ = of_loss.result
        assert logps.shape == entropies.shape == loss.arguments["inputs"]["completion_ids"].shape
    with relies_on("TrainerSeams.score", "the same log-probabilities, of the prompts and completions of a batch"):
        trainer, batch = trained.trainer, trained.trainer._buffered_inputs[0]
        logits = (
            trainer.model(torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)).logits
            / trainer.temperature
        )
        by_hand = logits.log_softmax(-1)[:, -1 - batch["completion_ids"].size(1) : -1]
        by_hand = by_hand.gather(2, batch["completion_ids"].unsqueeze(2)).squeeze(2)
        mask = batch["completion_mask"].bool()
        torch.testing.assert_close(
            TrainerSeams(trainer).score(batch)[mask], by_hand[mask].detach(), atol=1e-5, rtol=1e-5
        )


def test_optimizer_step_is_announced_before_it_is_taken(trained):
    with relies_on(
        "TrainerSeams.micro_batches_of_step", "`on_pre_optimizer_step` comes before `optimizer.step`, after the losses"
    ):
        names = [call.name for call in trained.recording.calls]
        steps = [
            name
            for name in names
            if name in ("get_batch_samples", "training_step", "on_pre_optimizer_step", "optimizer.step")
        ]
        assert (
            steps
            == ["get_batch_samples", "training_step", "training_step", "on_pre_optimizer_step", "optimizer.step"] * 3
        )


def test_dataloader_and_its_sampler_are_made_once_before_the_first_batch(trained):
    calls = trained.recording
    with relies_on("get_train_dataloader", "called once per training, before the first batch"):
        loader = calls.only("get_train_dataloader")
        assert loader.ended < calls.first("get_batch_samples").began
    with relies_on("get_train_dataloader", "its sampler repeats rows, in the order of its generator"):
        sampler = sampler_of(loader.result)
        first = calls.first("_generate_and_score_completions").arguments["inputs"]
        assert sampler.shuffle
        assert sampler.num_samples == 4
        # Four micro-batches an epoch.
        assert len(sampler) // len(first) == 4
        order = torch.randperm(4, generator=torch.Generator().manual_seed(trained.trainer.args.seed)).tolist()
        assert [row["row"] for row in first] == [number for number in order for _ in range(4)]


def test_sampler_of_a_dataloader_is_found_on_several_ranks_and_where_rows_are_streamed():
    with relies_on("get_train_dataloader", "a sampler of TRL's under what accelerate puts around it"):
        sampler = RepeatSampler(range(8), mini_repeat_count=2)
        for num_ranks in (1, 2):
            loader = DataLoader(range(8), batch_size=4, sampler=sampler)
            prepared = prepare_data_loader(loader, num_processes=num_ranks, process_index=num_ranks - 1)
            assert sampler_of(prepared) is sampler
        assert sampler_of(DataLoader(IterableDataset.from_generator(lambda: iter([{"row": 1}])))) is None


def test_metrics_that_we_add_are_logged_and_forgotten(trained):
    trainer, calls = trained.trainer, trained.recording
    with relies_on(
        "log", "called in training mode for steps, else for an evaluation; writes the mean of each of `_metrics`"
    ):
        kinds = [
            call.is_training
            for call in calls.all("log")
            if any(name.endswith("loss") for name in call.arguments["logs"])
        ]
        assert kinds[:4] == [True, True, False, True]
        trainer.model.train()
        trainer._metrics["train"]["dapo/mine"].extend([1.0, 3.0])
        trainer.log({"loss": 0.5})
        line = trainer.state.log_history.pop()
        assert (line["dapo/mine"], line["loss"]) == (2.0, 0.5)
        assert not trainer._metrics["train"]
    with relies_on("evaluation_loop", "of each evaluation, around its batches and before its line"):
        batches = calls.all("prediction_step")
        lines = [call for call in calls.all("log") if not call.is_training and "eval_loss" in call.arguments["logs"]]
        for loop, batch, line in zip(calls.all("evaluation_loop"), batches, lines, strict=True):
            assert batch.is_inside(loop)
            assert loop.ended < line.began
        assert [loop.step for loop in calls.all("evaluation_loop")] == [2, 3]


def test_table_of_completions_goes_through_what_we_put_in_its_place(trainer):
    tables = []
    trainer.log_completions = True
    Path(trainer.args.output_dir, "completions").mkdir(parents=True, exist_ok=True)
    with relies_on("completions_printed_by", "called by `log`, with prompts, completions, rewards and advantages"):
        if not grpo_trainer.is_rich_available():
            pytest.skip("TRL prints its table with rich")
        trainer._generate_and_score_completions(rows_of())
        with completions_printed_by(lambda *args, **kwargs: tables.append(args)):
            trainer.log({"loss": 0.0})
        ((prompts, completions, rewards, advantages, *_),) = tables
        assert len(prompts) == len(completions) == len(advantages) == 8
        assert {name: len(cells) for name, cells in rewards.items()} == {"parity": 8, "length": 8, "judge": 8}


# Checkpoints and pushes


def test_checkpoint_is_pushed_and_older_ones_deleted_when_the_state_of_the_trainer_is_written(trained):
    calls = trained.recording
    order = [
        "create_model_card",
        "save_model",
        "_save_rng_state",
        "save_to_json",
        "_push_from_checkpoint",
        "rotate_checkpoints",
    ]
    with relies_on("_save_checkpoint", f"calls {', '.join(order)}, in this order"):
        assert [call.step for call in calls.all("_save_checkpoint")] == [1, 2, 3]
        for saving in calls.all("_save_checkpoint"):
            assert calls.order(*order, inside=saving) == order
        assert {call.arguments.get("save_total_limit") for call in calls.all("rotate_checkpoints")} == {77}


def test_model_of_a_checkpoint_is_saved_with_the_arguments_as_they_are_then(trained):
    calls = trained.recording
    with relies_on(
        "save_model", "(folder, _internal_call=True) for a checkpoint, and writes the arguments as they are then"
    ):
        saved = calls.first("save_model")
        folder = str(trained.folder / "checkpoint-1")
        assert (saved.arguments["output_dir"], saved.arguments["_internal_call"]) == (folder, True)
        assert torch.load(f"{folder}/training_args.bin", weights_only=False).save_total_limit == 77


def test_checkpoint_is_pushed_as_jobs_that_can_be_waited_for(trained):
    calls, folder = trained.recording, str(trained.folder / "checkpoint-1")
    with relies_on(
        "pushed_from_checkpoint", "`_push_from_checkpoint(folder)`; its uploads are `push_in_progress.jobs`"
    ):
        pushed = calls.first("_push_from_checkpoint")
        assert list(pushed.arguments.values())[1:] == [folder]
        assert any(call.is_inside(pushed) for call in calls.all("upload_folder"))
        assert [type(job) for job in trained.trainer.push_in_progress.jobs] == [Upload]


def test_card_is_written_under_the_name_of_the_model(trained):
    calls = trained.recording
    with relies_on("create_model_card", "called with the name of the model"):
        assert calls.first("create_model_card").arguments["model_name"] == trained.folder.name


def test_repository_is_made_before_the_training(trained):
    calls = trained.recording
    with relies_on("init_hf_repo", "called once, before the training"):
        assert calls.only("init_hf_repo").began < calls.first("train").began


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """A trainer that pushes without having trained, while another push is in progress."""
    recording = Recording()
    trainer = training(tmp_path_factory.mktemp("pushed"), recording)

    class InProgress:
        def is_done(self):
            return False

        def wait_until_done(self):
            recording.begin("wait_until_done")

    trainer.push_in_progress = InProgress()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.trainer, "hf_api", lambda: Uploads(recording))
        with relies_on("push_to_hub", "(commit_message)"):
            trainer.push_to_hub("words")
        with relies_on("pushed_from_checkpoint", "`_push_from_checkpoint(folder)`"):
            assert pushed_from_checkpoint(trainer, str(trainer.args.output_dir)) == []
    return SimpleNamespace(recording=recording, trainer=trainer)


def test_push_makes_the_repository_then_model_then_card_then_uploads(pushed):
    calls = pushed.recording
    order = ["init_hf_repo", "save_model", "create_model_card", "_finish_current_push", "upload_folder"]
    with relies_on("push_to_hub", f"calls {', '.join(order)}, in this order"):
        assert calls.order(*order, inside=calls.only("push_to_hub")) == order
        assert calls.only("upload_folder").arguments["commit_message"] == "words"
    with relies_on(
        "pushed_from_checkpoint",
        "`_finish_current_push` waits for `push_in_progress`, and while it lasts none is begun",
    ):
        assert calls.only("wait_until_done").is_inside(calls.first("_finish_current_push"))
        assert not any(call.is_inside(calls.only("_push_from_checkpoint")) for call in calls.all("upload_folder"))


def resume(recording, trained, step, tmp_path, **options):
    """Resumes from a checkpoint, as ours does: the state of the loop is put back at the first step; two steps in all."""

    class Resuming(GRPOTrainer):
        is_restored = False

        def get_batch_samples(self, *args, **kwargs):
            if not self.is_restored:
                self.is_restored = True
                self._step, self._buffered_inputs = 2 * step, trained.trainer._buffered_inputs
                self._tr_loss += 7.0
                self._total_loss_scalar, self._globalstep_last_logged = -7.0, 0
                self._metrics["train"]["kept"].append(5.0)
            if self.state.global_step >= max(2, step + 1):
                self.control.should_training_stop = True
                return [], None
            return super().get_batch_samples(*args, **kwargs)

    trainer = training(tmp_path, recording, Resuming, save_strategy="no", logging_steps=1, **options)
    run(trainer, recording, str(trained.folder / f"checkpoint-{step}"))
    return trainer


@pytest.fixture(scope="module")
def resumed(trained, tmp_path_factory):
    """A run that was resumed within an epoch, evaluates first and ends early; its checkpoint has a weight too little."""
    recording = Recording()
    trainer = resume(
        recording, trained, 1, tmp_path_factory.mktemp("resumed"), eval_on_start=True, eval_strategy="epoch"
    )
    return SimpleNamespace(recording=recording, trainer=trainer)


def test_state_of_the_run_is_loaded_in_the_order_in_which_we_restore_it(resumed, trained):
    calls, folder = resumed.recording, str(trained.folder / "checkpoint-1")
    with relies_on("_load_optimizer_and_scheduler", "(folder), when the steps of the checkpoint are known"):
        loaded = calls.only("_load_optimizer_and_scheduler")
        assert (loaded.arguments["checkpoint"], loaded.step) == (folder, 1)
    with relies_on("_issue_warnings_after_load", "told once of the missing keys, before the optimizer is loaded"):
        assert calls.only("_issue_warnings_after_load").ended < loaded.began
        found = list(calls.only("_issue_warnings_after_load").arguments.values())[-1]
        assert list(found.missing_keys) == ["lm_head.weight"]
    order = ["_issue_warnings_after_load", "get_train_dataloader", "_load_optimizer_and_scheduler", "evaluation_loop",
             "get_batch_samples", "training_step"]  # fmt: skip
    with relies_on("get_batch_samples", f"{', '.join(order)}, in this order"):
        assert calls.order(*order) == order


def test_loop_goes_on_from_what_stands_there_at_the_first_step(resumed, trained):
    calls, trainer = resumed.recording, resumed.trainer
    with relies_on("get_batch_samples", "returning none of them, and `should_training_stop`, ends the training"):
        assert trainer.state.global_step == 2
        assert len(calls.all("training_step")) == 2
    with relies_on(
        "get_batch_samples", "the loop sets its counters before, not after: kept batch, loss, metrics and phase stay"
    ):
        assert not [call for call in calls.all("_generate_and_score_completions") if call.is_training]
        prepared = [call.result for call in calls.all("_prepare_inputs") if call.is_training]
        assert [batch is kept for batch, kept in zip(prepared, trained.trainer._buffered_inputs[2:], strict=True)] == [
            True
        ] * 2
        (line,) = (line for line in trainer.state.log_history if line["step"] == 2 and "loss" in line)
        losses = [call.result.item() for call in calls.all("training_step")]
        assert line["kept"] == 5.0
        assert line["loss"] == pytest.approx((7 + sum(losses)) / 2, abs=1e-4)


def test_loop_at_the_start_of_an_epoch_begins_with_the_samples_too(trained, tmp_path):
    recording = Recording()
    trainer = resume(recording, trained, 2, tmp_path)
    with relies_on("get_batch_samples", "called before the first step, also for a checkpoint at the end of an epoch"):
        assert recording.first("get_batch_samples").ended < recording.first("training_step").began
        (line,) = (line for line in trainer.state.log_history if line["step"] == 3 and "loss" in line)
        assert line["kept"] == 5.0


# Tools and environments: turns are scripted


def times(expression: str) -> str:
    """
    Computes, or not.

    Args:
        expression: What to compute.
    """
    if expression == "broken":
        raise ValueError("out of order")
    return calculate(expression)


def turns(text, sample):
    """The first row calls a tool that works, then one that fails, then answers; the second answers."""
    user = text.split("user\n")[-1].split("<|im_end|>")[0]
    if user.endswith("4*2"):
        return "8<|im_end|>"
    return [call("3*2", "times"), call("broken", "times"), "6<|im_end|>"][text.count("<tool_response>")]


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    """Two rows that were generated with a tool."""
    recording = Recording()

    class Turns(ScriptedGRPO):
        script = staticmethod(turns)

    cls = recorded(Turns, OVERRIDDEN, recording)
    trainer = make_chat_trainer(tmp_path_factory.mktemp("tools"), cls, config=GRPOConfig, tools=[times])
    rows = list(problems(2))
    with relies_on("TrainerSeams.prepare", "returns prompts before `_generate`"):
        prompts = TrainerSeams(trainer).prepare([dict(row) for row in rows], None, lambda row, tool: tool)
    with relies_on("_generate", "(prompts)"):
        returned = trainer._generate(prompts)
    return SimpleNamespace(recording=recording, returned=returned, trainer=trainer, rows=rows)


def test_turns_after_a_call_begin_with_the_tokens_before_it(tools):
    calls = tools.recording
    names = "prompts, prompt_ids, completion_ids, completions, logprobs, images, multimodal_fields"
    with relies_on("_tool_call_loop", f"called once by `_generate`, by place, with {names}; returns seven values"):
        loop, generated = calls.only("_tool_call_loop"), Generated(*tools.returned)
        assert ", ".join(name for name in loop.arguments if name != "self") == names
        assert len(loop.given[0]) == 7
        assert len(loop.result) == 7
        tool_mask, completions, completion_ids, logps, num_calls, num_failed, images = loop.result
        assert (tool_mask, completion_ids) == (generated.tool_mask, generated.completion_ids)
        assert (logps, num_calls, num_failed, images) == (None, 2, 1, [[], []])
        assert [turn["role"] for turn in completions[0]] == ["assistant", "tool", "assistant", "tool", "assistant"]
    with relies_on(
        "_generate_single_turn",
        "later turns: prompt + completion so far + the answer of the tool, of those that go on",
    ):
        first, second, third = calls.all("_generate_single_turn")
        assert second.is_inside(loop)
        assert third.is_inside(loop)
        assert not first.is_inside(loop)
        # The lists of the first turn are those to which the loop adds.
        asked = [
            tools.trainer._tokenizer(text)["input_ids"]
            for text in (call("3*2", "times"), call("broken", "times"), "6<|im_end|>")
        ]
        prompt, turn = first.arguments["prompt_ids"][0], asked[0]
        (longer,) = second.arguments["prompt_ids"]
        assert longer[: len(prompt) + len(turn)] == prompt + turn
        (longest,) = third.arguments["prompt_ids"]
        assert longest[: len(longer)] == longer
        assert second.arguments["num_generations"] == 1
    with relies_on(
        "_tool_call_loop", "a tool that raises is answered with its error, and its tokens are 0 in the mask"
    ):
        text = tools.trainer._tokenizer.decode(longest)
        assert "out of order" in text
        assert sum(generated.tool_mask[0]) == sum(map(len, asked))
        assert generated.tool_mask[1] == [1] * len(generated.completion_ids[1])


def test_number_of_a_row_stays_with_its_tokens(tools):
    class Numbered(list):
        def __add__(self, others):
            longer = Numbered(super().__add__(others))
            longer.number = self.number
            return longer

    seen = []

    class Looped(type(tools.trainer)):
        def _tool_call_loop(self, prompts, prompt_ids, *rest):
            for number, ids in enumerate(prompt_ids):
                prompt_ids[number] = Numbered(ids)
                prompt_ids[number].number = number
            return super()._tool_call_loop(prompts, prompt_ids, *rest)

        def _generate_single_turn(self, prompt_ids, *args, **kwargs):
            seen.append([getattr(ids, "number", None) for ids in prompt_ids])
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)

    with relies_on("_tool_call_loop", "longer prompts are sums that begin with the lists of `prompt_ids`"):
        trainer = tools.trainer
        cls, trainer.__class__ = trainer.__class__, Looped
        try:
            prompts = TrainerSeams(trainer).prepare(
                [dict(row) for row in tools.rows[::-1]], None, lambda row, tool: tool
            )
            trainer._generate(prompts)
        finally:
            trainer.__class__ = cls
        assert seen == [[None, None], [1], [1]]


def test_tools_of_each_row_are_those_that_we_let_it_have(tools):
    seen = []

    def guarded(row, tool):
        return None if row else lambda **arguments: seen.append((row, tool.__name__, arguments)) or "guarded"

    with relies_on(
        "TrainerSeams.prepare", "`_sync_tool_dicts` and `_async_tool_dicts` have the tools of each row, by name"
    ):
        seams = TrainerSeams(tools.trainer)
        prompts = seams.prepare([dict(tools.rows[0]) for _ in range(2)], None, guarded)
        generated = Generated(*tools.trainer._generate(prompts))
        assert seen == [(0, "times", {"expression": "3*2"}), (0, "times", {"expression": "broken"})]
        answers = [turns[1]["content"] for turns in generated.completions]
        assert answers[0] == "guarded"
        assert "not found" in answers[1]
    with relies_on("TrainerSeams.only_rows", "nothing else is kept for each row"):
        with seams.only_rows([1]):
            (turns,) = Generated(*tools.trainer._generate(prompts[1:])).completions
        assert "not found" in turns[1]["content"]


@pytest.fixture(scope="module")
def environments(tmp_path_factory):
    """A trainer of TRL with an environment for each completion."""
    folder = tmp_path_factory.mktemp("environments")
    return make_chat_trainer(folder, ScriptedGRPO, config=GRPOConfig, environment_factory=Counted)


def test_environments_are_reset_as_we_let_them_and_shown_in_the_prompts(environments):
    trainer, seen = environments, []

    def reset(number, environment, row):
        seen.append((number, environment, row["row"]))
        environment.reset(**row)
        return f" shown {number}"

    rows = list(problems(3))
    with relies_on(
        "TrainerSeams.prepare", "`zip` over prompts, `environments` and rows; `reset(**row)` once each; what it shows"
    ):
        seams = TrainerSeams(trainer)
        prompts = seams.prepare([dict(row) for row in rows], reset, lambda row, tool: tool)
        assert [(number, row) for number, _, row in seen] == [(0, 0), (1, 1), (2, 2)]
        assert [environment for _, environment, _ in seen] == trainer.environments
        shown = [row["prompt"][-1]["content"] + f" shown {number}" for number, row in enumerate(rows)]
        assert [prompt[-1]["content"] for prompt in prompts] == shown
    with relies_on("TrainerSeams.environment_of", "tools of a row are methods of its environment"):
        tool = trainer._sync_tool_dicts[1]["calculate"]
        assert seams.environment_of(1, tool) is trainer.environments[1]
        assert seams.environment_of(0, tool) is None
    with relies_on("TrainerSeams.take_environments", "made ones are kept in pools, and new ones made where they lack"):
        assert seams.pooled_environments == trainer.environments
        assert seams.take_environments(lambda environment: environment.row == 1) == [trainer.environments[1]]
        before = Counted.num_made
        seams.prepare([dict(row) for row in rows], reset, lambda row, tool: tool)
        assert Counted.num_made == before + 1
    expected = "environments and tools of the other rows are not used"
    with relies_on("TrainerSeams.only_rows", expected), seams.only_rows([2]):
        assert [environment.row for environment in trainer.environments] == [2]
        assert len(Generated(*trainer._generate(prompts[2:])).completion_ids) == 1


def test_rewards_of_environments_are_functions_that_we_recognize(environments):
    trainer = environments
    with relies_on(
        "TrainerSeams.compute_rewards", "`get_reward` of an environment is a closure of TRL: one reward an environment"
    ):
        assert list(map(_is_of_environments, trainer.reward_funcs)) == [False, True]
        one = Counted()
        one.num_calls = 3
        assert trainer.reward_funcs[1](environments=[one], prompts=None) == [0.75]
        assert trainer.reward_func_names[1] == "Counted"


def test_batch_of_environments_that_are_done_is_scored_without_them(environments):
    trainer, num_resets = environments, Counted.num_resets
    rows = [dict(row) for row in problems(2) for _ in range(4)]
    tokens = [[40, 41]] * 8
    with relies_on(
        "TrainerSeams.without_environments", "no environment is handed out or reset where there is no factory"
    ):
        returned = Generated([[9]] * 8, tokens, [[1, 0]] * 8, [[]] * 8, None, {}, None, [[] for _ in tokens])
        with (
            TrainerSeams(trainer).without_environments(),
            replaced(trainer, "_generate", lambda prompts: returned),
            replaced(trainer, "_calculate_rewards", lambda *args: torch.zeros(8, 2)),
        ):
            output = trainer._generate_and_score_completions(rows)
        assert Counted.num_resets == num_resets
        assert output["tool_mask"].tolist() == [[1, 0]] * 8
        assert output["num_items_in_batch"] == 8


def test_tools_that_are_hidden_are_not_shown_to_the_model(tmp_path):
    factories = {"plain": Counted, "other": Counted}
    trainer = make_chat_trainer(tmp_path, ScriptedGRPO, config=GRPOConfig, environment_factory=factories)
    rows = [{**row, "environment": "other"} for row in problems(2)]
    with relies_on(
        "TrainerSeams.chooses_environments", "`_multi_environment`; the column `environment` is not an argument"
    ):
        seams = TrainerSeams(trainer)
        assert seams.chooses_environments
        assert seams.has_environments
        assert seams.has_turns
        seen = []
        prompts = seams.prepare(rows, lambda number, environment, row: seen.append(set(row)), lambda row, tool: tool)
        assert seen == [{"prompt", "solution", "row"}] * 2
    with relies_on(
        "TrainerSeams.hide_environment_tools", "`_env_tools` are those that the prompts of an environment show"
    ):
        assert "calculate" in trainer._tokenizer.decode(seams.tokenize(prompts)[0])
        seams.hide_environment_tools(lambda tool: tool.__name__ == "calculate")
        assert "calculate" not in trainer._tokenizer.decode(seams.tokenize(prompts)[0])


def test_trainer_says_what_the_rooms_ask_it(trainer, tools):
    facts = {
        "step": 0, "is_training": True, "is_multimodal": False, "has_tools": False, "has_async_tools": False, "has_turns": False,
        "has_rollout_function": False, "has_environments": False, "chooses_environments": False, "sees_gradients": True,
        "reward_names": ["parity", "length", "judge"], "shares_engine": False, "calls_together": False,
        "device": torch.device("cpu"), "tokenizer": trainer.processing_class, "pooled_environments": [],
    }  # fmt: skip
    for name, value in facts.items():
        with relies_on(f"TrainerSeams.{name}", f"{value}, for a trainer of text without tools"):
            assert getattr(TrainerSeams(trainer), name) == value
    with relies_on("TrainerSeams.has_tools", "`tools` has them"):
        assert TrainerSeams(tools.trainer).has_tools
        assert TrainerSeams(tools.trainer).has_turns
    with relies_on(
        "TrainerSeams.rows_at_once", "the generation batch is `per_device_train_batch_size * steps_per_generation`"
    ):
        assert [TrainerSeams(trainer).rows_at_once(count) for count in (7, 8, 9, 20)] == [7, 8, 5, 7]


def test_rollout_function_is_called_with_what_we_put_before_it(trainer):
    def rollout(prompts, trainer):
        return {
            "prompt_ids": [[3]] * len(prompts), "completion_ids": [[4, 5]] * len(prompts), "logprobs": None,
            "env_mask": [[1, 0]] * len(prompts), "note": ["n"] * len(prompts),
        }  # fmt: skip

    trainer.rollout_func = rollout
    with relies_on(
        "TrainerSeams.rollout_function_called_by", "`_generate` calls `rollout_func(prompts, trainer)`; its fields"
    ):
        with TrainerSeams(trainer).rollout_function_called_by(lambda function, prompts: function(prompts[:1])):
            generated = Generated(*trainer._generate(["w0", "w1"]))
        assert (generated.prompt_ids, generated.completion_ids) == ([[3]], [[4, 5]])
        assert (generated.tool_mask, generated.extra_fields) == ([[1, 0]], {"note": ["n"]})


# Images


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    """A trainer of TRL whose model sees, and its rows."""
    rows = coloured_squares(2)
    trainer = GRPOTrainer(
        model=tiny_vlm(),
        reward_funcs=first_token_reward,
        args=GRPOConfig(**training_arguments(tmp_path_factory.mktemp("vision"))),
        train_dataset=rows,
        processing_class=tiny_processor(),
    )
    return trainer, [dict(row) for row in rows for _ in range(4)]


def test_images_are_put_into_prompts_and_taken_out_as_we_do_it(vision):
    trainer, rows = vision
    given = [row["image"].getpixel((0, 0)) for row in rows]
    with relies_on("TrainerSeams.is_multimodal", "`_is_vlm`"):
        seams = TrainerSeams(trainer)
        assert seams.is_multimodal
    with relies_on("TrainerSeams.prepare", "the image of a row stands before its text"):
        prompts = seams.prepare([dict(row) for row in rows], None, lambda row, tool: tool)
        parts = [prompt[-1]["content"] for prompt in prompts]
        assert [[part["type"] for part in content] for content in parts] == [["image", "text"]] * 8
        assert [content[0]["image"].getpixel((0, 0)) for content in parts] == given
        several = [{"prompt": row["prompt"], "images": [row["image"]] * 2} for row in rows]
        parts = [prompt[-1]["content"] for prompt in seams.prepare(several, None, lambda row, tool: tool)]
        assert [[part["type"] for part in content] for content in parts] == [["image", "image", "text"]] * 8
    with relies_on("TrainerSeams.tokenize", "`_tokenize_prompts` finds the images in the prompts"):
        _, images, fields = trainer._tokenize_prompts(prompts)
        assert [image.getpixel((0, 0)) for (image,) in images] == given
        assert "pixel_values" in fields
    with relies_on("_generate_and_score_completions", "without images of `_generate`, those of the rows are trained"):
        ids = [list(ids) for ids in seams.tokenize(prompts)]
        returned = Generated(ids, [[4, 5]] * 8, None, ["w1 w2"] * 8, None, {}, None, [])
        with (
            replaced(trainer, "_generate", lambda prompts: returned),
            replaced(trainer, "_calculate_rewards", lambda *args: torch.zeros(8, 1)),
        ):
            output = trainer._generate_and_score_completions(rows)
        assert output["num_images"] == [1] * 8
        assert torch.equal(
            output["pixel_values"], torch.stack([torch.as_tensor(one) for one in fields["pixel_values"]])
        )


def test_ranks_that_share_a_model_decode_equally_far(monkeypatch):
    # FSDP2 gathers each layer in each forward pass: a rank that stopped on its own would leave the others waiting.
    model, counts = tiny_model(), []
    for world_size, is_fsdp in ((2, True), (1, True), (2, False)):
        monkeypatch.setattr(generation_of_transformers, "_get_torch_distributed_world_size", lambda n=world_size: n)
        monkeypatch.setattr(
            generation_of_transformers, "is_fsdp_managed_module", lambda module, is_fsdp=is_fsdp: is_fsdp
        )

        def sample(*args, synced_gpus=None, **kwargs):
            counts.append(synced_gpus)
            return args[1] if len(args) > 1 else kwargs["input_ids"]

        monkeypatch.setattr(type(model), "_sample", sample)
        model.generate(torch.ones(1, 2, dtype=torch.long), do_sample=True, max_new_tokens=2)
    with relies_on(
        "TrainerSeams.calls_together", "`generate` tells its sampler to go on with the other ranks, with FSDP alone"
    ):
        assert counts == [True, False, False]


# The vLLM backend, with a stand-in for the engine. What is of vLLM itself is in tests/with_vllm/test_vllm_seams.py.


class Engine:
    """Stands in for `vllm.LLM`, and says what is asked of it."""

    def __init__(self, **options):
        self.options, self.events, self.loaded = options, [], []
        model = SimpleNamespace(load_weights=self.loaded.extend)
        worker = SimpleNamespace(model_runner=SimpleNamespace(model=model))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))

    def sleep(self, level):
        self.events.append(f"sleep {level}")

    def wake_up(self, tags):
        self.events.append(f"wake {tags}")

    def reset_prefix_cache(self):
        self.events.append(f"forget, {len(self.loaded)} loaded")

    def generate(self, prompts, sampling_params, **options):
        self.events.append(f"generate {len(prompts)}")
        logprob = {4: SimpleNamespace(logprob=-0.5, rank=1)}
        return [
            SimpleNamespace(
                prompt_token_ids=prompt["prompt_token_ids"],
                outputs=[SimpleNamespace(token_ids=[4], logprobs=[logprob])],
            )
            for prompt in prompts
        ]


@pytest.fixture
def backend(trainer, monkeypatch):
    """Builds TRL's vLLM backend of the tiny model."""

    def build(cls=VLLMGeneration, **options):
        monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda *args, **kwargs: True)
        monkeypatch.setattr(vllm_generation, "SamplingParams", lambda **given: SimpleNamespace(**given), raising=False)
        options = {"mode": "colocate", **options}
        with replaced(vllm_generation, "LLM", Engine):
            return cls(trainer.model, trainer.accelerator, trainer.processing_class, **options)

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)
    return build


def test_engine_is_built_by_the_name_that_we_replace(backend):
    noted = []

    class Noting(VLLMGeneration):
        def _init_vllm(self):
            noted.append("_init_vllm")
            super()._init_vllm()

    with relies_on(
        "VLLMGeneration._init_vllm", "calls `LLM(...)` by name, and keeps it as `llm`; `_llm_weights_sleeping`"
    ):
        generation = backend(Noting, max_num_seqs=5)
        assert noted == ["_init_vllm"]
        assert isinstance(generation.llm, Engine)
        options = generation.llm.options
        assert (options["max_num_seqs"], options["max_num_batched_tokens"], options["logprobs_mode"]) == (
            5, 4096, "processed_logprobs",
        )  # fmt: skip
        assert generation._llm_weights_sleeping is False
        assert hasattr(vllm_generation, "LLM") == is_vllm_available()


def test_weight_sync_loads_what_the_overridden_iterator_yields(backend):
    with relies_on(
        "VLLMGeneration._iter_named_params", "`sync_weights` loads each, runs it to its end, then drops the caches"
    ):
        generation = backend()
        names = [name for name, _ in generation._iter_named_params()]
        assert names == [name for name, _ in generation.model.named_parameters()]

        def some():
            yield "a", torch.zeros(1)
            yield "b", torch.ones(1)
            generation.llm.events.append("at the end")

        generation._iter_named_params = some
        generation.sync_weights()
        assert [name for name, _ in generation.llm.loaded] == ["a", "b"]
        assert generation.llm.events == ["at the end", "forget, 2 loaded"]


def test_generation_asks_the_flags_that_keep_the_engine_awake(backend):
    with relies_on(
        "VLLMGeneration.generate", "syncs if `_llm_weights_sleeping`; wakes and sleeps if `enable_sleep_mode`"
    ):
        generation = backend(enable_sleep_mode=True)
        num_weights = len(list(generation.model.parameters()))
        loads = ["wake ['weights']", f"forget, {num_weights} loaded"]
        assert generation.llm.events == ["sleep 2"]
        generation.llm.events.clear()
        generation.generate([[3], [3, 4]], None, 1)
        assert generation.llm.events == [*loads, "wake ['kv_cache']", "generate 2", "sleep 2"]
        assert generation._llm_weights_sleeping is True
        generation.llm.events.clear()
        # As ours keeps it awake over the rounds of a batch.
        generation._llm_weights_sleeping = generation.enable_sleep_mode = False
        generation.generate([[3]], None, 1)
        assert generation.llm.events == ["generate 1"]


def test_requests_go_through_what_we_put_in_place_of_the_engines_method(backend):
    given = []

    def generate(prompts, sampling_params, **options):
        given.append((prompts, sampling_params))
        return []

    with relies_on(
        "VLLMGeneration.generate", "calls `llm.generate(prompts, sampling_params=...)` once, with one completion each"
    ):
        generation = backend(temperature=0.5)
        prompt_ids, completion_ids, logps, _token_ids = generation.generate([[3], [3, 5]], None, 1)
        assert (prompt_ids, completion_ids, logps) == ([[3], [3, 5]], [[4], [4]], [[[-0.5]], [[-0.5]]])
        with replaced(generation.llm, "generate", generate):
            generation.generate([], images=None, num_generations=1)
        ((prompts, params),) = given
        assert (prompts, params.n, params.temperature) == ([], 1, 0.5)


class Client:
    """Stands in for TRL's client of a vLLM server."""

    def __init__(self, base_url, group_port, connection_timeout):
        self.events = []

    def init_communicator(self, device):
        self.events.append("communicator")

    def get_server_info(self):
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def update_named_params(self, metadata, weights):
        self.events.append(f"update {len(metadata)} {len(list(weights))}")

    def reset_prefix_cache(self):
        self.events.append("forget")


def test_server_mode_calls_what_stands_in_for_the_client(backend, monkeypatch):
    monkeypatch.setattr(vllm_generation, "VLLMClient", Client)
    with relies_on(
        "VLLMGeneration.sync_weights", "the client gets `_weight_metadata` and the iterator, then drops its cache"
    ):
        generation = backend(mode="server")
        generation._iter_named_params = lambda: iter([("a", torch.zeros(1)), ("b", torch.zeros(1))])
        # As ours says that there is nothing to describe.
        generation._weight_metadata = []
        generation.sync_weights()
        assert generation.vllm_client.events == ["communicator", "update 0 2", "forget"]
    with relies_on("VLLMGeneration._init_vllm", "TRL's client is built as ours builds it"):
        inspect.signature(VLLMClient).bind(base_url="", group_port=1, connection_timeout=1.0)
        assert hasattr(VLLMClient, "init_communicator")


class Backend:
    """Stands in for `VLLMGeneration`, and counts."""

    def __init__(self, **options):
        self.options, self.events, self.vllm_client = options, [], Client("", 0, 0)

    def sync_weights(self):
        self.events.append("sync")

    def generate(self, prompts, images, num_generations, profiler=None):
        self.events.append(f"generate {len(prompts)}")
        return prompts, [[4]] * len(prompts), [[[-0.5]]] * len(prompts), None


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_trainer_builds_its_vllm_backend_by_the_name_that_we_replace(mode, tmp_path):
    with relies_on(
        "engine_built_by", "`VLLMGeneration(...)` by name, with arguments by name that its constructor takes"
    ):
        with engine_built_by(Backend):
            trainer = plain_trainer(tmp_path, use_vllm=True, vllm_mode=mode)
        assert isinstance(trainer.vllm_generation, Backend)
        inspect.signature(VLLMGeneration).bind(**trainer.vllm_generation.options)
        assert trainer.vllm_generation.options["mode"] == mode
        # No message of a server whose log-probabilities are the wrong ones, and no other use of the client.
        assert trainer.vllm_generation.vllm_client.events == []
    with relies_on("TrainerSeams.bring_weights", "`_last_loaded_step`: weights are pushed once per optimizer step"):
        events = trainer.vllm_generation.events
        assert trainer._generate_single_turn([[3]], None, {}, 1) == ([[4]], [[-0.5]])
        trainer._generate_single_turn([[3], [5]], None, {}, 1)
        assert events == ["sync", "generate 1", "generate 2"]
        trainer.state.global_step = 1
        TrainerSeams(trainer).bring_weights()
        trainer._generate_single_turn([[3]], None, {}, 1)
        TrainerSeams(trainer).bring_weights()
        assert events[3:] == ["sync", "generate 1"]


def test_each_seam_has_a_test_that_names_it():
    tested = set(re.findall(r'relies_on\(\s*f?"([^"]+)"', Path(__file__).read_text(encoding="utf-8")))
    tested |= {f"TrainerSeams.{name}" for name in vars(TrainerSeams) if f'"{name}":' in Path(__file__).read_text()}
    # Built on others that are here; of `train`, that each run can be made.
    built_on = {
        "train",
        "TrainerSeams.name_requests", "TrainerSeams.spread_logged_columns", "AddedReward.names", "AddedReward.weights",
        "AddedReward.hidden",
    }  # fmt: skip
    assert set(SEAMS) - tested - built_on == set()
