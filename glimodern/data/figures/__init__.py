"""Figures of what data hold: `python -m glimodern.data.figures --train SOURCE ... --eval SOURCE ... --output FOLDER`.

`counts` counts lengths of sentences and what of an evaluation set occurs in training, `familiarity` says how near its
labels are to those of training, and `draw` draws the numbers.
"""
