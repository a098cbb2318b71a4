"""Files: written whole or not at all, fetched from the hub, tensors and tokenizers read from them."""
