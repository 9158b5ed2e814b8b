"""The paper's claims, measured: metrics, nulls, intervals, and a run over an annotated folder."""

from .run_folder import read_scores as read_scores
from .runner import Progress as Progress, Settings as Settings, score as score
from .summary.scores import Scores as Scores
