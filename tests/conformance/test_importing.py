"""Published weights: files in the publishers' layouts, made small here, and features against an independent forward.

The forward is NumPy in float64, NHWC, HWIO kernels, SAME padding, written from haiku's ResNet and BatchNorm.
"""

import collections
import io
import os
import pickle
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from selfsup.errors import UserError
from selfsup.evaluation.encoder import load_encoder
from selfsup.importing import imported_backbone
from selfsup.importing.array_pickle import read_array_pickle
from selfsup.methods import build_method
from selfsup.models.same_padding import pad_as_jax, same_padding
from selfsup.recipe import canonical, load_recipe

BLOCKS, WIDTH = (3, 4, 6, 3), 4  # a ResNet-50 of a sixteenth of its width
SMALL = {"model": {"width": WIDTH}, "augment": {"size": 40}}


# --- the official network, in NumPy -----------------------------------------------------------------------------------


def conv(x, kernel, stride):
    """x [N, H, W, C], kernel HWIO, padding SAME."""
    k, size = kernel.shape[0], x.shape[1]
    out = -(-size // stride)
    total = max((out - 1) * stride + k - size, 0)
    x = np.pad(x, ((0, 0), (total // 2, total - total // 2), (total // 2, total - total // 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("nhwcij,ijco->nhwo", windows[:, :out, :out], kernel, optimize=True)


def max_pool(x):
    out = -(-x.shape[1] // 2)
    total = max((out - 1) * 2 + 3 - x.shape[1], 0)
    pads = (total // 2, total - total // 2)
    x = np.pad(x, ((0, 0), pads, pads, (0, 0)), constant_values=-np.inf)
    return np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2].max((-1, -2))


def official_features(params, state, x):
    def batch_norm(x, name):
        mean, var = (state[f"{name}/~/{kind}_ema"]["average"].astype(np.float64) for kind in ("mean", "var"))
        return (x - mean) / np.sqrt(var + 1e-5) * params[name]["scale"] + params[name]["offset"]

    x = batch_norm(conv(x, params["res_net50/~/initial_conv"]["w"], 2), "res_net50/~/initial_batchnorm")
    x = max_pool(np.maximum(x, 0))
    for group, blocks in enumerate(BLOCKS):
        for block in range(blocks):
            name = f"res_net50/~/block_group_{group}/~/block_{block}/~/"
            stride = 2 if group and not block else 1
            shortcut = x
            if not block:
                shortcut = batch_norm(conv(x, params[name + "shortcut_conv"]["w"], stride), name + "shortcut_batchnorm")
            for place, step in enumerate((1, stride, 1)):
                x = batch_norm(conv(x, params[f"{name}conv_{place}"]["w"], step), f"{name}batchnorm_{place}")
                x = np.maximum(x, 0) if place < 2 else x
            x = np.maximum(x + shortcut, 0)
    return x.mean((1, 2))


def official_network(random):
    """Random Haiku dictionaries of the online network, float32: parameters and state."""
    params, state = {}, {}

    def averages(values):
        """As haiku's ExponentialMovingAverage keeps them; `hidden`, before Adam's correction, is not to be taken."""
        average = np.asarray(values, np.float32)
        return {"average": average, "hidden": np.float32(0.5) * average, "counter": np.array(7, np.int32)}

    def layer(conv_name, norm_name, k, inside, outside):
        channels = (1, 1, 1, outside)
        params[conv_name] = {"w": random.normal(0, (2 / (k * k * inside)) ** 0.5, (k, k, inside, outside))}
        params[norm_name] = {"scale": random.uniform(0.5, 1.5, channels), "offset": random.normal(0, 0.2, channels)}
        state[f"{norm_name}/~/mean_ema"] = averages(random.normal(0, 0.3, channels))
        state[f"{norm_name}/~/var_ema"] = averages(random.uniform(0.5, 2, channels))

    layer("res_net50/~/initial_conv", "res_net50/~/initial_batchnorm", 7, 3, WIDTH)
    inside = WIDTH
    for group, blocks in enumerate(BLOCKS):
        narrow, wide = WIDTH * 2**group, 4 * WIDTH * 2**group
        for block in range(blocks):
            name = f"res_net50/~/block_group_{group}/~/block_{block}/~/"
            if not block:
                layer(name + "shortcut_conv", name + "shortcut_batchnorm", 1, inside, wide)
            for place, (k, a, b) in enumerate(((1, inside, narrow), (3, narrow, narrow), (1, narrow, wide))):
                layer(f"{name}conv_{place}", f"{name}batchnorm_{place}", k, a, b)
            inside = wide
    for head in ("projector", "predictor"):
        params[f"{head}/linear"] = {"w": random.normal(size=(inside, 8)), "b": np.zeros(8)}
        params[f"{head}/batch_norm"] = {"scale": np.ones((1, 8)), "offset": np.zeros((1, 8))}
        state[f"{head}/batch_norm/~/mean_ema"] = averages(np.zeros((1, 8)))
    params["classifier"] = {"w": np.zeros((inside, 10)), "b": np.zeros(10)}
    return {m: {n: v.astype(np.float32) for n, v in arrays.items()} for m, arrays in params.items()}, state


# --- its file: what dill wrote with haiku and byol installed, neither of which is here --------------------------------

ExperimentState = collections.namedtuple(
    "_ByolExperimentState", ["online_params", "target_params", "online_state", "target_state", "opt_state"]
)
ExperimentState.__module__ = "byol.byol_experiment"
ScaleByLarsState = collections.namedtuple("ScaleByLarsState", ["mu"])
ScaleByLarsState.__module__ = "byol.utils.optimizers"


class HaikuSlots:
    __slots__ = ("_keys", "_storage")

    def __init__(self, content):
        self._storage, self._keys = content, tuple(content)


def haiku_class(name, **members):
    return type(name, (HaikuSlots,), {"__slots__": (), "__module__": "haiku._src.data_structures", **members})


# It reduces to its class and a dictionary; a version without that keeps slots.
FrozenDict = haiku_class("frozendict", __reduce__=lambda self: (FrozenDict, (self._storage,)))
SlotsDict = haiku_class("FlatMapping")


def create_namedtuple(name, fieldnames, modulename):
    """dill's function, by which it writes named tuples' classes."""


create_namedtuple.__module__, create_namedtuple.__qualname__ = "dill._dill", "_create_namedtuple"
create_namedtuple.__name__ = "_create_namedtuple"


class DillPickler(pickle.Pickler):
    def reducer_override(self, thing):
        if isinstance(thing, type) and issubclass(thing, tuple):
            return create_namedtuple, (thing.__name__, thing._fields, thing.__module__)
        return NotImplemented


def written(content, monkeypatch, *, by_dill) -> bytes:
    """Pickle as JAX programs do, protocol 2; their modules exist while it is written and are gone when it is read."""
    homes = {
        "haiku._src.data_structures": {"frozendict": FrozenDict, "FlatMapping": SlotsDict},
        "dill._dill": {"_create_namedtuple": create_namedtuple},
        "byol.byol_experiment": {"_ByolExperimentState": ExperimentState},
        "byol.utils.optimizers": {"ScaleByLarsState": ScaleByLarsState},
    }
    homes |= {name.split(".")[0]: {} for name in homes}
    with monkeypatch.context() as patch:
        for name, members in homes.items():
            module = types.ModuleType(name)
            vars(module).update(members)
            patch.setitem(sys.modules, name, module)
        file = io.BytesIO()
        (DillPickler if by_dill else pickle.Pickler)(file, protocol=2).dump(content)
    return file.getvalue()


def official_content(params, state, mapping=dict):
    def frozen(tree):
        return mapping({module: mapping(arrays) for module, arrays in tree.items()})

    online, averages = frozen(params), frozen(state)
    lars = [ScaleByLarsState(frozen({"classifier": params["classifier"]})), ()]
    everything = ExperimentState(online, frozen({"unused": {"w": np.zeros(1)}}), averages, frozen({}), lars)
    return {"experiment_state": everything, "step": np.int64(312_784), "rng": np.zeros(2, np.uint32)}


@pytest.fixture(scope="module")
def network():
    return official_network(np.random.default_rng())


@pytest.fixture
def official_file(network, tmp_path, monkeypatch):
    def write(content=None, *, mapping=FrozenDict, by_dill=True, old_numpy=True):
        data = written(content or official_content(*network, mapping), monkeypatch, by_dill=by_dill)
        if old_numpy:  # as NumPy 1 names it
            data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        path = tmp_path / "pretrain.pkl"
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize("size", [40, 33])
def test_features_of_official_weights_are_those_of_the_official_network(network, official_file, size):
    recipe = load_recipe("imagenet_official", SMALL)
    encoder, published = imported_backbone(official_file(), "official", recipe)
    assert published.facts == {"steps": 312_784}
    pictures = np.random.default_rng().normal(size=(3, size, size, 3))
    wanted = official_features(*network, pictures)
    with torch.no_grad():
        found = encoder.double()(torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())).numpy()
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 1e-12
    assert encoder.bn1.num_batches_tracked == 7


def test_with_torchs_padding_the_same_weights_give_other_features(official_file):
    """Why the recipe's key is asked for: pixels are shifted, by which features move a sixth of their length in the mean
    of drawn networks. This one is always the same: of such narrow ones a thousandth moves less than 0.05."""
    random = np.random.default_rng(0)
    path = official_file(official_content(*official_network(random), FrozenDict))
    encoder, _ = imported_backbone(path, "official", load_recipe("imagenet_official", SMALL))
    from selfsup.models import build_backbone

    other = build_backbone(load_recipe("imagenet", SMALL)).eval()
    other.load_state_dict(encoder.state_dict())
    pictures = torch.from_numpy(random.normal(size=(3, 3, 40, 40)).astype(np.float32))
    with torch.no_grad():
        right, wrong = encoder(pictures), other(pictures)
    assert (right - wrong).norm() / right.norm() > 0.05
    with pytest.raises(UserError, match=r"model\.padding is 'symmetric' in the recipe, wanted 'same'"):
        imported_backbone(path, "official", load_recipe("imagenet", SMALL))


@pytest.mark.parametrize("by_dill", [True, False])
@pytest.mark.parametrize("mapping", [FrozenDict, SlotsDict])
@pytest.mark.parametrize("old_numpy", [True, False])
def test_every_way_in_which_the_file_may_name_its_classes_is_read(official_file, network, mapping, by_dill, old_numpy):
    path = official_file(mapping=mapping, by_dill=by_dill, old_numpy=old_numpy)
    encoder, _ = imported_backbone(path, "official", load_recipe("imagenet_official", SMALL))
    kernel = network[0]["res_net50/~/block_group_3/~/block_2/~/conv_1"]["w"]
    assert np.array_equal(encoder.layer4[2].conv2.weight.numpy(), kernel.transpose(3, 2, 0, 1))


class Evil:
    def __init__(self, call, *arguments):
        self.reduced = (call, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ((os.system, "touch {}"), "posix.system"),
        ((eval, "open('{}', 'w')"), "eval"),
        ((exec, "open('{}', 'w')"), "exec"),
        ((getattr, "x", "upper"), "getattr"),
        ((subprocess.check_output, ["touch", "{}"]), "check_output"),
        ((np.load, "{}"), "numpy.load"),
        ((np.ndarray, (2**40,)), None),
        ((torch.load, "{}"), "torch.serialization.load"),
    ],
)
def test_a_pickle_that_calls_anything_else_is_refused_and_nothing_runs(tmp_path, call, name):
    sign, path = tmp_path / "sign", tmp_path / "evil.pkl"
    arguments = [one.format(sign) if isinstance(one, str) else one for one in call[1:]]
    arguments = [[word.format(sign) for word in one] if isinstance(one, list) else one for one in arguments]
    path.write_bytes(pickle.dumps({"experiment_state": Evil(call[0], *arguments)}, protocol=2))
    with pytest.raises(UserError, match=name and name.replace(".", r"\.")):
        imported_backbone(path, "official", load_recipe("imagenet_official", SMALL))
    assert not sign.exists()


def test_an_array_of_objects_or_of_a_false_size_is_refused(tmp_path):
    path = tmp_path / "array.pkl"
    for array in (np.array([None, "text"], object), np.array(["text"])):
        path.write_bytes(pickle.dumps(array, protocol=2))
        with pytest.raises(UserError, match="cannot be read as a pickle of arrays"):
            read_array_pickle(path, {})
    path.write_bytes(pickle.dumps(np.arange(5.0), protocol=2))
    assert np.array_equal(read_array_pickle(path, {}), np.arange(5.0))
    path.write_bytes(path.read_bytes().replace(b"K\x05\x85", b"K\x06\x85"))  # six numbers, where five follow
    with pytest.raises(UserError, match="cannot be read as a pickle of arrays"):
        read_array_pickle(path, {})


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"no pickle", pickle.dumps([1, 2]), pickle.dumps({"step": 3})])
def test_another_file_is_told_in_one_line(tmp_path, content):
    path = tmp_path / "other.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=str(path)) as error:
        imported_backbone(path, "official", load_recipe("imagenet_official", SMALL))
    assert "\n" not in str(error.value)


FIRST = "res_net50/~/initial_conv"
MISFITS = {
    r"layer2\.0\.conv2\.weight is missing": lambda params: params.pop("res_net50/~/block_group_1/~/block_0/~/conv_1"),
    "no part of a ResNet": lambda params: params.update({"res_net50/~/extra": params[FIRST]}),
    r"conv1\.weight is of": lambda params: params[FIRST].update(w=np.ones((7, 7, 3, 5), np.float32)),
    "wanted an array of 4 dim": lambda params: params[FIRST].update(w=np.ones(7, np.float32)),
}


@pytest.mark.parametrize("words", MISFITS)
def test_weights_that_do_not_fit_are_never_loaded_in_part(network, official_file, words):
    params = {module: dict(arrays) for module, arrays in network[0].items()}
    MISFITS[words](params)
    with pytest.raises(UserError, match=words):
        path = official_file(official_content(params, network[1], FrozenDict))
        imported_backbone(path, "official", load_recipe("imagenet_official", SMALL))


def test_same_padding_is_as_tensorflows_documentation_has_it():
    assert same_padding(224, 7, 2) == (2, 3)
    assert same_padding(112, 3, 2) == (0, 1)
    assert same_padding(33, 3, 2) == (1, 1)
    assert same_padding(56, 1, 2) == (0, 0)
    assert same_padding(14, 3, 1) == (1, 1)


def test_a_max_pool_pads_with_what_is_never_the_largest():
    pool = torch.nn.Sequential(torch.nn.MaxPool2d(3, 2, 1))
    pad_as_jax(pool)
    x = -1 - torch.rand(2, 3, 8, 8)
    assert np.array_equal(pool(x).numpy().transpose(0, 2, 3, 1), max_pool(x.numpy().transpose(0, 2, 3, 1)))


# --- the authors' checkpoints -----------------------------------------------------------------------------------------


def authors_checkpoint(recipe):
    """As their main.py saves it; the names of BYOL and M_BYOL in their model.py."""
    method = build_method(recipe, seed=4, total_steps=10)
    online, target = method.networks["online"], method.networks["target"]
    for buffer in online.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    parts = {"resnet": online["backbone"], "proj_head_inv": online["projector"], "predictor_inv": online["predictor"]}
    averages = {"m_resnet": target["backbone"], "m_proj_head_inv": target["projector"]}

    def states(networks):
        named = ((part, *item) for part, network in networks.items() for item in network.state_dict().items())
        return collections.OrderedDict((f"{part}.{name}", value) for part, name, value in named)

    optimizer = torch.optim.SGD(online.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10, eta_min=1e-8)
    checkpoint = {"last_epoch": 799, "log_dir": "./runs/expe_1_byol_cifar10", "model": states(parts)}
    checkpoint |= {"momentum_model": states(averages), "optimizer_repr": optimizer.state_dict()}
    return online["backbone"].eval(), {**checkpoint, "cosine_scheduler_repr": schedule.state_dict()}


@pytest.mark.parametrize("name", ["cifar10_authors", "imagenet_authors"])
def test_the_authors_online_backbone_is_read_to_the_bit(tmp_path, name):
    recipe = load_recipe(name, {"model": {"width": 8}})
    backbone, checkpoint = authors_checkpoint(recipe)
    torch.save(checkpoint, tmp_path / "weights.pt")
    encoder, published = imported_backbone(tmp_path / "weights.pt", "authors", recipe)
    assert published.facts == {"epochs": 800}
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(encoder(pictures), backbone(pictures))


def companions_checkpoint(recipe):
    """As SimCLR's main.py saves it: no momentum model, and no predictor in its model."""
    method = build_method(recipe, seed=4, total_steps=10)
    networks = {"resnet": method.networks["backbone"], "proj_head_inv": method.networks["projector"]}
    for buffer in method.networks.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    named = ((part, *item) for part, network in networks.items() for item in network.state_dict().items())
    model = collections.OrderedDict((f"{part}.{name}", value) for part, name, value in named)
    for name in ("weight", "bias"):  # a batch norm without affine has none
        del model[f"proj_head_inv.4.{name}"]
    optimizer = torch.optim.SGD(method.networks.parameters(), lr=0.1, momentum=0.9)
    more = {"last_epoch": 799, "log_dir": "./runs/expe_1_simclr", "optimizer_repr": optimizer.state_dict()}
    return networks["resnet"].eval(), {**more, "model": model}


@pytest.mark.parametrize("name", ["simclr_cifar10_authors", "simclr_imagenet_authors"])
def test_the_companions_backbone_is_read_to_the_bit(tmp_path, name):
    recipe = load_recipe(name, {"model": {"width": 8}})
    backbone, checkpoint = companions_checkpoint(recipe)
    torch.save(checkpoint, tmp_path / "weights.pt")
    encoder, published = imported_backbone(tmp_path / "weights.pt", "authors", recipe)
    assert (published.facts, published.method, published.head) == ({"epochs": 800}, "simclr", [2048, 128])
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(encoder(pictures), backbone(pictures))


def test_the_published_size_is_that_of_heads_of_two_layers():
    """Weights and momenta in float32: 99,988,861 bytes of CIFAR-10 and 224,138,667 of ImageNet, and pickled names."""
    for name, size in {"cifar10": 99_988_861, "imagenet": 224_138_667}.items():
        networks = build_method(load_recipe(f"simclr_{name}_authors"), seed=0, total_steps=1).networks
        learned = sum(one.numel() for one in networks.parameters() if one.requires_grad)
        buffers = sum(one.numel() for one in networks.buffers())
        assert 0 < size - 4 * (2 * learned + buffers) < 200_000


def test_a_file_of_another_method_or_head_is_not_taken_for_the_recipes(tmp_path):
    small, path = {"model": {"width": 8}}, tmp_path / "weights.pt"
    torch.save(companions_checkpoint(load_recipe("simclr_cifar10_authors", small))[1], path)
    with pytest.raises(UserError, match=r"weights\.pt: its method: simclr, the recipe's: byol; take the recipe"):
        imported_backbone(path, "authors", load_recipe("cifar10_authors", small))
    three = {**small, "simclr": {"projector": {"layers": [2048, 2048, 128]}}}
    with pytest.raises(UserError, match=r"its projector's layers: \[2048, 128\], the recipe's: \[2048, 2048, 128\]"):
        imported_backbone(path, "authors", load_recipe("simclr_cifar10_authors", three))
    torch.save(authors_checkpoint(load_recipe("cifar10_authors", small))[1], path)
    with pytest.raises(UserError, match="its method: byol, the recipe's: simclr"):
        imported_backbone(path, "authors", load_recipe("simclr_cifar10_authors", small))


def test_wrong_files_for_the_authors_are_named(tmp_path):
    recipe, path = load_recipe("cifar10_authors", {"model": {"width": 8}}), tmp_path / "weights.pt"

    def error():
        with pytest.raises(UserError, match=str(path)) as caught:
            imported_backbone(path, "authors", recipe)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:e16172\nsize 189007909\n")
    assert "git lfs pull" in error()
    path.write_bytes(b"no checkpoint")
    assert "no checkpoint of the authors" in error()
    torch.save({"state_dict": {}}, path)
    assert "lacks `model`" in error()
    _, checkpoint = authors_checkpoint(load_recipe("imagenet_authors", {"model": {"width": 8}}))
    torch.save(checkpoint, path)
    assert "in the recipe's resnet18 of width 8" in error()
    torch.save({"model": {"module.resnet.conv1.weight": torch.ones(1)}}, path)
    assert "belongs to none of the authors' parts" in error()
    path.write_bytes(pickle.dumps({"model": Evil(os.system, f"touch {tmp_path / 'sign'}")}, protocol=2))
    error()
    assert not (tmp_path / "sign").exists()


def test_the_command_writes_an_encoder_that_the_linear_evaluation_reads(repository, tmp_path, starter):
    small = {"model": {"width": 8}, "augment": {"size": 16}, "linear": {"test": {"crop": 16}}}
    recipe, output = load_recipe("cifar10_authors", small), tmp_path / "published" / "encoder.safetensors"
    backbone, checkpoint = authors_checkpoint(recipe)
    torch.save(checkpoint, tmp_path / "weights.pt")
    script = [starter, "workflow/scripts/import_encoder.py", "--publisher", "authors"]
    files = ["--weights", tmp_path / "weights.pt", "--output", output]
    command = [*script, *files, "--recipe", canonical(recipe)]
    run = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "800 epochs" in run.stdout
    encoder, card = load_encoder(output, recipe)
    assert torch.equal(encoder.conv1.weight, backbone.conv1.weight)
    assert card["network"] == "online backbone, published (authors)"
    assert card["imported"]["file"] == "weights.pt" and len(card["imported"]["sha256"]) == 64
    assert "linear, 90 epochs" in card["protocol"] and card["recipe"] == recipe
