"""Pictures of what an encoder finds alike: sheets of nearest neighbours, and a map of all pictures. Imports no torch.

features: float32 [N, D], one row a picture. thumbnails: uint8 [N, side, side, 3].
"""

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

QUERIES, NEIGHBOURS = 8, 9
ON_THE_MAP = 2000  # pictures: more cannot be told apart, and t-SNE takes seconds for each thousand
MAP_PIXELS, THUMBNAIL_PIXELS = 1400, 32
PERPLEXITY = 30.0


def normalised(features: np.ndarray) -> np.ndarray:
    """Return the rows scaled to length 1; rows of zeros stay."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(lengths > 0, lengths, 1)


def spread_out(features: np.ndarray, count: int) -> np.ndarray:
    """Return the places of `count` pictures that are unlike each other: each the farthest from those before it.

    The first is the one farthest from the mean. int64 [count], or all there are.
    """
    directions = normalised(features)
    distance = 1 - directions @ normalised(directions.mean(axis=0, keepdims=True))[0]
    chosen: list[int] = []
    for _ in range(min(count, len(features))):
        chosen.append(int(distance.argmax()))
        from_this = 1 - directions @ directions[chosen[-1]]
        distance = np.minimum(distance, from_this) if len(chosen) > 1 else from_this
        distance[chosen] = -np.inf
    return np.array(chosen, np.int64)


def nearest(features: np.ndarray, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of each query's nearest other pictures, and their cosines: [Q, count], the nearest first."""
    directions = normalised(features)
    cosines = directions[queries] @ directions.T
    cosines[np.arange(len(queries)), queries] = -np.inf  # a picture is no neighbour of its own
    count = min(count, len(features) - 1)
    places = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return places, np.take_along_axis(cosines, places, axis=1)


def neighbour_sheet(features: np.ndarray, thumbnails: np.ndarray, title: str) -> Figure:
    """Return a row for each of some pictures: itself, then the pictures nearest to it with their cosines."""
    queries = spread_out(features, QUERIES)
    places, cosines = nearest(features, queries, NEIGHBOURS)
    columns = 1 + places.shape[1]
    figure = Figure(figsize=(1.1 * columns, 1.25 * len(queries) + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(len(queries), columns, squeeze=False)
    for row, query in enumerate(queries):
        _show(axes[row, 0], thumbnails[query], "asked for" if row == 0 else "")
        for column, (place, cosine) in enumerate(zip(places[row], cosines[row], strict=True), 1):
            _show(axes[row, column], thumbnails[place], f"{cosine:.2f}")
    return figure


def _show(axis, picture: np.ndarray, title: str) -> None:
    axis.imshow(picture, interpolation="nearest")
    axis.set_title(title, fontsize=7, pad=2)
    axis.axis("off")


def positions(features: np.ndarray) -> np.ndarray:
    """Return a place in the plane for each picture, float64 [N, 2], both from 0 to 1: t-SNE (van der Maaten & Hinton
    2008) of the directions, from their principal components; of a few pictures these alone. The same each time."""
    directions = normalised(features.astype(np.float64))
    if len(directions) < 4:
        found = np.arange(len(directions), dtype=np.float64)[:, None] * np.ones(2)
    elif len(directions) < 4 * PERPLEXITY:
        found = PCA(2, random_state=0).fit_transform(directions)
    else:
        few = PCA(min(50, *directions.shape), random_state=0).fit_transform(directions)
        found = TSNE(2, perplexity=PERPLEXITY, init="pca", random_state=0).fit_transform(few)
    low, high = found.min(axis=0), found.max(axis=0)
    scaled = (found - low) / np.where(high > low, high - low, 1)
    ranks = found.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable") / max(len(found) - 1, 1)
    return (scaled + ranks) / 2  # halfway to places evenly filled: groups far apart would leave most of the map empty


def map_picture(places: np.ndarray, thumbnails: np.ndarray) -> Image.Image:
    """Return the map: each picture's thumbnail at its place, on white."""
    canvas = Image.new("RGB", (MAP_PIXELS, MAP_PIXELS), "white")
    for corner, thumbnail in zip(_corners(places), thumbnails, strict=True):
        canvas.paste(_small(thumbnail), (int(corner[0]), int(corner[1])))
    return canvas


def map_page(places: np.ndarray, thumbnails: np.ndarray, names: Sequence[str], title: str) -> str:
    """Return the map as a page of HTML that shows in any browser without a network; a picture's name is shown on it."""
    images = []
    for corner, thumbnail, name in zip(_corners(places), thumbnails, names, strict=True):
        content = io.BytesIO()
        _small(thumbnail).save(content, format="PNG")
        data = base64.b64encode(content.getvalue()).decode()
        images.append(
            f'<image x="{corner[0]:.0f}" y="{corner[1]:.0f}" width="{THUMBNAIL_PIXELS}" height="{THUMBNAIL_PIXELS}" '
            f'href="data:image/png;base64,{data}"><title>{html.escape(name)}</title></image>'
        )
    head = f'<head><meta charset="utf-8"><title>{html.escape(title)}</title></head>'
    text = f"<p>{html.escape(title)}. Hold the pointer over a picture to see its name.</p>"
    box = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {MAP_PIXELS} {MAP_PIXELS}" width="100%">'
    body = f'<body style="font: 15px system-ui, sans-serif">{text}{box}{"".join(images)}</svg></body>'
    return f"<!DOCTYPE html>\n<html>{head}{body}</html>\n"


def _corners(places: np.ndarray) -> np.ndarray:
    return np.rint(places * (MAP_PIXELS - THUMBNAIL_PIXELS))


def _small(thumbnail: np.ndarray) -> Image.Image:
    return Image.fromarray(thumbnail).resize((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.BILINEAR)
