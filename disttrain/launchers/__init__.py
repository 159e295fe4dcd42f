"""Starting workers by other means than torchrun: MPI, Ray; and what launchers that start workers have in common."""
