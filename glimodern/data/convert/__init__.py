"""Data of annotation tools and other libraries: `python -m glimodern.data.convert INPUT OUTPUT --to FORMAT`.

`label_studio`, `doccano`, `prodigy` and `docbin` each read and write one format. A row becomes a row of the format
"spans" (see `glimodern.data.formats`), which the training reader then checks as its own. `write` writes examples.
"""
