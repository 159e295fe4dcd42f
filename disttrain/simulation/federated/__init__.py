"""``disttrain federated``: a config's model, trained by clients that own the config's data, in this process."""
