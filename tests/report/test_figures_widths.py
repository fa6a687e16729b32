"""The history of learned widths, drawn."""

import pytest
from figure_checks import assert_apart, drawn_boxes, legend_texts, run_results, with_gid

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


def test_a_line_a_width_in_its_members_colour():
    figure = width_history(results(widths=history()))
    (axes,) = figure.axes
    lines = with_gid(figure, "deep width")
    assert [line.get_ydata().tolist() for line in lines] == [list(range(40, 16, -3)), list(range(30, 38))]
    assert all(line.get_xdata().tolist() == list(range(1, 9)) for line in lines)
    (flat,) = with_gid(figure, "flat width")
    assert flat.get_color() != lines[0].get_color() == lines[1].get_color()
    assert flat.get_marker() != lines[0].get_marker()
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("epoch", "hidden neurons", "log")
    assert legend_texts(figure) == ["deep: 70 to 56 neurons in 2 widths", "flat: 9 to 9 neurons"]
    figure.draw_without_rendering()
    labels = [text for text in axes.get_yticklabels() if text.get_text()]
    assert_apart(drawn_boxes(labels))


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
