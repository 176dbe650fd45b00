"""Which model a name means, what it is made of, and whether it fits as teacher or student."""
