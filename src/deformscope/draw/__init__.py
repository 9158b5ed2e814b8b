"""The paper's figures and their parts, as matplotlib figures (Zhang et al., ICPRAM 2021, Fig. 1-3)."""

# First, since it loads matplotlib whatever the value of MPLBACKEND.
from .style import own_settings as own_settings

# isort: split
from .explanation import explanation as explanation, receptive_field as receptive_field
from .figures import (
    figure1 as figure1,
    figure2 as figure2,
    figure3 as figure3,
    growth as growth,
    overview as overview,
    segments as segments,
)
from .flow import flow as flow
from .primitives import (
    arrows as arrows,
    boxes as boxes,
    circles as circles,
    divergence_mask as divergence_mask,
    photo as photo,
    points as points,
)
from .queries import queries as queries, query_sizes as query_sizes
from .sampling_points import sampling as sampling
from .sheet import save as save
