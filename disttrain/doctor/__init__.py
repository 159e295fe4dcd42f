"""``disttrain doctor``: what this machine has of what training and its options need."""
