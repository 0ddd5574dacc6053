import os
import shutil
from pathlib import Path

import pytest
from cluster import Cluster
from slurm_workflow import CHECKPOINT_MINUTES, LONG, RUN, SlurmWorkflow

from workflows import Workflow


@pytest.fixture(scope="session")
def cluster():
    """A cluster for each of pytest's processes."""
    one = Cluster(int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")))
    one.up()
    yield one
    one.down()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A test that fails shows what Slurm's daemons wrote last."""
    report = yield
    cluster = item.funcargs.get("cluster")
    if report.failed and cluster:
        report.sections.append(("Slurm's daemons", cluster.last_words()))
    return report


@pytest.fixture
def slurm(tmp_path, repository, cluster, undisturbed) -> SlurmWorkflow:
    """A workflow whose dataset lies ready, of a run of 20 s in one segment."""
    made = SlurmWorkflow(tmp_path, repository, cluster)
    shutil.copytree(undisturbed.path("data"), tmp_path / "data")
    made.digits.update(overrides=LONG, segment_epochs=LONG["epochs"])
    yield made
    made.close()


@pytest.fixture(scope="session")
def undisturbed(made_once, warm_python) -> Workflow:
    """The same run without Slurm and without interference, on four ranks of this machine."""
    repository = Path(__file__).parents[2]

    def train(folder: Path) -> None:
        local = Workflow(folder, repository, warm_python)
        local.digits.update(overrides=LONG, segment_epochs=LONG["epochs"])
        how = {"devices_per_node": 4, "cpus_per_device": 1, "checkpoint_minutes": CHECKPOINT_MINUTES}
        local.digits["compute"]["pretrain"].update(how)
        local.run(f"{RUN}/encoder.safetensors")

    return Workflow(made_once("undisturbed", train), repository)
