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


@pytest.fixture
def slurm(tmp_path, repository, cluster, undisturbed) -> SlurmWorkflow:
    """A workflow whose dataset lies ready, of a run of half a minute in one segment."""
    made = SlurmWorkflow(tmp_path, repository, cluster)
    shutil.copytree(undisturbed.path("data"), tmp_path / "data")
    made.digits.update(overrides=LONG, segment_epochs=6)
    yield made
    cluster.ask("scontrol", "update", "PartitionName=main", "State=UP")
    cluster.ask("scancel", "--user=root")
    made.wait_for("an empty queue", lambda: not cluster.ask("squeue", "-h").strip())


@pytest.fixture(scope="session")
def undisturbed(made_once) -> Workflow:
    """The same run without Slurm and without interference, on four ranks of this machine."""
    repository = Path(__file__).parents[2]

    def train(folder: Path) -> None:
        local = Workflow(folder, repository)
        local.digits.update(overrides=LONG, segment_epochs=6)
        how = {"devices_per_node": 4, "cpus_per_device": 1, "checkpoint_minutes": CHECKPOINT_MINUTES}
        local.digits["compute"]["pretrain"].update(how)
        local.run(f"{RUN}/encoder.safetensors")

    return Workflow(made_once("undisturbed", train), repository)
