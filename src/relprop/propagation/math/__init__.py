"""Pure functions of tensors: linear maps, patches, numerics."""
