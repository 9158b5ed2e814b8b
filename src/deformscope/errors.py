"""The errors and the warning of deformscope. A message names the argument, the value, what was expected and the
remedy."""


class DeformscopeError(ValueError):
    """Invalid input. The command line prints the message as one line and exits with code 2."""


class DeformscopeWarning(UserWarning):
    """Input of which a part was guessed or left out. The command line prints the message as one line."""


class NoDeformableCall(DeformscopeError, LookupError):
    """No deformable convolution was called, or none has the requested name."""
