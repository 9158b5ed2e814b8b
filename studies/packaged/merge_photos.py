"""Make one data set of Pascal VOC's animals and some COCO photos, with a part of the training photos held out.

python studies/packaged/merge_photos.py VOC COCO OUT

VOC and COCO are folders in COCO's layout. OUT gets annotations and links to the photos:

fit        the training photos without the held-out ones: what choices are trained on
fit_voc    the same without COCO's
held       the last 200 of VOC's training photos by id: what choices are measured on
held_coco  the last 60 of COCO's
train      all training photos: what packaged weights are trained on
val        VOC's validation photos

fit_masks, held_masks, train_masks and val_masks are those of them whose objects all have masks.

COCO's objects keep the class where VOC has it; all others are of one more class, `object`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

HELD_OUT, HELD_OUT_COCO = 200, 60
OTHER = "object"
VOC_NAME = {
    "airplane": "aeroplane",
    "motorcycle": "motorbike",
    "dining table": "diningtable",
    "potted plant": "pottedplant",
    "couch": "sofa",
    "tv": "tvmonitor",
}
"""Where COCO says the same in another word."""
Split = tuple[Path, dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("voc", "coco", "out"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    voc, val = read(arguments.voc, "train", "train"), read(arguments.voc, "val", "val")
    coco = read(arguments.coco, "train2017", "train2017")
    masks, val_masks = read(arguments.voc, "train", "train_masks"), read(arguments.voc, "val", "val_masks")
    categories = voc[1]["categories"]
    categories = [*categories, {"id": 1 + max(one["id"] for one in categories), "name": OTHER}]
    held = last(voc, HELD_OUT)
    held_coco = last(coco, HELD_OUT_COCO)
    fit = [(voc, None, held)]
    splits: dict[str, list[tuple[Split, Any, Any]]] = {
        "fit": [*fit, (coco, None, held_coco)],
        "fit_voc": fit,
        "held": [(voc, held, ())],
        "held_masks": [(masks, held, ())],
        "held_coco": [(coco, held_coco, ())],
        "train": [(voc, None, ()), (coco, None, ())],
        "val": [(val, None, ())],
        "fit_masks": [(masks, None, held), (coco, None, held_coco)],
        "train_masks": [(masks, None, ()), (coco, None, ())],
        "val_masks": [(val_masks, None, ())],
    }
    for name, parts in splits.items():
        write(arguments.out, name, parts, categories)


def read(folder: Path, photos: str, split: str) -> Split:
    """Where a split's photos lie, and its annotations."""
    return folder / photos, json.loads((folder / f"annotations/instances_{split}.json").read_bytes())


def last(split: Split, count: int) -> list[int]:
    """The ids of the last photos."""
    return sorted(image["id"] for image in split[1]["images"])[-count:]


def write(out: Path, name: str, parts: list[tuple[Split, Any, Any]], categories: list[dict[str, Any]]) -> None:
    """One split: of each part the photos whose ids are wanted (None: all) and not left out."""
    ids = {category["name"]: category["id"] for category in categories}
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for (photos, content), wanted, without in parts:
        chosen = [i for i in content["images"] if (wanted is None or i["id"] in wanted) and i["id"] not in without]
        own = {category["id"]: category["name"] for category in content["categories"]}
        kept = {image["id"] for image in chosen}
        images += chosen
        for one in content["annotations"]:
            if one["image_id"] in kept:
                label = own[one["category_id"]]
                category = ids.get(VOC_NAME.get(label, label), ids[OTHER])
                objects.append(one | {"id": len(objects) + 1, "category_id": category})
        folder = out / name.removesuffix("_masks")
        folder.mkdir(parents=True, exist_ok=True)
        for image in chosen:
            link = folder / image["file_name"]
            link.unlink(missing_ok=True)
            link.symlink_to((photos / image["file_name"]).resolve())
    path = out / f"annotations/instances_{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))
    print(f"{path}: {len(images)} photos, {len(objects)} objects")


if __name__ == "__main__":
    main()
