"""Pictures and captions on their way to a model: pixel ranges, batches, folders."""
