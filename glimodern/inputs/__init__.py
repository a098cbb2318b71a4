"""What a network reads: words, prompts and labels as packed batches."""
