"""The one error that bad input raises: its text names the argument, the value, what was expected and the remedy. And
the one warning."""


class DeformscopeError(ValueError):
    """Input that deformscope cannot use. The command line prints its text as one line and exits with code 2."""


class DeformscopeWarning(UserWarning):
    """Input of which a part had to be guessed or left out. The command line prints its text as one line."""


class NoDeformableCall(DeformscopeError, LookupError):
    """No deformable convolution was called, or none has the name that was asked for."""
