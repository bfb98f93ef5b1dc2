"""What is loaded from elsewhere (models, checkpoints, results) is data: no code in it is run."""

import ast
import json
import pickle
import shutil
from pathlib import Path

import pytest
from checkout import ROOT
from datasets import Dataset
from test_command_line import evaluate, model_folder, problem_file  # noqa: F401
from test_resume import make_trainer as resumable
from tiny import first_token_reward, numbered_prompts, training_arguments

from trl_dapo import DAPOConfig, DAPOTrainer
from trl_dapo.checkpoints.files import STATE_FOLDER, mark_whole
from trl_dapo.evaluation.evaluator import evaluate as evaluate_model
from trl_dapo.publishing.push import files_to_push


SOURCES = sorted(
    path for part in ("trl_dapo", "hub", "examples", "benchmarks") for path in (ROOT / part).rglob("*.py")
)
# Modules and functions that run what they read.
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "imp"}
RUNNERS = {"eval", "exec", "compile", "__import__", "execfile"}
FORBIDDEN_CALLS = {
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "yaml.load", "yaml.unsafe_load",
    "yaml.full_load", "pd.read_pickle", "pandas.read_pickle", "runpy.run_path", "runpy.run_module",
}  # fmt: skip


def findings(path):
    """What a module could run code with that it did not bring."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in UNPICKLERS)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNPICKLERS:
            yield node.module
        elif isinstance(node, ast.Call):
            name, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            is_unsafe_torch = name == "torch.load" and options.get("weights_only") != "True"
            is_unsafe_numpy = options.get("allow_pickle", "False") != "False"
            has_shell, trusts = options.get("shell", "False") != "False", options.get("trust_remote_code") == "True"
            if name in RUNNERS | FORBIDDEN_CALLS or is_unsafe_torch or is_unsafe_numpy or has_shell or trusts:
                yield ast.unparse(node)


# What a gather of objects costs is measured on a pickle that is made in the same line.
PICKLES_ITS_OWN = {ROOT / "benchmarks" / "scaling.py"}


@pytest.mark.parametrize("path", sorted({*SOURCES} - PICKLES_ITS_OWN), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_here_runs_what_it_reads(path):
    assert list(findings(path)) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from dill import loads", "eval(text)", "torch.load(path)", "torch.load(p, weights_only=False)",
        "np.load(p, allow_pickle=True)", "subprocess.run(c, shell=True)", "os.system(c)", "yaml.load(text)",
        "AutoModel.from_pretrained(n, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_scan_finds_what_it_looks_for(tmp_path, code):
    (tmp_path / "module.py").write_text(code)
    assert len(list(findings(tmp_path / "module.py"))) == 1


class Payload:
    """Unpickled, it leaves a file: what an attacker would do there is up to them."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.fixture
def trace(tmp_path):
    """Where a payload leaves its trace; the test fails if one does."""
    path = tmp_path / "code was run"
    yield path
    assert not path.exists()


def test_payload_leaves_a_trace(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "trace")))
    assert (tmp_path / "trace").exists()


# Checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    resumable(folder, max_steps=2, steps_per_generation=2).train()
    return folder / "checkpoint-1"


def state_files(folder):
    """The files of a checkpoint that a resumed run reads."""
    ours = sorted(path.relative_to(folder).as_posix() for path in (folder / STATE_FOLDER).iterdir())
    assert [Path(name).suffix for name in ours] == [".json", ".safetensors"]
    return [*ours, "optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors", "trainer_state.json"]


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("says_it_is_whole", [True, False])
def test_pickle_in_a_checkpoint_is_refused_and_not_run(tmp_path, checkpoint, trace, number, says_it_is_whole):
    folder = tmp_path / "run" / "checkpoint-1"
    shutil.copytree(checkpoint, folder)
    name = state_files(folder)[number]
    (folder / name).write_bytes(pickle.dumps(Payload(trace)))
    if says_it_is_whole:
        # Its maker knows of the manifest, too.
        mark_whole(folder, [])
    trainer = resumable(tmp_path / "run", max_steps=2, steps_per_generation=2)
    with pytest.raises(
        Exception, match=None if says_it_is_whole else f"{name} has (changed since it was written|.* bytes instead of)"
    ):
        trainer.train(resume_from_checkpoint=str(folder))
    assert trainer.state.global_step <= 1


def test_arguments_in_a_checkpoint_are_not_read(tmp_path, checkpoint, trace):
    folder = tmp_path / "run" / "checkpoint-1"
    shutil.copytree(checkpoint, folder)
    (folder / "training_args.bin").write_bytes(pickle.dumps(Payload(trace)))
    mark_whole(folder, [])
    trainer = resumable(tmp_path / "run", max_steps=2, steps_per_generation=2)
    trainer.train(resume_from_checkpoint=str(folder))
    assert trainer.state.global_step == 2


def test_old_weights_of_a_model_are_not_unpickled(tmp_path, model_folder, problem_file, trace):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(Exception, match=r"(?i)weights_only|unpickl|unsupported"):
        evaluate(folder, problem_file, tmp_path / "out", "--k", "2", "--max_completion_length", "4")
    with pytest.raises(Exception, match=r"(?i)weights_only|unpickl|unsupported"):
        make_trainer(folder, tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no model"):
        files_to_push(folder)


# Models that bring code


def make_trainer(model, tmp_path, **overrides):
    return DAPOTrainer(
        model=str(model),
        reward_funcs=first_token_reward,
        args=DAPOConfig(**training_arguments(tmp_path / "run", **overrides)),
        train_dataset=numbered_prompts(50),
    )


@pytest.fixture(params=["of its own", "of a known kind"])
def model_with_code(request, tmp_path, model_folder, trace):
    """A model folder that names code for its configuration and its model; of its own, for its tokenizer too."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (folder / "custom.py").write_text(
        f"from pathlib import Path\nPath({str(trace)!r}).touch()\n"
        "from transformers import LlamaConfig as C, LlamaForCausalLM as M, PreTrainedTokenizerFast as T\n"
    )
    config, tokenizer = (json.loads((folder / name).read_text()) for name in ("config.json", "tokenizer_config.json"))
    config["auto_map"] = {"AutoConfig": "custom.C", "AutoModelForCausalLM": "custom.M"}
    config["architectures"] = ["M"] if request.param == "of its own" else config["architectures"]
    config["model_type"] = "custom" if request.param == "of its own" else config["model_type"]
    if request.param == "of its own":
        tokenizer["auto_map"] = {"AutoTokenizer": [None, "custom.T"], "AutoProcessor": "custom.T"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder, request.param == "of its own"


def test_code_of_a_model_is_not_run(tmp_path, model_with_code, problem_file, monkeypatch):
    folder, has_own_kind = model_with_code
    # As at a terminal where somebody says yes to everything.
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    uses = [
        lambda: make_trainer(folder, tmp_path),
        lambda: evaluate(folder, problem_file, tmp_path / "out", "--k", "2", "--max_completion_length", "4"),
        lambda: evaluate_model(str(folder), Dataset.from_list([{"prompt": "w1", "solution": "1"}]), 1,
                               output_dir=tmp_path / "other", max_completion_length=4),
    ]  # fmt: skip
    for use in uses:
        if has_own_kind:
            with pytest.raises(ValueError, match=r"contains custom code"):
                use()
        else:
            # What transformers knows itself needs no code from elsewhere.
            use()


def test_code_of_models_is_off_unless_somebody_says_so(tmp_path):
    assert DAPOConfig(**training_arguments(tmp_path)).trust_remote_code is False
    # Of every place that loads a model or a tokenizer by name.
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained"):
                assert "trust_remote_code" in path.read_text(), path
