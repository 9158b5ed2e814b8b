"""The paper's claims, measured: metrics, nulls, intervals, and a run over an annotated folder."""

from .dataset import Progress as Progress, Settings as Settings, score as score
from .summary import Scores as Scores
