"""`one_graph: auto`: on a single GPU that can compile, and in a run that goes on, what it was begun with."""

import argparse
import json
import logging

import pytest
import torch

from runs import on_cpu, train
from selfsup.arguments import add_compute_arguments
from selfsup.config import check_config
from selfsup.engine import compute
from selfsup.engine.compute import one_graph_applies, start_compute
from selfsup.job.place import Place
from selfsup.jobs import Compute, arguments
from selfsup.settings.yaml_reader import read_yaml
from selfsup.training.pretraining import Run
from selfsup.training.run import begun_with

GPU, OFF = torch.device("cuda", 0), {"recompute": False, "compile": False}


def parsed(line: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_compute_arguments(parser)
    return parser.parse_args(line.split())


@pytest.fixture
def can_compile(monkeypatch):
    monkeypatch.setattr(compute, "_lacks_for_compiling", lambda: None)


@pytest.mark.parametrize("value", [True, False, "auto"])
def test_a_script_is_told_the_value_of_the_configuration(value):
    block = Compute(nodes=1, devices_per_node=1, cpus_per_device=2, device="cpu", one_graph=value)
    assert parsed(arguments(block, in_slurm=False)).one_graph == value
    assert parsed("--device cpu").one_graph is False


def test_another_word_is_refused():
    with pytest.raises(Exception, match="one_graph is 'always', wanted true or false or auto"):
        Compute(nodes=1, devices_per_node=1, cpus_per_device=2, device="cpu", one_graph="always")


@pytest.mark.parametrize(
    ("device", "ranks", "switches", "begun", "wanted"),
    [
        (GPU, 1, OFF, None, True),
        (GPU, 1, OFF, {"one_graph": True}, True),
        (GPU, 1, OFF, {"one_graph": False}, False),  # a run that was begun without it
        (GPU, 1, OFF, {"torch": "2.11.0"}, False),  # by code that did not have it
        (GPU, 2, OFF, None, False),
        (GPU, 1, OFF | {"recompute": True}, None, False),
        (GPU, 1, OFF | {"compile": True}, None, False),
        (torch.device("cpu"), 1, OFF, None, False),
        (torch.device("cpu"), 1, OFF, {"one_graph": True}, False),
    ],
)
def test_it_is_on_where_it_was_measured_and_a_run_was_not_begun_without_it(
    can_compile, device, ranks, switches, begun, wanted
):
    assert one_graph_applies(device, ranks, switches, begun) is wanted


@pytest.mark.parametrize(
    ("triton", "path", "words"), [(None, None, "triton is not installed"), (object(), "", "no C compiler is found")]
)
def test_what_is_missing_for_compiling_is_told_in_a_line(monkeypatch, caplog, tmp_path, triton, path, words):
    monkeypatch.setattr(compute.importlib.util, "find_spec", lambda name: triton)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with caplog.at_level(logging.INFO):
        assert not one_graph_applies(GPU, 1, OFF, None)
    assert words in caplog.text and "stays off" in caplog.text
    compiler = tmp_path / "gcc"
    compiler.touch(mode=0o755)
    assert one_graph_applies(GPU, 1, OFF, None) is (triton is not None)


def test_a_job_on_a_cpu_records_that_it_is_off():
    found = start_compute(parsed("--device cpu --one-graph auto"), Place())
    assert found.one_graph is False and found.numerics()["one_graph"] is False


def test_a_run_is_known_by_its_newest_checkpoint_that_can_be_read(tiny_recipe, tiny_store, tmp_path):
    assert begun_with(tmp_path) is None
    (tmp_path / "epoch_0009.pt").write_bytes(b"damaged")
    assert begun_with(tmp_path) == {}  # no new run
    (tmp_path / "epoch_0009.pt").unlink()
    run = Run(tiny_recipe, 1, 1, tiny_store, tmp_path, on_cpu(static_views=True), 10)
    train(run, 1)
    older = on_cpu(static_views=True).numerics().items()
    assert older <= begun_with(tmp_path).items()
    train(Run(tiny_recipe, 1, 1, tiny_store, tmp_path, on_cpu(), 10), 1, 2)
    assert begun_with(tmp_path)["static_views"] is False
    (tmp_path / "epoch_0002.json").write_text("{")
    record = json.loads((tmp_path / "segments.json").read_text())
    del record["cards"]["2"]
    (tmp_path / "segments.json").write_text(json.dumps(record))
    (tmp_path / "epoch_0002.pt").write_bytes(b"damaged")
    assert older <= begun_with(tmp_path).items()


def test_what_needs_one_graph_wants_it_by_name(pytestconfig):
    config = read_yaml(pytestconfig.rootpath / "config.yaml")
    block = config["experiments"]["digits"]["compute"]["pretrain"]
    block |= {"one_graph": "auto", "recompute": True}
    check_config(config)
    block |= {"recompute": False, "compiled_update": True}
    with pytest.raises(Exception, match="compiled_update is true, but one_graph is not"):
        check_config(config)
    del block["compiled_update"]
    config["experiments"]["digits"]["compute"]["evaluate"]["one_graph"] = "auto"
    with pytest.raises(Exception, match=r"compute.evaluate.one_graph"):
        check_config(config)
