"""docs/support.md has the table that the markers of the tests make."""

from support_matrix import BEGIN, END, FEATURES, PAGE, marked_tests, table, with_table


def test_page_has_the_table_that_the_tests_make():
    text = PAGE.read_text()
    written = text.split(BEGIN)[1].split(END)[0].strip()
    assert written.splitlines() == table().splitlines(), "run: python tests/support_matrix.py --write"
    assert with_table(text.replace(written, "an old table")) == text


def test_every_row_has_a_test_or_says_that_it_was_not_run():
    found = marked_tests()
    shown = found["supports"].keys() | found["refuses"].keys()
    assert not found["supports"].keys() & found["refuses"].keys()
    assert shown == {key for key, feature in FEATURES.items() if feature.is_run}


def test_markers_of_functions_and_of_parameters_are_found():
    found = marked_tests()
    assert "tests/test_distributed.py::test_two_ranks_train_the_batches_of_one" in found["supports"]["ddp"]
    assert (
        "tests/test_config.py::test_bad_value_is_refused_with_its_name_and_range" in found["refuses"]["ragged_steps"]
    )
    rows = table().splitlines()[2:]
    assert len(rows) == len(FEATURES)
    states = {row.split(" | ")[0].removeprefix("| "): row.split(" | ")[1] for row in rows}
    assert states["vLLM server"].startswith("implemented, not run: ")
    assert states['`IterableDataset` with `selective_rollout`'].startswith("refused: ")
    assert not any("single-turn" in state for state in states.values())
    assert states["Gradient checkpointing"] == "yes"
