"""The command line. Each command is a function that passes its options on to the library."""

from . import explain as explain, learn as learn, look as look, measure as measure, models as models, pages as pages
from .app import app as app, main as main
