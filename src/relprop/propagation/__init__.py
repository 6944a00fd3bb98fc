"""How coefficients flow: the function mode, the module hooks, the autograd functions and what they remember."""
