"""What the Space makes of texts that a model wrote: text, whatever stands in them. Read back by an HTML parser."""

import html
import json
import math
from html.parser import HTMLParser

import pytest
from curve_view import PANELS, curves_html
from facts_view import heading_html, settings_html
from group_view import Visit, group_html, list_html, pair_html, text_html
from hypothesis import given
from hypothesis import strategies as st
from rollout_index import Batch, Group
from space_record import HOSTILE

from trl_dapo.report.curves import _PANELS


class Reader(HTMLParser):
    """Keeps tags, attributes, and the text in <pre>."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.texts, self.open = set(), set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.open.append(tag)
        if tag == "pre":
            self.texts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "pre" in self.open:
            self.texts[-1] += data

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    handle_decl = handle_pi = unknown_decl = handle_comment


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


def made_group(text, **overrides):
    completion = {"sample": 0, "advantage": 1.0, "reward": 1.0, "length": 3, "is_truncated": True, "num_turns": 0}
    completion |= {"num_tool_tokens": 0, "env_fault": text}
    completion |= {"rewards/<b>": math.nan, "completion": text, "extra": json.dumps({text: text})}
    return Group(7, 3, "informative", "trained", text, text, [completion]), ["reward", "rewards/<b>"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_makes_no_tag_and_no_attribute(text):
    plain = made_group("plain")
    group = made_group(text)
    for page, harmless in (
        (group_html(*group, [True], mark=text), group_html(*plain, [True], mark="plain")),
        (list_html([group[0]], "reward", 7, mark=text), list_html([plain[0]], "reward", 7, mark="plain")),
    ):
        shown, expected = read(page), read(harmless)
        assert shown.tags <= expected.tags | {"span"}
        assert shown.attributes <= expected.attributes


def visible(text):
    """What a reader sees: characters that do not show by their codes."""
    codes = {*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0), *range(0x200B, 0x2010), *range(0x202A, 0x202F)}
    codes |= {*range(0x2060, 0x206A), 0xFEFF, *range(0xFFF9, 0xFFFC)}
    return "".join(f"U+{ord(character):04X}" if ord(character) in codes - {9} else character for character in text)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_to_the_letter(text):
    texts = read(group_html(*made_group(text), [True])).texts
    assert texts == [visible(text)] * 3  # prompt, solution, completion


@given(st.text(), st.text(max_size=5))
def test_any_text_is_shown_to_the_letter(text, mark):
    shown = read(f"<pre>{text_html(text, mark)}</pre>")
    assert shown.texts == [visible(text)]
    assert shown.tags <= {"pre", "mark", "span"}


def test_marks_stand_at_what_was_looked_for_in_any_case():
    assert text_html("a<B>a<b>", "<b>") == "a<mark>&lt;B&gt;</mark>a<mark>&lt;b&gt;</mark>"


def test_huge_text_is_shown_from_its_beginning_and_its_end():
    text = "b" * 10**7 + "<i>the end</i>"
    page = text_html(text, limit=1000)
    assert len(page) < 2000
    assert page.startswith("b" * 500)
    assert page.endswith(html.escape("<i>the end</i>"))
    assert "9,999,014 characters left out" in page  # 10,000,014 less twice 500


def test_conversation_is_shown_by_its_turns():
    prompt = json.dumps([{"role": "system", "content": "Be <brief>."}, {"role": "user", "content": "2 + 2"}])
    group, names = made_group("4")
    group.prompt = prompt
    reader = read(group_html(group, names, [True]))
    assert reader.texts == ["Be <brief>.", "2 + 2", "4", "4"]


@pytest.mark.parametrize(
    "prompt", ["[{" * 50_000, '[{"role": 1}]', '[{"a": 1}]', "[{}", '[{"role": {}, "content": []}]']
)
def test_prompt_that_looks_like_a_conversation_and_is_none_is_shown(prompt):
    group, names = made_group("4")
    group.prompt = prompt
    assert read(group_html(group, names, [True])).texts[0]
    assert read(list_html([group], "reward", None)).tags


def test_dots_are_full_marks_wrong_and_not_scored():
    group, _ = made_group("x")
    group.completions = [{**group.completions[0], "reward": reward} for reward in (1.0, 0.5, math.nan, -1.0, 2.0)]
    page = list_html([group], "reward", None)
    start = page.index('<span class="dots"')
    kinds = [part.split(">")[0] for part in page[start:].split("<i class=")[1:]]
    assert kinds == ["right", "wrong", "none", "wrong", "right"]
    assert "2 of 4 correct" in page


def test_curves_go_through_the_logged_points():
    history = [{"step": step, "dapo/entropy": value} for step, value in ((0, 0.0), (10, 2.0), (20, 1.0))]
    page = curves_html(history, [])
    # The drawing is 320 x 150 with margins of 38, 8, 8 and 18: x = 38 + 274 t, y = 8 + 124 (1 - v).
    assert 'points="38.0,132.0 175.0,8.0 312.0,70.0"' in page
    assert "Entropy" in page
    assert "Accuracy" not in page


def test_bars_are_the_shares_of_the_groups_of_each_batch():
    page = curves_html([], [Batch(0, {"trained": 3, "all_wrong": 1}), Batch(4, {"trained": 1, "all_wrong": 1})])
    assert "step 0: 3 of 4 trained" in page
    assert 'class="trained" x="38.00" y="8.00" width="136.40" height="93.00"' in page  # 3/4 of 124
    assert 'class="all_wrong" x="175.00" y="70.00" width="136.40" height="62.00"' in page
    assert "trained <b>67%</b>" in page


@pytest.mark.parametrize("value", [0.0, -3.0, 1e299, -1e299, 1e-300, 5e-324])
def test_curve_of_any_number_is_drawn(value):
    page = curves_html([{"step": 1, "loss": value}, {"step": 2, "loss": value * 0.9}], [])
    assert "nan" not in page
    assert "inf" not in page.replace("informative", "")


def test_long_curve_has_its_last_point_and_not_more_than_a_picture_can_show():
    history = [{"step": step, "loss": float(step)} for step in range(10_001)]
    page = curves_html(history, [Batch(step, {"trained": 1}) for step in range(5_000)])
    assert page.count(" ", page.index("<polyline"), page.index("/>", page.index("<polyline"))) < 500
    assert "312.0,8.0" in page
    assert page.count("<rect") <= 200


def test_every_metric_of_the_picture_in_the_model_card_is_drawn():
    drawn = {name for _, metrics in PANELS for names, _ in metrics for name in names}
    printed = {name for _, metrics in _PANELS for name in metrics}
    assert printed <= drawn


def made_facts(**overrides):
    facts = {
        "model_name": "tiny-dapo",
        "base_model": "tiny",
        "train_data": {"name": "gsm8k", "config": "main", "split": "train"},
        "num_train_rows": 7473,
        "rewards": {"accuracy_reward": 1.0},
        "step": 40,
        "num_steps": 60,
        "sampling": {"seed": 3},
        "settings": {"beta": [0.1, 0.0], "num_generations": [16, 8]},
    }
    return facts | overrides


def test_run_is_named_with_its_model_data_steps_and_results():
    page = heading_html("out/run", made_facts(stop_reason="entropy fell"), {"accuracy_after": 0.5}, 3, 12, ["a file"])
    for words in (
        "tiny-dapo",
        "out/run",
        "model tiny, data gsm8k main train, prompts 7473, steps 40 of 60, seed 3",
        "50.0%",
    ):
        assert words in page
    assert "Stopped: entropy fell" in page
    assert "1 files could not be read: a file" in page


def test_settings_of_one_run_are_beside_their_defaults_and_of_two_only_where_they_differ():
    page = settings_html({"a": made_facts()})
    assert "<tr><td>beta</td><td>0.1</td><td>0.0</td></tr>" in page
    assert "<tr><td>data</td><td>gsm8k main train</td><td></td></tr>" in page
    other = made_facts(settings={"num_generations": [16, 8], "seed": [7, 42]}, num_train_rows=512)
    page = settings_html({"a": made_facts(), "b": other})
    rows = [row.split("</tr>")[0] for row in page.split("<tbody>")[1].split("<tr>")[1:]]
    assert rows == [  # a setting that one run left alone has its default there
        "<td>prompts</td><td>7473</td><td>512</td><td></td>",
        "<td>seed</td><td>3</td><td>7</td><td>42</td>",
        "<td>beta</td><td>0.1</td><td>0.0</td><td>0.0</td>",
    ]
    assert "same settings" in settings_html({"a": made_facts(), "b": made_facts()})
    assert "b has no run_facts.json" in settings_html({"a": made_facts(), "b": {}})


@pytest.mark.parametrize("text", HOSTILE)
def test_facts_of_a_stranger_are_text(text):
    facts = dict.fromkeys(("model_name", "base_model", "stop_reason", "num_train_rows", "num_steps", "step"), text)
    facts |= {"train_data": {"name": text}, "settings": {text: [text, {text: text}]}, "rewards": [text], "sampling": 3}
    heading = read(heading_html(text, facts, {text: 1.0}, 3, 12, [text], "solid"))
    assert heading.tags <= {"div", "h3", "code", "p", "b", "span"}
    table = read(settings_html({text: facts, "b": facts | {"settings": {}}}))
    assert table.tags <= {"table", "thead", "tbody", "tr", "th", "td", "span"}
    assert heading.attributes | table.attributes <= {"class"}


def test_second_run_is_drawn_in_broken_lines_over_the_first():
    one = [{"step": step, "loss": 1.0 * step} for step in (0, 10)]
    two = [{"step": step, "loss": 2.0 * step} for step in (0, 10)]
    page = curves_html(one, other=two)
    # The axes hold both: 20 is at the top (y 8), and 10 in the middle (y 70).
    assert '<polyline class="l0" points="38.0,132.0 312.0,70.0"/>' in page
    assert '<polyline class="l0 other" points="38.0,132.0 312.0,8.0"/>' in page
    assert '<span class="l0">loss <b>10</b></span><span class="l0 other"><b>20</b></span>' in page


def test_passes_are_drawn_from_two_on_and_reliability_where_it_was_written():
    one = Batch(1, {"all_wrong": 1, "below_half": 1, "half_or_more": 0, "all_correct": 0})
    assert "logged nothing yet" in curves_html([], passes=[one])
    page = curves_html([], passes=[one, Batch(2, {**one.counts, "all_correct": 2})])
    assert "pass 2: 2 of 4 all correct" in page
    page = curves_html([], reliability=[{"predicted": 0.5, "found": 0.25, "num_groups": 4.0}])
    # x = 38 + 274 / 2, y = 8 + 124 * 3 / 4, and the radius of a dot for all groups.
    assert '<circle class="l0" cx="175.0" cy="101.0" r="9.5">' in page


def test_turns_of_a_completion_are_a_conversation_with_tools_set_apart():
    call = {"function": {"name": "add", "arguments": {"a": 2}}}
    turns = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "add", "content": "<4>"},
        {"role": "assistant", "content": "It is 4."},
    ]
    group, names = made_group(json.dumps(turns))
    as_text = read(group_html(group, names, [True]))
    assert as_text.texts[-1] == json.dumps(turns)  # one turn: a model wrote this JSON
    group.completions[0] |= {"num_turns": 2, "num_tool_tokens": 5}
    page = group_html(group, names, [True])
    assert read(page).texts[-3:] == ['add({"a": 2})', "<4>", "It is 4."]
    assert '<div class="turn tool"><span class="role">tool add</span>' in page
    assert "2 turns" in page
    assert "5 tokens of tools" in page


def test_all_groups_of_a_prompt_lead_to_each_other():
    group, names = made_group("x")
    page = group_html(group, names, [True], visits=[Visit(7, 3, 1, 8), Visit(20, 9, 5, 8)])
    assert '<button type="button" class="visit chosen" data-group="7">step 3 <b>1/8</b></button>' in page
    assert '<button type="button" class="visit" data-group="20">step 9 <b>5/8</b></button>' in page
    assert "data-group" not in group_html(group, names, [True], visits=[Visit(7, 3, 1, 8)])


def test_pair_has_both_groups_under_the_names_of_their_runs():
    left, right = (group_html(*made_group(text), [True], title=f"run <{text}>") for text in "xy")
    texts = read(pair_html(left, right)).texts
    assert texts == ["x", "x", "x", "y", "y", "y"]
    assert "run &lt;x&gt;" in left
