"""What checks the signatures while tests run: beartype, to which an int will do for a float, as to Python."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
