"""The README.md of a published encoder: a model hub's metadata, and what strangers ask of weights. Imports no torch."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from selfsup.layout import EncoderPaths
from selfsup.tables.figure_keys import method_in_words

WEIGHTS, CARD = "model.safetensors", "model.json"  # as hubs and timm call the first; the second is the encoder's card
HUB_DATASETS = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100", "imagenet": "ILSVRC/imagenet-1k"}
OF_THIS_PACKAGE = """import json, sys
from pathlib import Path
sys.path.insert(0, "workflow/scripts")  # of the workflow that has trained it
from selfsup.evaluation.encoder import load_encoder
network, card = load_encoder(Path("model.safetensors"), json.loads(Path("model.json").read_text())["recipe"])"""
OF_TIMM = """
# or by timm, which knows how it is fed: timm.data.resolve_model_data_config(network)
import timm
network = timm.create_model("local-dir:.", pretrained=True)  # from a hub: hf-hub:NAME/MODEL"""


def model_card(
    card: Mapping[str, Any],
    *,
    name: str,
    source: str,
    license_name: str,
    verdict: str,
    audits: Sequence[str],
    library: str,
    pictures: Sequence[str],
) -> str:
    """Return the README.

    card: of the encoder. name: what it is called. source: of the dataset that it was trained on. verdict: of the linear
    accuracy, beside the published one. audits: what each has found, in words. library: that can load it, timm or
    torchvision. pictures: files beside it.
    """
    head = yaml.safe_dump(metadata(card, name, source, license_name, library), sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n" + "\n".join(_body(card, name, source, verdict, audits, library, pictures)) + "\n"


def metadata(card: Mapping[str, Any], name: str, source: str, license_name: str, library: str) -> dict[str, Any]:
    """Return what a hub reads: https://huggingface.co/docs/hub/model-cards, with the accuracies as its model-index."""
    recipe, dataset = card["recipe"], HUB_DATASETS.get(source, source)
    results = [
        {
            "task": {"type": "image-classification", "name": f"{evaluation}: {one['protocol']}"},
            "dataset": {"type": dataset, "name": source},
            "metrics": [{"type": "accuracy", "value": round(one["top1"], 2), "name": "top-1 on the test images, %"}],
        }
        for evaluation, one in card.get("evaluations", {}).items()
        if one["dataset_fingerprint"] == card["training"]["dataset_fingerprint"] and "top1" in one
    ]
    return {
        "license": license_name,
        "library_name": library,
        "pipeline_tag": "image-feature-extraction",
        "datasets": [dataset],
        "metrics": ["accuracy"],
        "tags": [
            "self-supervised-learning",
            method_in_words(recipe),
            recipe["model"]["backbone"].removeprefix("timm/"),
        ],
        "model-index": [{"name": name, "results": results}],
    }


def _body(
    card: Mapping,
    name: str,
    source: str,
    verdict: str,
    audits: Sequence[str],
    library: str,
    pictures: Sequence[str],
) -> Iterator[str]:
    recipe, training = card["recipe"], card["training"]
    method, backbone = method_in_words(recipe), recipe["model"]["backbone"].removeprefix("timm/")
    yield f"# {name}\n"
    yield f"A {backbone} that was pretrained on {source} by {method}, without labels. It gives features, not classes.\n"
    yield "| evaluation | top-1 (%) | top-5 (%) | test images | protocol |\n| --- | ---: | ---: | ---: | --- |"
    for evaluation, one in card.get("evaluations", {}).items():
        figures = " | ".join(f"{one[key]:.2f}" if key in one else "" for key in ("top1", "top5"))
        yield f"| {evaluation} | {figures} | {one['n_test']} | {one['protocol']} |"
    yield f"\nVerdict on the linear accuracy beside the published one: {verdict}.\n"
    yield "## How to load it\n\n```python"
    yield from loading_lines(card)
    if library == "timm":
        yield OF_TIMM
    yield "```\n\n## How it was made\n\n| | |\n| --- | --- |"
    ledger = training["ledger"]
    told = {
        "epochs, batch": f"{training['epoch']:g}, {recipe['global_batch']}",
        "GPU-hours": f"{ledger['gpu_hours']:.4g} ({ledger['device_hours']:.4g} hours of all devices)",
        "jobs": f"{ledger['attempts']}, of which {ledger['killed']} were killed",
        "computed with": ", ".join(f"{key} {value}" for key, value in training["numerics"].items()),
        "code": card["code_revision"],
        "recipe's fingerprint": f"`{training['fingerprint']}`",
        "dataset's fingerprint": f"`{training['dataset_fingerprint']}`",
        f"SHA-256 of `{WEIGHTS}`": f"`{card['encoder_sha256']}`",
    }
    yield from (f"| {key} | {value} |" for key, value in told.items())
    if audits:
        yield "\nAudits, which train a segment again from the boundary before it and compare the bits:\n"
        yield from (f"- {one}" for one in audits)
    yield "\n`model.json` has all of the recipe, each job, and the versions of all software."
    yield from (f"\n![{picture.removesuffix('.png')}]({picture})" for picture in pictures)


def loading_lines(card: Mapping[str, Any]) -> list[str]:
    """Return the lines of Python that the encoder's card has for its file, under the name that it has here."""
    lines = card.get("timm") or card.get("torchvision") or []
    if all(line.startswith("#") for line in lines):
        return [*lines[:1], *OF_THIS_PACKAGE.splitlines()]
    return [line.replace(EncoderPaths(Path()).weights.name, WEIGHTS) for line in lines]
