"""What a person at a terminal sees while work is going on."""
