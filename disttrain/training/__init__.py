"""The training of one run: its state, its loop, and what its workers agree on."""
