import json

import pytest

from selfsup.errors import UserError
from selfsup.recipe import load_recipe
from selfsup.segments import boundaries, record_run, work_done


@pytest.mark.parametrize(
    ("epochs", "length", "finished", "wanted"),
    [
        (12, 4, [], [4, 8, 12]),
        (12, 5, [], [5, 10, 12]),
        (12, 12, [], [12]),
        (12, 100, [], [12]),
        (12, 3, [4, 8], [4, 8, 11, 12]),
        (12, 3, [4, 8, 12], [4, 8, 12]),
        (12, 4, [8, 4], [4, 8, 12]),
        (8, 4, [4, 8, 12], [4, 8]),
    ],
)
def test_only_the_epochs_that_remain_are_cut(epochs, length, finished, wanted):
    assert boundaries(epochs, length, finished) == wanted


def test_no_segment_ends_before_the_newest_checkpoint():
    assert boundaries(12, 2, [4], reached=7.5) == [4, 8, 10, 12]
    assert boundaries(12, 2, [4], reached=8) == [4, 8, 10, 12]
    assert boundaries(12, 4, [], reached=11.2) == [12]


def test_finished_boundaries_are_remembered(tmp_path):
    recipe = load_recipe("digits")
    assert work_done(tmp_path, recipe, 1).boundaries == []
    record_run(tmp_path, recipe, 1)
    assert work_done(tmp_path, recipe, 1).boundaries == []
    record_run(tmp_path, recipe, 1, boundary=10)
    record_run(tmp_path, recipe, 1, boundary=20)
    record_run(tmp_path, recipe, 1, boundary=10)
    record_run(tmp_path, recipe, 1)
    assert work_done(tmp_path, recipe, 1).boundaries == [10, 20]


def test_a_run_of_another_recipe_is_never_continued_or_overwritten(tmp_path):
    recipe, other = load_recipe("digits"), load_recipe("digits", {"optimizer": {"peak_lr": 1.0}})
    record_run(tmp_path, recipe, 1, boundary=10)
    with pytest.raises(UserError, match=r"optimizer.peak_lr: wanted 1.0, found 2.0.*raise the experiment's `revision`"):
        work_done(tmp_path, other, 1)
    with pytest.raises(UserError):
        record_run(tmp_path, other, 1, boundary=20)
    assert work_done(tmp_path, recipe, 1).boundaries == [10]


def test_another_revision_is_refused_with_the_way_on(tmp_path):
    folder, recipe = tmp_path / "seed0" / "pretrain", load_recipe("digits")
    folder.mkdir(parents=True)
    record_run(folder, recipe, 2, boundary=10)
    with pytest.raises(
        UserError, match=r"pretrain holds revision 2, wanted 3.*set_aside\.py --run-folder .*seed0 --revision 3"
    ):
        work_done(folder, recipe, 3)
    with pytest.raises(UserError, match="revision: wanted 1, found 2"):
        work_done(folder, recipe, 1)
    assert work_done(folder, recipe, 2).boundaries == [10]


def test_a_changed_evaluation_leaves_the_run_its_own(tmp_path):
    record_run(tmp_path, load_recipe("digits"), 1, boundary=10)
    assert work_done(tmp_path, load_recipe("digits", {"linear": {"epochs": 5}}), 1).boundaries == [10]


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "segments.json").write_text(json.dumps({"revision": 1})[:-3])
    with pytest.raises(UserError, match=r"segments\.json: damaged"):
        work_done(tmp_path, load_recipe("digits"), 1)


def test_a_finished_boundary_does_not_take_back_what_was_reached(tmp_path, tiny_recipe):
    record_run(tmp_path, tiny_recipe, 1, reached=3.5)
    record_run(tmp_path, tiny_recipe, 1, boundary=2)
    assert (work_done(tmp_path, tiny_recipe, 1).boundaries, work_done(tmp_path, tiny_recipe, 1).reached) == ([2], 3.5)
