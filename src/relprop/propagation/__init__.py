"""How relevance passes through a model, in four rooms: run, call, facts, math; each imports what stands after it."""
