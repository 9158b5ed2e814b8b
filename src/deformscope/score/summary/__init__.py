"""All photos' records as figures with intervals, set against their nulls, and as tables."""
