"""Layers of encoders and heads: packed linear layers, attention, rotary and relative positions, dropout, chains."""
