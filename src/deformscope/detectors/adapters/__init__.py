"""Networks of other libraries, and of users, as detectors."""
