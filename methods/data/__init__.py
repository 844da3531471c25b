"""Pictures: the data sets, the augmentations and the order in which a stage sees them."""
