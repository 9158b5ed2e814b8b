"""Load published weights into a detector's trunk: the packaged detector's, torchvision's, or those of a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ...errors import DeformscopeError
from ..detector import Detector
from . import native, unpickle


def load_trunk(detector: Detector, weights: str | os.PathLike[str]) -> None:
    """Load published weights into the detector's trunk.

    ``weights`` is ``packaged`` (the packaged detector's trunk), ``torchvision`` (its classifier with the same
    architecture, trained on ImageNet, downloaded by torchvision), or a torch or safetensors file with the tensors of a
    classifier. No code in a file is run. Raises DeformscopeError for weights that cannot be read or do not fit.
    """
    text = os.fspath(weights)
    try:
        detector.load_trunk(_published(text, detector))
    except DeformscopeError as error:
        raise DeformscopeError(f"weights={text!r}: {error}") from None


def _published(weights: str, detector: Detector) -> Mapping[str, Tensor]:
    if weights == "packaged":
        trunk = native.packaged().trunk
        assert trunk is not None
        return trunk.state_dict()
    if weights == "torchvision":
        if detector.torchvision_trunk is None:
            raise DeformscopeError(f"torchvision has no such network as the trunk of a {detector.kind} detector")
        from torchvision.models import get_model_weights

        classifier = get_model_weights(detector.torchvision_trunk)
        return classifier.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
    path = Path(weights).expanduser()
    if unpickle.kind(path) == "safetensors":
        return native.read(path)[1]
    content = unpickle.read_torch(path)
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping):
        raise DeformscopeError("no dictionary of tensors in it; expected a classifier's state_dict")
    return {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
