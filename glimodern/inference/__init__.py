"""From what users ask to what they get: requests, batches of a stream, decoding, entities with offsets."""
