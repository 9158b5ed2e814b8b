"""What made a detection: attribution to the sampling points of its deformable convolutions, and its receptive field."""

from .explain import explain as explain
from .explanation import Attribution as Attribution, Explanation as Explanation
from .receptive_field import ReceptiveField as ReceptiveField
