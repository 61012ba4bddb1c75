"""Per-sample gradients in batches: inner products, norms and features, without a backward pass per sample."""
