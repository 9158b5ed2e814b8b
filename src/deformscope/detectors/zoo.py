"""Load detectors by name or file: the packaged one, published ones, your own checkpoints, and other networks."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DeformscopeError
from .checkpoints import load_file
from .detector import Detector, TrainableDetector
from .download import cache_folder, fetch
from .options import OffsetMode, Weights

PACKAGED = ("packaged", "guided", "trunk")
"""Detectors that come with the package: with deformable heads, with boxes decoded from their offsets and with masks,
and with a deformable trunk."""
MMDETECTION_FILES = "https://download.openmmlab.com/mmdetection/v2.0/"
HUGGING_FACE, FACTORY = "hf:", "python:"
"""Beginnings of what names a model of transformers, and a user's own."""
DETECTRON2_FILES = "https://dl.fbaipublicfiles.com/detectron2/Misc/"


@dataclass(frozen=True)
class Published:
    """A public checkpoint of a detector with deformable convolutions, trained on COCO 2017."""

    name: str
    source: str
    url: str
    megabytes: int
    """Size of its weights in 10⁶ bytes; the file is a little larger."""
    box_ap: float
    mask_ap: float | None = None
    """As published, on COCO val2017."""
    sha256: str | None = None
    """First digits of the SHA-256. The hash in Detectron2's file names is another one; those files are checked by
    length."""

    @property
    def path(self) -> Path:
        """The place of the downloaded file, where it can also be put by hand."""
        return cache_folder() / self.name.split("/")[0] / self.url.rsplit("/", 1)[1]


def _mmdet(
    name: str, stamp: str, megabytes: int, box_ap: float, mask_ap: float | None = None, folder: str = "dcn"
) -> Published:
    file = f"{folder}/{name}_1x_coco/{name}_1x_coco_{stamp}.pth"
    sha256 = stamp.rpartition("-")[2]
    return Published(f"mmdet/{name}", "MMDetection", MMDETECTION_FILES + file, megabytes, box_ap, mask_ap, sha256)


def _detectron2(name: str, path: str, megabytes: int, box_ap: float, mask_ap: float) -> Published:
    return Published("detectron2/" + name, "Detectron2", f"{DETECTRON2_FILES}{name}/{path}", megabytes, box_ap, mask_ap)


PUBLISHED = (
    _mmdet("faster_rcnn_r50_fpn_dconv_c3-c5", "20200130-d68aed1e", 170, 41.3),
    _mmdet("mask_rcnn_r50_fpn_dconv_c3-c5", "20200203-4d9ad43b", 180, 41.8, 37.4),
    _mmdet("faster_rcnn_r50_fpn_mdconv_c3-c5", "20200130-d099253b", 171, 41.4),
    _mmdet("faster_rcnn_r50_fpn_mdconv_c3-c5_group4", "20200130-01262257", 181, 41.5),
    _mmdet("mask_rcnn_r50_fpn_mdconv_c3-c5", "20200203-ad97591f", 181, 41.5, 37.1),
    _mmdet("mask_rcnn_r50_fpn_fp16_dconv_c3-c5", "20210520_180247-c06429d2", 180, 41.9, 37.5, folder="fp16"),
    _detectron2("mask_rcnn_R_50_FPN_3x_dconv_c3-c5", "144998336/model_final_821d0b.pkl", 180, 42.7, 38.5),
    _detectron2("mask_rcnn_R_50_FPN_1x_dconv_c3-c5", "138602867/model_final_65c703.pkl", 180, 41.5, 37.5),
)


def load(
    detector: str | os.PathLike[str],
    *,
    weights: Weights = "plain",
    offset_mode: OffsetMode | None = None,
    shorter_side: int | None = None,
    longer_side: int | None = None,
    fit: str | None = None,
) -> Detector:
    """Load a detector, in eval mode on the CPU, by name or from a checkpoint file.

    ``detector`` is one of :data:`PACKAGED`, a published name (:data:`PUBLISHED`; downloaded once to
    :func:`.download.cache_folder`), or a file of MMDetection (``.pth``), Detectron2 (``.pkl``, ``.pth``) or deformscope
    (``.safetensors``), from which the architecture is read. No code in a file is run. ``hf:FOLDER`` or ``hf:NAME`` is
    an object detector of transformers with its image processor (extra ``transformers``), and
    ``python:package.module:factory`` what a function of yours returns, whose code is run. If a file also holds averaged
    weights (buffers ``ema_…``, the teacher of a student), ``weights`` selects ``plain`` or ``ema``. ``offset_mode``
    sets the part of the offsets that all deformable convolutions use. ``shorter_side`` and ``longer_side`` set the size
    to which photos are resized, px, instead of that of the file. ``fit`` says how a detector of yours makes its input
    of a photo, as in :func:`adapt`.

    Raises DeformscopeError for an unknown name, with similar ones, and for a file that cannot be used.

    Example:
        >>> detector = ds.load("packaged")
        >>> boxes = detector("photo.jpg")[0]["boxes"]           # [d 4] xyxy, photo px
        >>> mmdet = ds.load("faster_rcnn_r50_fpn_dconv_c3-c5_1x_coco.pth", shorter_side=320, longer_side=512)
    """
    loaded = _load(detector, weights)
    if offset_mode is not None:
        from .deform import set_offset_mode

        set_offset_mode(loaded, offset_mode)
    if shorter_side is not None or longer_side is not None:
        if not isinstance(loaded, TrainableDetector):
            raise DeformscopeError(
                f"shorter_side={shorter_side}, longer_side={longer_side}: {loaded.name} chooses the size of its photos "
                "itself; leave them out"
            )
        loaded.resize_to(shorter_side, longer_side)
    if fit is not None:
        from .adapted import AdaptedDetector

        if not os.fspath(detector).startswith(FACTORY) or not isinstance(loaded, AdaptedDetector):
            raise DeformscopeError(f"fit={fit!r}: how {loaded.name} places photos in its input is known; leave it out")
        loaded.fit = fit
    return loaded


def _load(detector: str | os.PathLike[str], weights: Weights) -> Detector:
    known = {published.name: published for published in PUBLISHED}
    text = os.fspath(detector)
    if text.startswith((HUGGING_FACE, FACTORY)):
        return _load_other(text, weights)
    if text in PACKAGED:
        if weights != "plain":
            raise DeformscopeError(f"weights={weights!r}: the {text} detector has one set of weights; leave it out")
        from .checkpoints import native

        return native.packaged(text)
    if text in known:
        published = known[text]
        return load_file(fetch(published.url, published.path, published.sha256), published.name, weights)
    path = Path(text).expanduser()
    if path.exists():
        return load_file(path, path.stem, weights)
    near = difflib.get_close_matches(text, [*PACKAGED, *known], n=3, cutoff=0.3)
    hint = f"nearest names: {', '.join(near)}" if near else "`deformscope detectors` lists the names"
    raise DeformscopeError(f"detector={text!r}: no such file and no known name; {hint}")


def _load_other(text: str, weights: Weights) -> Detector:
    if weights != "plain":
        raise DeformscopeError(f"weights={weights!r}: only files have an average of weights; leave it out")
    from . import adapted, huggingface

    kind, _, source = text.partition(":")
    return huggingface.load(source) if f"{kind}:" == HUGGING_FACE else adapted.load_factory(source)


COLUMNS = ("name", "source", "box AP", "mask AP", "size", "cached")


def rows(published: Sequence[Published] = PUBLISHED) -> list[tuple[str, ...]]:
    """Rows of a table of the published detectors, under :data:`COLUMNS`; AP as published, on COCO val2017."""
    table: list[tuple[str, ...]] = []
    for one in published:
        cached = one.path.is_file()
        size = f"{one.path.stat().st_size / 1e6:.0f} MB" if cached else f"≈{one.megabytes} MB"
        mask = "" if one.mask_ap is None else f"{one.mask_ap:.1f}"
        table.append((one.name, one.source, f"{one.box_ap:.1f}", mask, size, "yes" if cached else "no"))
    return table
