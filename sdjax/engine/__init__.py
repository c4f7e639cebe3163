"""Jobs to images: the planner, batches, compiled programs, and the engine on devices."""
