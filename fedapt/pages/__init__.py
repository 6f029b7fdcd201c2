"""Pages and plots: what people look at when a job is done."""
