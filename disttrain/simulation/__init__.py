"""Many workers in one process, as rows of tensors: the same strategies, the same data, the same bits."""
