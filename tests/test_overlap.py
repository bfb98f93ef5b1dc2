"""Sampling beside training: which batches are sampled, with which weights, and the loss. The servers are scripted, all else is real."""

import copy

import pytest
import torch
from paper import StepRecorder, gradient_error
from scripted_server import ModelEngine, ScriptedServer
from server_training import CollectingTrainer, make_trainer, save_model
from tiny import first_token_reward, tiny_model, tiny_tokenizer

from trl_dapo import DAPOConfig
from trl_dapo.report.overlap_balance import OverlapBalance, describe_balance
from trl_dapo.sampling.prompt_stream import PromptStream, SequenceKey


OVERLAP = {
    "overlap": True,
    "vllm_importance_sampling_correction": True,
    "vllm_importance_sampling_mode": "token_truncate",
    "vllm_importance_sampling_clip_max": 2.0,
}
TWO_STEPS = {"per_device_train_batch_size": 4, "steps_per_generation": 2}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def served_by(model_folder, **options):
    return ScriptedServer(ModelEngine(model_folder), **options)


class WatchedTrainer(StepRecorder, CollectingTrainer):
    """Keeps the weights when each batch begins to be sampled, and when it begins to train."""

    def __init__(self, *args, **kwargs):
        self.begun, self.trained = [], []
        super().__init__(*args, **kwargs)
        sampler = self.dynamic_sampler
        begin = sampler._begin

        def begin_and_keep(policy_step, trains_at):
            self.begun.append((policy_step, trains_at, sampler.source.position, self.weights()))
            begin(policy_step, trains_at)

        sampler._begin = begin_and_keep

    def weights(self):
        return copy.deepcopy(self.model.state_dict())

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.trained.append((self.state.global_step, self.weights(), output))
        return output


@pytest.fixture(scope="module")
def overlapped(model_folder, tmp_path_factory):
    """Six batches of two optimizer steps."""
    return train(model_folder, tmp_path_factory)


@pytest.fixture(scope="module")
def as_old(model_folder, tmp_path_factory):
    """The same, with ratios against the policy that sampled."""
    return train(model_folder, tmp_path_factory, vllm_importance_sampling_correction=False)


def train(model_folder, tmp_path_factory, **options):
    with served_by(model_folder) as served:
        trainer = make_trainer(
            tmp_path_factory.mktemp("run"),
            model_folder,
            [served.address],
            cls=WatchedTrainer,
            max_steps=12,
            learning_rate=3e-2,
            **TWO_STEPS,
            **OVERLAP | options,
        )
        trainer.train()
        trainer.num_loaded = len(served.loaded)
    assert len(trainer.batches) == 6
    return trainer


def sampled_alone(trainer, model_folder, position, state):
    """Returns the first two mixed groups from a position of the stream on, sampled one after the other with some weights."""
    engine = ModelEngine(model_folder)
    engine.model.load_state_dict(state)
    stream, tokenizer = PromptStream(50, seed=trainer.args.seed), tiny_tokenizer()
    stream.seek(position)
    positions, rows = [], []
    for draw in stream.peek(20):
        (prompt,) = tokenizer([trainer.train_dataset[draw.index]["prompt"]])["input_ids"]
        seeds = [trainer.vllm_generation.request_seed(SequenceKey(draw.position, number), 0) for number in range(4)]
        completions = [engine(prompt, seed, 5)[0] for seed in seeds]
        if len(positions) < 2 and len(set(first_token_reward(completions))) == 2:
            positions.append(draw.position)
            rows += [(prompt, completion) for completion in completions]
    return [positions, rows]


def test_each_batch_is_what_a_run_that_waits_samples_with_the_weights_before_the_batch_in_front_of_it(
    overlapped, model_folder
):
    begun = [(policy_step, trains_at) for policy_step, trains_at, *_ in overlapped.begun]
    assert begun == [(0, 0), (0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    for (_, _, position, state), batch in zip(overlapped.begun, overlapped.batches, strict=True):
        assert sampled_alone(overlapped, model_folder, position, state) == batch
    # Each begins where the one before ended, with other weights, and the last one has none after it.
    assert [position for _, _, position, _ in overlapped.begun[1:]] == [
        batch[0][-1] + 1 for batch in overlapped.batches[:-1]
    ]
    assert overlapped.num_loaded == 5
    late = sampled_alone(overlapped, model_folder, overlapped.begun[2][2], overlapped.trained[2][1])
    assert late != overlapped.batches[2]


def logps_under(state, prompt, completion):
    model = tiny_model()
    model.load_state_dict(state)
    model.double()
    logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0]
    return logits[len(prompt) - 1 : -1].log_softmax(-1)[range(len(completion)), completion], model


def test_log_probabilities_are_those_of_the_policy_that_sampled_and_of_that_which_begins_to_train(overlapped):
    for (*_, sampled_by), (_, trained_by, output) in zip(overlapped.begun, overlapped.trained, strict=True):
        for row in range(len(output["advantages"])):
            prompt = output["prompt_ids"][row][output["prompt_mask"][row].bool()].tolist()
            live = output["completion_mask"][row].bool()
            completion = output["completion_ids"][row][live].tolist()
            for name, state in (("sampling_per_token_logps", sampled_by), ("old_per_token_logps", trained_by)):
                exact, _ = logps_under(state, prompt, completion)
                torch.testing.assert_close(output[name][row][live].double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("loss", ["overlapped", "as_old"])
def test_gradient_of_each_optimizer_step_is_that_of_float64_loops(loss, request):
    """
    Decoupled: the proximal policy is that at the beginning of the batch, also in its second step, and weights are cut at 2. Or
    ratio and clip against the policy that sampled.
    """
    trainer = request.getfixturevalue(loss)
    assert len(trainer.steps) == 12
    num_cut = num_clipped = 0
    for number, (state, rows, gradient) in enumerate(trainer.steps):
        sampled_by, proximal = trainer.begun[number // 2][3], trainer.trained[number // 2][1]
        total, tokens = 0.0, 0
        model = tiny_model()
        model.load_state_dict(state)
        model.double()
        for row in rows:
            prompt, completion = map(list, row["key"])
            behaviour = logps_under(sampled_by, prompt, completion)[0].tolist()
            start = logps_under(proximal, prompt, completion)[0].tolist() if loss == "overlapped" else behaviour
            logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0]
            logps = logits[len(prompt) - 1 : -1].log_softmax(-1)
            for place, token in enumerate(completion):
                ratio = torch.exp(logps[place, token] - start[place])
                weight = torch.exp(torch.tensor(start[place] - behaviour[place], dtype=torch.float64)).item()
                num_cut += weight > 2.0
                clipped = torch.clamp(ratio, 0.8, 1.28)
                num_clipped += clipped.item() != ratio.item()
                surrogate = torch.minimum(ratio * row["advantage"], clipped * row["advantage"])
                total = total - min(weight, 2.0) * surrogate
                tokens += 1
        (total / tokens).backward()
        exact = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert gradient_error(gradient, exact) < 1e-5
    # Both bounds bind somewhere.
    assert num_clipped > 3
    assert num_cut > 3 or loss == "as_old"


def test_ratio_against_the_policy_that_sampled_has_no_hole_where_the_engine_says_nothing(as_old):
    output = dict(as_old.trained[-1][2])
    sampled = output["sampling_per_token_logps"].clone()
    output["sampling_per_token_logps"] = sampled.clone()
    output["sampling_per_token_logps"][0, 0] = torch.nan
    filled = as_old._sampled_logps(output)
    assert filled[0, 0] == as_old.seams.score(output)[0, 0]
    assert torch.equal(filled[1:], sampled[1:])


def test_log_lines_say_how_old_the_tokens_are_and_what_was_hidden(overlapped):
    lines = [line for line in overlapped.state.log_history if "dapo/overlap/staleness_max" in line]
    assert [line["dapo/overlap/staleness_mean"] for line in lines] == [0.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert [line["dapo/overlap/staleness_max"] for line in lines] == [0.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    for line, (*_, output) in zip(lines, overlapped.trained, strict=True):
        assert 0.0 <= line["dapo/overlap/hidden"] <= 1.0
        assert line["dapo/overlap/wait_seconds"] >= 0.0
        live = output["completion_mask"].bool()
        weights = torch.exp(output["old_per_token_logps"] - output["sampling_per_token_logps"])[live]
        assert line["dapo/overlap/frac_truncated"] == pytest.approx((weights > 2.0).double().mean().item())
        assert line["sampling/importance_sampling_ratio/max"] == pytest.approx(min(weights.max().item(), 2.0))
    # The first batch has nothing before it to hide behind.
    assert lines[0]["dapo/overlap/hidden"] == pytest.approx(0.0, abs=0.2)


@pytest.mark.refuses("overlap_elsewhere")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refill": "rounds"}, "overlap is True, but refill is 'rounds' and must be 'stream'"),
        ({"vllm_mode": "colocate"}, "overlap is True, but vllm_mode is 'colocate' and must be 'server'"),
        ({"use_vllm": False, "refill": "rounds"}, "overlap is True, but use_vllm is False and must be True"),
        ({"dynamic_sampling": False}, "overlap is True, but dynamic_sampling is False and must be True"),
        (
            {"vllm_importance_sampling_mode": "sequence_mask"},
            "vllm_importance_sampling_mode is 'sequence_mask' and must be one of 'token_truncate', 'token_mask'",
        ),
        (
            {"max_off_policy_steps": 3},
            r"max_off_policy_steps is 3, but must be 4 or more with overlap=True and surplus='requeue': a batch takes 4",
        ),
        ({"max_off_policy_steps": 7, "surplus": "carry"}, "max_off_policy_steps is 7, but must be 8 or more"),
    ],
)
def test_what_cannot_be_sampled_beside_training_is_refused_with_the_configuration(options, message, tmp_path):
    arguments = {
        "use_vllm": True,
        "vllm_mode": "server",
        "refill": "stream",
        "per_device_train_batch_size": 2,
        "num_generations": 4,
        "steps_per_generation": 4,
        "use_cpu": True,
        "bf16": False,
    }
    with pytest.raises(ValueError, match=message):
        DAPOConfig(str(tmp_path), **(arguments | OVERLAP | options))


def test_limit_on_age_counts_the_batch_that_everything_is_late(tmp_path):
    arguments = {"use_vllm": True, "vllm_mode": "server", "refill": "stream", "use_cpu": True, "bf16": False}
    batches = {"per_device_train_batch_size": 2, "num_generations": 4, "steps_per_generation": 4}
    args = DAPOConfig(str(tmp_path), surplus="carry", **(arguments | batches | OVERLAP))
    # Carried once: sampled one batch ahead, and carried over another one.
    assert args.max_off_policy_steps == 8
    assert args.shape.max_off_policy_steps == 4
    assert DAPOConfig(str(tmp_path), **(arguments | batches | OVERLAP)).max_off_policy_steps == 4


def test_it_is_said_once_after_a_few_batches_what_limits_the_run():
    balance = OverlapBalance()
    # The first batch has nothing before it: its figures say nothing.
    first = {"seconds_sampling": 90.0, "overlap/wait_seconds": 90.0}
    of_servers = {"seconds_sampling": 3.0, "overlap/wait_seconds": 1.0, "overlap/idle_seconds": 0.0}
    lines = [balance.observe(metrics) for metrics in [first, *[of_servers] * 6]]
    assert [line is not None for line in lines] == [False] * 4 + [True, False, False]
    assert "takes 3.0 s of sampling and 2.0 s of training. The servers limit the run: 1.5 times" in lines[4]
    of_trainer = describe_balance(sampling=2.0, waited=0.0, idle=6.0)
    assert "takes 2.0 s of sampling and 8.0 s of training. The trainer limits the run: 4.0 times" in of_trainer
    assert "0.2 times those of the servers" in of_trainer
    assert "balanced" in describe_balance(sampling=2.0, waited=0.05, idle=0.0)
    assert describe_balance(sampling=0.0, waited=0.0, idle=0.0) is None


def test_first_lines_of_a_run_say_how_old_its_batches_are(overlapped):
    text = overlapped._describe_run(12)
    assert (
        "each batch is sampled while the one before it trains, so it is 2 optimizer steps old when it begins" in text
    )
    assert "weighted by its probability then over that when it was sampled, at most 2." in text
    assert (
        "! overlap is True, and a batch is 2 optimizer steps old when it begins to train: that costs accuracy" in text
    )
