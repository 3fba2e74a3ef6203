"""From files to packed batches: values and pure functions, free of torch up to ``pack``."""
