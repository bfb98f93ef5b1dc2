"""Shows a run in the browser, or compares two: curves, sampled groups, settings. `python app.py OUTPUT_DIR` opens a folder."""

import argparse
import html
import os
import threading
from pathlib import Path
from typing import Any


# Set before Gradio is imported, because Gradio sends a request to its makers otherwise.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from curve_view import curves_html
from facts_view import heading_html, settings_html
from group_view import Visit, group_html, list_html, pair_html
from query import ORDERS, Query, parse_range
from rollout_index import OTHER, RolloutIndex
from run_files import download_run, read_facts, read_history, read_reliability, read_results, shard_paths
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
    document.querySelector('#detail').dataset.asked = 'yes';
    trigger('select', {group: row.dataset.group});
});
"""
# A newly opened group is shown from its beginning. Where it is below the list, a click on the list brings it into view.
_FROM_THE_TOP = """
watch('value', () => {
    const detail = element.closest('#detail');
    detail.scrollTop = 0;
    if (detail.dataset.asked && window.innerWidth < 900) detail.scrollIntoView();
    delete detail.dataset.asked;
});
"""
# The address leads to what is shown.
_ADDRESS = """
(run, other) => {
    const address = new URL(window.location);
    for (const [name, value] of [['run', run], ['with', other]])
        value ? address.searchParams.set(name, value) : address.searchParams.delete(name);
    window.history.replaceState(null, '', address);
}
"""
_WHICH = "Run: a folder, or owner/name on the Hub"
_NO_RECORD = "This run recorded no groups. Set <code>num_groups_to_log</code> (or <code>log_completions</code>) and train again."
_NO_RUN = '<div class="empty">Choose a run above, or type the name of one on the Hub.</div>'


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
        self.reliability = read_reliability(folder)
        self.facts = read_facts(folder)


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
    return gr.Error(html.escape(str(error)), duration=8, print_exception=False)


class Views:
    """
    The contents of the page after each of its events.

    Args:
        runs (`Runs`):
            The runs that may be opened.
    """

    def __init__(self, runs: Runs):
        self.runs = runs

    def open(self, name: str, other: str, is_anew: bool, *fields: Any) -> list[Any]:
        """
        Opens a run, and the one to compare it with.

        Returns the names that are shown, the contents of the page, and the first page of groups.
        """
        names = list(dict.fromkeys(filter(None, ((name or "").strip(), (other or "").strip()))))
        if not names:
            return ["", "", "", "", _NO_RUN, _NO_RUN, "", gr.skip(), *self.page("", "", 0, *fields)]
        try:
            opened = [self.runs.open(name, is_anew) for name in names]
        except ValueError as error:
            raise _shown(error) from error
        kinds = ("solid", "broken") if len(opened) > 1 else ("",)
        headings = "".join(
            heading_html(
                name, run.facts, run.results, len(run.index), run.index.num_completions, run.index.problems, kind
            )
            for name, run, kind in zip(names, opened, kinds, strict=True)
        )
        run, index, rest = opened[0], opened[0].index, opened[1:]
        if rest:
            curves = curves_html(run.history, other=rest[0].history)
        else:
            num_prompts = run.facts.get("num_train_rows")
            passes = index.passes(num_prompts) if isinstance(num_prompts, int) else []
            curves = curves_html(run.history, index.batches, passes, run.reliability)
        rewards = [(name.removeprefix("rewards/"), name) for name in index.reward_names]
        shown = [names[0], names[1] if rest else ""]
        settings = settings_html({name: run.facts for name, run in zip(names, opened, strict=True)})
        reward = gr.Dropdown(rewards, value=index.filter_reward)
        return [*shown, *shown, headings, curves, settings, reward, *self.page(*shown, 0, *fields)]

    def open_linked(self, request: gr.Request, *fields: Any) -> list[Any]:
        """Opens the runs in the address (`?run=<owner>/<name>&with=<owner>/<name>`), or else the first folder."""
        folders = list(self.runs.folders)
        name = request.query_params.get("run") or (folders[0] if folders else "")
        return self.open(name, request.query_params.get("with") or "", False, *fields)

    def page(self, name: str, other: str, number: int, *fields: Any) -> list[Any]:
        """Shows a page of the groups that match the query, and opens the first of them."""
        if not name:
            return [0, "", _NO_RUN, ""]
        index, query = self.runs.open(name).index, query_of(*fields)
        if not len(index):
            return [0, "", f'<div class="empty">{_NO_RECORD}</div>', ""]
        numbers, _ = index.find(query)
        number = max(0, min(number, (len(numbers) - 1) // PAGE))
        shown = index.groups(numbers[number * PAGE : (number + 1) * PAGE], has_completions=False)
        first, last = number * PAGE + 1, number * PAGE + len(shown)
        position = f"{first:,}-{last:,} of {len(numbers):,} groups" if shown else "no groups"
        chosen = shown[0].number if shown else None
        rows = list_html(shown, index.filter_reward, chosen, query.text)
        return [number, position, rows, "" if chosen is None else self._detail(name, other, query, chosen)]

    def group(self, name: str, other: str, event: gr.EventData, *fields: Any) -> str:
        """Opens the group that was clicked."""
        return self._detail(name, other, query_of(*fields), int(event.group))

    def _detail(self, name: str, other: str, query: Query, number: int) -> str:
        """Returns a group; beside it the other run's group of the same prompt whose step is nearest."""
        index = self.runs.open(name).index
        groups = index.groups([number])
        if not groups:
            return ""
        _, meets = index.find(query)
        first, prompt = index.first_rows[number], groups[0].prompt
        is_meant = meets[first : first + len(groups[0].completions)].tolist()
        # If no completion matches the query any more, none is pale.
        is_meant = is_meant if any(is_meant) else [True] * len(is_meant)
        visits = _visits(index, prompt)
        if not other:
            return group_html(groups[0], index.reward_names, is_meant, query.text, visits=visits)
        left = group_html(groups[0], index.reward_names, is_meant, query.text, name, visits)
        index = self.runs.open(other).index
        visits = _visits(index, prompt)
        if not visits:
            return pair_html(
                left, f'<div class="empty">{html.escape(other)} has no record of a group of this prompt.</div>'
            )
        nearest = min(visits, key=lambda visit: abs(visit.step - groups[0].step))
        group = index.groups([nearest.number])[0]
        all_meant = [True] * len(group.completions)
        return pair_html(left, group_html(group, index.reward_names, all_meant, query.text, other))


def _visits(index: RolloutIndex, prompt: str) -> list[Visit]:
    steps = index.columns["step"]
    return [
        Visit(number, int(steps[index.first_rows[number]]), int(index.num_correct[number]), int(index.sizes[number]))
        for number in index.with_prompt(prompt)
    ]


def build(runs: Runs) -> gr.Blocks:
    """Returns the Gradio page."""
    views, names = Views(runs), list(runs.folders)
    with gr.Blocks(title="Look at a DAPO run", analytics_enabled=False, fill_width=True) as page:
        run, other, number = gr.State(""), gr.State(""), gr.State(0)
        narrow: dict[str, Any] = {"min_width": 110}
        with gr.Row():
            asked = gr.Dropdown(names, value=None, allow_custom_value=True, label=_WHICH, elem_id="run")
            against = gr.Dropdown(
                ["", *names], value=None, allow_custom_value=True, label="Compare with", elem_id="other"
            )
            refresh = gr.Button("Refresh", size="sm", min_width=90, scale=0, elem_id="refresh")
        headings = gr.HTML(elem_classes="look", elem_id="headings")
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
                    detail = gr.HTML(elem_classes="look", elem_id="detail", js_on_load=_SELECT + _FROM_THE_TOP)
        with gr.Tab("Curves"):
            curves = gr.HTML(elem_classes="look", elem_id="curves")
        with gr.Tab("Settings"):
            settings = gr.HTML(elem_classes="look", elem_id="settings")

        fields = [verdicts, fates, text, steps, reward, rewards, tokens, truncated, order]
        shown = [number, position, rows, detail]
        opened = [run, other, asked, against, headings, curves, settings, reward, *shown]
        common: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        page.load(views.open_linked, fields, opened, **common)
        gr.on(
            [asked.input, against.input],
            lambda name, other, *rest: views.open(name, other, False, *rest),
            [asked, against, *fields],
            opened,
            **common,
        ).success(None, [asked, against], js=_ADDRESS)
        refresh.click(
            lambda name, other, *rest: views.open(name, other, True, *rest), [run, other, *fields], opened, **common
        )
        asks = [field.submit for field in (text, steps, rewards, tokens)]
        asks += [field.input for field in (verdicts, fates, reward, truncated, order)]
        for events, move in ((asks, None), ([back.click], -1), ([forth.click], 1)):
            gr.on(
                events,
                lambda name, other, at, *rest, move=move: views.page(
                    name, other, 0 if move is None else at + move, *rest
                ),
                [run, other, number, *fields],
                shown,
                trigger_mode="always_last" if move is None else "once",
                **common,
            )
        for clicked in (rows, detail):
            clicked.select(views.group, [run, other, *fields], detail, **common)
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
