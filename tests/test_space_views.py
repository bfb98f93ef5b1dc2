"""What the Space makes of texts that a model wrote: text, whatever stands in them. Read back by an HTML parser."""

import html
import json
import math
from html.parser import HTMLParser

import pytest
from curve_view import PANELS, curves_html, tiles_html
from group_view import group_html, list_html, text_html
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
    completion = {"sample": 0, "advantage": 1.0, "reward": 1.0, "length": 3, "is_truncated": True}
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


def test_results_are_escaped():
    page = tiles_html({"<b>x": 1.0, "accuracy_after": 0.5}, 3, 12, ["<i>groups"])
    assert read(page).tags <= {"div", "b", "span"}
    assert "50.0%" in page
