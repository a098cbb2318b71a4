"""An HTTP server of models: `python -m glimodern.serve MODEL`.

`body` reads and checks requests, `service` holds the models and one engine, `app` routes, `access` authorises, logs and
counts, `connections` limits connections, `page` is the page at `/`.
"""
