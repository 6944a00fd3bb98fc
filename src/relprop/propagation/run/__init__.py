"""What meets the model: the function mode, module hooks, the forward pass, writes."""
