"""What the tests share. Shapes in signatures are checked while they run."""

import os
import sys
from pathlib import Path

from jaxtyping import install_import_hook

with install_import_hook("deformscope", "typechecker.check"):
    import deformscope
    import deformscope.analysis
    import deformscope.attribution.explain
    import deformscope.draw
    import deformscope.fields.stack

import hypothesis
import matplotlib
import pytest
import torch

matplotlib.use("Agg")
# Machines may be busy: no example is too slow.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")

MOST_MEMORY = 8 << 30
"""Bytes that a test process may allocate: beyond, a test fails with MemoryError instead of being killed."""
if sys.platform == "linux" and not torch.cuda.is_available():
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY and soft == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, hard))


@pytest.fixture(scope="session")
def oracles() -> dict:
    """Recorded numbers of real MMDetection runs of two thin detectors, and these detectors."""
    import recordings

    return {name: recordings.Recording.read(name) for name in recordings.FILES}


@pytest.fixture(scope="session")
def shared() -> Path:
    """A folder with annotated photos and trained attention; tests that need it skip where it is absent."""
    root = Path(os.environ.get("DEFORMSCOPE_SHARED", Path(__file__).parents[2] / "shared"))
    if not (root / "FACTS.md").exists():
        pytest.skip(f"needs the shared data: no {root.name}/ beside the checkout, and DEFORMSCOPE_SHARED is not set")
    return root


@pytest.fixture(scope="session")
def cat() -> Path:
    """A public-domain photo, 451 × 300 px."""
    import skimage.data

    return Path(skimage.data.__file__).parent / "chelsea.png"


@pytest.fixture
def generator() -> torch.Generator:
    """Fresh random numbers, the same in every run."""
    return torch.Generator().manual_seed(20210204)


@pytest.fixture
def make_field():
    """A random field: unequal sizes everywhere, so that any swap of y and x or h and w shows."""

    def make(n=1, g=2, kernel=(3, 2), h=7, w=10, seed=0, **geometry):
        random = torch.Generator().manual_seed(seed)
        points = kernel[0] * kernel[1]
        offset = torch.randn(n, 2 * g * points, h, w, generator=random)
        settings = {
            "kernel_size": kernel,
            "stride": (2, 1),
            "padding": (1, 2),
            "dilation": (1, 2),
            "reduction": (8.0, 4.0),
        }
        return deformscope.OffsetField.from_tensor(offset, offset_groups=g, name="layer", **settings | geometry)

    return make


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line in this process: exit code, stdout, stderr."""
    from deformscope import cli

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["deformscope", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        printed = capsys.readouterr()
        return left.value.code, printed.out, printed.err

    return call
