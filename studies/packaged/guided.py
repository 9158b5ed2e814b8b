"""Make the packaged detector `guided` of two trainings: its boxes, and masks that were learned on top of them.

    deformscope train guided data.folder=PHOTOS --out BOXES
    deformscope train guided_masks network.start=BOXES/detector.safetensors data.folder=VOC --out MASKS
    python studies/packaged/guided.py BOXES MASKS

The masks' training knows the classes of its photos alone, so that the classes are those of BOXES. The file lacks what
`packaged` has too (the trunk); `deformscope.load("guided")` takes it from there.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import deformscope
from deformscope.detectors.checkpoints.native import REST

WEIGHTS = Path(deformscope.__file__).parent / "weights"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("boxes", type=Path, help="folder of the run of recipe guided")
    parser.add_argument("masks", type=Path, help="folder of the run of recipe guided_masks")
    chosen = parser.parse_args()
    (boxes, own), (masks, others) = (_file(run / "detector.safetensors") for run in (chosen.boxes, chosen.masks))
    _, packaged = _file(WEIGHTS / "packaged.safetensors")
    free = (".cls.", ".log_scale")  # the latter was not frozen when the weights were made, and moved by .003
    moved = [
        key for key, value in own.items() if not any(f in key for f in free) and not torch.equal(value, others[key])
    ]
    if moved:
        parser.error(f"{chosen.masks}: {len(moved)} tensors differ from {chosen.boxes}'s, {moved[0]} for example")
    config = json.loads(boxes["config"])
    config |= {key: value for key, value in json.loads(masks["config"]).items() if key.startswith("mask_")}
    whole = {**others, **own}
    kept = {key: value for key, value in whole.items() if key not in packaged or not torch.equal(value, packaged[key])}
    metadata = {"architecture": boxes["architecture"], "config": json.dumps(config), REST: "packaged"}
    save_file(kept, WEIGHTS / "guided.safetensors", metadata)
    (WEIGHTS / "guided.safetensors").chmod(0o644)  # safetensors writes for the owner alone
    detector = deformscope.load("guided")
    print(f"guided.safetensors: {len(kept)} of {len(whole)} tensors, sha256 {detector.weights_sha256}")


def _file(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)


if __name__ == "__main__":
    main()
