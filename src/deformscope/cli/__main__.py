"""``python -m deformscope.cli``."""

from . import main

main()
