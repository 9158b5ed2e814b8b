"""One photo's record: what is measured of each field, of each null, against the annotations."""
