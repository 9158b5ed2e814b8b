"""What tests of reading share: the folder's boxes, and reading that must be refused."""

import pytest

from deformscope.datasets.coco import read_coco
from deformscope.errors import DeformscopeError

BOXES = [(10.0, 12.0, 40.0, 32.0), (40.0, 5.0, 65.0, 38.0)]


def refused(data, *words, **settings):
    with pytest.raises(DeformscopeError) as raised:
        read_coco(data, **settings)
    message = str(raised.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message
