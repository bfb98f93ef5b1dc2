"""
Trainings whose vLLM server fails, in 23 ways, in the middle of a run: while a batch is sampled, or beside training.

Either the run goes on, and its batches and weights are those of the run without the fault; or it saves, ends with an error
that names the server, and is resumed where it stood. Faults come with the second weights, whenever that is.
"""

import pytest
import torch
from scripted_server import ModelEngine, ScriptedServer
from served_training import NUM_BATCHES, OPTIONS
from server_training import make_trainer, save_model
from test_overlap import OVERLAP

from trl_dapo.errors import StaleEngineError, VLLMServerError


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def straight(model, tmp_path_factory):
    """Returns the trainer of the run without a fault, beside sampling or not; it trains when it is first asked for."""
    trainers = {}

    def trainer_of(overlap):
        if overlap not in trainers:
            with served_by(model) as served:
                trainers[overlap] = trainer = trainer_on(served, tmp_path_factory.mktemp("straight"), model, overlap)
                trainer.train()
            assert len(trainer.batches) == NUM_BATCHES
        return trainers[overlap]

    return trainer_of


def served_by(model):
    return ScriptedServer(ModelEngine(model))


def trainer_on(served, folder, model, overlap, **options):
    # Where it fails it saves, and only there.
    options = OPTIONS | {"save_steps": 100} | (OVERLAP if overlap else {}) | options
    return make_trainer(folder, model, [served.address], **options)


def fail_after_load(served, number, fault):
    """Has something happen to a server when it has loaded weights for so many times."""

    def reached(point):
        if point == "loaded" and len(served.loaded) == number:
            fault(served)

    served.reached = reached


def of_completions(*faults):
    return lambda served: served.faults.extend(faults)


def of_calls(name, *faults, asked_by=()):
    """Faults of the next calls; the version is asked for when a completion has failed."""

    def plan(served):
        served.faults_of[name].extend(faults)
        served.faults.extend(asked_by)

    return plan


def weights_of_another_run(served):
    served.version = "another/1"
    served.faults.append("reset")


def same_weights(trainer, other):
    states = trainer.model.state_dict(), other.model.state_dict()
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("overlap", [False, True], ids=["sampling", "beside-training"])
@pytest.mark.parametrize(
    ("fault", "number"),
    [
        pytest.param(of_completions(*["slow"] * 6), 2, id="slow", marks=[pytest.mark.slow, pytest.mark.fault(
            "a vLLM server is slow", "sampling, also beside training", "waited for; the batches and weights are the same"
        )]),
        pytest.param(of_completions(*["500"] * 6), 2, id="500", marks=[pytest.mark.slow, pytest.mark.fault(
            "a vLLM server answers 500", "sampling, also beside training",
            "asked again with the same seeds; the batches and weights are the same",
        )]),
        pytest.param(of_completions("429", "503", "408", "429"), 2, id="overloaded", marks=[pytest.mark.slow, pytest.mark.fault(
            "a vLLM server says that it is overloaded (429, 503)", "sampling, also beside training",
            "asked again with the same seeds; the batches and weights are the same",
        )]),
        pytest.param(of_completions("silent", "silent"), 2, id="silent", marks=[pytest.mark.slow, pytest.mark.fault(
            "a vLLM server closes a connection without an answer", "sampling, also beside training",
            "asked again with the same seeds; the batches and weights are the same",
        )]),
        pytest.param(of_completions("headless", "headless"), 2, id="headless", marks=[pytest.mark.slow, pytest.mark.fault(
            "a vLLM server breaks off in the head of an answer", "sampling, also beside training",
            "asked again with the same seeds; the batches and weights are the same",
        )]),
        pytest.param(of_completions("reset", "reset"), 2, id="reset", marks=[pytest.mark.slow, pytest.mark.fault(
            "a vLLM server breaks off after some tokens", "sampling, also beside training",
            "asked again with the same seeds; the batches and weights are the same",
        )]),
        pytest.param(of_completions("half", "half"), 2, id="half", marks=[pytest.mark.slow, pytest.mark.fault(
            "a vLLM server ends an answer in the middle, as if it were complete", "sampling, also beside training",
            "asked again with the same seeds; the batches and weights are the same",
        )]),
        pytest.param(of_completions("half line", "half line, closed"), 2, id="half-line", marks=pytest.mark.fault(
            "a vLLM server ends an answer in the middle of a line", "sampling, also beside training",
            "asked again with the same seeds; the batches and weights are the same",
        )),
        pytest.param(of_completions("half chunk", "half chunk"), 2, id="half-chunk", marks=[pytest.mark.slow, pytest.mark.fault(
            "a vLLM server breaks off in the middle of an HTTP chunk", "sampling, also beside training",
            "asked again with the same seeds; the batches and weights are the same",
        )]),
        pytest.param(of_completions("abort", "abort"), 2, id="abort", marks=[pytest.mark.slow, pytest.mark.fault(
            "a vLLM server gives up a completion", "sampling, also beside training",
            "asked again with the same seeds; the batches and weights are the same",
        )]),
        pytest.param(of_completions("error", "error"), 2, id="error", marks=[pytest.mark.slow, pytest.mark.fault(
            "a vLLM server sends an error in a stream", "sampling, also beside training",
            "asked again with the same seeds; the batches and weights are the same",
        )]),
        pytest.param(of_completions(None, None, "restart"), 2, id="restart", marks=[pytest.mark.slow, pytest.mark.fault(
            "a vLLM server restarts with old weights", "within answers, also beside training",
            "noticed; it loads those of the batch, and the batches and weights are the same",
        )]),
        pytest.param(of_calls("dapo_state", "restart behind", asked_by=["reset"]), 2, id="restart-behind", marks=pytest.mark.fault(
            "a vLLM server restarts with old weights", "between the look at its version and the request, also beside training",
            "noticed; it loads those of the batch, and the batches and weights are the same",
        )),
        pytest.param(of_calls("prompt_logprobs", "restart behind"), 2, id="restart-in-check", marks=[pytest.mark.slow, pytest.mark.fault(
            "a vLLM server restarts with old weights", "within the check of its log-probabilities, also beside training",
            "noticed; it loads those of the batch, and the batches and weights are the same",
        )]),
        pytest.param(of_calls("dapo_load_weights", "restart"), 1, id="restart-in-load", marks=[pytest.mark.slow, pytest.mark.fault(
            "a vLLM server restarts with old weights", "weight sync, also beside training",
            "it loads the new ones; the batches and weights are the same",
        )]),
        pytest.param(of_calls("dapo_load_weights", "500", "half", "silent"), 1, id="load", marks=[pytest.mark.slow, pytest.mark.fault(
            "a vLLM server answers 500, half or nothing", "weight sync, also beside training",
            "asked again; the batches and weights are the same",
        )]),
        pytest.param(of_calls("dapo_state", "500", "half", "silent", asked_by=["reset"]), 2, id="state", marks=[
            pytest.mark.slow, pytest.mark.fault(
                "a vLLM server answers 500, half or nothing", "the look at its version, also beside training",
                "asked again; the batches and weights are the same",
            )
        ]),
    ],
)  # fmt: skip
def test_run_goes_on_as_if_nothing_had_happened(tmp_path, model, straight, fault, number, overlap):
    reference = straight(overlap)
    with served_by(model) as served:
        fail_after_load(served, number, fault)
        trainer = trainer_on(served, tmp_path, model, overlap)
        trainer.train()
        assert not served.faults
        assert not any(served.faults_of.values())
    assert trainer.batches == reference.batches
    assert same_weights(trainer, reference)


@pytest.mark.parametrize("overlap", [False, True], ids=["sampling", "beside-training"])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        pytest.param(of_completions(*["hang"] * 100), "has not answered for vllm_server_timeout=20 s", id="hang",
            marks=[pytest.mark.slow, pytest.mark.fault(
                "a vLLM server hangs", "sampling, also beside training",
                "a checkpoint, then `VLLMServerError`; resumed, and no group is lost or trains twice",
            )]),
        pytest.param(of_completions(None, "400"), "refused a request with status 400", id="400",
            marks=[pytest.mark.slow, pytest.mark.fault(
                "a vLLM server refuses a request", "sampling, also beside training",
                "a checkpoint, then `VLLMServerError`; resumed, and no group is lost or trains twice",
            )]),
        pytest.param(of_completions(None, "garbage"), "an event that is no JSON object", id="garbage",
            marks=[pytest.mark.slow, pytest.mark.fault(
                "a vLLM server sends what is no JSON", "sampling, also beside training",
                "a checkpoint, then `VLLMServerError`; resumed, and no group is lost or trains twice",
            )]),
        pytest.param(of_completions(None, "foreign"), "a token that the model does not have", id="foreign",
            marks=[pytest.mark.slow, pytest.mark.fault(
                "a vLLM server sends tokens of another model", "sampling, also beside training",
                "a checkpoint, then `VLLMServerError`; resumed, and no group is lost or trains twice",
            )]),
        pytest.param(weights_of_another_run, "has the weights 'another/1' of another run", id="another-run",
            marks=pytest.mark.fault(
                "another run has loaded its weights into the vLLM server", "sampling, also beside training",
                "a checkpoint, then `VLLMServerError`; resumed, and no group is lost or trains twice",
            )),
    ],
)  # fmt: skip
def test_run_is_saved_and_ends_with_the_cause_and_is_resumed(tmp_path, model, straight, fault, message, overlap):
    with served_by(model) as served:
        fail_after_load(served, 2, fault)
        trainer = trainer_on(served, tmp_path, model, overlap, vllm_server_timeout=20.0)
        with pytest.raises(VLLMServerError, match=message) as raised:
            trainer.train()
        assert served.address in str(raised.value)
        # Two optimizer steps on each of the batches that it had.
        step = 2 * len(trainer.batches)
        assert trainer.state.global_step == step > 0
        assert raised.value.__notes__ == [f"The run can be resumed from {tmp_path / f'checkpoint-{step}'}."]
        served.faults.clear()
        resumed = trainer_on(served, tmp_path, model, overlap)
        resumed.train(resume_from_checkpoint=True)
    assert_goes_on(trainer, resumed, straight(overlap), overlap)


def assert_goes_on(trainer, resumed, reference, overlap):
    """Whether a run that was resumed at a batch has lost no group and trained none twice."""
    batches = trainer.batches + resumed.batches
    assert len(batches) == NUM_BATCHES
    assert trainer.batches == reference.batches[: len(trainer.batches)]
    positions = [position for batch, _ in batches for position in batch]
    assert positions == sorted(set(positions))
    if not overlap:
        # Beside training, the batch that was lost is sampled again with the weights of the checkpoint, which are newer.
        assert batches == reference.batches
        assert same_weights(resumed, reference)


@pytest.mark.fault(
    "a vLLM server says that it has loaded weights, and has not",
    "weight sync, also beside training",
    "`StaleEngineError` before its batch trains; resumed from the last checkpoint, and no group is lost or trains twice",
)
@pytest.mark.slow
@pytest.mark.parametrize("overlap", [False, True], ids=["sampling", "beside-training"])
def test_run_whose_server_keeps_old_weights_ends_before_it_trains_their_batch(tmp_path, model, straight, overlap):
    with served_by(model) as served:
        load = served.engine.load

        def keep_old_weights(served):
            served.engine.load = lambda files: None

        fail_after_load(served, 2, keep_old_weights)
        options = {"vllm_max_logp_gap": 0.02, "save_steps": 1}
        trainer = trainer_on(served, tmp_path, model, overlap, **options)
        with pytest.raises(StaleEngineError, match=f"server at {served.address} does not sample from the weights"):
            trainer.train()
        served.engine.load = load
        resumed = trainer_on(served, tmp_path, model, overlap, **options)
        resumed.train(resume_from_checkpoint=True)
    assert_goes_on(trainer, resumed, straight(overlap), overlap)
