"""Curves and pages: that what was measured is on them, and what others wrote is escaped."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from make_curves import published
from selfsup.config import check_config
from selfsup.errors import UserError
from selfsup.reports.figures import (
    FROM_ZERO,
    LINEAR,
    PANELS,
    UNTRAINED,
    draw_comparison,
    draw_curves,
    read_run,
    write_figure,
)
from selfsup.reports.pages import markdown_page, page, preformatted, table
from selfsup.settings.yaml_reader import read_yaml


@pytest.fixture
def run(tmp_path):
    """Two epochs of five steps; health at some steps only; a run that is still going on has no linear accuracy."""
    folder = tmp_path / "pretrain"
    folder.mkdir()
    rows = {"step": range(10), "epoch": [0] * 5 + [1] * 5, "loss": [4 - step / 4 for step in range(10)]}
    pd.DataFrame({**rows, "feature_spread": [None] * 4 + [0.5] + [None] * 5}).to_csv(
        folder / "history.csv", index=False
    )
    pd.DataFrame({"step": [5], "epoch": [1.0], "knn_top1": [93.0]}).to_csv(tmp_path / "knn.csv", index=False)
    return read_run(tmp_path, 7, [1])


def test_each_quantity_has_a_panel_with_its_points_at_their_epochs(run):
    figure = draw_curves("a run", [run], steps_per_epoch=5)
    panels = {axis.get_title(): axis for axis in figure.axes}
    assert len(panels) == 3
    losses = panels["loss"].lines[0]
    assert losses.get_xdata().tolist() == pytest.approx([(step + 1) / 5 for step in range(10)])
    assert losses.get_ydata().tolist() == [4 - step / 4 for step in range(10)] and losses.get_label() == "seed 7"
    (spread,) = [axis.lines[0] for title, axis in panels.items() if title.startswith("feature spread")]
    assert (spread.get_xdata().tolist(), spread.get_ydata().tolist()) == ([1.0], [0.5])
    (knn,) = [axis.lines[0] for title, axis in panels.items() if title.startswith("k-NN")]
    assert (knn.get_xdata().tolist(), knn.get_ydata().tolist()) == ([1.0], [93.0])
    assert all(axis.lines[-1].get_xdata() == [1, 1] for axis in panels.values())  # the segment's end
    assert "feature_spread" in FROM_ZERO and panels["loss"].get_ylim() == pytest.approx((0, 1.05 * 4))
    (spread,) = [axis for title, axis in panels.items() if title.startswith("feature spread")]
    assert spread.get_ylim() == pytest.approx((0, 1.05 * 0.5))  # nothing lies on the edge


def test_a_negative_loss_is_in_its_panel(tmp_path):
    """SimSiam's goes from 0 to -1."""
    (tmp_path / "pretrain").mkdir()
    rows = pd.DataFrame({"step": [0, 1], "epoch": [0, 0], "loss": [-0.1, -0.9]})
    rows.to_csv(tmp_path / "pretrain/history.csv", index=False)
    (loss,) = draw_curves("a run", [read_run(tmp_path, 7, [1])], steps_per_epoch=5).axes
    low, high = loss.get_ylim()
    assert low == pytest.approx(1.05 * -0.9) and high >= 0


def test_a_run_whose_store_is_gone_tells_its_epochs_itself(run):
    losses = draw_curves("a run", [run], steps_per_epoch=None).axes[0].lines[0]
    assert losses.get_xdata().tolist() == pytest.approx([(step + 1) / 5 for step in range(10)])


@pytest.mark.parametrize("history", ["", "\n", "step,epo", "step,epoch,loss,cosine\n"])
def test_a_run_in_its_first_moments_is_no_crash(tmp_path, history):
    (tmp_path / "pretrain").mkdir()
    for name in ("pretrain/history.csv", "knn.csv"):
        (tmp_path / name).write_text(history)
    assert not read_run(tmp_path, 0, []).begun


def test_a_first_epoch_is_drawn_by_steps_and_a_row_that_is_being_written_left_out(tmp_path):
    (tmp_path / "pretrain").mkdir()
    rows = "step,epoch,loss,feature_spread\n1,0,4.0,\n3,0,3.5,\n5,0,-"
    (tmp_path / "pretrain/history.csv").write_text(rows)
    (axis,) = draw_curves("a run", [read_run(tmp_path, 0, [])], steps_per_epoch=None).axes  # no empty panel of health
    assert axis.lines[0].get_xdata().tolist() == [2, 4] and axis.get_xlabel() == "step of pretraining"


def test_an_encoder_that_others_have_trained_has_the_curve_of_its_evaluation(tmp_path):
    (tmp_path / "linear").mkdir()
    (tmp_path / "linear/history.csv").write_text("epoch,top1\n1,50.0\n2,60.0\n")
    run = read_run(tmp_path, 0, [])
    (axis,) = draw_curves("published", [run], steps_per_epoch=None).axes
    assert run.begun and axis.lines[0].get_ydata().tolist() == [50, 60]


def test_figures_are_written_for_the_web_and_for_slides(run, tmp_path):
    svg, png = write_figure(draw_curves("a run", [run], 5), tmp_path / "figures" / "mine", {"Title": "a run"})
    assert svg.read_text().startswith("<?xml") and png.read_bytes().startswith(b"\x89PNG")


def test_a_name_with_a_dot_leaves_the_figure_of_the_name_before_it_alone(run, tmp_path):
    (tmp_path / "mine.svg").write_text("another's")
    paths = write_figure(draw_curves("a run", [run], 5), tmp_path / "mine.v2", {"Title": "a run"})
    assert [path.name for path in paths] == ["mine.v2.svg", "mine.v2.png"] and all(map(Path.exists, paths))
    assert (tmp_path / "mine.svg").read_text() == "another's" and not (tmp_path / "mine.png").exists()


def test_pages_escape_what_they_show():
    text = page(preformatted("<b>&"), table(pd.DataFrame({"a_b": ["<script>"]})))
    assert "&lt;b&gt;&amp;" in text and "&lt;script&gt;" in text and "<script>" not in text and ">a b<" in text


def test_a_markdown_table_becomes_one_of_html_with_its_remarks():
    text = markdown_page("| A | B |\n| - | - |\n| x | 1.5 ± 0.1 |\n\n- [a] a < b\n")
    assert (
        text.count("<table") == 1
        and '<td class="number">1.5 ± 0.1</td>' in text
        and "<td>x</td>" in text
        and "<li>[a] a &lt; b</li>" in text
    )


def overlaps(figure) -> list[str]:
    """The titles of the panels that the legend lies on, once all is placed."""
    figure.canvas.draw()
    (legend,) = figure.legends
    renderer = figure.canvas.get_renderer()
    box = legend.get_window_extent(renderer)
    return [one.get_title() for one in figure.axes if box.overlaps(one.get_tightbbox(renderer))]


@pytest.fixture
def drawable(run):
    """The run with its linear evaluation, and what that is held against."""
    linear = pd.DataFrame({"epoch": [1, 2], "top1": [50.0, 60.0]})
    return replace(run, linear=linear, references={UNTRAINED: 40.0, "published: They": 91.9})


def test_the_legend_is_off_the_data_and_names_each_line_once(drawable):
    figure = draw_curves("a run", [drawable, replace(drawable, seed=8)], 5)
    FigureCanvasAgg(figure)
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert sorted(names) == ["end of a segment", "published: They", "seed 7", "seed 8", "untrained"]
    assert overlaps(figure) == [] and not [one for one in figure.axes if one.get_legend()]


def test_many_experiments_have_a_legend_off_the_data_too(drawable):
    runs = [replace(drawable, experiment=f"an_experiment_{number}") for number in range(7)]
    figure = draw_comparison("seven", runs)
    FigureCanvasAgg(figure)
    assert overlaps(figure) == []


def test_accuracies_come_first_with_lines_of_the_untrained_encoder_and_the_papers(drawable):
    accuracy = draw_curves("a run", [drawable, replace(drawable, references={UNTRAINED: 42.0})], 5).axes[0]
    assert accuracy.get_title() == LINEAR
    lines = {line.get_label(): list(line.get_ydata()) for line in accuracy.lines if len(set(line.get_ydata())) == 1}
    assert lines == {"untrained, mean": [41.0, 41.0], "published: They": [91.9, 91.9]}


def test_twelve_panels_have_the_shape_of_a_screen(drawable):
    history = drawable.history.assign(**{name: 1.0 for name in list(PANELS)[:9]})
    figure = draw_curves("a run", [replace(drawable, history=history.assign(data_wait=0.05))], 5)
    assert len(figure.axes) == 10 and not [one for one in figure.axes if "waiting" in one.get_title()]
    assert tuple(figure.get_size_inches()) == pytest.approx((12.8, 7.2))


def test_published_figures_are_of_this_method_network_and_dataset(repository):
    config = check_config(read_yaml(repository / "config.yaml"))
    known = published(config, config.experiments["imagenet"])
    assert known["published: Devillers & Lefort"] == 74.03 and known["published: Original"] == 74.3
    assert not [name for name in known if "SimCLR" in name]
    assert published(config, config.experiments["digits"]) == {}
    raw = read_yaml(repository / "config.yaml")
    of_others = {"publisher": "timm", "path": "/weights.pth", "backbone": "vit_small_patch16_224"}
    raw["experiments"]["imagenet"]["published"] = of_others
    config = check_config(raw)
    assert published(config, config.experiments["imagenet"]) == {}  # by nobody's method that is told here


def test_experiments_are_compared_in_what_several_of_them_have_measured(run):
    """Each at its own epochs: a batch of twice the size has half the steps."""
    first, second = replace(run, experiment="one", steps=5), replace(run, experiment="two", steps=10)
    second = replace(second, history=second.history.drop(columns="feature_spread"))
    figure = draw_comparison("both", [first, second])
    panels = {axis.get_title(): axis for axis in figure.axes}
    assert set(panels) == {"loss", "k-NN accuracy, training images (%)"}
    lines = panels["loss"].lines
    assert [line.get_label() for line in lines] == ["one, seed 7", "two, seed 7"]  # and no segment's end
    assert [line.get_xdata()[-1] for line in lines] == [2.0, 1.0]


def test_experiments_that_share_no_measured_quantity_are_one_line_that_names_them(run):
    first, second = replace(run, experiment="one"), replace(run, experiment="two")
    second = replace(second, history=second.history[["step", "epoch"]].assign(mine=1.0), knn=pd.DataFrame())
    with pytest.raises(
        UserError, match=r"^one, two: nothing in common to draw: .*none has a linear evaluation"
    ) as error:
        draw_comparison("both", [first, second])
    assert "\n" not in str(error.value)


def test_a_run_that_has_measured_nothing_is_one_line(run):
    nothing = replace(run, history=run.history[["step", "epoch"]], knn=pd.DataFrame())
    with pytest.raises(UserError, match=r"^a run: nothing to draw"):
        draw_curves("a run", [nothing], steps_per_epoch=5)
