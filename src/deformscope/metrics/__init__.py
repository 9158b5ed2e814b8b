"""Numbers that know nothing of offsets: average precision, matching, bootstrap intervals, evaluating a detector."""
