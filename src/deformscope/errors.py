"""The errors and the warning of deformscope, and a way to ignore warnings of other libraries.

A message names the argument, the value, what was expected and the remedy.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class DeformscopeError(ValueError):
    """Invalid input. The command line prints the message as one line and exits with code 2.

    Example:
        >>> ds.load("truk")
        Traceback (most recent call last):
        deformscope.errors.DeformscopeError: detector='truk': no such file and no known name; nearest names: trunk
    """


class DeformscopeWarning(UserWarning):
    """Input of which a part was guessed or left out. The command line prints the message as one line."""


@contextmanager
def warnings_ignored() -> Iterator[None]:
    """Ignore all warnings inside the block if it runs in the main thread; in other threads they are shown as usual.

    Warning filters belong to the process. If two threads change and restore them at the same time, what one has set can
    outlast its block: warnings stay ignored, or are recorded in a list that nobody reads.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class NoDeformableCall(DeformscopeError, LookupError):
    """No deformable convolution was called, or none has the requested name.

    Example:
        >>> with ds.capture(torch.nn.Conv2d(3, 3, 3)) as fields:
        ...     pass
        Traceback (most recent call last):
        deformscope.errors.NoDeformableCall: Conv2d: no deformable convolution was called inside the block, and the ...
    """
