"""The notebooks of examples/ run, with few steps: in this process, and from a clean kernel."""

import os
import re
import types

import nbformat
import pytest
from checkout import ROOT

from trl_dapo.report.live_curves import LiveCurves


NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
FEW = {"TRL_DAPO_STEPS": "2", "TRL_DAPO_WARM_UP": "4", "TRL_DAPO_STAND_IN": "1"}


def code_cells(path):
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_both_notebooks_are_here():
    assert [path.stem for path in NOTEBOOKS] == ["dapo_gsm8k_lora", "dapo_quickstart"]


@pytest.fixture
def shown(monkeypatch):
    """Stands in for the display of a notebook, and returns what was shown there."""
    pictures = []

    class Image:
        def __init__(self, data, width):
            self.data, self.width = data, width

    def display(picture, display_id):
        pictures.append(picture)
        return types.SimpleNamespace(update=pictures.append)

    monkeypatch.setattr("trl_dapo.report.live_curves.Image", Image)
    monkeypatch.setattr("trl_dapo.report.live_curves.display", display)
    return pictures


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] * ("lora" in path.stem), id=path.stem) for path in NOTEBOOKS],
)
def test_cells_run_and_the_curves_grow(path, tmp_path, monkeypatch, shown, capsys):
    monkeypatch.chdir(tmp_path)
    for name, value in FEW.items():
        monkeypatch.setenv(name, value)
    scope = {"__name__": "notebook"}
    for number, source in enumerate(code_cells(path)):
        # A smaller run of the same cells.
        source = source.replace("make_problems(4000", "make_problems(100").replace(
            "make_problems(64", "make_problems(4"
        )
        source = source.replace("rows_of(400", "rows_of(100").replace("rows_of(16", "rows_of(4")
        source = re.sub(r'(per_device_train_batch_size"?[=:] ?)\d+', r"\g<1>8", source)
        source = re.sub(r'(max_completion_length"?[=:] ?)80', r"\g<1>16", source).replace(
            "logging_steps=2", "logging_steps=1"
        )
        exec(
            compile(source.replace('"logging_steps": 2', '"logging_steps": 1'), f"{path.stem}[{number}]", "exec"),
            scope,
        )
    assert scope["trainer"].state.global_step == 2
    assert len(shown) == 1  # after the second log line
    assert all(picture.data.startswith(b"\x89PNG") for picture in shown)
    printed = capsys.readouterr().out
    accuracy = f"{scope['after']['eval_avg@4']:.1%}"
    assert re.search(rf"before [\d.]+%, after {re.escape(accuracy)}", printed)


def test_curves_are_drawn_every_few_lines_and_once_more_at_the_end(tmp_path, shown, monkeypatch):
    def draw(histories, path, num_columns):
        ((_, history),) = histories.items()
        path.write_bytes(f"{num_columns} columns, {len(history)} steps".encode())
        return path

    monkeypatch.setattr("trl_dapo.report.live_curves.plot_curves", draw)
    curves = LiveCurves(every=2, num_columns=2)
    args = types.SimpleNamespace(output_dir=str(tmp_path))
    state = types.SimpleNamespace(is_world_process_zero=True, log_history=[])
    curves.on_train_begin(args, state, None)
    numbers = []
    for step in range(1, 6):
        logs = {"loss": 0.0, "dapo/sampled_accuracy": step / 10}
        state.log_history.append({"step": step, **logs})
        curves.on_log(args, state, None, logs=logs)
        curves.on_log(args, state, None, logs={"eval_loss": 0.0})  # no line of the training
        numbers.append(len(shown))
    curves.on_train_end(args, state, None)
    assert [*numbers, len(shown)] == [0, 1, 1, 2, 2, 3]
    assert [picture.data for picture in shown] == [b"2 columns, %d steps" % count for count in (2, 4, 5)]
    state.is_world_process_zero = False
    curves.on_log(args, state, None, logs={"loss": 0.0})
    curves.on_log(args, state, None, logs={"loss": 0.0})
    curves.on_train_end(args, state, None)
    assert len(shown) == 3
    with pytest.raises(ValueError, match="every is 0, but must be 1 or more"):
        LiveCurves(every=0)


def test_memory_of_the_adapter_run_follows_from_its_settings():
    path = ROOT / "examples" / "dapo_gsm8k_lora.ipynb"
    source, text = "\n".join(code_cells(path)), nbformat.read(path, as_version=4).cells[0].source
    setting = {
        name: float(value)
        for name, value in re.findall(r'"(\w+)": ([\d.e-]+)[,}]', source.partition("else:\n    own")[2])
    }
    rank = int(re.search(r"LoraConfig\(r=(\d+)", source)[1])
    # Qwen2.5-1.5B: parameters, layers, hidden size, that of the feed-forward layers, that of keys and values.
    size, layers, hidden, feed_forward, keys = 1.54e9, 28, 1536, 8960, 256
    tokens = setting["per_device_train_batch_size"] * (setting["max_completion_length"] + 256)
    activations = tokens * hidden * (2 * layers + 34)
    adapter = layers * rank * (4 * hidden + 2 * (hidden + keys) + 3 * (hidden + feed_forward))
    parts = [2 * size, setting["vllm_gpu_memory_utilization"] * 24e9, activations, 16 * adapter]
    told = re.search(
        r"([\d.]+) for the weights in bfloat16, ([\d.]+) for vLLM, ([\d.]+) for the act.*?([\d.]+) for the adapter",
        text,
        re.DOTALL,
    )
    assert [float(part) for part in told.groups()] == pytest.approx([part / 1e9 for part in parts], abs=0.06)
    assert f"about {sum(parts) / 1e9:.0f} GB" in text


def test_notebook_hides_nothing_of_this_machine():
    for path in NOTEBOOKS:
        text = path.read_text()
        assert not re.search(r"/(work|home|root|tmp)/", text), path
        assert not any(
            output.output_type == "error"
            for cell in nbformat.reads(text, 4).cells
            for output in cell.get("outputs", [])
        )
        assert len(text) < 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_in_a_clean_kernel(path, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    for name, value in FEW.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "before" in "".join(output.get("text", "") for output in outputs)
