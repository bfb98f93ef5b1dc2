"""Shows a run in the browser: its curves and its sampled groups. `python app.py OUTPUT_DIR` opens a folder."""

import argparse
import html
import os
import threading
from pathlib import Path
from typing import Any


# Set before Gradio is imported, because Gradio sends a request to its makers otherwise.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from curve_view import curves_html, tiles_html
from group_view import group_html, list_html
from query import ORDERS, Query, parse_range
from rollout_index import OTHER, RolloutIndex
from run_files import download_run, read_history, read_results, shard_paths
from shard_reader import FATES, VERDICTS


PAGE = 20
_MAX_OPEN = 4
_TRUNCATED = {"any": None, "truncated": True, "complete": False}
_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO = ("ui-monospace", "Menlo", "Consolas", "monospace")
_SELECT = """
element.addEventListener('click', (event) => {
    const row = event.target.closest('[data-group]');
    if (!row) return;
    element.querySelectorAll('.chosen').forEach((other) => other.classList.remove('chosen'));
    row.classList.add('chosen');
    trigger('select', {group: row.dataset.group});
});
"""
# A newly opened group is shown from its beginning.
_FROM_THE_TOP = "watch('value', () => { element.closest('#detail').scrollTop = 0; });"


class Run:
    """
    The files of a run, read when the run was opened.

    Args:
        folder (`Path`):
            Folder of the run.
    """

    def __init__(self, folder: Path):
        self.index = RolloutIndex(shard_paths(folder))
        self.history = read_history(folder)
        self.results = read_results(folder)


class Runs:
    """
    The runs that may be opened: the folders of the command line, and repositories of the Hub.

    Args:
        folders (`dict[str, Path]`):
            The folders, by the names that the page shows.
        is_public (`bool`):
            Whether the page is public. Then repositories are read without the token of the Space's owner.
    """

    def __init__(self, folders: dict[str, Path], is_public: bool):
        self.folders = folders
        self.token = False if is_public else None
        self._opened: dict[str, Run] = {}
        self._lock = threading.Lock()

    def open(self, name: str, is_anew: bool = False) -> Run:
        """
        Returns a run, from memory if it is open.

        Args:
            name (`str`):
                Name of a folder, or `<owner>/<name>` on the Hub.
            is_anew (`bool`, *optional*, defaults to `False`):
                Whether to read its files again.

        Raises:
            `ValueError`: when there is no run of that name.
        """
        with self._lock:
            run = None if is_anew else self._opened.get(name)
        if run is None:
            # Outside the lock, so that a download does not block other users.
            folder = self.folders.get(name)
            run = Run(download_run(name, self.token) if folder is None else folder)
            with self._lock:
                self._opened.pop(name, None)
                self._opened[name] = run
                for oldest in list(self._opened)[:-_MAX_OPEN]:
                    del self._opened[oldest]
        return run


def query_of(
    verdicts: list[str],
    fates: list[str],
    text: str,
    steps: str,
    reward: str,
    rewards: str,
    tokens: str,
    truncated: str,
    order: str,
) -> Query:
    """
    Returns the query for the values of the page's fields.

    Raises:
        `gr.Error`: when a range cannot be read.
    """
    try:
        first, last = parse_range("Steps", steps or "")
        lowest, highest = parse_range("Reward range", rewards or "")
        shortest, longest = parse_range("Tokens", tokens or "")
    except ValueError as error:
        raise _shown(error) from error
    return Query(
        first_step=first,
        last_step=last,
        verdicts=frozenset(verdicts or ()),
        fates=frozenset(fates or ()),
        reward=reward or "reward",
        lowest=lowest,
        highest=highest,
        shortest=shortest,
        longest=longest,
        is_truncated=_TRUNCATED.get(truncated),
        text=(text or "").strip(),
        order=order if order in ORDERS else ORDERS[0],
    )


def _shown(error: Exception) -> gr.Error:
    # Gradio shows messages as HTML, and the message may contain text from a link.
    return gr.Error(html.escape(str(error)), duration=8)


class Views:
    """
    The contents of the page after each of its events.

    Args:
        runs (`Runs`):
            The runs that may be opened.
    """

    def __init__(self, runs: Runs):
        self.runs = runs

    def open(self, name: str, is_anew: bool, *fields: Any) -> list[Any]:
        """Opens a run: returns its name, results, curves and reward functions, and the first page of groups."""
        if not name:
            return ["", tiles_html({}, 0, 0, []), "", gr.skip(), *self.page("", 0, *fields)]
        try:
            run = self.runs.open(name.strip(), is_anew)
        except ValueError as error:
            raise _shown(error) from error
        index = run.index
        return [
            name.strip(),
            tiles_html(run.results, len(index), index.num_completions, index.problems),
            curves_html(run.history, index.batches),
            gr.Dropdown(
                [(name.removeprefix("rewards/"), name) for name in index.reward_names], value=index.filter_reward
            ),
            *self.page(name.strip(), 0, *fields),
        ]

    def open_linked(self, request: gr.Request, *fields: Any) -> list[Any]:
        """Opens the run in the address (`?run=<owner>/<name>`), or else the first folder."""
        folders = list(self.runs.folders)
        return self.open(request.query_params.get("run") or (folders[0] if folders else ""), False, *fields)

    def page(self, name: str, number: int, *fields: Any) -> list[Any]:
        """Shows a page of the groups that match the query, and opens the first of them."""
        if not name:
            return [0, "", '<div class="empty">Name a run above.</div>', ""]
        index, query = self.runs.open(name).index, query_of(*fields)
        numbers, _ = index.find(query)
        number = max(0, min(number, (len(numbers) - 1) // PAGE))
        shown = index.groups(numbers[number * PAGE : (number + 1) * PAGE], has_completions=False)
        first, last = number * PAGE + 1, number * PAGE + len(shown)
        position = f"{first:,}-{last:,} of {len(numbers):,} groups" if shown else "no groups"
        chosen = shown[0].number if shown else None
        rows = list_html(shown, index.filter_reward, chosen, query.text)
        return [number, position, rows, "" if chosen is None else _detail(index, query, chosen)]

    def group(self, name: str, event: gr.EventData, *fields: Any) -> str:
        """Opens the group that was clicked."""
        index, query = self.runs.open(name).index, query_of(*fields)
        return _detail(index, query, int(event.group))


def _detail(index: RolloutIndex, query: Query, number: int) -> str:
    _, meets = index.find(query)
    for group in index.groups([number]):
        first = index.first_rows[number]
        is_meant = meets[first : first + len(group.completions)].tolist()
        # If no completion matches the query any more, none is pale.
        return group_html(group, index.reward_names, is_meant if any(is_meant) else [True] * len(is_meant), query.text)
    return ""


def build(runs: Runs) -> gr.Blocks:
    """Returns the Gradio page."""
    views, names = Views(runs), list(runs.folders)
    with gr.Blocks(title="Look at a DAPO run", analytics_enabled=False, fill_width=True) as page:
        run, number = gr.State(""), gr.State(0)
        narrow: dict[str, Any] = {"min_width": 110}
        with gr.Row():
            folder = gr.Dropdown(names, value=names[0] if names else None, label="Run here", visible=bool(names))
            repository = gr.Textbox(label="Run on the Hub", placeholder="owner/name", max_length=200)
            refresh = gr.Button("Refresh", size="sm", min_width=90, scale=0, elem_id="refresh")
        tiles = gr.HTML(elem_classes="look", elem_id="tiles")
        with gr.Tab("Groups"):
            with gr.Row():
                verdicts = gr.Dropdown([*VERDICTS, OTHER], multiselect=True, label="Verdict", elem_id="verdicts")
                fates = gr.Dropdown([*FATES, OTHER], multiselect=True, label="Fate", elem_id="fates")
                text = gr.Textbox(
                    label="Text",
                    placeholder="in prompt, solution or completion; Enter searches",
                    max_length=200,
                    elem_id="text",
                )
            with gr.Row():
                steps = gr.Textbox(label="Steps", placeholder="10..50", max_length=60, elem_id="steps", **narrow)
                reward = gr.Dropdown(["reward"], value="reward", label="Reward", min_width=180)
                rewards = gr.Textbox(
                    label="Reward range", placeholder="0..1", max_length=60, elem_id="rewards", **narrow
                )
                tokens = gr.Textbox(label="Tokens", placeholder="1000..", max_length=60, elem_id="tokens", **narrow)
                truncated = gr.Dropdown(list(_TRUNCATED), value="any", label="Truncated", **narrow)
                order = gr.Dropdown(list(ORDERS), value=ORDERS[0], label="Order", **narrow)
            with gr.Row(equal_height=True):
                with gr.Column(scale=4, min_width=360):
                    with gr.Row(elem_classes="pager"):
                        back = gr.Button("Back", size="sm", min_width=60, scale=0, elem_id="back")
                        position = gr.Markdown(elem_id="position")
                        forth = gr.Button("Next", size="sm", min_width=60, scale=0, elem_id="forth")
                    rows = gr.HTML(elem_classes="look", elem_id="rows", js_on_load=_SELECT)
                with gr.Column(scale=6, min_width=420):
                    detail = gr.HTML(elem_classes="look", elem_id="detail", js_on_load=_FROM_THE_TOP)
        with gr.Tab("Curves"):
            curves = gr.HTML(elem_classes="look", elem_id="curves")

        fields = [verdicts, fates, text, steps, reward, rewards, tokens, truncated, order]
        shown = [number, position, rows, detail]
        opened = [run, tiles, curves, reward, *shown]
        common: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        page.load(views.open_linked, fields, opened, **common)
        folder.input(lambda name, *rest: views.open(name, False, *rest), [folder, *fields], opened, **common)
        repository.submit(lambda name, *rest: views.open(name, False, *rest), [repository, *fields], opened, **common)
        refresh.click(lambda name, *rest: views.open(name, True, *rest), [run, *fields], opened, **common)
        asks = [field.submit for field in (text, steps, rewards, tokens)]
        asks += [field.input for field in (verdicts, fates, reward, truncated, order)]
        gr.on(
            asks,
            lambda name, *rest: views.page(name, 0, *rest),
            [run, *fields],
            shown,
            trigger_mode="always_last",
            **common,
        )
        back.click(lambda name, at, *rest: views.page(name, at - 1, *rest), [run, number, *fields], shown, **common)
        forth.click(lambda name, at, *rest: views.page(name, at + 1, *rest), [run, number, *fields], shown, **common)
        rows.select(views.group, [run, *fields], detail, **common)
    return page


def main() -> None:
    """Parses the command line and serves the page."""
    parser = argparse.ArgumentParser(description="Shows the curves and the rollout groups of runs in a browser.")
    parser.add_argument("folders", nargs="*", type=Path, metavar="OUTPUT_DIR", help="output folders of runs")
    parser.add_argument("--port", type=int, default=None, help="default: 7860, or the next free port")
    options = parser.parse_args()
    for folder in options.folders:
        if not folder.is_dir():
            parser.error(f"OUTPUT_DIR is {str(folder)!r}, but must be the output folder of a run.")
    runs = Runs({str(folder): folder for folder in options.folders}, is_public="SPACE_ID" in os.environ)
    page = build(runs).queue(default_concurrency_limit=4, max_size=64)
    page.launch(
        server_port=options.port,
        theme=gr.themes.Base(font=_FONT, font_mono=_MONO, text_size="sm", spacing_size="sm"),
        css_paths=Path(__file__).with_name("style.css"),
        footer_links=["settings"],
        ssr_mode=False,
    )


if __name__ == "__main__":
    main()
