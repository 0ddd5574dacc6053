"""What experiments will cost, reckoned from measured speeds."""

from dataclasses import replace
from pathlib import Path

import pytest

from selfsup.config import load_config
from selfsup.job.ledger import Ledger
from selfsup.reports.plan import costs, to_text
from selfsup.segments import record_run


@pytest.fixture
def config(repository, tmp_path, monkeypatch):
    """What is shipped, in a folder where nothing has been packed: here, someone may have packed other pictures."""
    monkeypatch.chdir(tmp_path)
    return load_config(repository / "config.yaml")


def measured(folder: Path, images_per_s: float, devices: int, device: str = "NVIDIA H100") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(folder)
    ledger.open({"stage": "pretraining", "started": "2026-01-01T00:00:00+00:00", "device": device, "devices": devices})
    ledger.update("reached its goal", images_per_s=images_per_s)


def cost(config, results: Path, name: str):
    """Of that experiment alone: each other one's network would be built for its memory."""
    (line,) = costs(replace(config, experiments={name: config.experiments[name]}), results)
    return line


def test_nothing_is_guessed_where_nothing_was_measured(config, tmp_path):
    line = cost(config, tmp_path, "imagenet")
    assert (line.segments, line.devices, line.images) == (10, 32, 312 * 4096 * 1000)
    assert line.images_per_s is None and line.gpu_hours is None and line.paper_gpu_hours == 5440
    (warning,) = line.warnings
    assert "not measured on 32 devices" in warning and "imagenet/probe/ledger.csv" in warning
    assert "?" in to_text([line])


def test_cost_follows_from_the_measured_speed(config, tmp_path):
    """The paper's own speed gives the paper's hours: 65 images/s and GPU, 32 GPUs."""
    measured(tmp_path / "imagenet" / "probe", 32 * 65.25, 32)
    line = cost(config, tmp_path, "imagenet")
    assert line.gpu_hours == pytest.approx(5440, rel=0.01) and line.hours == pytest.approx(170, rel=0.01)
    assert line.warnings == []  # 17 hours a segment, within 20
    assert line.measured_on == "NVIDIA H100"
    told = to_text([line])
    assert "5,440" in told and "7.08" in told  # days


def test_a_segment_that_does_not_fit_is_told_with_one_that_does(config, tmp_path):
    measured(tmp_path / "imagenet" / "seed0" / "pretrain", 32 * 40, 32)
    (warning,) = cost(config, tmp_path, "imagenet").warnings
    assert "a segment of 100 epochs takes 27.7 h, its time limit is 20 h: segment_epochs: 64 fits" in warning


def test_a_value_that_left_its_preset_alone_is_told_before_it_costs_anything(config, tmp_path):
    cifar10 = config.experiments["cifar10"]
    config.experiments["cifar10"] = replace(cifar10, recipe=cifar10.recipe.changed(epochs=40))
    assert any(
        "epochs is 40 instead of 1000, and its partners stay" in told
        for told in cost(config, tmp_path, "cifar10").warnings
    )
    assert not any("partners" in told for told in cost(config, tmp_path, "imagenet").warnings)


def test_the_speed_of_another_number_of_devices_does_not_count(config, tmp_path):
    measured(tmp_path / "cifar10" / "seed0" / "pretrain", 3000, 1)
    assert cost(config, tmp_path, "cifar10").images_per_s is None
    measured(tmp_path / "cifar10" / "seed0" / "pretrain", 5000, 2)
    assert cost(config, tmp_path, "cifar10").images_per_s == 5000


def test_finished_segments_are_counted(config, tmp_path):
    folder = tmp_path / "digits" / "seed0" / "pretrain"
    folder.mkdir(parents=True)
    record_run(folder, config.experiments["digits"].recipe, 1, boundary=10)
    line = cost(config, tmp_path, "digits")
    assert (line.finished, line.segments, line.images) == (1, 3, 30 * 22 * 64)


def test_a_dataset_of_unknown_size_is_told(config, tmp_path):
    config.datasets["digits"] = config.datasets["digits"].changed(source="folder")
    digits = config.experiments["digits"]
    compute = digits.compute.changed(pretrain=digits.compute.pretrain.changed(nodes=3))
    config.experiments["digits"] = replace(digits, compute=compute)
    object.__setattr__(config, "data_dir", str(tmp_path))
    line = cost(config, tmp_path, "digits")
    assert line.images is None and "not packed yet" in line.warnings[0]


def test_published_weights_cost_no_pretraining(config, tmp_path):
    config.published["cifar10"] = {"publisher": "authors", "path": "weights.pt"}
    two = replace(config, experiments={name: config.experiments[name] for name in ("cifar10", "digits")})
    assert [line.experiment for line in costs(two, tmp_path)] == ["digits"]
