"""A corpus of files in, its entities out, in shards: a job that can be stopped at any time and goes on."""
