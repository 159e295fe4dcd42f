"""Real workers over a network that does not exist: namespaces of this machine, joined by links of a given bandwidth."""
