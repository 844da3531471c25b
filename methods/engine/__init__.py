"""How every stage trains: the loop, the optimisers, the ranks and the checkpoints."""
