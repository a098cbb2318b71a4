"""Network inputs: words, prompts and labels as packed batches."""
