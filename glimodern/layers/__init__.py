"""The layers that encoders and heads are made of: packed linear, attention, positions, dropout, chains."""
