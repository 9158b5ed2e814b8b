"""All photos' records as metrics with intervals, set against their nulls, and as tables."""
