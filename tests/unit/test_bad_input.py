"""Bad input by machine: whatever stands in a file, the answer is a result or one or two lines, never a crash.

Some 570 cases, the same ones each time; FUZZ=20, which is `make fuzz`, tries twenty times as many.
"""

import copy
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from selfsup.config import check_config
from selfsup.data.packing import SHOWN
from selfsup.data.preparing import prepare
from selfsup.data.store import PackedStore, decode
from selfsup.engine import checkpoint
from selfsup.errors import UserError
from selfsup.protocols import PROTOCOLS, read_evaluation
from selfsup.recipe import load_recipe, parse_recipe
from selfsup.segments import record_run, recorded_cards, restore_cards, work_done
from selfsup.settings.registries import METHODS
from selfsup.settings.typed import plain
from selfsup.settings.yaml_reader import parse_yaml, read_yaml
from selfsup.training.history import History, steps_logged
from trees import tar_of, write_tree

FUZZ = int(os.environ.get("FUZZ", "1"))
REPOSITORY = Path(__file__).parents[2]


def cases(count: int):
    """So many cases, always the same ones."""
    # Fixtures are read only: a test writes into files that it makes anew for each case.
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=count * FUZZ, derandomize=True, deadline=None, database=None, suppress_health_check=checks
    )


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from(
        [0, 1, -1, 2**31, 2**63, 10**400, 0.5, float("nan"), float("inf"), "", "linear", "digits", "~", "1e3"]
    ),
    st.floats(),
    st.text(max_size=8),
)
VALUES = st.recursive(
    SCALARS,
    lambda some: st.one_of(
        st.lists(some, max_size=3), st.dictionaries(st.one_of(st.text(max_size=5), st.integers()), some, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def changed(draw, content: dict | list, changes: int = 2):
    """The content with one or two of its values replaced, removed, or beside others that are new."""
    whole = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, changes))):
        place = whole
        while True:
            keys = sorted(place, key=str) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if not isinstance(place[key], dict | list) or draw(st.integers(0, 4)) == 0:
                break
            place = place[key]
        action = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if action == "add" and isinstance(place, dict):
            place[draw(st.one_of(st.text(max_size=6), st.integers(), st.none()))] = draw(VALUES)
        elif keys and action == "remove":
            del place[key]
        elif keys:
            place[key] = draw(VALUES)
    return whole


@st.composite
def damaged(draw, content: bytes):
    """The bytes cut, or with some of them changed, left out or put in."""
    kind = draw(st.sampled_from(["cut", "change", "leave out", "put in"]))
    if kind == "cut":
        return content[: draw(st.integers(0, len(content) - 1))]
    place = draw(st.integers(0, len(content) - 1))
    if kind == "change":
        some = draw(st.binary(min_size=1, max_size=8))
        return content[:place] + some + content[place + len(some) :]
    if kind == "leave out":
        return content[:place] + content[place + draw(st.integers(1, 600)) :]
    return content[:place] + draw(st.binary(min_size=1, max_size=40)) + content[place:]


def told(call, *arguments, lines: int = 2, **more):
    """Call; a UserError of so many lines is as good as a result, and nothing else is."""
    try:
        return call(*arguments, **more)
    except UserError as error:
        assert str(error).strip() and len(str(error).split("\n")) <= lines, str(error)
        return None


CONFIG = read_yaml(REPOSITORY / "config.yaml")
SMALL_CONFIG = {
    **CONFIG,
    "experiments": {name: CONFIG["experiments"][name] for name in ("digits", "cifar10")},
    "tables": {"demo": ["digits"]},
}
# One of each method, and one of a transformer.
OTHERS = ("simclr", "equimod", "simsiam", "barlow_twins", "vicreg", "moco_v3")
BASES = ("digits", *(f"{name}_digits" for name in OTHERS), "moco_v3_vit_small_imagenet")
RECIPES = [plain(load_recipe(name)) for name in BASES]


def test_each_method_has_a_recipe_among_those_that_are_changed():
    assert {recipe["method"] for recipe in RECIPES} == set(METHODS)


@cases(40)
@given(changed(SMALL_CONFIG))
def test_whatever_config_yaml_says(content):
    told(check_config, content)


@cases(80)
@given(st.sampled_from(RECIPES).flatmap(changed))
def test_whatever_a_recipe_says(recipe):
    told(parse_recipe, json.dumps(recipe))


@cases(30)
@given(st.sampled_from(["digits", "simclr_cifar10"]), VALUES, st.data())
def test_whatever_overrides_say(name, value, data):
    overrides = data.draw(st.one_of(st.just(value), changed(plain(load_recipe(name)))))
    told(load_recipe, name, overrides if isinstance(overrides, dict) else {"model": overrides})


@cases(40)
@given(st.data())
def test_whatever_a_protocol_says(data):
    name = data.draw(st.sampled_from(sorted(PROTOCOLS.names())))
    content = data.draw(changed(read_yaml(REPOSITORY / f"workflow/protocols/{name}.yaml")))
    rest = {key: value for key, value in content.items() if key != "task"}
    told(read_evaluation, f"protocol {name}", content.get("task"), rest, "digits")


@cases(40)
@given(st.one_of(damaged((REPOSITORY / "config.yaml").read_bytes()), st.binary(max_size=60)))
def test_whatever_bytes_a_yaml_file_has(tmp_path, content):
    path = tmp_path / "some.yaml"
    path.write_bytes(content)
    if isinstance(read := told(read_yaml, path), dict):
        told(check_config, read)


@cases(40)
@given(st.text(max_size=40))
def test_whatever_text_is_given_as_yaml_or_as_a_recipe(text):
    told(parse_yaml, text, "--config")
    told(parse_recipe, text)
    told(parse_recipe, "{" + text)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "tree"
    write_tree(folder, {"train": ["ant", "bee"], "test": ["ant"]}, count=1)
    return folder


def packed(source: Path, scratch: Path) -> None:
    """Pack what is there, and find nothing outside the store's folder."""
    store = scratch / "in" / "store"
    before = sorted(path for path in scratch.rglob("*") if store not in path.parents and path != store)
    told(prepare, "folder", source, store, lines=2 + SHOWN)  # the first damaged pictures have a line each
    assert sorted(path for path in scratch.rglob("*") if store not in path.parents and path != store) == before


def fresh(tmp_path: Path) -> Path:
    """A new folder for a case."""
    scratch = tmp_path / str(len(list(tmp_path.iterdir())))
    (scratch / "in").mkdir(parents=True)
    return scratch


PICTURES = ["png", "jpeg", "gif", "webp", "bmp", "tiff"]


@cases(40)
@given(st.sampled_from(PICTURES), st.data())
def test_whatever_bytes_a_picture_has(tmp_path, pictures, kind, data):
    file = io.BytesIO()
    Image.new("RGB", (9, 7), (10, 200, 30)).save(file, kind)
    content = data.draw(st.one_of(damaged(file.getvalue()), st.binary(max_size=80)))
    scratch = fresh(tmp_path)
    for path in pictures.rglob("*.png"):
        copy = scratch / "tree" / path.relative_to(pictures)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (scratch / f"tree/train/ant/damaged.{data.draw(st.sampled_from(['png', 'jpg', 'jpeg']))}").write_bytes(content)
    packed(scratch / "tree", scratch)


@cases(40)
@given(st.data())
def test_whatever_bytes_a_tar_has(tmp_path, pictures, data):
    scratch = fresh(tmp_path)
    whole = tar_of(pictures, scratch / "whole.tar").read_bytes()
    (scratch / "some.tar").write_bytes(data.draw(damaged(whole)))
    packed(scratch / "some.tar", scratch)


NAMES = st.one_of(
    st.sampled_from(
        ["../outside.png", "/tmp/absolute.png", "train/../../up.png", "train/ant/..", ".", "train/ant/x.png"]
    ),
    st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30),
)
KINDS = [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]


@cases(40)
@given(st.lists(st.tuples(NAMES, st.sampled_from(KINDS), NAMES), min_size=1, max_size=4))
def test_whatever_names_and_links_a_tar_has(tmp_path, pictures, members):
    scratch = fresh(tmp_path)
    archive = tar_of(pictures, scratch / "some.tar")
    content = next(pictures.rglob("*.png")).read_bytes()
    with tarfile.open(archive, "a") as tar:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(content) if info.size else None)
    packed(archive, scratch)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A run's folder with a boundary, its card and record, and a rolling checkpoint."""
    folder, recipe = tmp_path_factory.mktemp("saved"), load_recipe("digits")
    known = {"revision": 1, "seed": 0, "dataset_fingerprint": "d", "fingerprint": "f", "step": 5, "epoch": 1.0}
    state = {**known, "recipe": plain(recipe), "numerics": {"device": "cpu"}, "weights": torch.arange(6.0), "format": 1}
    for path in (folder / "epoch_0001.pt", folder / "partial/step_000000005.pt"):
        checkpoint.save_checkpoint(path, state, {**known, "numerics": {"device": "cpu"}})
    card = json.loads((folder / "epoch_0001.json").read_text())
    record_run(folder, recipe, 1, boundary=1, card=card)
    return folder


def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, fresh(tmp_path) / "pretrain"))


def examined(folder: Path) -> None:
    """Ask all that a job and a plan ask of a run's files."""
    recipe = load_recipe("digits")
    told(work_done, folder, recipe, 1)
    told(recorded_cards, folder)
    told(restore_cards, folder)
    paths = [folder / "epoch_0001.pt", *(folder / "partial").glob("*.pt")]
    for path in paths:
        told(checkpoint.load_checkpoint, path)
    found = told(checkpoint.newest_checkpoint, paths)
    assert found is None or found[1]["weights"].equal(torch.arange(6.0)), "what is taken up is what was saved"


FILES = [
    "epoch_0001.pt",
    "epoch_0001.json",
    "segments.json",
    "partial/step_000000005.pt",
    "partial/step_000000005.json",
]


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("json")])
def test_a_card_or_a_record_cut_at_every_length(tmp_path, saved, name):
    """By what a plan and a look for the newest checkpoint read. The run's record has a boundary's card too."""
    folder, recipe, whole = copied(saved, tmp_path), load_recipe("digits"), (saved / name).read_bytes().rstrip()
    paths = [folder / "epoch_0001.pt", *(folder / "partial").glob("*.pt")]
    for length in reversed(range(len(whole))):
        os.truncate(folder / name, length)
        assert (told(recorded_cards, folder) is None) == (name == "segments.json")
        told(work_done, folder, recipe, 1)
        steps = [told(checkpoint.step_of, path) for path in paths]
        assert steps == {"epoch_0001.json": [5, 5], "segments.json": [None, 5]}.get(name, [5, -1])


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_or_a_card_cut_at_any_length(tmp_path, saved, name):
    whole = (saved / name).read_bytes()
    step = max(1, len(whole) // (15 * FUZZ))
    for length in {*range(0, len(whole), step), len(whole) - 1}:
        folder = copied(saved, tmp_path)
        (folder / name).write_bytes(whole[:length])
        examined(folder)


@cases(30)
@given(st.sampled_from(FILES), st.data())
def test_whatever_bytes_a_checkpoint_or_a_card_has(tmp_path, saved, name, data):
    folder = copied(saved, tmp_path)
    (folder / name).write_bytes(data.draw(damaged((saved / name).read_bytes())))
    examined(folder)


@cases(30)
@given(st.data())
def test_whatever_bytes_a_boundary_without_a_card_has(tmp_path, saved, data):
    """Its card is made from the checkpoint itself."""
    folder = copied(saved, tmp_path)
    for name in ("epoch_0001.json", "segments.json"):
        (folder / name).unlink()
    (folder / "epoch_0001.pt").write_bytes(data.draw(damaged((saved / "epoch_0001.pt").read_bytes())))
    found = told(checkpoint.load_checkpoint, folder / "epoch_0001.pt")
    assert found is None or found["weights"].equal(torch.arange(6.0))
    checkpoint.known_card(folder / "epoch_0001.pt")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_boundary_without_a_card_is_not_set_aside_when_memory_is_short(tmp_path, saved, monkeypatch, error):
    def short(*_, **__):
        raise error

    folder = copied(saved, tmp_path)
    for name in ("epoch_0001.json", "segments.json"):
        (folder / name).unlink()
    path = folder / "epoch_0001.pt"
    monkeypatch.setattr(torch, "load", short)
    with pytest.raises(UserError, match=r"epoch_0001.pt: cannot be read now, memory is short") as told:
        checkpoint.newest_checkpoint([path])
    assert not isinstance(told.value, checkpoint.DamagedCheckpointError)
    assert path.exists() and not path.with_suffix(".damaged").exists()


@cases(40)
@given(st.sampled_from([name for name in FILES if name.endswith("json")]), st.data())
def test_whatever_a_card_or_a_record_says(tmp_path, saved, name, data):
    folder = copied(saved, tmp_path)
    content = json.loads((saved / name).read_text())
    (folder / name).write_text(json.dumps(data.draw(changed(content))))
    examined(folder)


HISTORY = b"step,epoch,loss,lr\n0,0,4.0,0.1\n1,0,3.5,0.2\n2,0,3.25,0.3\n"


@cases(40)
@given(st.one_of(damaged(HISTORY), st.binary(max_size=40)))
@example(HISTORY.replace(b"0.2\n", b"0.2\0"))  # two rows become one that is too long: found by `make fuzz`
def test_whatever_bytes_a_history_has(tmp_path, content):
    path = fresh(tmp_path) / "history.csv"
    path.write_bytes(content)
    told(steps_logged, path)
    told(History, path, start=2)


@cases(40)
@given(st.data())
def test_whatever_bytes_a_stores_description_has(tmp_path, tiny_store, data):
    folder = Path(shutil.copytree(tiny_store.folder, fresh(tmp_path) / "store"))
    whole = (folder / "store.json").read_bytes()
    changes = changed(json.loads(whole)).map(lambda content: json.dumps(content).encode())
    (folder / "store.json").write_bytes(data.draw(st.one_of(damaged(whole), changes)))
    told(PackedStore, folder)


def test_a_store_that_tells_of_files_it_does_not_list_is_damaged(tmp_path, tiny_store):
    """Whose kind is not "raw" has sizes and spans, too: found by `make fuzz`."""
    folder = Path(shutil.copytree(tiny_store.folder, tmp_path / "store"))
    description = json.loads((folder / "store.json").read_text())
    description["splits"]["test"]["kind"] = "encoded"
    (folder / "store.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"store.json: damaged .*test_sizes.npy.*: delete"):
        PackedStore(folder)


def test_a_gif_whose_picture_leaves_its_canvas_is_refused_before_it_is_decoded():
    """torchvision would write past its memory: found by `make fuzz`."""
    file = io.BytesIO()
    Image.new("RGB", (9, 7), (10, 200, 30)).save(file, "gif")
    whole = file.getvalue()
    assert decode(np.array(bytearray(whole))).shape == (3, 7, 9)
    place = whole.index(b"\x2c\0\0\0\0\x09\0\x07\0")
    for offset in (1, 3, 6, 8):  # left, top, width, height
        outside = whole[: place + offset] + b"\xe9" + whole[place + offset + 1 :]
        with pytest.raises(ValueError, match="reaches beyond it"):
            decode(np.array(bytearray(outside)))
