"""The history of learned widths, drawn."""

import pytest
from figure_checks import assert_apart, drawn_boxes, run_results, with_gid

from superweight_ensembles import SuperWeightError
from superweight_ensembles.report.figures import width_history, widths_learned


def history(epochs=8, shrink=3):
    return [
        {"epoch": epoch + 1, "widths": {"deep": {"one": 40 - shrink * epoch, "two": 30 + epoch}, "flat": {"one": 9}}}
        for epoch in range(epochs)
    ]


def results(**content):
    return run_results({"arms": [{"name": "shared", "history": []}], **content})


def told(epochs):
    return [{"epoch": epoch.epoch, "widths": epoch.widths} for epoch in epochs]


def test_a_panel_a_member_with_a_named_line_a_width():
    figure = width_history(results(widths=history()))
    deep, flat = figure.axes
    lines = with_gid(deep, "deep width")
    assert [line.get_ydata().tolist() for line in lines] == [list(range(40, 16, -3)), list(range(30, 38))]
    assert all(line.get_xdata().tolist() == list(range(1, 9)) for line in lines)
    assert lines[0].get_color() != lines[1].get_color()
    assert len(with_gid(flat, "flat width")) == 1
    assert (deep.get_xlabel(), deep.get_ylabel(), deep.get_yscale()) == ("epoch", "hidden neurons", "log")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["deep: 70 to 56", "flat: 9 to 9"]
    figure.draw_without_rendering()
    names = with_gid(deep, "label")
    assert {name.get_text() for name in names} == {"one", "two"}
    assert_apart(drawn_boxes(names))
    assert_apart(drawn_boxes(text for text in deep.get_yticklabels() if text.get_text()))


@pytest.mark.parametrize("epochs", [1, 2, 400])
def test_few_and_many_epochs(epochs):
    figure = width_history(results(widths=history(epochs, shrink=0)))
    figure.draw_without_rendering()
    assert len(with_gid(figure, "deep width")) == 2


def test_where_the_history_comes_from():
    in_training = results(arms=[{"name": "shared", "history": history()}])
    assert told(widths_learned(in_training)) == history()
    frozen = [{"name": "shared", "history": [history()[0]] * 3}]
    assert not widths_learned(results(arms=frozen))
    assert told(widths_learned(results(arms=frozen, widths=history()))) == history()
    assert not widths_learned(results())
    with pytest.raises(SuperWeightError, match="hold no widths that were learned"):
        width_history(results())
